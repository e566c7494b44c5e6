"""The figures of the notebooks: one palette, one layout, one line a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.patches import Patch
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage
from torch import Tensor

from affinity_lib.affinity import PairLabels
from affinity_lib.evaluation import VOID

SCORES = "cividis"  # readable with any colour vision and in grey
NEUTRAL = (0.80, 0.80, 0.80)
PAIRS = ListedColormap(["#d9d9d9", "#999999", "#0072b2", "#e69f00"])  # of no class in grey
CLASSES = (
    "#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7",  # Okabe and Ito's
    "#0000ff", "#99ffaa", "#662200", "#3322aa", "#6677ff", "#552255", "#77ffff",
    "#55bb66", "#99ddbb", "#ccee77", "#662233", "#551177", "#886633",
)  # fmt: skip
PAIR_NAMES = ("left out", "background pair", "foreground pair", "negative pair")
_READABLE = 320  # pixels that a picture needs to be written in
plt.rcParams.update({"figure.dpi": 80, "savefig.dpi": 80, "font.size": 10})


def show(
    rows: Sequence[Sequence],
    titles: Sequence[str] = (),
    names: Sequence[str] = (),
    row_titles: Sequence[str] = (),
    size: float = 1.75,
) -> Figure:
    """A grid of pictures, each drawn as what it is.

    Args:
        rows: lists of panels: (H, W, 3) uint8 is a photograph, (H, W) integers are labels, drawn
            over the photograph of that size in their row or column if there is one, (H, W) floats
            are scores in [0, 1], None stays empty.
        titles: of the columns.
        names: class names 1..C; those that occur are listed below the grid.
        row_titles: of the rows, at the left.
        size: of a panel in inches.
    """
    _find_letters("".join([*titles, *names, *row_titles]))
    columns = max(len(row) for row in rows)
    legend = 0.35 if names else 0.0
    shape = (size * columns, size * len(rows) + 0.3 + legend)
    figure, axes = plt.subplots(
        len(rows), columns, figsize=shape, squeeze=False, layout="constrained"
    )
    seen: set[int] = set()
    for r, row in enumerate(rows):
        for c in range(columns):
            axis = axes[r][c]
            axis.set(xticks=[], yticks=[])
            axis.set_frame_on(False)
            panel = row[c] if c < len(row) else None
            if panel is not None:
                near = [*row, *(other[c] for other in rows if c < len(other))]
                seen |= _draw(axis, np.asarray(panel), near, names)
            if r == 0 and c < len(titles):
                axis.set_title(titles[c], fontsize=10, parse_math=False)
            if c == 0 and r < len(row_titles):
                axis.set_ylabel(row_titles[r], fontsize=10, parse_math=False)
    if names:
        _legend(figure, seen, names)
    plt.show()
    return figure


def colorize(labels: np.ndarray, colors: np.ndarray) -> np.ndarray:
    """Label map (H, W) as RGB (H, W, 3) uint8; void and neutral pixels are light grey.

    >>> colors = np.array([[0, 0, 0], [128, 0, 0]], np.uint8)
    >>> colorize(np.array([[1, 255]]), colors).tolist()
    [[[128, 0, 0], [204, 204, 204]]]
    """
    table = np.full((256, 3), np.round(np.array(NEUTRAL) * 255), np.uint8)
    table[: len(colors)] = colors
    return table[labels.astype(np.uint8)]


def overlay(image: np.ndarray, scores: np.ndarray, strength: float = 0.65) -> np.ndarray:
    """Scores (H, W) in [0, 1] laid over an image (H, W, 3) uint8."""
    heat = plt.get_cmap(SCORES)(np.clip(np.asarray(scores), 0, 1))[..., :3] * 255
    return np.round(image * (1 - strength) + heat * strength).astype(np.uint8)


def class_colors(count: int) -> np.ndarray:
    """Colours of background and classes 1..count that stay apart for colour-blind eyes.

    Okabe and Ito's seven, then one after the other what is furthest from those before it, to
    usual, deuteranopic and protanopic eyes; beyond 20 they repeat.

    Returns:
        (1 + count, 3) uint8; the background is grey.
    """
    table = np.array([to_rgb(color) for color in CLASSES]) * 255
    table = np.tile(table, (count // len(table) + 1, 1))[:count]
    return np.round(np.concatenate([[[110, 110, 110]], table])).astype(np.uint8)


def labelled(
    image: np.ndarray, labels: np.ndarray, names: Sequence[str], text: float = 1 / 32
) -> np.ndarray:
    """Labels over a dimmed photograph, with a light contour and the name in the largest area.

    Args:
        image: (H, W, 3) uint8.
        labels: (H, W), 0..C; others, such as void and neutral, are bright.
        names: of the classes 1..C.
        text: height of the letters as a part of the longer side.

    Returns:
        (H, W, 3) uint8, or a whole multiple of that size where the photograph is too small to
        write in.

    >>> labelled(np.zeros((30, 40, 3), np.uint8), np.ones((30, 40), np.uint8), ["cat"]).shape
    (240, 320, 3)
    """
    factor = -(-_READABLE // max(labels.shape))
    if factor > 1:
        size = (factor * labels.shape[1], factor * labels.shape[0])
        image = np.array(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
        labels = labels.repeat(factor, 0).repeat(factor, 1)
    colors = class_colors(len(names))
    known = (labels > 0) & (labels <= len(names))
    gray = Image.fromarray(image).convert("L").convert("RGB")
    dim = Image.blend(gray, Image.new("RGB", gray.size, "gray"), 0.45)
    bright = Image.blend(gray, Image.new("RGB", gray.size, "white"), 0.7)
    dim.paste(bright, mask=Image.fromarray(labels > len(names)))
    flat = Image.fromarray(colors[np.where(known, labels, 0)])
    picture = Image.composite(Image.blend(gray, flat, 0.65), dim, Image.fromarray(known))
    width = max(max(labels.shape) // 400, 1)
    picture.paste("white", mask=Image.fromarray(_edges(labels, width)))
    draw, font = ImageDraw.Draw(picture), _font(picture.size, "".join(names), text)
    for number in np.unique(labels[known]):
        (x, y), radius = _inside(labels == number)
        name = names[number - 1]
        half = draw.textlength(name, font) / 2
        if radius < 0.6 * font.size:  # the legend names it
            continue
        x = min(max(x, half + 2), picture.width - half - 2)
        draw.text(
            (x, y), name, "white", font, "mm", stroke_width=font.size // 8, stroke_fill="black"
        )
    return np.array(picture)


def with_legend(picture: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """A picture from :func:`labelled` with the names of the classes in it on a white strip below.

    Args:
        picture: (H, W, 3) uint8.
        labels: 0..C, of any shape.
        names: of the classes 1..C.

    Returns:
        (H + h, W, 3) uint8, or wider where a name needs it.
    """
    colors, font = class_colors(len(names)), _font(picture.shape[1::-1], "".join(names))
    present = [k for k in np.unique(labels) if 0 < k <= len(names)]
    entries = [(names[k - 1], colors[k]) for k in present] or [("no class found", None)]
    line = round(1.6 * font.size)
    places, x, y = [], 0, 0
    for name, color in entries:
        box = 0 if color is None else round(1.3 * font.size)
        width = box + int(font.getlength(name)) + font.size
        if x and x + width > picture.shape[1] - font.size:
            x, y = 0, y + line
        places.append((x + font.size // 2, y, box, name, color))
        x += width
    height, width = picture.shape[:2]
    wide = max(x + box + int(font.getlength(name)) for x, _, box, name, _ in places)
    size = (max(width, wide + font.size // 2), height + y + line + font.size // 2)
    page = Image.new("RGB", size, "white")
    page.paste(Image.fromarray(picture), ((page.width - width) // 2, 0))
    draw = ImageDraw.Draw(page)
    for x, y, box, name, color in places:
        middle = height + y + font.size // 4 + line // 2
        if color is not None:
            side = font.size // 2
            swatch = (x, middle - side, x + 2 * side, middle + side)
            draw.rectangle(swatch, tuple(color), outline="black")
        draw.text((x + box, middle), name, "black", font, "lm")
    return np.array(page)


def curve(history: Sequence[float], title: str) -> Figure:
    """Loss against epochs."""
    figure, axis = plt.subplots(figsize=(5, 2.6), layout="constrained")
    axis.plot(range(1, len(history) + 1), history, color="#0072b2", marker="o", markersize=3)
    axis.set(xlabel="epoch", ylabel="loss", title=title, ylim=(0, None))
    axis.grid(alpha=0.3)
    plt.show()
    return figure


def heat_map(
    axis: Axes, values: ArrayLike, down: Mapping[str, Sequence], across: Mapping[str, Sequence]
) -> None:
    """Numbers as colours, each written into its cell.

    Args:
        axis: where to draw.
        values: (R, C).
        down: name of the rows -> their R values, numbers or texts.
        across: name of the columns -> their C values, likewise.
    """
    picture = axis.imshow(values, cmap=SCORES, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        color = "white" if picture.norm(value) < 0.5 else "black"
        axis.text(column, row, f"{value:.1f}", ha="center", va="center", color=color)
    ((y, rows),), ((x, columns),) = down.items(), across.items()
    axis.set(xlabel=x, ylabel=y)
    for ticks, there in ((axis.set_xticks, columns), (axis.set_yticks, rows)):
        ticks(range(len(there)), [v if isinstance(v, str) else f"{v:g}" for v in there])


def neighbourhood(values: Tensor, offsets: Tensor, y: int, x: int, center: float = 1.0) -> Tensor:
    """Values of all pairs of one pixel as a small square around it.

    Args:
        values: (K, h, w), one map an offset, as ``affinities`` gives.
        offsets: (K, 2), the half plane.
        y, x: the pixel.
        center: value of the pixel with itself.

    Returns:
        (2r + 1, 2r + 1) float; NaN where there is no pair.

    >>> offsets = torch.tensor([[0, 1]])
    >>> neighbourhood(torch.tensor([[[0.25, 0.5, 0.0]]]), offsets, 0, 1)[1].tolist()
    [0.25, 1.0, 0.5]
    """
    height, width = values.shape[-2:]
    radius = int(offsets.abs().max())
    square = torch.full((2 * radius + 1, 2 * radius + 1), float("nan"))
    square[radius, radius] = center
    for k, (dy, dx) in enumerate(offsets.tolist()):
        if 0 <= y + dy < height and 0 <= x + dx < width:
            square[radius + dy, radius + dx] = float(values[k, y, x])
        if 0 <= y - dy < height and 0 <= x - dx < width:
            square[radius - dy, radius - dx] = float(values[k, y - dy, x - dx])
    return square


def affinities_around(
    image: np.ndarray, affinity: Tensor, offsets: Tensor, places: Sequence[tuple[int, int]]
) -> Figure:
    """An image with some cells of its grid as stars, and the affinities of each to its neighbours.

    Args:
        image: (H, W, 3) uint8.
        affinity: W of the image, (K, h, w) in [0, 1].
        offsets: (K, 2), the half plane.
        places: the cells, (y, x) each.
    """
    height, width = affinity.shape[-2:]
    size = (2 * (1 + len(places)), 2.3)
    figure, (first, *others) = plt.subplots(1, 1 + len(places), figsize=size, layout="constrained")
    first.imshow(image, extent=(-0.5, width - 0.5, height - 0.5, -0.5))
    first.set(xticks=[], yticks=[])
    dark = {"facecolor": "black", "linewidth": 0, "pad": 1.5}
    for k, ((y, x), axis) in enumerate(zip(places, others, strict=True), start=1):
        first.plot(x, y, marker="*", color="white", markeredgecolor="black", markersize=12)
        first.annotate(str(k), (x + 1, y - 1), color="white", weight="bold", bbox=dark)
        square = neighbourhood(affinity, offsets, y, x).numpy()
        picture = axis.imshow(square, cmap=SCORES, vmin=0, vmax=1)
        axis.set(xticks=[], yticks=[], title=f"cell {k}")
    figure.colorbar(picture, ax=others[-1], label="affinity")
    plt.show()
    return figure


def pairs_around(
    labels: np.ndarray, pairs: PairLabels, offsets: Tensor, y: int, x: int, num_classes: int
) -> Figure:
    """Labels on the grid with a cell as a star, and the pairs of that cell, coloured by their label.

    Args:
        labels: (h, w) of the first image of a batch.
        pairs: of the batch.
        offsets: (K, 2), the half plane.
        y, x: the cell.
        num_classes: of the data set.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(6.5, 2.8), layout="constrained")
    left.imshow(colorize(labels, class_colors(num_classes)))
    left.plot(x, y, marker="*", color="white", markeredgecolor="black", markersize=12)
    kinds = sum(k * mask[0].float() for k, mask in enumerate(pairs, start=1))
    square = neighbourhood(kinds, offsets, y, x, center=float("nan")).numpy()
    right.imshow(square, cmap=PAIRS, vmin=-0.5, vmax=3.5)
    radius = len(square) // 2
    right.plot(radius, radius, marker="*", color="black", markersize=12)
    left.set(xticks=[], yticks=[], title="trusted areas on the grid")
    right.set(xticks=[], yticks=[], title="pairs of the starred cell")
    handles = [Patch(color=PAIRS(k), label=name) for k, name in enumerate(PAIR_NAMES)]
    right.legend(handles=handles, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    plt.show()
    return figure


def feature_edges(features: Tensor) -> Tensor:
    """Edges of a feature map (Fig. 5d): mean L1 distance of each cell to its right and lower one.

    Args:
        features: (D, h, w).

    Returns:
        (h, w) in [0, 1], divided by the maximum.
    """
    edges = torch.zeros(features.shape[1:])
    edges[:, :-1] += (features[:, :, 1:] - features[:, :, :-1]).abs().mean(0)
    edges[:-1] += (features[:, 1:] - features[:, :-1]).abs().mean(0)
    return edges / edges.max().clamp(min=1e-12)


def bars(per_class: dict[str, dict[str, float]], title: str) -> Figure:
    """IoU of every class, a group of bars a class, one bar a method.

    Args:
        per_class: method -> {class name: IoU in percent}; a class may miss, it gets no bar.
        title: of the figure.
    """
    names = list(dict.fromkeys(name for values in per_class.values() for name in values))
    _find_letters("".join(names))
    figure, axis = plt.subplots(figsize=(7.5, 2.8), layout="constrained")
    width = 0.8 / len(per_class)
    palette = ["#999999", "#56b4e9", "#0072b2", "#e69f00"]
    for k, (method, values) in enumerate(per_class.items()):
        places = np.arange(len(names)) + (k - (len(per_class) - 1) / 2) * width
        heights = [values.get(name, float("nan")) for name in names]
        axis.bar(places, heights, width, label=method, color=palette[k % 4])
    axis.set_xticks(range(len(names)), names, parse_math=False)
    axis.set(ylabel="IoU in percent", ylim=(0, 100), title=title)
    axis.legend(frameon=False, ncols=len(per_class), loc="upper right")
    plt.show()
    return figure


def pipeline() -> Figure:
    """The stages of the method, what goes in and what comes out (after Fig. 1)."""
    stages = [
        ("images\nand tags", "given", 0),
        ("class activation\nmaps", "notebook 1", 1),
        ("affinity\nlabels", "notebook 2", 2),
        ("AffinityNet", "notebook 3", 2),
        ("random walk", "notebook 4", 1),
        ("segmentation\nlabels", "notebook 5", 1),
        ("segmentation\nnetwork", "notebook 6", 2),
    ]
    fills = ("#f0f0f0", "#cfe6f5", "#fbe3b9")
    figure, axis = plt.subplots(figsize=(9.5, 1.9), layout="constrained")
    for k, (name, where, kind) in enumerate(stages):
        box = {"boxstyle": "round,pad=0.45", "facecolor": fills[kind], "edgecolor": "#555555"}
        axis.text(k, 0, name, ha="center", va="center", fontsize=9, bbox=box)
        axis.text(k, -0.78, where, ha="center", va="center", fontsize=8, color="#555555")
        if k:
            arrow = {"arrowstyle": "->", "color": "#555555"}
            axis.annotate("", (k - 0.43, 0), (k - 0.57, 0), arrowprops=arrow)
    curve_to = {"arrowstyle": "->", "color": "#0072b2", "connectionstyle": "arc3,rad=-0.28"}
    axis.annotate("", (4, 0.42), (1, 0.42), arrowprops=curve_to)
    axis.text(2.5, 1.3, "the maps that walk", ha="center", fontsize=8, color="#0072b2")
    axis.set(xlim=(-0.6, 6.6), ylim=(-1, 1.6))
    axis.axis("off")
    plt.show()
    return figure


def markdown_table(header: Sequence[str], rows: Sequence[Sequence]) -> str:
    """A markdown table; floats get one decimal, None stays empty.

    >>> print(markdown_table(["method", "mIoU"], [["CAM", 48.04], ["CAM + dCRF", None]]))
    | method | mIoU |
    |---|---|
    | CAM | 48.0 |
    | CAM + dCRF |  |
    """

    def cell(value) -> str:
        if value is None:
            return ""
        return f"{value:.1f}" if isinstance(value, float) else str(value).replace("|", r"\|")

    lines = [list(header), ["---"] * len(header), *rows]
    text = ["| " + " | ".join(cell(v) for v in line) + " |" for line in lines]
    text[1] = text[1].replace(" ", "")
    return "\n".join(text)


def _edges(labels: np.ndarray, width: int) -> np.ndarray:
    """The pixels whose right or lower neighbour has another label, ``width`` pixels wide."""
    edges = np.zeros(labels.shape, bool)
    edges[:, :-1] |= labels[:, 1:] != labels[:, :-1]
    edges[:-1] |= labels[1:] != labels[:-1]
    return ndimage.maximum_filter(edges, width)


def _inside(area: np.ndarray) -> tuple[tuple[float, float], float]:
    """The point (x, y) of an area that is farthest from its border, and how far; on a coarse grid."""
    step = -(-max(area.shape) // 256)
    depth = ndimage.distance_transform_edt(np.pad(area[::step, ::step], 1))[1:-1, 1:-1]
    y, x = np.unravel_index(depth.argmax(), depth.shape)
    return (float(x * step), float(y * step)), float(depth.max() * step)


def _font(size: tuple[int, int], text: str, part: float = 1 / 32) -> ImageFont.FreeTypeFont:
    """A font that has the text, a part of the longer side of a picture (W, H), but readable."""
    file = _fallback(text) or font_manager.findfont("DejaVu Sans")
    return ImageFont.truetype(file, max(round(max(size) * part), 14))


def _find_letters(text: str) -> None:
    """Let figures take letters that Matplotlib's own font lacks from an installed one."""
    if file := _fallback(text):
        name, families = FT2Font(file).family_name, plt.rcParams["font.family"]
        if name not in families:
            font = font_manager.FontEntry(file, name=name, size="scalable")  # whatever its weight
            font_manager.fontManager.ttflist.append(font)
            plt.rcParams["font.family"] = [*families, name]


@cache
def _fallback(text: str) -> str | None:
    """File of the installed font with most of the letters that Matplotlib's own lacks, if any has
    some; of several that with most of the others, too.

    Class names may be Chinese or Hindi, and Matplotlib brings no font for these.
    """
    missing = _lacked(font_manager.findfont("DejaVu Sans"), set(text))
    if not missing:
        return None
    files = sorted(font_manager.findSystemFonts(), key=lambda file: "Regular" not in file)

    def lacks(file: str) -> tuple[int, int]:
        return len(_lacked(file, missing)), len(_lacked(file, set(text)))

    best = min(files, key=lacks, default="")
    return best if _lacked(best, missing) < missing else None


def _lacked(file: str, letters: set[str]) -> set[str]:
    try:
        known = FT2Font(file).get_charmap()
    except (RuntimeError, OSError):  # no outlines, or gone since the fonts were listed
        return letters
    return {letter for letter in letters if ord(letter) not in known and not letter.isspace()}


def _draw(axis: Axes, panel: np.ndarray, near: Sequence, names: Sequence[str]) -> set[int]:
    """Draw a panel; the labels that it has."""
    if panel.ndim == 2 and np.issubdtype(panel.dtype, np.integer):
        photographs = (np.asarray(other) for other in near if other is not None)
        shape = (*panel.shape, 3)
        under = next((photo for photo in photographs if photo.shape == shape), None)
        if under is None:
            axis.imshow(colorize(panel, class_colors(len(names))), interpolation="nearest")
        else:
            axis.imshow(labelled(under, panel, names, text=1 / 13))
        return {int(v) for v in np.unique(panel)}
    how = {} if panel.ndim == 3 else {"cmap": SCORES, "vmin": 0, "vmax": 1}
    axis.imshow(panel, interpolation=None if panel.ndim == 3 else "nearest", **how)
    return set()


def _legend(figure: Figure, seen: set[int], names: Sequence[str]) -> None:
    colors = class_colors(len(names)) / 255
    handles = [
        Patch(color=colors[k], label=("background", *names)[k]) for k in sorted(seen - {VOID})
    ]
    if VOID in seen:
        handles.append(Patch(color=NEUTRAL, label="neutral or void"))
    place = {"loc": "outside lower center", "ncols": 6}
    for text in figure.legend(handles=handles, frameon=False, fontsize=9, **place).get_texts():
        text.set_parse_math(False)  # a class may be called US$

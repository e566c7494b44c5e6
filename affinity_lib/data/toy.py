"""The embedded data set: drawn scenes in VOC layout, the same pixels for a seed on any machine."""

from __future__ import annotations

import shutil
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from affinity_lib.data.files import load_json, save_json, write_aside
from affinity_lib.data.layout import write_lists, write_tags
from affinity_lib.data.toy_objects import CLASSES, draw_object
from affinity_lib.data.toy_scenery import draw_clutter, draw_ground
from affinity_lib.data.toy_shapes import Array, Dice, Frame, Layer
from affinity_lib.data.voc import write_labels
from affinity_lib.errors import InputError
from affinity_lib.evaluation import VOID

MARKER = "toy.json"
"""Says what a folder was drawn with; only folders that hold it are ever replaced."""


@dataclass(frozen=True)
class Scene:
    """A drawn scene.

    Attributes:
        image: RGB, uint8 (size, size, 3).
        labels: uint8 (size, size); 0 background, 1..6 as in ``CLASSES``, 255 on borders.
        names: class of each object, with repeats.
    """

    image: Array
    labels: Array
    names: tuple[str, ...]


def make_toy(
    root: str | Path, train: int = 400, val: int = 100, size: int = 112, seed: int = 0
) -> Path:
    """Draw the toy data set in VOC layout; leave it as it is if it is there already.

    Scenes of one to three objects of six classes. Each class has a telling part (a face, a sail,
    wheels), which is missing in some objects, and a body that gives only faint evidence, so that
    class activation maps are high on the part and fade over the body. An image's content depends
    on ``seed``, its split and its number alone, so a smaller set is the beginning of a larger one.

    Args:
        root: the folder to be made; another toy data set at this place is replaced.
        train: number of training images, >= 1.
        val: number of validation images, >= 0.
        size: side of the images in pixels, >= 32.
        seed: non-negative integer.

    Returns:
        ``root``.

    Raises:
        InputError: a number is out of range, or ``root`` holds something else.

    >>> import tempfile
    >>> root = make_toy(Path(tempfile.mkdtemp()) / "toy", train=2, val=1, size=48)
    >>> sorted(path.name for path in (root / "JPEGImages").iterdir())
    ['train_0000.jpg', 'train_0001.jpg', 'val_0000.jpg']
    """
    root = Path(root)
    for name, value, least in (("train", train, 1), ("val", val, 0), ("seed", seed, 0)):
        if value < least:
            raise InputError(f"{name} of the toy data must be >= {least}, got {value}")
    drawing = {"train": train, "val": val, "size": size, "seed": seed, "source": _source()}
    if (root / MARKER).is_file():
        if load_json(root / MARKER) == drawing:
            return root
    elif root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise InputError(f"{root} holds something else than toy data: give a new folder")
    splits = {
        split: [f"{split}_{k:04d}" for k in range(count)]
        for split, count in (("train", train), ("val", val))
    }
    with write_aside(root) as aside:
        for folder in ("JPEGImages", "Annotations", "SegmentationClass"):
            (aside / folder).mkdir(parents=True)
        for number, ids in enumerate(splits.values()):
            for k, image_id in enumerate(ids):
                _write(aside, image_id, draw_scene(size, seed, number, k))
        write_lists(aside, CLASSES, splits)
        save_json(aside / MARKER, drawing)
        if root.exists():
            shutil.rmtree(root)
    return root


def draw_scene(size: int = 112, *key: int) -> Scene:
    """Draw one scene.

    Args:
        size: side of the image in pixels, >= 32.
        key: non-negative integers that choose the scene.

    Raises:
        InputError: the size is below 32.

    >>> scene = draw_scene(64, 0, 0, 7)
    >>> scene.image.shape, {CLASSES.index(name) + 1 for name in scene.names} <= set(
    ...     np.unique(scene.labels).tolist()
    ... )
    ((64, 64, 3), True)
    """
    if size < 32:
        raise InputError(f"size of the toy data must be >= 32 pixels, got {size}")
    attempt = 0
    while (scene := _compose(size, Dice(*key, attempt))) is None:
        attempt += 1
    return scene


def _compose(size: int, dice: Dice) -> Scene | None:
    """Ground, clutter, objects from far to near, clutter in front; None if one is hidden."""
    rgb = draw_ground(size, dice)
    for _ in range(2 + dice.below(5)):
        _place(rgb, draw_clutter(_anywhere(size, dice, 0.07, 0.2), dice))
    names = [dice.pick(CLASSES) for _ in range(dice.pick((1, 1, 2, 2, 3)))]
    small, large = ((0.36, 0.5), (0.3, 0.4), (0.25, 0.32))[len(names) - 1]
    centers = sorted(_spread(len(names), dice), key=lambda center: center[1])
    owner, drawn = np.zeros((size, size), np.uint8), []
    for number, (name, (x, y)) in enumerate(zip(names, centers, strict=True), start=1):
        length, tilt = dice.uniform(small, large) * size, dice.below(51) - 25
        center = (x * size, y * size)
        around = tuple(float(v) for v in rgb[int(center[1]), int(center[0])])
        frame = Frame(size, center, length, tilt, dice.chance(0.5))
        drawn.append(_place(rgb, draw_object(name, frame, dice, around), owner, number))
    for _ in range(dice.pick((0, 0, 1, 1, 2))):
        _place(rgb, draw_clutter(_anywhere(size, dice, 0.06, 0.13), dice), owner, 0)
    for number, area in enumerate(drawn, start=1):
        if int((owner == number).sum()) < max(0.5 * area, 0.02 * size * size):
            return None
    values = np.array([0, *(CLASSES.index(name) + 1 for name in names)], np.uint8)
    labels = np.where(_border(owner), np.uint8(VOID), values[owner])
    return Scene(_photograph(rgb, dice), labels, tuple(names))


def _spread(count: int, dice: Dice) -> list[tuple[float, float]]:
    """Centres, each the one of eight that is farthest from those before, as shares of the side."""
    margin = (0.3, 0.26, 0.22)[count - 1]
    centers: list[tuple[float, float]] = []
    for _ in range(count):
        choice = [
            (dice.uniform(margin, 1 - margin), dice.uniform(margin, 1 - margin)) for _ in range(8)
        ]
        centers.append(
            max(
                choice,
                key=lambda p: min(
                    ((p[0] - q[0]) * (p[0] - q[0]) + (p[1] - q[1]) * (p[1] - q[1]))
                    for q in centers or [p]
                ),
            )
        )
    return centers


def _anywhere(size: int, dice: Dice, small: float, large: float) -> Frame:
    center = (dice.uniform(0.0, size), dice.uniform(0.0, size))
    return Frame(size, center, dice.uniform(small, large) * size, dice.below(360))


def _place(rgb: Array, layer: Layer, owner: Array | None = None, number: int = 0) -> int:
    """Lay a thing and its shadow on the picture; note whose its pixels are and return how many."""
    size = rgb.shape[0]
    shift = max(size // 40, 1)
    alpha = np.zeros((size, size), np.float32)
    alpha[layer.frame.window] = layer.alpha
    shadow = np.zeros_like(alpha)
    for dy in range(shift - 1, shift + 2):
        for dx in range(3):
            shadow[dy:, dx:] += alpha[: size - dy, : size - dx] / 9.0
    rgb *= 1.0 - 0.35 * shadow[..., None]
    part = rgb[layer.frame.window]
    part += layer.alpha[..., None] * (layer.rgb - part)
    mine = alpha > 0.5
    if owner is not None:
        owner[mine] = number
    return int(mine.sum())


def _photograph(rgb: Array, dice: Dice) -> Array:
    """Uneven light, a colour cast and noise, rounded to bytes."""
    size = rgb.shape[0]
    light = 0.86 + 0.28 * dice.smooth(size, size, 1, 1)
    gain = dice.uniform(0.88, 1.06)
    gray = dice.field(size, size) + dice.field(size, size) + dice.field(size, size) - 1.5
    for channel in range(3):
        cast = gain * dice.uniform(0.95, 1.05)
        noise = gray * 0.045 + (dice.field(size, size) - 0.5) * 0.05
        rgb[..., channel] = rgb[..., channel] * light * cast + noise
    return np.clip(np.floor(rgb * 255.0 + 0.5), 0, 255).astype(np.uint8)


def _border(owner: Array) -> Array:
    """The pixels on either side of an edge between two objects or an object and the ground."""
    border = np.zeros(owner.shape, bool)
    for a, b in (
        (np.s_[1:], np.s_[:-1]),
        (np.s_[:, 1:], np.s_[:, :-1]),
    ):
        differ = owner[a] != owner[b]
        border[a] |= differ
        border[b] |= differ
    return border


def _write(root: Path, image_id: str, scene: Scene) -> None:
    picture = Image.fromarray(scene.image)
    picture.save(root / "JPEGImages" / f"{image_id}.jpg", quality=95, subsampling=0)
    write_tags(root / "Annotations" / f"{image_id}.xml", scene.names, picture.size)
    write_labels(root / "SegmentationClass" / f"{image_id}.png", scene.labels)


def _source() -> str:
    """A number for the drawing code, so that older drawings are not taken for today's."""
    number = 0
    for path in sorted(Path(__file__).parent.glob("toy*.py")):
        number = zlib.crc32(path.read_bytes(), number)
    return f"{number:08x}"

"""The gallery of a run's page: what each step makes of the best and the worst training images."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from affinity_lib.cam import resize, to_labels
from affinity_lib.data.files import load_scores
from affinity_lib.data.paths import data_path
from affinity_lib.data.voc import VOCData
from affinity_lib.errors import InputError
from affinity_lib.evaluation import VOID, confusion, iou
from affinity_lib.plots import colorize, overlay

CAMS = "01_class_activation_maps/cams"
TRUSTED = "02_affinity_labels/labels"
WALKED = "04_random_walk/walked"
LABELS = "05_segmentation_labels/labels"
PREDICTIONS = "06_segmentation_network/predictions"

_SIDE = 240  # longer side of a picture in pixels


@dataclass(frozen=True)
class Panel:
    """One picture of an image's row: (H, W, 3) uint8 pixels, or (H, W) integer labels, or None."""

    name: str
    pixels: np.ndarray | None
    judged: bool = False  # whether its IoU with the truth says something


def extremes(data: VOCData, ids: Sequence[str], labels: Path, count: int = 4) -> list[str]:
    """The images whose labels fit their masks best, then those where they fit worst.

    Args:
        data: the data set; its masks choose what is shown, and nothing else.
        ids: the images to choose from; those without labels are left out.
        labels: folder of ``ID.png`` label maps.
        count: how many of each.

    Returns:
        At most ``2 * count`` ids, from the best to the worst by the mean IoU over the classes in
        one image; without masks, as many from all over the list.
    """
    ids = [image_id for image_id in ids if (labels / f"{image_id}.png").is_file()]
    if data.has_masks(ids):
        score = {i: _miou(data, i, data.read_labels(labels / f"{i}.png")) for i in ids}
        ids = sorted(ids, key=lambda image_id: (-score[image_id], image_id))
        return ids if len(ids) <= 2 * count else ids[:count] + ids[-count:]
    places = np.linspace(0, len(ids) - 1, min(2 * count, len(ids))).round().astype(int)
    return [ids[place] for place in places]


def gallery(run: Path, manifest: Mapping[str, Any]) -> str:
    """The gallery as HTML with everything in it; empty for a run without CAMs.

    Args:
        run: folder of the run.
        manifest: the run's, which tells where the data set is.
    """
    record = manifest["stages"].get(CAMS.partition("/")[0])
    if record is None or not (run / CAMS).is_dir():
        return ""
    settings = manifest["settings"]
    try:
        data = VOCData(data_path(settings["data_root"]), settings["classes"] or None)
        rows = _rows(run, data, data.ids("train"))
    except InputError as error:
        return _section(f"<p class=note>The pictures cannot be shown: {escape(str(error))}.</p>")
    return _section(rows)


def _rows(run: Path, data: VOCData, ids: Sequence[str]) -> str:
    shown = extremes(data, ids, run / LABELS)
    parts, half = [], -1
    if not shown:  # the labels are not made yet
        shown = ids[:8]
        parts.append("<p class=note>There are no labels yet: the first training images.</p>")
    elif data.has_masks(shown):
        half = (len(shown) + 1) // 2
        parts.append(
            "<p class=note>The training images whose labels (walk + dCRF) fit their masks best and "
            "worst, by the mean IoU over the classes in one image; the percentage under a "
            "picture is its own. The network has learned from these labels and gets no tags.</p>"
        )
    else:
        parts.append(
            "<p class=note>The data set has no masks, so there is no best or worst and no IoU: "
            "some training images from all over the list.</p>"
        )
    for place, image_id in enumerate(shown):
        parts += {0: ["<h3>Best</h3>"], half: ["<h3>Worst</h3>"]}.get(place, []) if half > 0 else []
        parts.append(_row(run, data, image_id))
    return "".join(parts)


def _row(run: Path, data: VOCData, image_id: str) -> str:
    has_mask = data.has_masks([image_id])
    figures, occurring, final = [], set(), ""
    names = ", ".join(data.classes[tag - 1] for tag in data.tags(image_id))
    for panel in _panels(run, data, image_id):
        pixels, note = panel.pixels, ""
        if pixels is None:
            continue
        if panel.judged and has_mask:
            note = f"{_miou(data, image_id, pixels):.0f} %"
            final = note if panel.name == "walk + dCRF" else final
        if pixels.ndim == 2:
            occurring |= {int(label) for label in np.unique(pixels)}
            pixels = colorize(pixels, data.colors)
        alt = escape(f"{panel.name}: {names} ({image_id})", quote=True)
        figures.append(
            f'<figure><img src="{_uri(pixels, panel.pixels.ndim == 2)}" alt="{alt}">'
            f"<figcaption>{panel.name} <b>{note}</b></figcaption></figure>"
        )
    title = f"<b>{escape(names)}</b>" + (f", IoU {final}" if final else "")
    return (
        f"<div class=case><p>{title} <small>{escape(image_id)}</small> "
        f"{_legend(data, occurring)}</p>"
        f"<div class=scroll tabindex=0><div class=steps>{''.join(figures)}</div></div></div>"
    )


def _panels(run: Path, data: VOCData, image_id: str) -> Iterator[Panel]:
    image = np.array(data.image(image_id))
    size = image.shape[:2]
    yield Panel("image", image)
    if (path := run / CAMS / f"{image_id}.npz").is_file():
        _, cams = load_scores(path)
        strongest = resize(torch.from_numpy(cams), size).amax(dim=0)
        yield Panel("CAM", overlay(image, strongest.numpy()))
    if (path := run / TRUSTED / f"{image_id}.png").is_file():
        yield Panel("trusted areas", data.read_labels(path))
    if (path := run / WALKED / f"{image_id}.npz").is_file():
        tags, maps = load_scores(path)
        walked = to_labels(resize(torch.from_numpy(maps), size), tags[1:]).numpy()
        yield Panel("random walk", walked, judged=True)
    for name, folder in (("walk + dCRF", LABELS), ("network", PREDICTIONS)):
        if (path := run / folder / f"{image_id}.png").is_file():
            yield Panel(name, data.read_labels(path), judged=True)
    if data.has_masks([image_id]):
        yield Panel("truth", data.mask(image_id))


def _legend(data: VOCData, labels: set[int]) -> str:
    names = ("background", *data.classes)
    colors = {names[label]: data.colors[label] for label in sorted(labels - {VOID})}
    if VOID in labels:
        colors["neutral or void"] = colorize(np.array([[VOID]]), data.colors)[0, 0]
    return "".join(
        f"<span class=key><i style='background:rgb({r},{g},{b})'></i>{escape(name)}</span>"
        for name, (r, g, b) in colors.items()
    )


def _miou(data: VOCData, image_id: str, labels: np.ndarray) -> float:
    matrix = confusion(data.mask(image_id), labels, len(data.classes) + 1)
    return float(np.nanmean(iou(matrix))) if matrix.any() else 0.0


def _uri(pixels: np.ndarray, is_labels: bool) -> str:
    """A small picture as a data URI: labels keep their colours, photographs are compressed."""
    picture = Image.fromarray(pixels)
    how = Image.Resampling.NEAREST if is_labels else Image.Resampling.LANCZOS
    picture.thumbnail((_SIDE, _SIDE), how)
    kind, file = ("png", io.BytesIO()) if is_labels else ("jpeg", io.BytesIO())
    if is_labels:
        picture.quantize(32).save(file, "PNG", optimize=True)
    else:
        picture.save(file, "JPEG", quality=85)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def _section(body: str) -> str:
    return f"<section class=gallery><h2>Image by image, step by step</h2>{body}</section>"

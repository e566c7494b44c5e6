"""The gallery of a run's page: what each step makes of the best and the worst training images."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
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
from affinity_lib.evaluation import VOID, image_miou
from affinity_lib.plots import colorize, overlay
from affinity_lib.stages import STEPS, Step, last
from affinity_lib.stages.evaluation import extremes

LABELS = last("labels", before="06")  # which the network learns from

_SIDE = 240  # longer side of a picture in pixels


@dataclass(frozen=True)
class Panel:
    """One picture of an image's row: (H, W, 3) uint8 pixels or (H, W) integer labels."""

    name: str
    pixels: np.ndarray
    judged: bool = False  # whether its IoU with the truth says something


@dataclass
class Case:
    """What the page shows of one image: pictures as (name, data URI, IoU in percent or None)."""

    image_id: str
    names: str
    heading: str = ""
    miou: float | None = None
    pictures: list[tuple[str, str, float | None]] = field(default_factory=list)
    legend: list[tuple[str, tuple[int, ...]]] = field(default_factory=list)


def gallery(run: Path, manifest: Mapping[str, Any]) -> tuple[str, list[Case]]:
    """A note and the images of the gallery; neither for a run without CAMs.

    Args:
        run: folder of the run.
        manifest: the run's, which tells where the data set is.
    """
    first = STEPS[0].result
    record = manifest["stages"].get(first.partition("/")[0])
    if record is None or not (run / first).is_dir():
        return "", []
    settings = manifest["settings"]
    try:
        data = VOCData(data_path(settings["data_root"]), settings["classes"])
        return _cases(run, data)
    except InputError as error:
        return f"The pictures cannot be shown: {error}.", []


def _cases(run: Path, data: VOCData) -> tuple[str, list[Case]]:
    ids = data.ids("train", missing_ok=True)
    chosen = extremes(data, ids, run / LABELS.result)
    if not chosen:
        note = "There are no labels yet: the first training images."
        return note, [_case(run, data, image_id) for image_id in ids[:8]]
    cases = [_case(run, data, image_id) for image_id in chosen]
    if not data.has_masks(chosen):
        return (
            "The data set has no masks, so there is no best or worst and no IoU: some training "
            "images from all over the list."
        ), cases
    if len(cases) > 1:
        cases[(len(cases) + 1) // 2].heading = "Worst"
    cases[0].heading = "Best"
    return (
        "The training images whose labels (walk + dCRF) fit their masks best and worst, by the "
        "mean IoU over the classes in one image; the percentage under a picture is its own. The "
        "network has learned from these labels and gets no tags."
    ), cases


def _case(run: Path, data: VOCData, image_id: str) -> Case:
    case = Case(image_id, ", ".join(data.classes[tag - 1] for tag in data.tags(image_id)))
    truth = data.mask(image_id) if data.has_masks([image_id]) else None
    occurring: set[int] = set()
    for panel in _panels(run, data, image_id):
        pixels, miou = panel.pixels, None
        if panel.judged and truth is not None:
            miou = image_miou(truth, pixels, len(data.classes) + 1)
            case.miou = miou if panel.name == LABELS.name else case.miou
        if pixels.ndim == 2:
            occurring |= {int(label) for label in np.unique(pixels)}
            pixels = colorize(pixels, data.colors)
        case.pictures.append((panel.name, _uri(pixels, panel.pixels.ndim == 2), miou))
    names = ("background", *data.classes)
    case.legend = [(names[k], tuple(data.colors[k])) for k in sorted(occurring - {VOID})]
    if VOID in occurring:
        grey = colorize(np.array([[VOID]]), data.colors)[0, 0]
        case.legend.append(("neutral or void", tuple(grey)))
    return case


def _panels(run: Path, data: VOCData, image_id: str) -> Iterator[Panel]:
    image = np.array(data.image(image_id))
    yield Panel("image", image)
    for step in STEPS:
        suffix = "png" if step.kind == "labels" else "npz"
        if (path := run / step.result / f"{image_id}.{suffix}").is_file():
            yield Panel(step.name, _pixels(path, step, data, image), step.judged)
    if data.has_masks([image_id]):
        yield Panel("truth", data.mask(image_id))


def _pixels(path: Path, step: Step, data: VOCData, image: np.ndarray) -> np.ndarray:
    """What a step has made of an image: labels, or the strongest CAM over the image."""
    if step.kind == "labels":
        return data.read_labels(path)
    tags, maps = load_scores(path)
    maps = resize(torch.from_numpy(maps), image.shape[:2])
    if step.kind == "cams":
        return overlay(image, maps.amax(dim=0).numpy())
    return to_labels(maps, tags[1:]).numpy()


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

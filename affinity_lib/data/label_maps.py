"""Label maps as files: one byte a pixel, in VOC's colours (0 background, 255 void)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from affinity_lib.data.files import open_image, write_aside
from affinity_lib.errors import InputError
from affinity_lib.evaluation import VOID

_LOSSY = ("JPEG", "MPO", "WEBP")
_NUMBERS = ("P", "L", "I", "I;16", "I;16B")  # Pillow's modes that hold a number a pixel


def palette() -> np.ndarray:
    """VOC's colours, (256, 3) uint8: the bits of a label spread over red, green and blue.

    >>> palette()[[0, 1, 8, 255]].tolist()
    [[0, 0, 0], [128, 0, 0], [64, 0, 0], [224, 224, 192]]
    """
    labels = np.arange(256)[:, None]
    colors = np.zeros((256, 3), dtype=np.uint8)
    for step in range(3):
        bits = labels >> (3 * step + np.arange(3)) & 1
        colors |= (bits << (7 - step)).astype(np.uint8)
    return colors


def read_labels(path: str | Path) -> np.ndarray:
    """Read a label map as it stands in the file, uint8 (H, W).

    A file of numbers (palette or grey) is taken by its numbers, one of colours by VOC's palette.
    What can be read in two ways is refused: a grey map of 0 and 255 alone, where 255 may be an
    object or void, and a palette whose colours are VOC's at other numbers than VOC's.

    Raises:
        InputError: the file is missing, does not decode, or does not say which labels it holds.
    """
    image = open_image(path)
    if image.format in _LOSSY:
        raise InputError(
            f"{path} is a {image.format}, which blurs labels: save the mask as a palette PNG"
        )
    if image.mode == "RGBA" and image.getextrema()[3] == (255, 255):
        image = image.convert("RGB")
    if image.mode == "RGB":
        return _labels_of_colors(np.array(image), path)
    if image.mode not in _NUMBERS:
        raise InputError(
            f"{path} is a {image.mode} image without label numbers: save it as a palette PNG"
        )
    values = np.array(image)
    labels = values.astype(np.uint8)
    if (labels != values).any():
        raise InputError(f"{path} has labels up to {values.max()}: label maps go up to {VOID}")
    # np.unique would sort all pixels
    _refuse_two_readings(np.flatnonzero(np.bincount(labels.ravel())), image, path)
    return labels


def write_labels(path: str | Path, labels: np.ndarray) -> None:
    """Write a label map as it is, as a PNG in VOC's colours, whole or not at all.

    Args:
        path: the file, ``*.png``.
        labels: (H, W) whole numbers 0..255.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "a.png"
    >>> write_labels(file, np.array([[0, 1, 255]]))
    >>> read_labels(file).tolist(), open_image(file).mode
    ([[0, 1, 255]], 'P')
    """
    image = Image.fromarray(as_bytes(labels))
    image.putpalette(palette().tobytes())
    with write_aside(path) as aside:
        image.save(aside, format="PNG")


def as_bytes(labels: np.ndarray) -> np.ndarray:
    """A label map as uint8.

    Raises:
        InputError: it is not (H, W) with labels 0..255.
    """
    labels = np.asarray(labels)
    if labels.ndim != 2 or labels.size == 0 or labels.min() < 0 or labels.max() > 255:
        raise InputError(
            f"a label map is (H, W) with labels 0..255, got shape {labels.shape}"
            + (f" and labels {labels.min()}..{labels.max()}" if labels.size else "")
        )
    return labels.astype(np.uint8)


def _labels_of_colors(pixels: np.ndarray, path: str | Path) -> np.ndarray:
    colors, places = np.unique(_coded(pixels), return_inverse=True)
    labels = np.array([_LABEL_OF.get(color, -1) for color in colors.tolist()])
    if labels.min() < 0:
        color = int(colors[labels < 0][0])
        rgb = (color >> 16, color >> 8 & 255, color & 255)
        raise InputError(
            f"{path} has the colour {rgb}, which VOC's palette gives to no label: save the mask as "
            "a palette PNG of label numbers, or in VOC's colours without smoothing"
        )
    return labels.astype(np.uint8)[places].reshape(pixels.shape[:2])


def _refuse_two_readings(used: np.ndarray, image: Image.Image, path: str | Path) -> None:
    """Refuse a map of numbers whose colours say something else, or that may be black and white."""
    colors = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)  # of a grey image
    if image.mode == "P" and (own := image.getpalette("RGB")):
        colors = np.zeros((256, 3), np.uint8)
        colors[: len(own) // 3] = np.reshape(own, (-1, 3))
    readings = [_LABEL_OF.get(color, -1) for color in _coded(colors[used]).tolist()]
    if used[-1] == VOID and len(used) <= 1 + (used[0] == 0) and readings[-1] != VOID:
        raise InputError(
            f"{path} holds {' and '.join(map(str, used))} alone, and {VOID} may be an object or "
            "void: write the number of the object's class, or save void in VOC's colours"
        )
    if image.mode == "P" and min(readings) >= 0 and readings != used.tolist():
        number, other = next(
            pair for pair in zip(used, readings, strict=True) if pair[0] != pair[1]
        )
        raise InputError(
            f"{path} has the number {number} in VOC's colour of {other}, as programs leave it that "
            "sort a palette anew: save the mask in RGB, or with VOC's whole palette"
        )


def _coded(colors: np.ndarray) -> np.ndarray:
    """Colours (..., 3) as one number each."""
    red, green, blue = np.moveaxis(colors.astype(np.uint32), -1, 0)
    return red << 16 | green << 8 | blue


_LABEL_OF = {color: label for label, color in enumerate(_coded(palette()).tolist())}

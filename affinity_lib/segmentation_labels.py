"""Score maps to label maps: upsample, dCRF, argmax (section 3.4)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from affinity_lib.cam import resize, to_labels, with_background
from affinity_lib.crf import CRFSettings, PairwiseCRF
from affinity_lib.errors import InputError
from affinity_lib.files import load_scores, missing
from affinity_lib.parallel import map_images
from affinity_lib.voc import VOCData


def synthesize_labels(
    image: np.ndarray, scores: Tensor, tags: Sequence[int], crf: CRFSettings | None = None
) -> np.ndarray:
    """Segmentation labels of one image.

    Args:
        image: (H, W, 3) uint8, the photograph.
        scores: (1 + K, h, w), background first, as after the random walk.
        tags: the K labels, 1..C.
        crf: settings of the dCRF, or None for none.

    Returns:
        (H, W) uint8: 0 for background, else a tag.

    >>> image = np.zeros((2, 4, 3), np.uint8)
    >>> scores = torch.tensor([[[0.9, 0.1]], [[0.1, 0.9]]])
    >>> synthesize_labels(image, scores, tags=[3]).tolist()
    [[0, 0, 3, 3], [0, 0, 3, 3]]
    """
    scores = resize(scores, image.shape[:2])
    if crf is not None:
        scores = torch.from_numpy(PairwiseCRF(image, crf)(scores.numpy()))
    return to_labels(scores, tags).numpy()


def write_segmentation_labels(
    data: VOCData,
    ids: Sequence[str],
    scores: Path,
    out: Path,
    alpha: float | None = None,
    crf: CRFSettings | None = None,
    crf_scale: float = 1.0,
    workers: int | None = None,
) -> None:
    """Write a palette PNG of labels for each image that has none yet, over a process pool.

    Args:
        data: the data set.
        ids: image ids.
        scores: folder of ``ID.npz`` score files.
        out: folder of the label maps.
        alpha: exponent of the background map (Eq. 2) for scores that hold CAMs alone; None for
            scores whose first map is the background.
        crf: settings of the dCRF, or None for none.
        crf_scale: factor on the image's size at which the dCRF runs.
        workers: processes, None for one a core.

    Raises:
        InputError: scores without a background map and no ``alpha``, or with one and ``alpha``.
    """
    job = partial(_write, data, Path(scores), Path(out), alpha, crf, crf_scale)
    map_images(job, missing(ids, out, "png"), workers=workers if crf else 1)


def pixels(data: VOCData, image_id: str, scale: float = 1.0) -> np.ndarray:
    """The photograph as (H, W, 3) uint8, its sides times ``scale``."""
    image = data.image(image_id)
    if scale != 1:
        size = [max(round(side * scale), 1) for side in image.size]
        image = image.resize(size, Image.Resampling.BILINEAR)
    return np.array(image)


def enlarge(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Label map (h, w) at another size (H, W), nearest neighbour."""
    return np.array(Image.fromarray(labels).resize(size[::-1], Image.Resampling.NEAREST))


def _write(data, scores, out, alpha, crf, crf_scale, image_id) -> None:
    tags, maps = load_scores(scores / f"{image_id}.npz")
    maps = torch.from_numpy(maps)
    if (alpha is None) != (0 in tags):
        raise InputError(
            f"{scores / image_id}.npz has "
            + ("no background map: give alpha" if alpha is None else "one: leave alpha out")
        )
    if alpha is None:
        tags = tags[1:]
    else:
        maps = with_background(maps, alpha)
    image = pixels(data, image_id, crf_scale)
    labels = synthesize_labels(image, maps, tags, crf)
    width, height = data.image(image_id).size
    data.write_labels(out / f"{image_id}.png", enlarge(labels, (height, width)))

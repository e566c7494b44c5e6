"""Choosing the settings of the labels, the walk and the dCRF on training images that have masks.

Whenever the CAMs change, other exponents fit them. Nothing is trained here: maps that are there
already are turned into labels in many ways, and the labels are held against the masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from affinity_lib.affinity_labels import confidences, refined, trusted
from affinity_lib.cam import resize, to_labels
from affinity_lib.crf import CRFSettings
from affinity_lib.data.files import load_scores
from affinity_lib.data.voc import VOCData
from affinity_lib.evaluation import VOID, confusion, iou
from affinity_lib.segmentation_labels import enlarge
from affinity_lib.stages.segmentation_labels import pixels
from affinity_lib.stages.walk import Walk
from affinity_lib.training.parallel import each_image, map_images

ALPHAS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48)
"""Exponents of Eq. 2 that are tried."""


class Trusted(NamedTuple):
    """How good the trusted areas are with a pair of exponents.

    Attributes:
        alpha_strong, alpha_weak: the exponents.
        coverage: percent of the pixels that are not neutral.
        accuracy: percent of these that are right.
    """

    alpha_strong: float
    alpha_weak: float
    coverage: float
    accuracy: float


def try_affinity_labels(
    data: VOCData,
    ids: Sequence[str],
    cams: Path,
    crf: CRFSettings,
    alphas: Sequence[float] = ALPHAS,
) -> list[Trusted]:
    """The trusted areas of some images with each pair of exponents (section 3.2.1).

    Args:
        data: the data set.
        ids: images with a mask.
        cams: folder of ``ID.npz`` score files.
        crf: of the affinity labels; masks are read at its scale.
        alphas: the exponents, rising.
    """
    job = partial(_trusted_pixels, data, Path(cams), crf, alphas)
    right, kept, count = sum(map_images(job, ids, what="affinity labels"))
    pairs = [(i, j) for i, j in product(range(len(alphas)), repeat=2) if i < j]
    return [
        Trusted(
            alphas[i],
            alphas[j],
            100 * float(kept[i, j] / count[i, j]),
            100 * float(right[i, j] / max(kept[i, j], 1)),
        )
        for i, j in pairs
    ]


def try_walks(
    walk: Walk,
    ids: Sequence[str],
    alphas: Sequence[float],
    betas: Sequence[float],
    steps: Sequence[int],
    every: int = 4,
) -> np.ndarray:
    """The mIoU of some images after walks with each combination of settings (section 3.3).

    Args:
        walk: over the affinities of the images; its own ``alpha`` is not used.
        ids: images with a mask.
        alphas: A exponents of Eq. 2.
        betas: B exponents of Eq. 11.
        steps: S numbers of steps.
        every: of so many rows, and columns, of a mask only the middle one is looked at.

    Returns:
        (A, B, S) mIoU in percent.
    """
    data = walk.inputs.data

    def work(image_id: str) -> np.ndarray:
        mask = data.mask(image_id)
        truth = enlarge(mask, tuple(-(-side // every) for side in mask.shape))
        affinity, found = walk.affinity(image_id), []
        for beta, t in product(betas, steps):
            tags, walks = walk.walks(image_id, alphas, beta, t, affinity)
            for scores in walks:
                labels = to_labels(resize(scores, truth.shape), tags).numpy()
                found.append(confusion(truth, labels, len(data.classes) + 1))
        return np.stack(found)

    shape = (len(betas), len(steps), len(alphas))
    return _mious(sum(each_image(work, ids, "walks"))).reshape(shape).transpose(2, 0, 1)


def try_crfs(
    data: VOCData,
    ids: Sequence[str],
    maps: dict[float, dict[str, np.ndarray]],
    settings: Sequence[CRFSettings],
) -> np.ndarray:
    """The mIoU of some images after each of some dCRFs (section 3.4).

    Args:
        data: the data set.
        ids: images with a mask.
        maps: exponent of Eq. 2 -> image id -> scores (1 + K, h, w), background first.
        settings: C dCRFs of one scale, at which masks are read.

    Returns:
        (C, number of exponents) mIoU in percent.
    """
    jobs = [(image_id, [of[image_id] for of in maps.values()]) for image_id in ids]
    job = partial(_confusions, data, settings)
    return _mious(sum(map_images(job, jobs, what="dCRFs")))


def _trusted_pixels(data, cams, crf, alphas, image_id) -> np.ndarray:
    """Pixels that are right, trusted, and all, for each pair of exponents, (3, A, A)."""
    tags, maps = load_scores(cams / f"{image_id}.npz")
    image, truth = _seen(data, image_id, crf)
    scores = confidences(image, torch.from_numpy(maps), alphas, crf)
    counts, known = np.zeros((3, len(alphas), len(alphas)), dtype=np.int64), truth != VOID
    for i, j in product(range(len(alphas)), repeat=2):
        if i < j:
            labels = trusted(scores[[i, j]], tags).numpy()
            kept = known & (labels != VOID)
            counts[:, i, j] = (kept & (labels == truth)).sum(), kept.sum(), known.sum()
    return counts


def _confusions(data, settings, job) -> np.ndarray:
    """A confusion matrix for each dCRF and each of some maps of an image, (C, A, L, L)."""
    image_id, maps = job
    image, truth = _seen(data, image_id, settings[0])
    tags, scores = data.tags(image_id), [torch.from_numpy(one) for one in maps]
    labels = [[to_labels(one, tags) for one in refined(image, scores, each)] for each in settings]
    return np.array(
        [[confusion(truth, one.numpy(), len(data.classes) + 1) for one in row] for row in labels]
    )


def _mious(matrices: np.ndarray) -> np.ndarray:
    """Confusion matrices (..., L, L) -> their mIoU (...)."""
    flat = matrices.reshape(-1, *matrices.shape[-2:])
    return np.array([np.nanmean(iou(each)) for each in flat]).reshape(matrices.shape[:-2])


def _seen(data: VOCData, image_id: str, crf: CRFSettings | None) -> tuple[np.ndarray, np.ndarray]:
    """Photograph and mask of an image as the dCRF looks at it."""
    image = pixels(data.image(image_id), crf)
    return image, enlarge(data.mask(image_id), image.shape[:2])

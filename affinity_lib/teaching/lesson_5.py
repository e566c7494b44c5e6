"""Exercises on labels from scores: the highest wins, at the image's size, along its edges."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from affinity_lib.cam import to_labels
from affinity_lib.segmentation_labels import enlarge, synthesize_labels
from affinity_lib.teaching.exercise import Exercise, Property, close, rand, shape, unlike

LABELS = Exercise(
    "5.1",
    lambda: [
        {"scores": rand(3, 4, 6), "tags": [5, 3]},
        {"scores": rand(2, 5, 5, seed=1), "tags": [7]},
    ],
    [
        shape("a label for each pixel, (H, W)"),
        unlike(
            "a label is the number of a class; yours is the place of its map: look it up in "
            "`[0, *tags]`",
            lambda c: c.scores.argmax(dim=0),
        ),
        unlike(
            "the maps stand in the order of the tags; yours takes them in that of the classes",
            lambda c: torch.tensor([0, *sorted(c.tags)])[c.scores.argmax(dim=0)],
        ),
        unlike(
            "the background competes, too; yours leaves its map out, and each pixel gets an object",
            lambda c: torch.tensor(c.tags)[c.scores[1:].argmax(dim=0)],
        ),
        unlike(
            "the highest score wins; yours takes the lowest",
            lambda c: torch.tensor([0, *c.tags])[c.scores.argmin(dim=0)],
        ),
    ],
    [
        "`argmax(dim=0)` tells which map is highest: 0 is the background's, 1 the first tag's.",
        "A tensor can be indexed by a tensor: `torch.tensor([0, *tags])[winner]`.",
    ],
    "Only the tags of the image can win. At training time that is given; at test time it is not.",
    to_labels,
)


def _upsampled(scores: Tensor, tags: Sequence[int], size: tuple[int, int]) -> np.ndarray:
    return synthesize_labels(np.zeros((*size, 3), np.uint8), scores, tags)


def _corners(c: Any) -> Tensor:
    large = F.interpolate(c.scores[None], c.size, mode="bilinear", align_corners=True)[0]
    return to_labels(large, c.tags)


UPSAMPLED = Exercise(
    "5.2",
    lambda: [
        {"scores": rand(3, 4, 5), "tags": [2, 4], "size": (16, 20)},
        {"scores": rand(2, 3, 3, seed=1), "tags": [1], "size": (10, 11)},
    ],
    [
        shape("a label for each pixel of the image, (H, W)"),
        unlike(
            "scores are interpolated first and decided afterwards; yours decides on the coarse "
            "grid and enlarges its stairs",
            lambda c: enlarge(to_labels(c.scores, c.tags).numpy(), c.size),
        ),
        unlike(
            "scores are interpolated first and decided afterwards; yours repeats each cell: take "
            '`mode="bilinear"`',
            lambda c: to_labels(F.interpolate(c.scores[None], c.size)[0], c.tags),
        ),
        unlike(
            "a score belongs to the middle of its cell; yours stretches the grid to the image's "
            "corners: `align_corners=False`",
            _corners,
        ),
    ],
    [
        "Two steps, in this order: bring the scores to the image's size, then take the labels.",
        '`F.interpolate(scores[None], size, mode="bilinear", align_corners=False)[0]`',
    ],
    "Between two cells the scores cross somewhere, and that is where the border runs: finer than "
    "the grid.",
    _upsampled,
)


def _kernel(distance: Tensor, difference: Tensor, sxy: float, srgb: float) -> Tensor:
    return torch.exp(-(distance**2) / (2 * sxy**2) - difference**2 / (2 * srgb**2))


def _neighbours() -> list[dict[str, Any]]:
    distance, difference = 60 * rand(9), 40 * rand(9, seed=1)
    distance[0] = difference[0] = difference[1] = 0
    distance[1] = 30.0
    return [{"distance": distance, "difference": difference, "sxy": 30.0, "srgb": 13.0}]


KERNEL = Exercise(
    "5.3",
    _neighbours,
    [
        shape("a weight for each pixel"),
        Property(
            "a pixel has the weight 1 with itself; yours has {:.2f}: nothing stands before exp",
            lambda c: close(c.got[0], 1),
            lambda c: float(c.got[0]),
        ),
        unlike(
            "a weight needs nearness and likeness, so the two factors are multiplied; yours are "
            "added or averaged",
            lambda c: (
                (
                    _kernel(c.distance, 0 * c.difference, c.sxy, c.srgb)
                    + _kernel(0 * c.distance, c.difference, c.sxy, c.srgb)
                )
                / 2
            ),
        ),
        unlike(
            "distances are measured against sxy and colours against srgb; yours has the two "
            "exchanged",
            lambda c: _kernel(c.distance, c.difference, c.srgb, c.sxy),
        ),
        unlike(
            "both differences are squared; yours are not",
            lambda c: torch.exp(-c.distance / (2 * c.sxy**2) - c.difference / (2 * c.srgb**2)),
        ),
        unlike(
            "nearness counts, too; yours looks at colour alone",
            lambda c: _kernel(0 * c.distance, c.difference, c.sxy, c.srgb),
        ),
        Property(
            "at the distance sxy and the same colour the weight is exp(-1/2) = 0.61; yours is "
            "{:.2f}: the squares are divided by 2 s squared",
            lambda c: close(c.got[1], np.exp(-0.5)),
            lambda c: float(c.got[1]),
        ),
    ],
    [
        "A Gaussian of the distance times a Gaussian of the difference; exponents add up.",
        "`torch.exp(-distance**2 / (2 * sxy**2) - difference**2 / (2 * srgb**2))`",
    ],
    "Alike and near, not alike or near: that is why dCRF stops at edges.",
    _kernel,
)

EXERCISES = (LABELS, UPSAMPLED, KERNEL)

"""Exercises on affinity labels: what can be trusted, and Eq. 4 to 6."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from affinity_lib.affinity import half_plane_offsets, pair_labels
from affinity_lib.affinity_labels import confident_labels
from affinity_lib.evaluation import VOID
from affinity_lib.teaching.exercise import Exercise, Property, close, rand, shape, unlike


def _trusted(cams: Tensor, alpha_strong: float, alpha_weak: float) -> np.ndarray:
    image = np.zeros((*cams.shape[1:], 3), np.uint8)
    return confident_labels(image, cams, range(1, len(cams) + 1), alpha_strong, alpha_weak)


def _ramps() -> list[dict[str, Any]]:
    """Two classes that fade towards each other over a row of doubt."""
    ramp = torch.linspace(0, 1, 24)
    cams = torch.stack([(1 - 2.2 * ramp).clamp(min=0), (2.2 * ramp - 1.2).clamp(min=0)])
    return [
        {"cams": cams.view(2, 4, 6), "alpha_strong": 4.0, "alpha_weak": 24.0},
        {"cams": rand(1, 6, 8) ** 2, "alpha_strong": 2.0, "alpha_weak": 12.0},
    ]


TRUSTED = Exercise(
    "2.1",
    _ramps,
    [
        shape("a label for each pixel, (h, w)"),
        Property(
            "where the two backgrounds disagree, the label is neutral, 255; yours has no such "
            "pixel: objects come from the small alpha, background from the large one",
            lambda c: bool((c.got == VOID).any()),
        ),
        Property(
            "background is trusted where it wins even when weakened, and its label is 0; yours has "
            "no such pixel",
            lambda c: bool((c.got == 0).any()),
        ),
        Property(
            "an object's label is its class, 1..{}, as 0 is the background; yours are {}",
            lambda c: set(c.got.unique().tolist()) <= {*range(len(c.cams) + 1), VOID},
            lambda c: (len(c.cams), c.got.unique().int().tolist()[:5]),
        ),
    ],
    [
        "Label the pixels twice with `cam.to_labels(cam.with_background(cams, alpha), tags)`.",
        "Take objects from the labels with the small alpha, and zeros from those with the large.",
        "Start from `torch.full(shape, 255, dtype=torch.uint8)` and write into it twice.",
    ],
    "The two exponents ask one question from both sides, and only the answers that agree count.",
    _trusted,
)


def _offsets(c: Any) -> set[tuple[int, int]]:
    return {tuple(pair) for pair in c.got.int().tolist()}


def _length(c: Any) -> float:
    return max((dy**2 + dx**2) ** 0.5 for dy, dx in _offsets(c))


def _both_ways(c: Any) -> list[tuple[int, int]]:
    offsets = _offsets(c)
    return sorted(pair for pair in offsets if (-pair[0], -pair[1]) in offsets)


def _backwards(c: Any) -> list[tuple[int, int]]:
    return sorted(pair for pair in _offsets(c) if pair <= (0, 0))


OFFSETS = Exercise(
    "2.2",
    lambda: [{"gamma": 2.0}, {"gamma": 5.0}],
    [
        Property(
            "the result must be a list of pairs (dy, dx); yours has the shape {}",
            lambda c: c.got.ndim == 2 and c.got.shape[1] == 2 and len(c.got) > 0,
            lambda c: (tuple(c.got.shape),),
        ),
        Property(
            "each pair is listed once; yours has {} twice",
            lambda c: len(c.got) == len(_offsets(c)),
            lambda c: (Counter(map(tuple, c.got.int().tolist())).most_common(1)[0][0],),
        ),
        Property(
            "a pixel makes no pair with itself; yours has the offset (0, 0)",
            lambda c: (0, 0) not in _offsets(c),
        ),
        Property(
            "distances must be below gamma; yours reach {:.2f} at gamma = {:g}: Eq. 4 has <, and "
            "measures as the crow flies",
            lambda c: _length(c) < c.gamma,
            lambda c: (_length(c), c.gamma),
        ),
        Property(
            "a pair is the same from both its ends, so one half of the disk is enough; yours has "
            "{} and its opposite",
            lambda c: not _both_ways(c),
            lambda c: (_both_ways(c)[-1],),
        ),
        Property(
            "the half is that of `(dy, dx) > (0, 0)`, below and to the right; yours has {}",
            lambda c: not _backwards(c),
            lambda c: (_backwards(c)[0],),
        ),
        Property(
            "at gamma = {:g} there are {} such offsets; yours are {}: dx may be negative, too",
            lambda c: _offsets(c) == set(map(tuple, half_plane_offsets(c.gamma).tolist())),
            lambda c: (c.gamma, len(half_plane_offsets(c.gamma)), len(_offsets(c))),
        ),
    ],
    [
        "Go through dy and dx from -gamma to gamma, and keep what fits.",
        "`dy**2 + dx**2 < gamma**2` is Eq. 4; Python compares `(dy, dx) > (0, 0)` as you need it.",
    ],
    "34 offsets at gamma = 5, and not 69: half of them, without the pixel itself.",
)


def _rows() -> list[dict[str, Any]]:
    labels = torch.tensor([0, 1, 2, VOID])
    first, second = torch.cartesian_prod(labels, labels).T
    return [{"first": first, "second": second}]


def _kinds(first: Tensor, second: Tensor) -> Tensor:
    pairs = pair_labels(torch.stack([first, second])[None], torch.tensor([[1, 0]]))
    return torch.stack([mask[0, 0, 0] for mask in pairs])


def _neutral(c: Any) -> Tensor:
    return (c.first == VOID) | (c.second == VOID)


PAIRS = Exercise(
    "2.3",
    _rows,
    [
        shape("three masks over all pairs: background, foreground and negative"),
        Property(
            "a pair with a neutral pixel, 255, is left out; yours labels {} of them",
            lambda c: not c.got[:, _neutral(c)].any(),
            lambda c: int((c.got[:, _neutral(c)] > 0).any(dim=0).sum()),
        ),
        Property(
            "two background pixels are a pair of the first mask and no other",
            lambda c: close(c.got[:, (c.first == 0) & (c.second == 0)].flatten(), [1.0, 0, 0]),
        ),
        Property(
            "background beside an object is a negative pair, too; yours leaves it out",
            lambda c: bool(c.got[2, (c.first == 0) & (c.second == 1)].all()),
        ),
        Property(
            "two objects of different classes are a negative pair; yours takes them for positive",
            lambda c: not c.got[:2, (c.first == 1) & (c.second == 2)].any(),
        ),
        Property(
            "no pair has two labels; yours gives {} pairs more than one",
            lambda c: bool((c.got.sum(dim=0) <= 1).all()),
            lambda c: int((c.got.sum(dim=0) > 1).sum()),
        ),
    ],
    [
        "Two masks do most of it: both are trusted, and both have the same class.",
        "Positive is trusted and same; the background's half of it has `first == 0`.",
        "Negative is trusted and not same.",
    ],
    "Neutral pixels teach nothing, and that is their purpose: no lesson is better than a wrong one.",
    _kinds,
)


def _labelled() -> list[dict[str, Any]]:
    dice = np.random.default_rng(3)
    truth = dice.integers(0, 3, (12, 14)).astype(np.uint8)
    labels = np.where(dice.random(truth.shape) < 0.7, truth, dice.integers(0, 3, truth.shape))
    labels[dice.random(truth.shape) < 0.4] = VOID
    truth[:2] = VOID
    return [{"labels": labels.astype(np.uint8), "truth": truth}]


def _trust(labels: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    known, trusted = truth != VOID, labels != VOID
    right = (labels == truth)[known & trusted]
    return 100 * float(trusted[known].mean()), 100 * float(right.mean())


TRUST = Exercise(
    "2.4",
    _labelled,
    [
        shape("two numbers, coverage and accuracy"),
        unlike("both are told in percent; yours are fractions", lambda c: c.want / 100),
        unlike("coverage comes first; yours has the two exchanged", lambda c: c.want.flip(0)),
        Property(
            "where the truth is void, 255, nothing counts; yours counts those pixels, too",
            lambda c: not close(c.got[0], 100 * float((c.labels != VOID).mean())),
        ),
        Property(
            "accuracy is the share of right pixels among the trusted; yours counts the neutral "
            "ones as wrong",
            lambda c: (
                not close(c.got[1], 100 * float((c.labels == c.truth)[c.truth != VOID].mean()))
            ),
        ),
    ],
    [
        "Two masks: `truth != 255` is known, `labels != 255` is trusted.",
        "Coverage is the mean of trusted where known; accuracy is the mean of right where both.",
    ],
    "Coverage and accuracy pull against each other. Which of them AffinityNet needs more, lesson 7 has "
    "measured.",
    _trust,
)

EXERCISES = (TRUSTED, OFFSETS, PAIRS, TRUST)

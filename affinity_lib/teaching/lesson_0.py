"""Exercises on the measure of success: intersection over union."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from affinity_lib.evaluation import VOID, confusion, image_miou, iou
from affinity_lib.teaching.exercise import Exercise, Property, shape, unlike


def _maps() -> list[dict[str, Any]]:
    """True and guessed labels of two small images, some of whose pixels are void."""
    dice = np.random.default_rng(0)
    truth = dice.integers(0, 3, (2, 9, 11), dtype=np.uint8)
    guess = np.where(dice.random(truth.shape) < 0.6, truth, dice.integers(0, 3, truth.shape))
    truth[:, 3:5] = VOID
    return [{"truth": truth[k], "guess": guess[k].astype(np.uint8), "c": k + 1} for k in (0, 1)]


def _areas(c: Any) -> tuple[np.ndarray, np.ndarray]:
    """The true and the guessed pixels of a class, those that are void in the truth left out."""
    valid = c.truth != VOID
    return (c.truth == c.c) & valid, (c.guess == c.c) & valid


def _percent(part: np.ndarray, whole: np.ndarray) -> float:
    return 100 * float(part.sum() / whole.sum())


def _counted_twice(c: Any) -> float:
    true, guessed = _areas(c)
    return 100 * float((true & guessed).sum() / (true.sum() + guessed.sum()))


def _recall(c: Any) -> float:
    true, guessed = _areas(c)
    return _percent(true & guessed, true)


def _precision(c: Any) -> float:
    true, guessed = _areas(c)
    return _percent(true & guessed, guessed)


def _with_void(c: Any) -> float:
    true, guessed = c.truth == c.c, c.guess == c.c
    return _percent(true & guessed, true | guessed)


IOU = Exercise(
    "0.1",
    _maps,
    [
        shape("one number"),
        unlike(
            "IoU is told in percent, from 0 to 100; yours is a fraction: multiply by 100",
            lambda c: c.want / 100,
        ),
        unlike(
            "void pixels count for nobody; yours counts them: leave out where the truth is 255",
            _with_void,
        ),
        unlike(
            "pixels that only the guess gives to the class belong to the union, too; yours divides "
            "by the true ones alone",
            _recall,
        ),
        unlike(
            "pixels that the guess has missed belong to the union, too; yours divides by the "
            "guessed ones alone",
            _precision,
        ),
        unlike(
            "the union counts each pixel once; yours counts those of both areas twice: take `|`",
            _counted_twice,
        ),
    ],
    [
        "Make two masks first: where the truth is the class, and where the guess is.",
        "`&` is in both, `|` is in one or both; a third mask, `truth != 255`, belongs to each.",
        "`100 * (true & guessed & valid).sum() / ((true | guessed) & valid).sum()`",
    ],
    "One wrong pixel costs twice: it lengthens the union of the class that lost it and of the one "
    "that took it.",
    lambda truth, guess, c: iou(confusion(truth, guess, 3))[c],
)


def _matrices() -> list[dict[str, Any]]:
    dice = np.random.default_rng(1)
    full = dice.integers(1, 60, (4, 4)) + np.diag([400, 90, 60, 30])
    sparse = full.copy()
    sparse[2] = sparse[:, 2] = 0  # a class that is nowhere
    return [{"matrix": full}, {"matrix": sparse}]


def _of_rows(c: Any) -> float:
    rows = c.matrix.sum(axis=1)
    return 100 * float(np.mean(np.diag(c.matrix)[rows > 0] / rows[rows > 0]))


MIOU = Exercise(
    "0.2",
    _matrices,
    [
        shape("one number"),
        Property(
            "the result must be a finite number; yours is {}: a label that occurs nowhere has a "
            "union of 0 and must be left out",
            lambda c: bool(c.got.isfinite()),
        ),
        unlike(
            "mIoU is told in percent; yours is a fraction: multiply by 100",
            lambda c: c.want / 100,
        ),
        unlike(
            "a label that occurs neither in the truth nor in the guess has no IoU; yours counts it "
            "as 0: average over the others",
            lambda c: np.nansum(iou(c.matrix)) / len(c.matrix),
        ),
        unlike(
            "mIoU gives each class one voice; yours is pixel accuracy, where large classes drown "
            "small ones: divide class by class, then average",
            lambda c: 100 * np.trace(c.matrix) / c.matrix.sum(),
        ),
        unlike(
            "the union is the row and the column of a class; yours is the row alone, so pixels "
            "wrongly given to the class cost nothing",
            _of_rows,
        ),
    ],
    [
        "The diagonal holds the intersections of all classes at once.",
        (
            "A row sums to the true pixels of a class, a column to the guessed ones; their sum counts "
            "the diagonal twice."
        ),
        "Keep the labels whose union is above 0, and average `100 * intersection / union` there.",
    ],
    "Rare classes weigh as much as the background, which is why a table of mIoU is hard to flatter.",
    lambda matrix: np.nanmean(iou(matrix)),
)


def disc(size: int = 40, radius: float = 11, y: float = 20, x: float = 17) -> np.ndarray:
    """A true mask with one object, label 1: a disc.

    >>> disc(4, 1.5, 1, 1).tolist()
    [[1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 0], [0, 0, 0, 0]]
    """
    rows, columns = np.mgrid[:size, :size]
    return ((rows - y) ** 2 + (columns - x) ** 2 < radius**2).astype(np.uint8)


def _scores(c: Any, k: int) -> tuple[float, float]:
    """Pixel accuracy and mIoU of the k-th guess, in percent."""
    guess = c.got[k].numpy().astype(np.uint8)
    return 100 * float((guess == c.truth).mean()), image_miou(c.truth, guess, 2)


TWO_GUESSES = Exercise(
    "0.3",
    lambda: [{"truth": disc()}, {"truth": disc(30, 8, 12, 15)}],
    [
        Property(
            "the result must be two label maps of the truth's shape; yours has the shape {}",
            lambda c: c.got.shape == (2, *c.truth.shape),
            lambda c: (tuple(c.got.shape),),
        ),
        Property(
            "there are two labels, 0 and 1; yours are {}",
            lambda c: set(c.got.unique().tolist()) <= {0, 1},
            lambda c: (torch.unique(c.got).int().tolist()[:4],),
        ),
        Property(
            "the first guess must have the higher pixel accuracy; yours has {:.1f} percent, and "
            "the second has {:.1f}",
            lambda c: _scores(c, 0)[0] > _scores(c, 1)[0],
            lambda c: (_scores(c, 0)[0], _scores(c, 1)[0]),
        ),
        Property(
            "the second guess must have the higher mIoU; yours has {:.1f} percent, and the first "
            "has {:.1f}",
            lambda c: _scores(c, 1)[1] > _scores(c, 0)[1],
            lambda c: (_scores(c, 1)[1], _scores(c, 0)[1]),
        ),
    ],
    [
        "Which guess needs no look at the image and is right at most pixels?",
        (
            "The second may be generous: it finds the whole object and takes a good part of the "
            "background with it."
        ),
        "All background, and the truth with every third column given to the object.",
    ],
    "A method that never finds an object can look good in pixel accuracy. No table here uses it.",
)

EXERCISES = (IOU, MIOU, TWO_GUESSES)

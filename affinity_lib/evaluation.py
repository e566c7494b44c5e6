"""The one evaluator: intersection over union of predicted and true labels (Sec. 5.1, 5.2).

Everything that reads ground-truth masks to make a number goes through here, and each number says
which split it is from, whether it used the images' tags, and what was chosen with masks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from affinity_lib.errors import InputError

VOID = 255
"""The label of pixels that count for nobody: object borders in VOC, neutral areas in ours."""

PAPER_TABLE1 = {
    "cam": ("CAM", 48.0),
    "cam_crf": ("CAM + dCRF", None),
    "rw": ("CAM + RW", 58.1),
    "rw_crf": ("CAM + RW + dCRF", 59.7),
}
"""Rows of the paper's Table 1: key in ``results.json`` -> (name, train mIoU or None)."""

PAPER_NETWORKS = {"resnet38": "Ours-ResNet38", "vgg16": "Ours-DeepLab"}
"""The paper's own rows of Tables 2 to 4: backbone -> name; ``data/literature`` has their numbers."""


@dataclass(frozen=True)
class Evaluation:
    """What came out, and under which conditions.

    Attributes:
        miou: mean of ``per_class``, in percent.
        per_class: intersection over union in percent, by class name, of every label (background
            too) that occurs in the truth or in the predictions.
        pixel_accuracy: pixels with the right label, in percent of those that are not void.
        split: the split the images are from.
        num_images: how many were evaluated.
        uses_tags: whether the predictions knew the images' tags.
        chosen_with: settings that were chosen by looking at masks, and the split of those masks,
            e.g. ``{"alpha": "train"}``; empty if there are none.
        crf: whether dCRF refined the predictions.
        without_mask: how many more images the split has, which could not be evaluated.
    """

    miou: float
    per_class: dict[str, float]
    pixel_accuracy: float
    split: str
    num_images: int
    uses_tags: bool
    chosen_with: dict[str, str] = field(default_factory=dict)
    crf: bool = False
    without_mask: int = 0

    @classmethod
    def from_confusion(
        cls,
        matrix: np.ndarray,
        classes: Sequence[str],
        *,
        chosen_with: Mapping[str, str] | None = None,
        **conditions: Any,
    ) -> Evaluation:
        """From a confusion matrix summed over images, e.g. one of many kept in a single pass.

        Args:
            matrix: (L, L) as of :func:`confusion`, L = 1 + number of classes.
            classes: the class names, without background.
            chosen_with, conditions: the fields that tell under which conditions, by their names.

        Raises:
            InputError: the matrix does not fit the classes.

        >>> result = Evaluation.from_confusion(
        ...     np.array([[2, 1], [0, 1]]), ["cat"], split="val", num_images=1, uses_tags=False
        ... )
        >>> round(result.miou, 1), result.pixel_accuracy, result.statement()
        (58.3, 75.0, 'val split, 1 image, no tags used, nothing chosen with masks, no dCRF')
        """
        names = ("background", *classes)
        if matrix.shape != (len(names), len(names)):
            raise InputError(
                f"a confusion matrix of shape {matrix.shape} does not fit background and "
                f"{len(classes)} classes"
            )
        per_class = {
            name: float(value)
            for name, value in zip(names, iou(matrix), strict=True)
            if not np.isnan(value)
        }
        if not per_class:  # no mask, or nothing but void
            per_class = dict.fromkeys(names, float("nan"))
        return cls(
            miou=float(np.mean(list(per_class.values()))),
            per_class=per_class,
            pixel_accuracy=float(100 * np.trace(matrix) / matrix.sum())
            if matrix.any()
            else math.nan,
            chosen_with=dict(chosen_with or {}),
            **conditions,
        )

    def statement(self) -> str:
        """The conditions, to stand beside the number.

        >>> Evaluation(48.0, {}, 80.0, "train", 400, True, {"alpha": "train"}).statement()
        'train split, 400 images, tags used, alpha chosen with these masks, no dCRF'
        """
        total = self.num_images + self.without_mask
        if math.isnan(self.miou):
            return (
                f"{self.split} split, not evaluated: there are no {'masks' if total else 'images'}"
            )
        by_split: dict[str, list[str]] = {}
        for setting, split in self.chosen_with.items():
            by_split.setdefault(split, []).append(setting)
        chosen = [
            f"{_listed(settings)} chosen with "
            + ("these masks" if split == self.split else f"the masks of the {split} split")
            for split, settings in by_split.items()
        ]
        parts = [
            f"{self.split} split",
            f"{self.num_images} of " * bool(self.without_mask)
            + f"{total} image{'s' * (total != 1)}"
            + " (the others have no mask)" * bool(self.without_mask),
            "tags used" if self.uses_tags else "no tags used",
            *(chosen or ["nothing chosen with masks"]),
            "dCRF" if self.crf else "no dCRF",
        ]
        return ", ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values, for JSON."""
        return asdict(self)


def confusion(truth: np.ndarray, predicted: np.ndarray, num_labels: int) -> np.ndarray:
    """Count pixels by true and predicted label; where the truth is void, nothing counts.

    Args:
        truth: (H, W), 0..num_labels - 1 or 255.
        predicted: (H, W), 0..num_labels - 1 wherever the truth is not void.
        num_labels: L, the classes and background.

    Returns:
        (L, L) int64; entry (i, j) counts pixels of true label i that were predicted as j.

    Raises:
        InputError: the shapes differ, or a label is out of range.

    >>> confusion(np.array([[0, 0, 1, 255]]), np.array([[0, 1, 1, 1]]), 2).tolist()
    [[1, 1], [0, 1]]
    """
    truth, predicted = np.asarray(truth), np.asarray(predicted)
    if truth.shape != predicted.shape:
        raise InputError(
            f"predicted labels of shape {predicted.shape} do not fit the true ones of shape "
            f"{truth.shape}: resize the scores to the image before taking the labels"
        )
    if not truth.dtype == predicted.dtype == np.uint8:
        truth, predicted = truth[truth != VOID], predicted[truth != VOID]
        _check_range("true", truth, num_labels)
        _check_range("predicted", predicted, num_labels)
    pairs = truth.astype(np.uint16) << 8 | predicted.astype(np.uint16)
    matrix = np.bincount(pairs.ravel(), minlength=2**16).reshape(256, 256)[:VOID]
    for name, occurs in (("true", matrix.any(axis=1)), ("predicted", matrix.any(axis=0))):
        _check_range(name, np.flatnonzero(occurs), num_labels)
    return matrix[:num_labels, :num_labels].copy()


def iou(matrix: np.ndarray) -> np.ndarray:
    """Intersection over union of each label, from a confusion matrix.

    Args:
        matrix: (L, L) counts, rows true and columns predicted.

    Returns:
        (L,) float64 in percent; NaN for a label that occurs in neither.

    >>> iou(np.array([[2, 1, 0], [0, 1, 0], [0, 0, 0]])).round(1).tolist()
    [66.7, 50.0, nan]
    """
    both = np.diag(matrix)
    either = matrix.sum(0) + matrix.sum(1) - both
    return np.divide(100.0 * both, either, out=np.full(len(both), np.nan), where=either > 0)


def mean_iou(matrix: np.ndarray) -> float:
    """Mean IoU over the labels that occur, in percent; 0 where nothing counts.

    Args:
        matrix: (L, L) as of :func:`confusion`.
    """
    return float(np.nanmean(iou(matrix))) if matrix.any() else 0.0


def image_miou(truth: np.ndarray, labels: np.ndarray, num_labels: int) -> float:
    """Mean IoU over the labels that occur in one image, in percent; 0 where all of it is void.

    Args:
        truth, labels, num_labels: see :func:`confusion`.

    >>> image_miou(np.array([[0, 0, 1, 1]]), np.array([[0, 1, 1, 1]]), 3).__round__(1)
    58.3
    """
    return mean_iou(confusion(truth, labels, num_labels))


def _check_range(name: str, labels: np.ndarray, num_labels: int) -> None:
    if labels.size and not 0 <= labels.min() <= labels.max() < num_labels:
        raise InputError(
            f"{name} labels must be 0..{num_labels - 1} where the truth is not void, got "
            f"{labels.min()}..{labels.max()}: set the truth to {VOID} where none counts"
        )


def _listed(words: Sequence[str]) -> str:
    """As in "alpha, beta and t"."""
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))

"""Labels of all images held against the masks (sections 5.1 and 5.2)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np

from affinity_lib.data.voc import VOCData
from affinity_lib.errors import InputError
from affinity_lib.evaluation import Evaluation, confusion
from affinity_lib.training.progress import track


def evaluate(
    data: VOCData,
    ids: Iterable[str],
    predict: Callable[[str], np.ndarray],
    *,
    split: str,
    uses_tags: bool,
    chosen_with: Mapping[str, str] | None = None,
    crf: bool = False,
) -> Evaluation:
    """Compare predictions with the data set's masks.

    Args:
        data: where the masks are.
        ids: the images to evaluate.
        predict: image id -> labels (H, W) of the mask's size, 0..C.
        split: the name of the split the ids are from.
        uses_tags: whether ``predict`` knows the images' tags.
        chosen_with: setting -> split whose masks it was chosen with, e.g. ``{"alpha": "train"}``.
        crf: whether the predictions were refined by dCRF.

    Raises:
        InputError: no ids, a missing mask, a prediction of another size or with other labels.
    """
    ids = list(ids)
    if not ids:
        raise InputError(f"no image of the {split} split to evaluate: give at least one id")
    num_labels = len(data.classes) + 1
    total = np.zeros((num_labels, num_labels), dtype=np.int64)
    for image_id in track(ids, "evaluation"):
        try:
            total += confusion(data.mask(image_id), predict(image_id), num_labels)
        except InputError as error:
            raise InputError(f"image {image_id} cannot be evaluated: {error}") from error
    return Evaluation.from_confusion(
        total,
        data.classes,
        split=split,
        num_images=len(ids),
        uses_tags=uses_tags,
        chosen_with=chosen_with,
        crf=crf,
    )

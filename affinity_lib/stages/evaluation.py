"""Labels of all images held against the masks (sections 5.1 and 5.2)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from affinity_lib.data.voc import VOCData
from affinity_lib.errors import InputError
from affinity_lib.evaluation import Evaluation, confusion, image_miou
from affinity_lib.training.parallel import each_image


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
    """Compare predictions with the data set's masks, of the images that have one.

    Without any mask, or any image, the numbers are NaN, and ``statement`` tells why.

    Args:
        data: where the masks are.
        ids: the images to evaluate; ``predict`` is asked for those with a mask.
        predict: image id -> labels (H, W) of the mask's size, 0..C.
        split: the name of the split the ids are from.
        uses_tags: whether ``predict`` knows the images' tags.
        chosen_with: setting -> split whose masks it was chosen with, e.g. ``{"alpha": "train"}``.
        crf: whether the predictions were refined by dCRF.

    Raises:
        InputError: a mask that cannot be read, a prediction of another size or with other labels.
    """
    conditions = {"split": split, "uses_tags": uses_tags, "chosen_with": chosen_with, "crf": crf}
    (only,) = evaluate_each(data, ids, lambda image_id: [predict(image_id)], [""], **conditions)
    return only


def evaluate_each(
    data: VOCData,
    ids: Iterable[str],
    predict: Callable[[str], Iterable[np.ndarray]],
    variants: Sequence[Any],
    **conditions: Any,
) -> list[Evaluation]:
    """``evaluate`` for several label maps an image, each image and mask being read once.

    Args:
        data, ids: see ``evaluate``.
        predict: image id -> label maps (H, W), one for each of ``variants``, in their order.
        variants: what they are of, such as the values of a setting.
        conditions: the further arguments of ``evaluate``.

    Returns:
        One result for each of ``variants``.
    """
    ids = list(ids)
    judged = data.with_masks(ids)
    num_labels = len(data.classes) + 1

    def work(image_id: str) -> np.ndarray:
        try:
            truth = data.mask(image_id)
            return np.stack([confusion(truth, each, num_labels) for each in predict(image_id)])
        except InputError as error:
            raise InputError(f"image {image_id} cannot be evaluated: {error}") from error

    none = np.zeros((len(variants), num_labels, num_labels), dtype=np.int64)
    return [
        Evaluation.from_confusion(
            total,
            data.classes,
            num_images=len(judged),
            without_mask=len(ids) - len(judged),
            **conditions,
        )
        for total in sum(each_image(work, judged, "evaluation"), start=none)
    ]


def extremes(data: VOCData, ids: Sequence[str], labels: Path, count: int = 4) -> list[str]:
    """The images whose labels fit their masks best, then those where they fit worst.

    Args:
        data: the data set; its masks choose what is shown, and nothing else.
        ids: the images to choose from; those without labels are left out.
        labels: folder of ``ID.png`` label maps.
        count: how many of each.

    Returns:
        At most ``2 * count`` ids, from the best to the worst by the mean IoU over the classes in
        one image that has a mask; without masks, as many from all over the list.
    """
    ids = [image_id for image_id in ids if (labels / f"{image_id}.png").is_file()]
    if judged := data.with_masks(ids):
        mious = image_mious(data, judged, labels)
        ids = sorted(judged, key=lambda image_id: (-mious[image_id], image_id))
        return ids if len(ids) <= 2 * count else ids[:count] + ids[-count:]
    places = np.linspace(0, len(ids) - 1, min(2 * count, len(ids))).round().astype(int)
    return [ids[place] for place in places]


def image_mious(data: VOCData, ids: Iterable[str], labels: Path) -> dict[str, float]:
    """How well the label maps of a folder fit the masks, image by image.

    Args:
        data: where the masks are.
        ids: the images to compare.
        labels: folder of ``ID.png`` label maps.

    Returns:
        Image id -> :func:`~affinity_lib.evaluation.image_miou`, in the order of ``ids``.
    """
    ids, num_labels = list(ids), len(data.classes) + 1

    def work(image_id: str) -> float:
        found = data.read_labels(labels / f"{image_id}.png")
        return image_miou(data.mask(image_id), found, num_labels)

    return dict(zip(ids, each_image(work, ids, "evaluation"), strict=True))

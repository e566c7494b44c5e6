"""Predictions for VOC's evaluation server, which alone has the masks of the test images (Table 3)."""

from __future__ import annotations

import tarfile
from pathlib import Path

from affinity_lib.data.files import write_aside
from affinity_lib.data.voc import VOC_CLASSES, VOCData, read_labels
from affinity_lib.errors import InputError

SUBMISSION = "results/VOC2012/Segmentation/comp6_test_cls"
"""Where the evaluation server looks for label maps in an archive."""


def submitted_ids(data: VOCData, split: str) -> list[str]:
    """The images to predict for the server; none, with a line that says so, without their list.

    It is VOC's list of the segmentation task: the one in ``ImageSets/Main`` is of another task.

    Args:
        data: the data set.
        split: "test" for Table 3, or "" for no submission.

    Raises:
        InputError: the data set has other classes than VOC.
    """
    if not split:
        return []
    _check_classes(data)
    ids = data.ids(split, missing_ok=True)
    if not ids or data.list_path(split).parent.name != "Segmentation":
        print(f"The data set has no list {split}: nothing is predicted for the server.")
        return []
    return ids


def write_submission(data: VOCData, split: str, predictions: Path, path: str | Path) -> Path:
    """Pack label maps as VOC's evaluation server wants them.

    Args:
        data: the data set whose images were labelled.
        split: their list, "test" for Table 3.
        predictions: folder of a palette PNG ``ID.png`` for each image.
        path: the archive to write, ``.tgz``.

    Returns:
        ``path``.

    Raises:
        InputError: the data set has other classes than VOC, or a label map is missing, is not of
            its image's size, or has a label that is no class (void counts as none).
    """
    _check_classes(data)
    maps = {image_id: predictions / f"{image_id}.png" for image_id in sorted(data.ids(split))}
    for image_id, file in maps.items():
        labels, size = read_labels(file), data.image(image_id).size
        if labels.shape != size[::-1] or labels.max() > len(VOC_CLASSES):
            raise InputError(
                f"{file} is {labels.shape[1]} x {labels.shape[0]} with labels up to "
                f"{labels.max()}, but the server wants {size[0]} x {size[1]} and labels up to "
                f"{len(VOC_CLASSES)}: predict the {split} split of VOC 2012 again"
            )
    with write_aside(path) as aside, tarfile.open(aside, "w:gz") as archive:
        for image_id, file in maps.items():
            archive.add(file, f"{SUBMISSION}/{image_id}.png")
    return Path(path)


def _check_classes(data: VOCData) -> None:
    if data.classes != VOC_CLASSES:
        raise InputError(
            f"the server wants all {len(VOC_CLASSES)} classes of VOC 2012 in its numbering, got "
            f"{', '.join(data.classes)}: leave classes empty, or test_split"
        )

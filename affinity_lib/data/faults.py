"""What is wrong with a data set, all of it at once, and what is worth knowing about it."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import ExifTags, Image

from affinity_lib.data.voc import VOCData
from affinity_lib.errors import InputError
from affinity_lib.evaluation import VOID

T = TypeVar("T")
_SHOWN = 5


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong.

    Attributes:
        sentence: the file, what is wrong with it, and the remedy.
        stops: whether a run cannot do without the remedy.
    """

    sentence: str
    stops: bool = True

    def __str__(self) -> str:
        return self.sentence


def list_faults(data: VOCData, train: str, val: str) -> Iterator[Fault]:
    """What is wrong with the lists of the two splits; without images to validate on, a run goes on.

    A list of no images to validate on is what ``convert`` writes if asked to, and no fault.

    Args:
        data: the data set.
        train: name of the list to train on.
        val: name of the list to validate on.
    """
    listed = {}
    for split in (train, val):
        try:
            listed[split] = data.listed(split)
        except InputError as error:
            if split == train or not _is_empty(data.list_path(split)):
                yield Fault(str(error), stops=split == train)
            continue
        if repeated := [i for i, count in Counter(listed[split]).items() if count > 1]:
            yield Fault(
                f"{data.list_path(split)} names {_images(repeated)} more than once: take the "
                "repeated lines out, each image counts once",
                stops=False,
            )
    if both := sorted(set(listed.get(train, ())).intersection(listed.get(val, ()))):
        yield Fault(
            f"{data.list_path(val)} names {_images(both)} that {train}.txt names, too: take them "
            "out of one list, a network is not judged by what it was trained on",
            stops=False,
        )


def image_faults(data: VOCData, image_id: str) -> list[Fault]:
    """What is wrong with the files of one image; nothing is, if the image is left out."""
    faults: list[Fault] = []

    def read(what: Callable[[str], T]) -> T | None:
        try:
            return what(image_id)
        except InputError as error:
            faults.append(Fault(str(error)))
            return None

    tags = read(data.tags)
    if tags == () and data.leaves_out(image_id):
        return faults
    image = read(data.image)
    if image and _is_turned(image):
        faults.append(
            Fault(
                f"{data.image_path(image_id)} stands upright by an EXIF mark alone, which is not "
                "looked at: turn its pixels, and those of its mask",
                stops=False,
            )
        )
    labels = read(data.mask) if data.with_masks([image_id]) else None
    if labels is None:
        return faults
    path, size = data.mask_path(image_id), labels.shape[::-1]
    if image and size != image.size:
        faults.append(
            Fault(
                f"{path} is {size[0]} x {size[1]} pixels but its image is {image.width} x "
                f"{image.height}: give the mask the image's size"
            )
        )
    present = set(np.unique(labels).tolist()) - {0, VOID}
    if tags and present and not present.intersection(tags):
        faults.append(
            Fault(
                f"{path} shows {_names(data, present)} and no {_names(data, tags)}, the tags of its "
                "image: correct the numbers of the mask, or the tags",
                stops=False,
            )
        )
    return faults


def remarks(data: VOCData, train: str, val: str) -> list[str]:
    """What a person should know before a data set without faults is used, in sentences.

    Which images are left out and why, what cannot be computed, and which classes cannot be learned.

    Args:
        data: the data set.
        train: name of the list to train on.
        val: name of the list to validate on.
    """
    found = []
    if data.list_path(train).parent.name == "Main":
        found.append(
            "ImageSets/Segmentation has no list, so those of ImageSets/Main are used: "
            + ", ".join(f"{len(data.ids(s, missing_ok=True))} images in {s}" for s in (train, val))
        )
    for split in (train, val):
        ids = data.ids(split, missing_ok=True)
        if out := data.left_out(split):
            found.append(
                f"{split}: left out for carrying none of the chosen classes: {len(out)} of "
                f"{len(ids) + len(out)} images"
            )
        if not ids:
            found.append(f"{split}: no images, so nothing is evaluated on them")
            continue
        if untagged := len(ids) - len(data.with_tags(ids)):
            found.append(
                f"{split}: without a tag, so negatives that train the classification network and "
                f"get neither CAMs nor labels: {untagged} of {len(ids)} images"
            )
        masks = len(data.with_masks(ids))
        if masks < len(ids):
            found.append(
                f"{split}: with a mask, so evaluated: {masks} of {len(ids)} images"
                if masks
                else f"{split}: no image has a mask, so nothing is evaluated"
            )
    counts, total = class_counts(data, train), len(data.ids(train))
    for name, count in counts.items():
        if count == total:
            found.append(
                f"{train}: {name} is on every image, so nothing tells it from the background: add "
                "images without it"
            )
    if unseen := [name for name, count in counts.items() if not count]:
        found.append(f"{train}: no image has {', '.join(unseen)}, which cannot be learned")
    return found


def class_counts(data: VOCData, split: str) -> dict[str, int]:
    """The number of a split's images that carry each class; what cannot be read counts nowhere."""
    counts = dict.fromkeys(data.classes, 0)
    for image_id in dict.fromkeys(data.listed(split, missing_ok=True)):
        with suppress(InputError):
            for tag in data.tags(image_id):
                counts[data.classes[tag - 1]] += 1
    return counts


def count_table(data: VOCData, splits: Sequence[str]) -> str:
    """The number of images with each class, a line a class and a column a split, as text."""
    columns = [class_counts(data, split) for split in splits]
    width = max(map(len, (*data.classes, "images with")))
    lines = [f"{'images with':{width}}" + "".join(f"{split:>10}" for split in splits)]
    for name in data.classes:
        lines.append(f"{name:{width}}" + "".join(f"{counts[name]:>10}" for counts in columns))
    return "\n".join(lines)


def shortened(sentences: Sequence[object], most: int = _SHOWN) -> list[str]:
    """The first of them, and how many more there are."""
    lines = [str(sentence) for sentence in sentences[:most]]
    more = len(sentences) - len(lines)
    return lines + [f"and {more} more"] * bool(more)


def _is_empty(path: Path) -> bool:
    return path.is_file() and not path.read_bytes().strip()


def _is_turned(image: Image.Image) -> bool:
    try:
        return image.getexif().get(ExifTags.Base.Orientation) in range(2, 9)
    except (SyntaxError, ValueError, TypeError, OSError, struct.error):  # a broken mark is none
        return False


def _images(ids: Sequence[str]) -> str:
    shown = ", ".join(ids[:_SHOWN]) + ", ..." * (len(ids) > _SHOWN)
    return f"{len(ids)} image{'s' * (len(ids) != 1)} ({shown})"


def _names(data: VOCData, labels: Iterable[int]) -> str:
    return ", ".join(data.classes[label - 1] for label in sorted(labels))

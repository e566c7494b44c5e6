"""The one data layout: PASCAL VOC's folders, tags from XML, masks as palette PNG (Sec. 5.1).

::

    root/
      JPEGImages/ID.jpg              the images; .jpeg and .png will do, too
      Annotations/ID.xml             the image's tags: <object><name>cat</name></object>
      ImageSets/Segmentation/*.txt   a split: one ID a line; without this folder, ImageSets/Main
      SegmentationClass/ID.png       0 background, 1..C classes, 255 void; only for the evaluator
      classes.txt                    the class names, one a line; without it VOC's twenty

An image without any tag is a negative: it trains the classification network and has no CAM. One
whose tags are all of classes that were not chosen is left out.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from affinity_lib.data.files import as_rgb, image_size, open_image
from affinity_lib.data.label_maps import as_bytes, palette, read_labels, write_labels
from affinity_lib.data.layout import (
    IMAGE_SUFFIXES,
    beside,
    did_you_mean,
    read_classes,
    read_ids,
    read_tags,
    same_class,
    split_classes,
)
from affinity_lib.errors import InputError
from affinity_lib.evaluation import VOID

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip

_MASKS = ("SegmentationClass", "SegmentationClassAug")  # the second has SBD's, VOC's own come first


class VOCData:
    """A data set in VOC layout, seen through C classes numbered 1..C.

    Class names come from ``classes``, else from ``root/classes.txt``, else they are VOC's twenty.
    With ``classes`` a part of the data set's names is chosen: images that carry other tags alone
    are left out, other tags are ignored and the masks' pixels of other classes are background.
    Files keep the data set's own numbers, so what :meth:`write_labels` writes is read right by any
    toolbox that knows the data set.

    Only :meth:`mask`, :meth:`with_masks` and :meth:`has_masks` touch the ground truth. What is read of lists and
    annotations is remembered.

    Args:
        root: the folder that holds ``JPEGImages``, e.g. ``VOCdevkit/VOC2012``.
        classes: class names in the order wanted, or a text as :func:`split_classes` takes it;
            empty or None for all.

    Raises:
        InputError: the folder is not in VOC layout, or a class name is not known.

    >>> import tempfile
    >>> VOCData(tempfile.mkdtemp())  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    affinity_lib.errors.InputError: ... has no folder JPEGImages: ...
    """

    def __init__(self, root: str | Path, classes: str | Sequence[str] | None = None) -> None:
        self.root = Path(root).expanduser()
        for folder in ("JPEGImages", "Annotations", "ImageSets"):
            if not (self.root / folder).is_dir():
                raise InputError(
                    f"{self.root} has no folder {folder}: unpack the whole data set and give the "
                    f"folder that holds JPEGImages{_nested(self.root)}"
                )
        own_names = self.root / "classes.txt"
        self._names = read_classes(own_names) if own_names.is_file() else VOC_CLASSES
        if isinstance(classes, str):
            classes = split_classes(classes, self._names) if classes.strip() else None
        self._chosen = bool(classes)
        self.classes = tuple(classes or self._names)
        if unknown := [name for name in self.classes if name not in self._names]:
            raise InputError(
                f"{self.root} has no class "
                + ", ".join(f"{name!r}{did_you_mean(name, self._names)}" for name in unknown)
                + f": choose from {', '.join(self._names)}"
            )
        if len(set(self.classes)) < len(self.classes):
            raise InputError(f"classes must be different names, got {', '.join(self.classes)}")
        self._number = {name: number for number, name in enumerate(self.classes, start=1)}
        self._file_values = np.array([0, *(self._names.index(n) + 1 for n in self.classes)])
        # File value -> label: other classes of the data set are background, -1 is nobody's value.
        self._labels = np.full(256, -1, dtype=np.int16)
        self._labels[: len(self._names) + 1] = 0
        self._labels[self._file_values] = np.arange(len(self.classes) + 1)
        self._labels[VOID] = VOID
        self._read: dict[str, tuple[str, ...]] = {}  # image id -> names in its annotation
        self._lists: dict[str, list[str]] = {}

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_read": {}, "_lists": {}}  # another process reads what it needs

    @property
    def colors(self) -> np.ndarray:
        """(C + 1, 3) uint8: the palette's colours of background and the classes."""
        return palette()[self._file_values]

    @property
    def numbers(self) -> tuple[int, ...]:
        """The numbers of background and the classes in the data set's files, one a label 0..C."""
        return tuple(self._file_values.tolist())

    def list_path(self, split: str) -> Path:
        """The list of a split, whether it is there or not.

        It is in ``ImageSets/Segmentation``, or in ``ImageSets/Main`` where the former has no list.
        """
        folders = [self.root / "ImageSets" / name for name in ("Segmentation", "Main")]
        there = [folder for folder in folders if any(folder.glob("*.txt"))]
        return (there or folders)[0] / f"{split}.txt"

    def listed(self, split: str, missing_ok: bool = False) -> list[str]:
        """What a split's list names, in its order: with repetitions, and with what is left out.

        Args:
            split: the name of a list, e.g. "train"; see :meth:`list_path`.
            missing_ok: give no ids, instead of an error.

        Raises:
            InputError: there is no such list, or it is empty.
        """
        if missing_ok:
            with suppress(InputError):
                return self.listed(split)
            return []
        if split not in self._lists:
            path = self.list_path(split)
            if not path.is_file():
                there = ", ".join(sorted(p.stem for p in path.parent.glob("*.txt"))) or "none"
                raise InputError(f"{path} is missing: choose a split that is there ({there})")
            ids = read_ids(path, os.listdir(self.root / "JPEGImages"))
            if not ids:
                raise InputError(f"{path} lists no image: write one image id a line")
            self._lists[split] = ids
        return list(self._lists[split])

    def ids(self, split: str, missing_ok: bool = False) -> list[str]:
        """The image ids of a split that can be used, each once, in the list's order.

        Args:
            split: the name of a list, e.g. "train"; see :meth:`list_path`.
            missing_ok: give no ids, instead of an error, where there are none.

        Raises:
            InputError: there is no such list, it is empty, or no image of it carries a class that
                was chosen.
        """
        listed = dict.fromkeys(self.listed(split, missing_ok))
        ids = [image_id for image_id in listed if not self.leaves_out(image_id)]
        if not ids and not missing_ok:
            raise InputError(
                f"no image of the {split} split has a tag of the classes "
                f"{', '.join(self.classes)}: choose other classes or another list"
            )
        return ids

    def left_out(self, split: str) -> list[str]:
        """The images of a split that are not in :meth:`ids`; none where there is no list."""
        listed = dict.fromkeys(self.listed(split, missing_ok=True))
        return [image_id for image_id in listed if self.leaves_out(image_id)]

    def leaves_out(self, image_id: str) -> bool:
        """Whether the image carries classes, but none that was chosen."""
        return self._chosen and not self.tags(image_id) and bool(self._names_of(image_id))

    def with_tags(self, ids: Iterable[str]) -> list[str]:
        """Those of the images that have a tag: they get CAMs and labels, the rest is negative."""
        return [image_id for image_id in ids if self.tags(image_id)]

    def examples(self, ids: Iterable[str], count: int) -> list[str]:
        """Some images with tags, from one with the fewest to one with the most, for figures."""
        order = sorted(self.with_tags(ids), key=lambda image_id: len(self.tags(image_id)))
        places = np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int)
        return [order[place] for place in places]

    def with_masks(self, ids: Iterable[str]) -> list[str]:
        """Those of the images that have a mask, so that they can be evaluated."""
        return [image_id for image_id in ids if os.path.isfile(self.mask_path(image_id))]

    def has_masks(self, ids: Iterable[str]) -> bool:
        """Whether there are images, and every one of them has a mask."""
        ids = list(ids)
        return bool(ids) and self.with_masks(ids) == ids

    def image_path(self, image_id: str) -> Path:
        """The file of an image: its id and one of ``IMAGE_SUFFIXES``.

        Raises:
            InputError: there is no such file, or more than one.
        """
        path = self.root / "JPEGImages" / f"{image_id}.jpg"
        stem, capitals = str(path)[: -len(".jpg")], [suffix.upper() for suffix in IMAGE_SUFFIXES]
        found = [p for s in (*IMAGE_SUFFIXES, *capitals) if os.path.isfile(p := f"{stem}{s}")]
        if not found:
            raise InputError(
                f"{path} is missing{beside(path)}: add the image, or take {image_id} out of the lists"
            )
        # where capitals do not matter, .jpg and .JPG are one file
        if others := [p for p in found[1:] if not os.path.samefile(p, found[0])]:
            raise InputError(
                f"{found[0]} and {Path(others[0]).name} are one image: remove one of them"
            )
        return Path(found[0])

    def image(self, image_id: str) -> Image.Image:
        """An image, decoded, as RGB; what is transparent is white.

        Raises:
            InputError: the file is missing, does not decode or has more than 8 bits a colour.
        """
        path = self.image_path(image_id)
        return as_rgb(open_image(path), path)

    def image_size(self, image_id: str) -> tuple[int, int]:
        """Width and height of an image, from its header.

        Raises:
            InputError: the file is missing or is no image.
        """
        return image_size(self.image_path(image_id))

    def tags(self, image_id: str) -> tuple[int, ...]:
        """An image's tags as class numbers, ascending, each in 1..C; empty for none of them.

        Raises:
            InputError: the XML is missing or broken, or names a class that the data set does not
                have (with ``classes``: one that is a chosen class in another spelling).
        """
        names = self._names_of(image_id)
        for name in names:
            meant = "" if name in self._names else same_class(name, self._names)
            if name not in self._names and (not self._chosen or meant in self._number):
                raise InputError(
                    f"{self._tags_path(image_id)} has the tag {name!r} that no class has"
                    f"{did_you_mean(name, self._names)}: correct it, or add the class to "
                    f"{self.root / 'classes.txt'}"
                )
        return tuple(sorted(self._number[name] for name in names if name in self._number))

    def multi_hot(self, ids: Iterable[str]) -> torch.Tensor:
        """The tags of many images as training targets, float32 (N, C); column c - 1 is class c."""
        rows = [self.tags(image_id) for image_id in ids]
        target = torch.zeros(len(rows), len(self.classes))
        for row, tags in zip(target, rows, strict=True):
            row[[tag - 1 for tag in tags]] = 1
        return target

    def mask_path(self, image_id: str) -> Path:
        """The file of an image's true labels, whether it is there or not."""
        names = (f"{image_id}.png", f"{image_id}.PNG")
        paths = [self.root / folder / name for folder in _MASKS for name in names]
        return next((path for path in paths if os.path.isfile(path)), paths[0])

    def mask(self, image_id: str) -> np.ndarray:
        """An image's true labels, uint8 (H, W): 0 background, 1..C classes, 255 void.

        For the evaluator and for pictures; training sees tags. Of an image without a mask nothing
        is known, so every pixel is void.

        Raises:
            InputError: the mask does not decode or holds a label of no class.
        """
        path = self.mask_path(image_id)
        if not os.path.isfile(path):
            width, height = self.image_size(image_id)
            return np.full((height, width), VOID, np.uint8)
        return self.read_labels(path)

    def read_labels(self, path: str | Path) -> np.ndarray:
        """Read a label map with the data set's numbers as labels of this object, uint8 (H, W).

        Raises:
            InputError: the file is missing, does not decode or holds a label of no class.
        """
        values = read_labels(path)
        labels = self._labels[values]
        if labels.min() < 0:
            raise InputError(
                f"{path} has the label {values[labels < 0][0]} that no class has: correct the "
                f"file, or name the class in {self.root / 'classes.txt'}"
            )
        return labels.astype(np.uint8)

    def write_labels(self, path: str | Path, labels: np.ndarray) -> None:
        """Write labels of this object (0..C, 255) as a palette PNG with the data set's numbers.

        >>> import tempfile
        >>> root = Path(tempfile.mkdtemp())
        >>> for folder in ("JPEGImages", "Annotations", "ImageSets/Segmentation"):
        ...     (root / folder).mkdir(parents=True)
        >>> data = VOCData(root, classes=["cat", "dog"])
        >>> data.write_labels(root / "a.png", np.array([[0, 1], [2, VOID]]))
        >>> read_labels(root / "a.png").tolist()  # cat and dog have VOC's numbers
        [[0, 8], [12, 255]]
        """
        values = np.full(256, -1)
        values[: len(self._file_values)] = self._file_values
        values[VOID] = VOID
        labels = as_bytes(labels)
        if (values[labels] < 0).any():
            raise InputError(
                f"labels must be 0..{len(self.classes)} or {VOID}, got {labels.max(initial=0)}"
            )
        write_labels(path, values[labels])

    def _names_of(self, image_id: str) -> tuple[str, ...]:
        if image_id not in self._read:
            self._read[image_id] = read_tags(self._tags_path(image_id))
        return self._read[image_id]

    def _tags_path(self, image_id: str) -> Path:
        return self.root / "Annotations" / f"{image_id}.xml"


def _nested(root: Path) -> str:
    """Where the layout really is, when somebody gave a folder above it."""
    for nested in ("VOC2012", "VOCdevkit/VOC2012"):
        if (root / nested / "JPEGImages").is_dir():
            return f", here {root / nested}"
    return ""

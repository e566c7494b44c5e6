"""The one data layout: PASCAL VOC's folders, tags from XML, masks as palette PNG (Sec. 5.1).

::

    root/
      JPEGImages/ID.jpg              the images
      Annotations/ID.xml             the image's tags: <object><name>cat</name></object>
      ImageSets/Segmentation/*.txt   a split: one ID a line
      SegmentationClass/ID.png       0 background, 1..C classes, 255 void; only for the evaluator
      classes.txt                    the class names, one a line; without it VOC's twenty
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import torch
from PIL import Image

from affinity_lib.errors import InputError
from affinity_lib.evaluation import VOID
from affinity_lib.data.files import image_size, open_image, write_aside
from affinity_lib.data.layout import read_classes

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip


class VOCData:
    """A data set in VOC layout, seen through C classes numbered 1..C.

    Class names come from ``classes``, else from ``root/classes.txt``, else they are VOC's twenty.
    With ``classes`` a part of the data set's names is chosen: other tags are ignored and the
    masks' pixels of other classes are background. Files keep the data set's own numbers, so what
    :meth:`write_labels` writes is read right by any toolbox that knows the data set.

    Only :meth:`mask`, :meth:`has_masks` and ``check(split, masks=True)`` touch the ground truth.

    Args:
        root: the folder that holds ``JPEGImages``, e.g. ``VOCdevkit/VOC2012``.
        classes: class names in the order wanted, or None for all.

    Raises:
        InputError: the folder is not in VOC layout, or a class name is not known.

    >>> import tempfile
    >>> VOCData(tempfile.mkdtemp())  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    affinity_lib.errors.InputError: ... has no folder JPEGImages: ...
    """

    def __init__(self, root: str | Path, classes: Sequence[str] | None = None) -> None:
        self.root = Path(root).expanduser()
        for folder in ("JPEGImages", "Annotations", "ImageSets/Segmentation"):
            if not (self.root / folder).is_dir():
                raise InputError(
                    f"{self.root} has no folder {folder}: unpack the whole data set and give the "
                    f"folder that holds JPEGImages{_nested(self.root)}"
                )
        classes = classes.split() if isinstance(classes, str) else classes
        own_names = self.root / "classes.txt"
        names = read_classes(own_names) if own_names.is_file() else VOC_CLASSES
        self._subset = classes is not None
        self.classes = tuple(classes) if classes is not None else names
        for name in self.classes:
            if name not in names:
                raise InputError(
                    f"class {name!r} is not in the data set {self.root}: choose from "
                    f"{', '.join(names)}"
                )
        if not self.classes or len(set(self.classes)) < len(self.classes):
            raise InputError(f"classes must be one or more different names, got {self.classes}")
        self._number = {name: number for number, name in enumerate(self.classes, start=1)}
        self._file_values = np.array([0, *(names.index(name) + 1 for name in self.classes)])
        # File value -> label: other classes of the data set are background, -1 is nobody's value.
        self._labels = np.full(256, -1, dtype=np.int16)
        self._labels[: len(names) + 1] = 0
        self._labels[self._file_values] = np.arange(len(self.classes) + 1)
        self._labels[VOID] = VOID

    @property
    def colors(self) -> np.ndarray:
        """(C + 1, 3) uint8: the palette's colours of background and the classes."""
        return palette()[self._file_values]

    def ids(self, split: str) -> list[str]:
        """The image ids of a split, in the list's order.

        Args:
            split: the name of a list in ``ImageSets/Segmentation``, e.g. "train".

        Raises:
            InputError: there is no such list, or it is empty.
        """
        path = self.root / "ImageSets" / "Segmentation" / f"{split}.txt"
        if not path.is_file():
            there = ", ".join(sorted(p.stem for p in path.parent.glob("*.txt"))) or "none"
            raise InputError(f"{path} is missing: choose a split that is there ({there})")
        ids = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
        ids = [image_id for image_id in ids if image_id]
        if not ids:
            raise InputError(f"{path} lists no image: write one image id a line")
        return ids

    def image(self, image_id: str) -> Image.Image:
        """An image, decoded, as RGB.

        Raises:
            InputError: the file is missing or does not decode.
        """
        path = self.root / "JPEGImages" / f"{image_id}.jpg"
        return open_image(path).convert("RGB")

    def image_size(self, image_id: str) -> tuple[int, int]:
        """Width and height of an image, from its header.

        Raises:
            InputError: the file is missing or is no image.
        """
        return image_size(self.root / "JPEGImages" / f"{image_id}.jpg")

    def tags(self, image_id: str) -> tuple[int, ...]:
        """An image's tags as class numbers, ascending, each in 1..C. Empty: nothing we know.

        Raises:
            InputError: the XML is missing, broken or without objects, or (unless ``classes``
                chose a part) names a class that the data set does not have.
        """
        path = self.root / "Annotations" / f"{image_id}.xml"
        if not path.is_file():
            raise InputError(f"{path} is missing: unpack the annotations of the data set")
        try:
            objects = ElementTree.parse(path).getroot().findall("object")
        except ElementTree.ParseError as error:
            raise InputError(f"{path} is not XML ({error}): unpack it again") from error
        names = {(item.findtext("name") or "").strip() for item in objects}
        if not names:
            raise InputError(f"{path} has no object: add the image's tags or take {image_id} out")
        unknown = sorted(names - self._number.keys())
        if unknown and not self._subset:
            raise InputError(
                f"{path} has the tag {unknown[0]!r} that no class has: correct it, or add the "
                f"class to {self.root / 'classes.txt'}"
            )
        return tuple(sorted(self._number[name] for name in names if name in self._number))

    def multi_hot(self, ids: Iterable[str]) -> torch.Tensor:
        """The tags of many images as training targets, float32 (N, C); column c - 1 is class c."""
        rows = [self.tags(image_id) for image_id in ids]
        target = torch.zeros(len(rows), len(self.classes))
        for row, tags in zip(target, rows, strict=True):
            row[[tag - 1 for tag in tags]] = 1
        return target

    def mask(self, image_id: str) -> np.ndarray:
        """An image's true labels, uint8 (H, W): 0 background, 1..C classes, 255 void.

        For the evaluator and for pictures; training sees tags. In a data set without a folder
        ``SegmentationClass`` nothing is known, so every pixel is void.

        Raises:
            InputError: the mask is missing, does not decode or holds a label of no class.
        """
        path = self._mask_path(image_id)
        if not path.parent.is_dir():
            width, height = self.image(image_id).size
            return np.full((height, width), VOID, np.uint8)
        if not path.is_file():
            raise InputError(f"{path} is missing: only images with masks can be evaluated")
        return self.read_labels(path)

    def has_masks(self, ids: Iterable[str]) -> bool:
        """Whether every one of the images has a mask, so that they can be evaluated."""
        return all(self._mask_path(image_id).is_file() for image_id in ids)

    def read_labels(self, path: str | Path) -> np.ndarray:
        """Read a palette PNG with the data set's numbers as labels of this object, uint8 (H, W).

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
        labels = _as_uint8(labels)
        if (values[labels] < 0).any():
            raise InputError(
                f"labels must be 0..{len(self.classes)} or {VOID}, got {labels.max(initial=0)}"
            )
        write_labels(path, values[labels])

    def check(self, split: str, masks: bool = False) -> None:
        """Look at every file of a split and refuse the first that is not as it should be.

        Args:
            split: the split to look at.
            masks: look at the ground truth too.

        Raises:
            InputError: files are missing (a half-unpacked data set), an image or mask does not
                decode, an XML has no objects, a tag has no class, an image has no tag, or a mask
                has another size than its image.
        """
        ids = self.ids(split)
        folders = {"JPEGImages": ".jpg", "Annotations": ".xml"}
        folders |= {"SegmentationClass": ".png"} if masks else {}
        for folder, suffix in folders.items():
            missing = [i for i in ids if not (self.root / folder / f"{i}{suffix}").is_file()]
            if missing:
                raise InputError(
                    f"{self.root / folder} misses {len(missing)} of the {len(ids)} files of the "
                    f"{split} split, first {missing[0]}{suffix}: unpack the whole data set"
                )
        for image_id in ids:
            if not self.tags(image_id):
                raise InputError(
                    f"image {image_id} of the {split} split has no tag of the classes "
                    f"{', '.join(self.classes)}: take it out of the list or choose more classes"
                )
            size = self.image(image_id).size
            if masks and (shape := self.mask(image_id).shape) != size[::-1]:
                raise InputError(
                    f"{self._mask_path(image_id)} is {shape[1]} x {shape[0]} pixels but its image "
                    f"is {size[0]} x {size[1]}: give the mask the image's size"
                )

    def _mask_path(self, image_id: str) -> Path:
        return self.root / "SegmentationClass" / f"{image_id}.png"


def palette() -> np.ndarray:
    """VOC's colours, (256, 3) uint8: the bits of a label spread over red, green and blue.

    >>> palette()[[0, 1, 8, 255]].tolist()
    [[0, 0, 0], [128, 0, 0], [64, 0, 0], [224, 224, 192]]
    """
    labels = np.arange(256)[:, None]
    colors = np.zeros((256, 3), dtype=np.uint8)
    for step in range(3):
        bits = labels >> (3 * step + np.arange(3)) & 1
        colors |= (bits << (7 - step)).astype(np.uint8)
    return colors


def read_labels(path: str | Path) -> np.ndarray:
    """Read a label map as it stands in the file, uint8 (H, W).

    Raises:
        InputError: the file is missing, does not decode or holds colours instead of labels.
    """
    image = open_image(path)
    if image.mode not in ("P", "L"):
        raise InputError(
            f"{path} is a {image.mode} image without label numbers: save it as a palette PNG"
        )
    return np.array(image)


def write_labels(path: str | Path, labels: np.ndarray) -> None:
    """Write a label map as it is, as a PNG in VOC's colours, whole or not at all.

    Args:
        path: the file, ``*.png``.
        labels: (H, W) whole numbers 0..255.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "a.png"
    >>> write_labels(file, np.array([[0, 1, 255]]))
    >>> read_labels(file).tolist(), open_image(file).mode
    ([[0, 1, 255]], 'P')
    """
    image = Image.fromarray(_as_uint8(labels))
    image.putpalette(palette().tobytes())
    with write_aside(path) as aside:
        image.save(aside, format="PNG")


def _nested(root: Path) -> str:
    """Where the layout really is, when somebody gave a folder above it."""
    for nested in ("VOC2012", "VOCdevkit/VOC2012"):
        if (root / nested / "JPEGImages").is_dir():
            return f", here {root / nested}"
    return ""


def _as_uint8(labels: np.ndarray) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.ndim != 2 or labels.size == 0 or labels.min() < 0 or labels.max() > 255:
        raise InputError(
            f"a label map is (H, W) with labels 0..255, got shape {labels.shape}"
            + (f" and labels {labels.min()}..{labels.max()}" if labels.size else "")
        )
    return labels.astype(np.uint8)

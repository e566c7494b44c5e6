"""What makes a folder of images a data set in VOC layout: annotations, lists, class names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

from affinity_lib.errors import InputError
from affinity_lib.data.files import write_aside

MAX_CLASSES = 254
"""Labels are bytes: 0 is background and 255 void."""


def write_tags(path: str | Path, names: Iterable[str], size: tuple[int, int]) -> None:
    """Write an image's tags as a VOC annotation without boxes.

    Args:
        path: the file, ``Annotations/ID.xml``.
        names: the tags.
        size: (width, height) of the image.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "a.xml"
    >>> write_tags(file, ["cat"], (500, 375))
    >>> ElementTree.parse(file).findtext("object/name")
    'cat'
    """
    path = Path(path)
    root = ElementTree.Element("annotation")
    ElementTree.SubElement(root, "filename").text = f"{path.stem}.jpg"
    sizes = ElementTree.SubElement(root, "size")
    for name, value in zip(("width", "height", "depth"), (*size, 3), strict=True):
        ElementTree.SubElement(sizes, name).text = str(value)
    for name in names:
        ElementTree.SubElement(ElementTree.SubElement(root, "object"), "name").text = name
    ElementTree.indent(root)
    with write_aside(path) as aside:
        ElementTree.ElementTree(root).write(aside, encoding="utf-8")


def write_lists(
    root: str | Path, classes: Sequence[str], splits: Mapping[str, Sequence[str]]
) -> None:
    """Write the splits' lists, ``trainval`` with all of their images, and ``classes.txt``.

    Args:
        root: the data set's folder.
        classes: the class names in the order of their numbers, without background.
        splits: name of a split -> ids of its images.

    >>> import tempfile
    >>> root = Path(tempfile.mkdtemp())
    >>> write_lists(root, ["cat", "dog"], {"train": ["b", "c"], "val": ["a"]})
    >>> (root / "ImageSets/Segmentation/trainval.txt").read_text().split()
    ['a', 'b', 'c']
    """
    root = Path(root)
    lists = {**splits, "trainval": sorted(i for ids in splits.values() for i in ids)}
    files = {root / "ImageSets" / "Segmentation" / f"{name}.txt": lists[name] for name in lists}
    for path, lines in {**files, root / "classes.txt": classes}.items():
        with write_aside(path) as aside:
            aside.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def read_classes(path: str | Path) -> tuple[str, ...]:
    """Read the class names of ``classes.txt``.

    Raises:
        InputError: no names, too many, the same one twice, or one of them is "background".

    >>> import tempfile
    >>> root = Path(tempfile.mkdtemp())
    >>> write_lists(root, ["cat", "dog"], {})
    >>> read_classes(root / "classes.txt")
    ('cat', 'dog')
    """
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    names = tuple(line.strip() for line in lines if line.strip())
    different = len(set(names)) == len(names) and "background" not in names
    if not 1 <= len(names) <= MAX_CLASSES or not different:
        raise InputError(
            f"{path} must name 1 to {MAX_CLASSES} different classes, one a line and without "
            f"'background', got {len(names)} names"
        )
    return names

"""The files that make a folder of images a data set: annotations, lists and class names.

What other programs write is read as far as its meaning is certain, and refused otherwise.
"""

from __future__ import annotations

import codecs
import difflib
import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

from affinity_lib.data.files import save_text, write_aside
from affinity_lib.errors import InputError

MAX_CLASSES = 254
"""Labels are bytes: 0 is background and 255 void."""

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
"""What the name of an image in ``JPEGImages`` ends with, in small letters or in capitals."""

_FLAGS = ("1", "+1", "0", "-1")
_OTHER_NAMES = {
    "airplane": "aeroplane", "plane": "aeroplane", "motorcycle": "motorbike", "couch": "sofa",
    "tv": "tvmonitor", "television": "tvmonitor", "monitor": "tvmonitor",
}  # fmt: skip


def write_tags(path: str | Path, names: Iterable[str], size: tuple[int, int]) -> None:
    """Write an image's tags as a VOC annotation without boxes.

    Args:
        path: the file, ``Annotations/ID.xml``.
        names: the tags.
        size: (width, height) of the image.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "a.xml"
    >>> write_tags(file, ["cat"], (500, 375))
    >>> read_tags(file)
    ('cat',)
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


def read_tags(path: str | Path) -> tuple[str, ...]:
    """The class names of the objects in a VOC annotation, each once; none is an image without tags.

    Raises:
        InputError: the file is missing, is not XML or no annotation, or an object has no name or
            stands elsewhere than VOC's.
    """
    try:
        root = ElementTree.parse(path).getroot()
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing: unpack the annotations of the data set") from error
    except (ElementTree.ParseError, LookupError, ValueError, OSError) as error:
        raise InputError(f"{path} is not XML ({error}): get the file again") from error
    if root.tag != "annotation":
        raise InputError(
            f"{path} is no annotation of VOC, it begins with <{root.tag}>: write <annotation> with "
            "an <object> for each tag"
        )
    objects = root.findall("object")
    if sum(item.tag.lower() == "object" for item in root.iter()) != len(objects):
        raise InputError(
            f"{path} has objects where VOC has none: write each as <object> with a <name>, right "
            "below <annotation>"
        )
    names = {" ".join((item.findtext("name") or "").split()) for item in objects}
    if "" in names:
        raise InputError(f"{path} has an object without a name: write its class, or take it out")
    return tuple(sorted(names))


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
    >>> read_ids(root / "ImageSets/Segmentation/trainval.txt")
    ['a', 'b', 'c']
    """
    root = Path(root)
    lists = {**splits, "trainval": sorted(i for ids in splits.values() for i in ids)}
    files = {root / "ImageSets" / "Segmentation" / f"{name}.txt": lists[name] for name in lists}
    for path, lines in {**files, root / "classes.txt": classes}.items():
        save_text(path, "".join(f"{line}\n" for line in lines))


def read_ids(path: str | Path, images: Collection[str] = ()) -> list[str]:
    """The image ids in a split's list, as it has them: in its order, repeated where it repeats.

    A line is ``ID``, ``ID  1`` (``0``, ``-1``: the lists of single classes in ``ImageSets/Main``
    name every image and tell which has the class; the tags tell that here), or the path of the
    image, alone or with that of its mask.

    Args:
        path: the list.
        images: names of the files in ``JPEGImages``: an id that has blanks, or ends like an image,
            is known by them.

    Raises:
        InputError: the file cannot be read as text, or a line has two meanings.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "train_aug.txt"
    >>> _ = file.write_text("2007_1\\n2007_2 -1\\n/JPEGImages/2007_3.jpg /Masks/2007_3.png\\n")
    >>> read_ids(file)
    ['2007_1', '2007_2', '2007_3']
    """
    stems = {_stem(name) for name in images}
    lines = [line.strip() for line in read_text(path).splitlines()]
    return [_id(line, stems, path) for line in lines if line]


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
    lines = (" ".join(line.split()) for line in read_text(path).splitlines())
    names = tuple(line for line in lines if line)
    spelled = {spelling(name) or name for name in names}
    different = len(spelled) == len(names) and "background" not in spelled
    if not 1 <= len(names) <= MAX_CLASSES or not different:
        raise InputError(
            f"{path} must name 1 to {MAX_CLASSES} different classes, one a line and without "
            f"'background' (Cat and cat are one), got {len(names)} names"
        )
    return names


def split_classes(text: str, names: Collection[str]) -> list[str]:
    """The class names in a text: separated by commas or semicolons if it has any.

    Without those it is one name, unless it is no class as a whole and spaces separate classes.

    Args:
        text: as a parameter gives it.
        names: the classes of the data set.

    Raises:
        InputError: the text is a class, and so is each word of it.

    >>> names = ["cat", "dog", "traffic light"]
    >>> split_classes("cat dog", names), split_classes("traffic light", names)
    (['cat', 'dog'], ['traffic light'])
    >>> split_classes("traffic light; cat", names)
    ['traffic light', 'cat']
    """
    parts = [" ".join(part.split()) for part in re.split("[,;]", text)]
    if len(parts) > 1:
        return [part for part in parts if part]
    whole, words = parts[0], parts[0].split()
    if whole in names and len(words) > 1 and all(word in names for word in words):
        raise InputError(
            f"classes {whole!r} is one class and also {len(words)} classes: separate names by "
            "commas, and end a single one with a comma"
        )
    return words if whole not in names and any(word in names for word in words) else [whole]


def same_class(name: str, names: Iterable[str]) -> str:
    """The class that is meant for certain by a name in another spelling; empty for none.

    >>> same_class("Tv/Monitor", ["sofa", "tvmonitor"]), same_class("airplane", ["aeroplane"])
    ('tvmonitor', 'aeroplane')
    """
    spelled = {spelling(known): known for known in names} | {"": ""}
    own = spelling(name)
    return spelled.get(own) or spelled.get(_OTHER_NAMES.get(own, ""), "")


def spelling(name: str) -> str:
    """What stays of a name in every spelling: "TV/Monitor" and "tv_monitor" are the same."""
    return re.sub(r"[\s_./-]+", "", name.casefold())


def did_you_mean(name: str, names: Collection[str]) -> str:
    """A hint to stand behind an unknown class name; empty if none is like it.

    >>> did_you_mean("hors", ["cow", "horse"])
    " (did you mean 'horse'?)"
    """
    close = same_class(name, names) or next(iter(difflib.get_close_matches(name, names, 1)), "")
    return f" (did you mean {close!r}?)" if close else ""


def beside(path: Path) -> str:
    """A hint to stand behind a missing file: those of the same name but for case and suffix."""
    try:
        names = os.listdir(path.parent)
    except OSError:
        return ""
    like = [name for name in names if Path(name).stem.casefold() == path.stem.casefold()]
    return f" (there is {' and '.join(sorted(like))})" if like else ""


def read_text(path: str | Path) -> str:
    """A text file as editors save it: UTF-8, or UTF-16 with its mark.

    Raises:
        InputError: it is missing or holds something else.
    """
    try:
        content = Path(path).read_bytes()
        wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = content.decode("utf-16" if wide else "utf-8-sig")
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): check its name") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no text in UTF-8 ({error}): save it as UTF-8") from error
    if "\0" in text:
        raise InputError(f"{path} is no text, it has zero bytes: save it as UTF-8")
    return text


def _id(line: str, stems: Collection[str], path: str | Path) -> str:
    whole, words = _stem(line), [_stem(word) for word in re.split(r"[\s,;]+", line) if word]
    bare = re.split(r"[/\\]", line)[-1]
    if bare != whole and bare in stems:  # x.png, of the file x.png.jpg
        if whole in stems:
            raise InputError(f"{path}: {line!r} may be the image {whole} or {bare}: rename one")
        return bare
    first, *more = words or [""]
    flagged = len(more) == 1 and more[0] in _FLAGS
    if whole in stems and flagged and first in stems:
        raise InputError(f"{path}: {line!r} may be the image {first} or {whole}: rename one")
    same = flagged or all(word == first for word in more)
    image_id = first if same and whole not in stems else whole
    if not image_id or (not same and image_id not in stems and re.search(r"[/\\]", line)):
        raise InputError(f"{path} has the line {line!r}, which is no image: write its id alone")
    return image_id


def _stem(name: str) -> str:
    """A file's name without its folder and the suffix of an image."""
    name = re.split(r"[/\\]", name)[-1]
    suffix = next((s for s in IMAGE_SUFFIXES if name.lower().endswith(s)), "")
    return name.removesuffix(name[len(name) - len(suffix) :]) or name

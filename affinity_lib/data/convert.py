"""Own data to VOC layout: a folder of images and their tags are all that the method needs."""

from __future__ import annotations

import random
import re
import shutil
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from affinity_lib.data.faults import shortened
from affinity_lib.data.files import (
    RAW_SUFFIXES,
    files_in,
    is_plain_jpeg,
    open_photograph,
    write_aside,
)
from affinity_lib.data.layout import MAX_CLASSES, same_class, write_lists, write_tags
from affinity_lib.data.progress import Progress
from affinity_lib.data.tag_tables import Row, Table, read_folders, read_table
from affinity_lib.data.voc import VOC_CLASSES
from affinity_lib.errors import InputError

_LONGEST = 200
"""Bytes of an image's id, to which every file of a run adds its ending; disks allow 255 together."""


def convert(
    images_dir: str | Path,
    labels_csv: str | Path | None,
    out_root: str | Path,
    val_fraction: float = 0.1,
    seed: int = 0,
) -> Path:
    """Make a data set in VOC layout of images and their tags, and print how they were understood.

    Every image that the table names is decoded once. A JPEG is copied byte for byte, unless it
    has to be turned upright or is not in RGB or grey; other formats become JPEG, transparency on
    white. The classes are all tags in alphabetical order; an image without any is one of nothing
    but background. Masks are not needed; a person who has some puts them in
    ``SegmentationClass`` afterwards, to evaluate.

    Args:
        images_dir: the folder of images, of any sizes; subfolders are fine.
        labels_csv: a table, see ``read_table``. Its names may lack the folder or the suffix, or
            have another case, where exactly one file fits. Several rows of one image must have the
            same tags, unless the table has a row for each tag. None: the tag of an image is the
            name of the folder that holds it, see ``read_folders``.
        out_root: the folder to make; nothing or an empty folder may be there.
        val_fraction: part of the images for the val split, 0 <= val_fraction < 1. No class loses
            its last training image to it.
        seed: of the draw.

    Returns:
        ``out_root``. It is written aside and renamed: there is all of it or nothing.

    Raises:
        InputError: a table that is not understood, rows or images that cannot be used (the first
            hundred, and how many more), more than 254 classes, or an ``out_root`` in use.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> Image.new("RGB", (50, 40)).save(folder / "tom.png")
    >>> _ = (folder / "labels.csv").write_text("file,tags\\ntom.png,cat;sofa\\n")
    >>> root = convert(folder, folder / "labels.csv", folder / "voc", val_fraction=0)
    images: 1, of them 1 for train and 0 for val
    column file names the images and column tags holds their tags, separated by semicolons
         1  cat
         1  sofa
    """
    images_dir, out_root = Path(images_dir), Path(out_root)
    if not 0 <= val_fraction < 1:
        raise InputError(f"val_fraction must be in [0, 1), got {val_fraction}")
    if out_root.exists() and (not out_root.is_dir() or any(out_root.iterdir())):
        raise InputError(f"{out_root} is in use: give a new folder, or remove it first")
    if not images_dir.is_dir():
        raise InputError(f"{images_dir} is no folder: give the one that holds the images")
    table = read_folders(images_dir) if labels_csv is None else read_table(labels_csv)
    images = _images(table, images_dir)
    tags = {image_id: tags for image_id, (_, tags) in images.items()}
    classes = sorted({tag for names in tags.values() for tag in names})
    if len(classes) > MAX_CLASSES:
        raise InputError(
            f"{labels_csv or images_dir} has {len(classes)} different tags, more than {MAX_CLASSES}"
        )
    val = _draw_val(tags, val_fraction, seed)
    faults = table.faults
    with write_aside(out_root) as aside:
        (aside / "JPEGImages").mkdir(parents=True)
        for image_id, (source, names) in Progress(images.items(), "images"):
            try:
                size = _write_jpeg(source, aside / "JPEGImages" / f"{image_id}.jpg")
                write_tags(aside / "Annotations" / f"{image_id}.xml", names, size)
            except InputError as error:
                faults.append(str(error))
        if faults:
            head = [f"{len(faults)} faults:"] if len(faults) > 1 else []
            raise InputError("\n  ".join([*head, *shortened(faults, 100)]))
        train = [image_id for image_id in tags if image_id not in val]
        write_lists(aside, classes, {"train": train, "val": sorted(val)})
    print(_summary(tags, len(val), table.notes))
    return out_root


def _write_jpeg(source: Path, path: Path) -> tuple[int, int]:
    """Copy a JPEG or make one; returns (width, height)."""
    image = open_photograph(source)
    if is_plain_jpeg(source):
        shutil.copyfile(source, path)
    else:
        image.save(path, format="JPEG", quality=95, subsampling=0)
    return image.size


def _images(table: Table, images_dir: Path) -> dict[str, tuple[Path, tuple[str, ...]]]:
    """Image id -> (file, tags), sorted by id; what is wrong goes to the table's faults."""
    files = _Files(images_dir)
    rows: dict[Path, list[Row]] = defaultdict(list)
    for row in table.rows:
        try:
            rows[files.find(row.name)].append(row)
        except InputError as error:
            table.faults.append(f"{row.place}{table.of} {error}")
    found: dict[str, tuple[Path, tuple[str, ...]]] = {}
    united = 0
    for file, same in rows.items():
        name = str(file.relative_to(images_dir))
        # x.png.jpg becomes x_png: lists of ids are read without the endings of images
        image_id = re.sub(
            r"(?i)[^\w.-]+|\.(?=(jpe?g|png)$)",
            "_",
            unicodedata.normalize("NFC", name[: -len(file.suffix) or None]),
        )
        which = f"{', '.join(row.place for row in same)}{table.of}"
        if len({_parts(row.name)[:-1] for row in same}) > 1:
            names = " and ".join(dict.fromkeys(row.name for row in same))
            table.faults.append(f"{which} name {names}, which only {file} fits: correct one")
        elif len({frozenset(row.tags) for row in same}) > 1 and not table.one_tag_a_row:
            table.faults.append(
                f"{which} give {name} different tags: write all tags of an image in one row"
            )
        elif len(image_id.encode()) > _LONGEST:
            table.faults.append(
                f"{same[0].place}{table.of}: {name} is too long a name: shorten it to "
                f"{_LONGEST} letters, its folders with it"
            )
        elif image_id in found:
            table.faults.append(
                f"{same[0].place}{table.of}: {name} and {found[image_id][0].name} would both "
                f"be {image_id}.jpg: rename one"
            )
        else:
            united += len(same) > 1
            tags = dict.fromkeys(tag for row in same for tag in row.tags)
            found[image_id] = (file, tuple(tags))
    if united:
        table.notes.append(
            f"images with several rows, each with the tags of all its rows: {united}"
        )
    return dict(sorted(found.items()))


class _Files:
    """The files of a folder, found by whatever of their names is certain."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.exact: dict[str, Path] = {}
        self.by_name: dict[str, list[Path]] = defaultdict(list)
        suffixes = {*Image.registered_extensions(), *RAW_SUFFIXES, ".heic", ".heif"}
        for file in files_in(folder):
            name = file.relative_to(folder)
            self.exact[name.as_posix()] = file
            self.by_name[_parts(name.as_posix())[-1]].append(file)
            if file.suffix.lower() in suffixes:
                self.by_name[_parts(name.with_suffix("").as_posix())[-1]].append(file)

    def find(self, name: str) -> Path:
        """The file of that name, or the only one that fits without case, suffix or folders."""
        if name in self.exact:
            return self.exact[name]
        *folders, last = _parts(name) or ("",)
        fitting: dict[tuple[bool, bool], list[Path]] = defaultdict(list)  # the surer, the larger
        for file in self.by_name[last]:
            *above, base = _parts(str(file.relative_to(self.folder)))
            if _agree(above, folders):
                fitting[above == folders, base == last].append(file)
        if not fitting:
            raise InputError(f"names {name!r}, which is not a file in {self.folder}: correct it")
        file, *others = fitting[max(fitting)]
        if others:
            names = " or ".join(str(f.relative_to(self.folder)) for f in (file, *others[:2]))
            raise InputError(f"names {name!r}, which may be {names}: write all of its name")
        return file


def _parts(name: str) -> tuple[str, ...]:
    """Folders and name on any system, without what differs from one to another."""
    plain = unicodedata.normalize("NFC", name).replace("\\", "/").casefold()
    return tuple(part for part in plain.split("/") if part not in ("", "."))


def _agree(above: Sequence[str], folders: Sequence[str]) -> bool:
    """Whether the last folders are the same, as far as both go."""
    pairs = zip(reversed(above), reversed(folders), strict=False)
    return all(one == other for one, other in pairs)


def _summary(tags: Mapping[str, Sequence[str]], num_val: int, notes: Sequence[str]) -> str:
    """How many images each class has and how the table was understood, for a person to check."""
    counts = Counter(tag for names in tags.values() for tag in names)
    none = sum(not names for names in tags.values())
    lines = [
        f"images: {len(tags)}, of them {len(tags) - num_val} for train and {num_val} for val",
        *notes,
    ]
    lines += _near_voc(sorted(counts))
    lines += [f"{counts[tag]:>6}  {tag}" for tag in sorted(counts)]
    return "\n".join(
        [*lines, *([f"{none:>6}  (without a tag: nothing but background)"] * (none > 0))]
    )


def _near_voc(classes: Sequence[str]) -> list[str]:
    """A question for each class that is not one of VOC's, where the others are."""
    meant = {name: same_class(name, VOC_CLASSES) for name in classes if name not in VOC_CLASSES}
    if len(meant) == len(classes) or not all(meant.values()):
        return []
    return [f"{name} is none of VOC's classes: did you mean {meant[name]}?" for name in meant]


def _draw_val(tags: Mapping[str, Sequence[str]], fraction: float, seed: int) -> set[str]:
    """Draw images for val, leaving each class a training image."""
    left = Counter(tag for names in tags.values() for tag in names)
    wanted = max(round(fraction * len(tags)), 1) if fraction else 0
    val: set[str] = set()
    for image_id in random.Random(seed).sample(list(tags), len(tags)):
        if len(val) < wanted and all(left[tag] > 1 for tag in tags[image_id]):
            val.add(image_id)
            left.subtract(tags[image_id])
    return val

"""Own data to VOC layout: a folder of images and a table of tags is all that the method needs."""

from __future__ import annotations

import csv
import random
import re
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from PIL import Image, ImageOps

from affinity_lib.errors import InputError
from affinity_lib.data.files import open_image, write_aside
from affinity_lib.data.layout import MAX_CLASSES, write_lists, write_tags


def convert(
    images_dir: str | Path,
    labels_csv: str | Path,
    out_root: str | Path,
    val_fraction: float = 0.1,
    seed: int = 0,
) -> Path:
    """Make a data set in VOC layout of images and their tags.

    Every image that the table names is decoded once. A JPEG is copied byte for byte, unless it
    has to be turned upright; other formats become JPEG, transparency on white. The classes are
    all tags in alphabetical order. Masks are not needed; a person who has some puts them in
    ``SegmentationClass`` afterwards, to evaluate.

    Args:
        images_dir: the folder of images, of any sizes; subfolders are fine.
        labels_csv: UTF-8 table with the columns ``file`` (below ``images_dir``) and ``tags``
            (separated by semicolon, comma or space).
        out_root: the folder to make; nothing or an empty folder may be there.
        val_fraction: part of the images for the val split, 0 <= val_fraction < 1. No class loses
            its last training image to it.
        seed: of the draw.

    Returns:
        ``out_root``. It is written aside and renamed: there is all of it or nothing.

    Raises:
        InputError: a table without the columns, an image that is missing, does not decode, is
            listed twice or has no tag, more than 254 classes, or an ``out_root`` in use.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> Image.new("RGB", (50, 40)).save(folder / "tom.png")
    >>> _ = (folder / "labels.csv").write_text("file,tags\\ntom.png,cat;sofa\\n")
    >>> root = convert(folder, folder / "labels.csv", folder / "voc", val_fraction=0)
    >>> (root / "classes.txt").read_text().split()
    ['cat', 'sofa']
    """
    images_dir, out_root = Path(images_dir), Path(out_root)
    if not 0 <= val_fraction < 1:
        raise InputError(f"val_fraction must be in [0, 1), got {val_fraction}")
    if out_root.exists() and (not out_root.is_dir() or any(out_root.iterdir())):
        raise InputError(f"{out_root} is in use: give a new folder, or remove it first")
    table = _read_table(Path(labels_csv), images_dir)
    classes = sorted({tag for _, tags in table.values() for tag in tags})
    if len(classes) > MAX_CLASSES:
        raise InputError(f"{labels_csv} has {len(classes)} different tags, more than {MAX_CLASSES}")
    val = _draw_val({image_id: tags for image_id, (_, tags) in table.items()}, val_fraction, seed)
    with write_aside(out_root) as aside:
        (aside / "JPEGImages").mkdir(parents=True)
        for image_id, (source, tags) in table.items():
            size = _write_jpeg(source, aside / "JPEGImages" / f"{image_id}.jpg")
            write_tags(aside / "Annotations" / f"{image_id}.xml", tags, size)
        train = [image_id for image_id in table if image_id not in val]
        write_lists(aside, classes, {"train": train, "val": sorted(val)})
    return out_root


def _read_table(path: Path, images_dir: Path) -> dict[str, tuple[Path, list[str]]]:
    """Image id -> (file, tags), in the order of the ids."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            rows, columns = list(reader), reader.fieldnames or []
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing: write a table with columns file and tags") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} is no UTF-8 CSV table ({error}): save it as one") from error
    if not {"file", "tags"} <= set(columns):
        raise InputError(
            f"{path} must have the columns file and tags, separated by commas, got "
            f"{', '.join(columns) or 'nothing'}"
        )
    if not rows:
        raise InputError(f"{path} names no image: write one image a line")
    table: dict[str, tuple[Path, list[str]]] = {}
    for line, row in enumerate(rows, start=2):
        name, where = (row["file"] or "").strip(), f"row {line} of {path}"
        source = images_dir / name
        if None in row:
            raise InputError(f"{where} has too many cells: separate its tags by semicolons")
        tags = list(dict.fromkeys(re.findall(r"[^;,\s]+", row["tags"] or "")))
        if not source.resolve().is_relative_to(images_dir.resolve()) or not source.is_file():
            raise InputError(f"{where} names {name!r}, which is not a file in {images_dir}")
        if not tags:
            raise InputError(f"{where}: {name} has no tag: write one or take the row out")
        if "background" in tags:
            raise InputError(f"{where}: background is no tag, it is what no tag names: take it out")
        image_id = re.sub(r"[^\w.-]+", "_", str(Path(name).with_suffix("")))
        if image_id in table:
            raise InputError(
                f"{where}: {name} and {table[image_id][0].name} would both be {image_id}.jpg: "
                "rename one, or write all tags of an image in one row"
            )
        table[image_id] = (source, tags)
    return dict(sorted(table.items()))


def _draw_val(tags: Mapping[str, list[str]], fraction: float, seed: int) -> set[str]:
    """Draw images for val, leaving each class a training image."""
    left = Counter(tag for names in tags.values() for tag in names)
    wanted = max(round(fraction * len(tags)), 1) if fraction else 0
    val: set[str] = set()
    for image_id in random.Random(seed).sample(list(tags), len(tags)):
        if len(val) < wanted and all(left[tag] > 1 for tag in tags[image_id]):
            val.add(image_id)
            left.subtract(tags[image_id])
    return val


def _write_jpeg(source: Path, path: Path) -> tuple[int, int]:
    """Copy a JPEG or make one; returns (width, height)."""
    image = open_image(source)
    upright = image.getexif().get(0x0112, 1) == 1
    if image.format in ("JPEG", "MPO") and upright:
        shutil.copyfile(source, path)
        return image.size
    if image.mode.startswith(("I", "F")):
        raise InputError(f"{source} has {image.mode} pixels: save it with 8 bits a colour")
    image = ImageOps.exif_transpose(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image.convert("RGB").save(path, format="JPEG", quality=95, subsampling=0)
    return image.size

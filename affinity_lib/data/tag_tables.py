"""Tables of image tags, as spreadsheets, scripts and annotation tools write them.

What a table means is found in the whole of it, not row by row: which column names the files, which
holds the tags or that each column is a class, what separates tags. Where that is not certain the
table is refused, since a wrong guess would become classes that nobody wrote.
"""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from affinity_lib.data.files import images_in
from affinity_lib.data.layout import read_text, spelling
from affinity_lib.data.tag_cells import NO_OBJECTS, no_name, short, split_cells
from affinity_lib.errors import InputError

FILE_COLUMNS = (
    "file", "filename", "fname", "image", "imagename", "imagefile", "img", "photo", "picture",
    "path", "filepath", "imagepath", "imageid",
)  # fmt: skip
"""Names of the column of files, the surest first; case, spaces and underscores do not count."""

_SINGULAR = ("tag", "label", "class", "category", "keyword")
TAG_COLUMNS = {
    **dict.fromkeys(("tags", "labels", "classes", "categories", "keywords"), False),
    **{f"{name}{tail}": True for name in _SINGULAR for tail in ("", "name")},
}
"""Names of the column of tags, and whether the name promises one tag a row."""

_DOUBTS = ("confidence", "score", "probability", "prob")  # tags that may not be there
_FLAGS = ("id", "index", "split", "fold", "difficult", "truncated", "occluded", "crowd", "iscrowd")
_FLAGS += ("isvalid", "istrain", "istest", "isoccluded", "istruncated")  # 0 and 1, yet no class
_YES_NO = {"1": True, "1.0": True, "true": True, "0": False, "0.0": False, "false": False}
_DELIMITERS = "\t;,|"
_NUMBER = re.compile(r"[-+]?\d+([.,]\d+)?")
_UNNAMED = re.compile(r"Unnamed: \d+(\.\d+)?")  # as pandas saves a column that had no name
_INVISIBLE = dict.fromkeys(map(ord, "\u200b\u200e\u200f\u2060\ufeff\u00ad"))

Records = list[tuple[int, list[str]]]
"""The number and the cells of each row."""


@dataclass(frozen=True)
class Row:
    """One row: where it stands, the name of a file as it stands there, and tags, which may be none."""

    place: str
    name: str
    tags: tuple[str, ...]


@dataclass
class Table:
    """What a table says, what of it cannot be understood, and how it was understood.

    Attributes:
        rows: in the table's order.
        faults: a sentence for each row that has to be corrected.
        notes: sentences for a person, who sees in them whether the table was understood.
        one_tag_a_row: whether an image has a row for each of its tags.
        of: what stands behind the place of a row, such as " of labels.csv".
    """

    rows: list[Row] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    one_tag_a_row: bool = False
    of: str = ""


def read_table(path: str | Path) -> Table:
    """Read a table with a column of image files, and either one of tags or a 0/1 column a class.

    Columns are separated by commas, semicolons, tabs or vertical bars; Excel's first line
    ``sep=;``, byte order marks, UTF-16, quotes, empty rows and further columns are understood.
    Tags are separated by semicolons, vertical bars or commas, or are a list in brackets; a table
    must use the same all over, and then a tag may hold spaces. In a table without any of them,
    words are tags of their own if each stands alone somewhere.

    Args:
        path: the table, text in UTF-8 or UTF-16.

    Raises:
        InputError: it is not such a table, or its tags are not names of classes.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "labels.csv"
    >>> _ = path.write_text("id;File;Tags\\n1;tom.jpg;cat, traffic light\\n2;sky.jpg;\\n")
    >>> table = read_table(path)
    >>> [(row.name, row.tags) for row in table.rows]
    [('tom.jpg', ('cat', 'traffic light')), ('sky.jpg', ())]
    >>> print(*table.notes, sep="\\n")
    column File names the images and column Tags holds their tags, separated by commas
    column id is ignored
    """
    path = Path(path)
    header, records = _records(path, _decoded(path))
    names = [spelling(name) for name in header]
    doubts = [name for name, key in zip(header, names, strict=True) if key in _DOUBTS]
    if doubts:
        raise InputError(
            f"{path} has a column {doubts[0]}: keep the rows whose tags are certain and take the "
            "column out"
        )
    file = names.index(next(name for name in FILE_COLUMNS if name in names))
    tags = [column for column, key in enumerate(names) if key in TAG_COLUMNS]
    if len(tags) > 1:
        raise InputError(
            f"{path} has several columns of tags, {', '.join(header[c] for c in tags)}: keep one"
        )
    records, faults = _whole(path, header, records)
    what = (path, header, records, file)
    table = _read_tags(*what, tags[0]) if tags else _read_one_hot(*what)
    table.faults[:0], table.of = faults, f" of {path}"
    if not table.rows and not table.faults:
        raise InputError(f"{path} names no image: write one image a line")
    _check_names(path, table)
    return table


def read_folders(images_dir: Path) -> Table:
    """Folders of images as a table: the tag of an image is the name of the folder that holds it.

    Args:
        images_dir: the folder above them. A folder named ``background`` holds images without tags.

    Raises:
        InputError: it has no folder with an image, or its folders are not names of classes.
    """
    table = Table()
    for file in images_in(images_dir):
        tag, name = file.parent.name, file.relative_to(images_dir).as_posix()
        if file.parent == images_dir:
            table.faults.append(f"{file} is in no folder of a class: put it into one, or remove it")
            continue
        table.rows.append(Row(str(file), name, () if spelling(tag) in NO_OBJECTS else (tag,)))
    for tag in dict.fromkeys(tag for row in table.rows for tag in row.tags):
        if no_name(tag):
            raise InputError(
                f"{images_dir} has the folder {tag!r}, which is no name of a class: name it "
                "background if its images are of none, or rename it"
            )
    if not table.rows:
        raise InputError(
            f"{images_dir} has no folders of images, one a class: give a table of tags"
        )
    table.notes.append("the tag of an image is the name of its folder")
    _check_names(images_dir, table)
    return table


def _decoded(path: Path) -> str:
    if path.is_file() and path.read_bytes().startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0")):
        raise InputError(f"{path} is a workbook of a spreadsheet: save it as CSV UTF-8")
    text = unicodedata.normalize("NFC", read_text(path))
    return text.translate(_INVISIBLE).removesuffix("\x1a")


def _records(path: Path, text: str) -> tuple[list[str], Records]:
    """The names of the columns, and the other rows that are not empty, with their numbers."""
    first, _, rest = text.partition("\n")
    declared = re.fullmatch(r'"?sep=([;,|\t])"?\s*', first, re.IGNORECASE)
    text = rest if declared else text
    line = 0
    try:
        for delimiter in declared[1] if declared else _DELIMITERS:
            header = next(filter(any, _reader(text, delimiter)), [])
            if any(spelling(name) in FILE_COLUMNS for name in header) and len(header) > 1:
                break
        else:
            start = next((line for line in text.splitlines() if line.strip()), "")
            raise InputError(
                f"{path} must begin with the names of its columns, such as file,tags, "
                f"got {short(start) if start else 'nothing'}"
            )
        rows = []
        for line, cells in enumerate(_reader(text, delimiter, strict=True), start=1):
            cells = [cell.strip() for cell in cells]
            if any(cells):
                rows.append((line, cells))
    except csv.Error as error:
        raise InputError(
            f"row {line + 1} of {path} cannot be read ({error}): put a cell with separators in "
            "quotes, and write a quote in it twice"
        ) from error
    return ["" if _UNNAMED.fullmatch(name) else name for name in rows[0][1]], rows[1:]


def _reader(text: str, delimiter: str, strict: bool = False) -> Iterator[list[str]]:
    lines = io.StringIO(text, newline="")
    return csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=strict)


def _whole(path: Path, header: list[str], records: Records) -> tuple[Records, list[str]]:
    """The rows that have a cell for each column, and what is wrong with the others.

    Columns without a name must be empty, or count the rows on the left of all others.
    """
    whole, faults = [], []
    for number, cells in records:
        if any(cells[len(header) :]):
            faults.append(
                f"row {number} of {path} has too many cells: put its tags in one cell, separated "
                "by semicolons, in quotes"
            )
        elif any(header[len(cells) :]):
            faults.append(
                f"row {number} of {path} has too few cells, {len(cells)} instead of "
                f"{len(header)}: leave the cell of an image without tags empty"
            )
        else:
            whole.append((number, (cells + [""] * len(header))[: len(header)]))
    for column, name in enumerate(header):
        filled = [cells[column] for _, cells in whole if cells[column]]
        counts = not any(header[:column]) and all(cell.isdecimal() for cell in filled)
        if not name and filled and not counts:
            raise InputError(f"column {column + 1} of {path} has no name: write one, or empty it")
    return whole, faults


def _read_tags(path: Path, header: list[str], records: Records, file: int, column: int) -> Table:
    names = Counter(cells[file] for _, cells in records)
    one_a_row = TAG_COLUMNS[spelling(header[column])]
    repeats = len(names) < len(records)
    cells = {number: row[column].replace("\r\n", "\n") for number, row in records}
    tags, faults, how = split_cells(path, cells, one_a_row and repeats)
    rows = [
        Row(f"row {number}", row[file], tags[number]) for number, row in records if number in tags
    ]
    notes = [
        f"column {header[file]} names the images and column {header[column]} holds their tags, {how}"
    ]
    others = [name for c, name in enumerate(header) if name and c not in (file, column)]
    if others:
        notes.append(
            f"column{'s' * (len(others) > 1)} {', '.join(others)} "
            f"{'are' if len(others) > 1 else 'is'} ignored"
        )
    return Table(rows, faults, notes, one_a_row or all(len(row.tags) < 2 for row in rows))


def _read_one_hot(path: Path, header: list[str], records: Records, file: int) -> Table:
    columns = [c for c, name in enumerate(header) if name and c != file]
    twice = [header[c] for c in columns if header.count(header[c]) > 1]
    if twice:
        raise InputError(f"{path} has two columns {twice[0]}: keep one")
    other = f"{path} has no column of tags, and its column"
    for column in columns:
        values = {row[column].casefold() for _, row in records}
        strange = sorted(values - _YES_NO.keys())
        if "-1" in values:
            raise InputError(
                f"{other} {header[column]} holds -1: write 1 where the class is there and 0 "
                "where it is not"
            )
        if strange:
            raise InputError(
                f"{other} {header[column]} holds {short(strange[0])}, where 1 and 0 would tell "
                f"whether the class is there: name the column of tags tags, or keep "
                f"{header[file]} and one column a class"
            )
    if flags := [header[column] for column in columns if spelling(header[column]) in _FLAGS]:
        raise InputError(f"{other} {flags[0]} is hardly a class: take it out")
    rows, found = [], set()
    for number, row in records:
        there = [c for c in columns if _YES_NO[row[c].casefold()]]
        names = tuple(" ".join(header[c].split()) for c in there)
        rows.append(Row(f"row {number}", row[file], names))
        found.update(there)
    notes = [f"column {header[file]} names the images and each other column is a class"]
    if records and (empty := [header[c] for c in columns if c not in found]):
        notes.append(f"no image has {', '.join(empty)}: left out")
    return Table(rows, notes=notes)


def _check_names(path: Path, table: Table) -> None:
    """Refuse tags that are no names; one class for spellings that differ in their case alone."""
    counts = Counter(tag for row in table.rows for tag in row.tags)
    if not counts and not table.faults:
        raise InputError(f"{path} has no tag in any row: write at least one")
    if counts and all(_NUMBER.fullmatch(tag) for tag in counts):
        raise InputError(
            f"{path} has numbers for tags ({', '.join(sorted(counts)[:3])}): write the names of "
            "the classes"
        )
    bad = {tag: reason for tag in counts if (reason := no_name(tag))}
    table.faults += [
        f"{row.place}{table.of}: {bad[tag]}" for row in table.rows for tag in row.tags
        if tag in bad
    ]  # fmt: skip
    spellings: dict[str, str] = {}
    for tag in sorted(counts, key=lambda tag: (-counts[tag], not tag.islower(), tag)):
        first = spellings.setdefault(spelling(tag), tag)
        if first.casefold() != tag.casefold():
            raise InputError(f"{path} has the tags {first!r} and {tag!r}: write them the same")
        if first != tag:
            table.notes.append(f"{tag} and {first} are one class, {first}")
    table.rows = [
        replace(row, tags=tuple(dict.fromkeys(spellings[spelling(tag)] for tag in row.tags)))
        for row in table.rows
    ]

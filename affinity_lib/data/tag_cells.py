"""What a cell of a column of tags holds: one tag or several, a list, or no name of a class."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import yaml

from affinity_lib.data.layout import spelling
from affinity_lib.errors import InputError

_NO_NAMES = ("nan", "none", "null", "n/a", "na", "true", "false", "yes", "no", "-", "--", "?")
_NO_NAMES += ("<na>", "nat", "undefined")
_NO_NAMES += ("–", "—")
_NO_NAMES += ("#n/a", "#nv", "#name?", "#ref!", "#value!", "#null!", "#div/0!", "#num!")
NO_OBJECTS = ("background", "void", "unlabeled", "unlabelled")
_SEPARATORS = {";": "semicolons", "|": "vertical bars", ",": "commas", "\n": "line breaks"}
_WIDE = str.maketrans("；｜，、", ";|,,")  # as Chinese and Japanese keyboards type them
_QUOTES = "'‘’‚“”„«»‹›`´"


def split_cells(
    path: Path, cells: Mapping[int, str], one_a_row: bool
) -> tuple[dict[int, tuple[str, ...]], list[str], str]:
    """Split the cells of a table's column of tags, all by the same separator.

    Args:
        path: the table, for the sentences.
        cells: number of a row -> what its cell holds.
        one_a_row: whether a cell without separators is one tag, whatever spaces it has.

    Returns:
        Number of a row -> its tags, for the rows that are understood; a sentence for each of the
        others; and words for how tags are separated.

    Raises:
        InputError: the table separates tags in two ways.

    >>> split_cells(Path("labels.csv"), {2: "cat; traffic light", 3: ""}, False)
    ({2: ('cat', 'traffic light'), 3: ()}, [], 'separated by semicolons')
    """
    cells = {number: cell.translate(_WIDE) for number, cell in cells.items()}
    cells = {number: "" if _is_empty(cell) else cell for number, cell in cells.items()}
    lists = {number for number, cell in cells.items() if re.match(r"\[|[({]\s*['\"]", cell)}
    used: dict[str, int] = {}
    for number, cell in cells.items():
        for separator in _SEPARATORS if number not in lists else ():
            if separator in cell:
                used.setdefault(separator, number)
    if len(used) > 1:
        both = [f"{name} (row {used[s]})" for s, name in _SEPARATORS.items() if s in used]
        raise InputError(
            f"{path} separates tags by {' and by '.join(both)}: use semicolons in all rows"
        )
    separator = next(iter(used), "")
    split, faults = {}, []
    for number, cell in cells.items():
        whole = cell.split(separator) if separator else [cell]
        parts = _items(cell) if number in lists else whole
        if parts is None:
            faults.append(
                f"row {number} of {path}: {short(cell)} is no list of tags: write cat;dog instead"
            )
            continue
        split[number] = [tag for part in parts if (tag := " ".join(part.split()))]
    # In a list, or where something else separates tags, spaces belong to names.
    free = not used and not lists and not one_a_row
    alone = {tag.casefold() for tags in split.values() for tag in tags if " " not in tag}
    found, by_spaces = {}, False
    for number, tags in split.items():
        doubtful = [tag for tag in tags if " " in tag and number not in lists]
        known = [tag for tag in doubtful if {*tag.casefold().split()} <= alone]
        if free and known:
            by_spaces, tags = True, [word for tag in tags for word in tag.split()]
        elif free and doubtful or known:
            one, more = (known or doubtful)[0], ";".join((known or doubtful)[0].split())
            faults.append(
                f"row {number} of {path}: {short(one)} may be one tag or several: write "
                f"{short(more)}, or {short(one.replace(' ', '_') if known else one + ';')} "
                "if it is one"
            )
            continue
        found[number] = tuple(dict.fromkeys(tags))
    words = [f"separated by {_SEPARATORS[separator]}"] if used else []
    words += ["separated by spaces"] if by_spaces else []
    words += ["lists in brackets"] if lists else []
    return found, faults, ", ".join(words) or "one a row"


def _is_empty(cell: str) -> bool:
    """Whether a cell is what Python writes for a tuple, a dictionary or a set without items."""
    return "".join(cell.split()) in ("()", "{}", "set()", "frozenset()")


def _items(cell: str) -> list[str] | None:
    """The strings of a list as Python or JSON writes it, or its bare words; None if it is none."""
    ends = {"[": "]", "(": ")", "{": "}"}
    if len(cell) < 2 or cell[-1] != ends[cell[0]]:
        return None
    inner = cell[1:-1].replace("\\'", "''")  # an apostrophe, as YAML has it
    try:
        found = yaml.load(f"[{inner}]", yaml.BaseLoader)
    except (yaml.YAMLError, ValueError, RecursionError):
        return None
    return found if all(isinstance(item, str) for item in found) else None


def no_name(tag: str) -> str:
    """Why a tag cannot be the name of a class; nothing if it can."""
    if spelling(tag) in NO_OBJECTS:
        return f"{tag} is no tag, it is what no tag names: take it out"
    if tag.casefold() in _NO_NAMES or not spelling(tag):
        return f"{tag} is no name of a class: leave the cell of an image without tags empty"
    odd = set(tag) & set('[]{}"') or tag[0] in _QUOTES or tag[-1] in _QUOTES or "('" in tag
    if odd or not tag.isprintable():
        return f"{short(tag)} is no plain name: write letters without quotes and brackets"
    return ""


def short(text: str) -> str:
    """A text in quotes, cut to what fits into a sentence."""
    return repr(text if len(text) <= 60 else f"{text[:57]}...")

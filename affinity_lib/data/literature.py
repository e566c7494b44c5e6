"""What papers print of their results, from the CSV files in ``data/literature``."""

from __future__ import annotations

import csv

from affinity_lib.data.paths import find_root
from affinity_lib.errors import InputError


def printed(table: str) -> dict[str, dict[str, str | float | None]]:
    """The rows of a table of the literature.

    Args:
        table: ``"table2"``, ``"table3"`` or ``"table4"`` of the paper, or ``"later"`` for work that
            builds on it.

    Returns:
        Method -> column -> a number (IoU or mIoU in percent), a text, or None where the table has
        nothing, in the order of the table.

    Raises:
        InputError: there is no such table.

    >>> printed("table4")["Ours-ResNet38"]["val"]
    61.7
    """
    path = find_root() / "data" / "literature" / f"{table}.csv"
    if not path.is_file():
        raise InputError(f"{path} is missing: take a table that lies beside it")
    with path.open(encoding="utf-8", newline="") as file:
        return {
            row.pop("method"): {k: _value(v) for k, v in row.items()}
            for row in csv.DictReader(file)
        }


def _value(text: str) -> str | float | None:
    """A number if the text is one with decimals, None if it is empty."""
    try:
        return float(text) if "." in text else text or None
    except ValueError:
        return text

"""The notebooks of exercises, executed here and now: a kernel for each would take longer."""

from __future__ import annotations

import linecache
import re
from typing import Any

import matplotlib.pyplot as plt
import nbformat
from nbformat import NotebookNode

from affinity_lib.data.paths import find_root

FOLDER = find_root() / "notebooks"
CAPTION = re.compile(r"\*(?![*\s])[^*]{20,}\*(?!\*)")  # a sentence in italics
STEMS = sorted(path.stem for path in (FOLDER / "solutions").glob("*.ipynb"))


def read(kind: str, stem: str) -> NotebookNode:
    """A notebook of "solutions" or of "exercises"."""
    return nbformat.read(FOLDER / kind / f"{stem}.ipynb", as_version=4)


def role(cell: NotebookNode, name: str) -> bool:
    """Whether a cell is nbgrader's "solution", or the "grade" of one."""
    return cell.metadata.get("nbgrader", {}).get(name, False)


def tags(cell: NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def execute(notebook: NotebookNode) -> dict[str, Any]:
    """Run the code cells; the names that they leave."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for cell in notebook.cells:
        if cell.cell_type == "code":
            run(cell.source, names)
    plt.close("all")
    return names


def run(source: str, names: dict[str, Any]) -> None:
    """Run some code whose lines can be looked up, as in a kernel."""
    file = f"<cell {hash(source)}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    exec(compile(source, file, "exec"), names)  # noqa: S102 - our own cell


def solutions_of(stem: str) -> dict[str, str]:
    """The solved cells of a notebook by their grade_id."""
    cells = read("solutions", stem).cells
    return {c.metadata.nbgrader.grade_id: c.source for c in cells if role(c, "solution")}

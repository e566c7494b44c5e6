"""The exercises as learners get them: the solved notebooks with ``...`` in place of the answers."""

from __future__ import annotations

import os
import re
from itertools import count
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from affinity_lib.errors import InputError

_ANSWER = re.compile(r"(?ms)^([ \t]*)### BEGIN SOLUTION\n.*?\n[ \t]*### END SOLUTION$")


def write_exercises(folder: Path) -> list[Path]:
    """Make ``exercises/NN_name.ipynb`` of each ``solutions/NN_name.ipynb``.

    A copy in which somebody has written is kept beside the new one, as ``NN_name.answers.ipynb``.

    Args:
        folder: of the notebooks.

    Returns:
        The copies that were kept.

    Raises:
        InputError: a solution is not marked.
    """
    kept = []
    for solution in sorted((folder / "solutions").glob("*.ipynb")):
        target, text = folder / "exercises" / solution.name, exercise_of(solution)
        target.parent.mkdir(exist_ok=True)
        if target.is_file() and _sources(target.read_text(encoding="utf-8")) != _sources(text):
            names = (target.with_suffix(f".answers{k or ''}.ipynb") for k in count())
            kept.append(next(name for name in names if not name.exists()))
            os.replace(target, kept[-1])
        target.write_text(text, encoding="utf-8", newline="\n")
    return kept


def exercise_of(solution: Path) -> str:
    """The text of the notebook of exercises that belongs to a solved one: no answers, no outputs.

    nbgrader does the same with the same marks.

    Raises:
        InputError: a cell for an answer has no marks, or marks stand elsewhere.
    """
    notebook = nbformat.read(solution, as_version=4)
    for cell in notebook.cells:
        source, answers = _ANSWER.subn(r"\1...", cell.source)
        if (answers > 0) != _is_for_an_answer(cell) or "SOLUTION" in source:
            raise InputError(
                f"cell {cell.id} of {solution.name} must be a solution cell of nbgrader with its "
                "answer between the lines ### BEGIN SOLUTION and ### END SOLUTION"
            )
        cell.source = source
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return nbformat.writes(notebook) + "\n"


def _is_for_an_answer(cell: NotebookNode) -> bool:
    return cell.metadata.get("nbgrader", {}).get("solution", False)


def _sources(text: str) -> list[str]:
    return [cell.source for cell in nbformat.reads(text, as_version=4).cells]

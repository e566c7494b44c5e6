"""A class: nbgrader makes the assignment of the solutions and grades what comes back."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from exercise_books import FOLDER, STEMS, read, role, solutions_of

from affinity_lib.data.paths import find_root

api = pytest.importorskip(
    "nbgrader.api", reason="nbgrader is not installed: pip install '.[teach]'"
)

ASSIGNMENT = "affinitynet"
POINTS = {
    (stem, cell.metadata.nbgrader.grade_id): cell.metadata.nbgrader.points
    for stem in STEMS
    for cell in read("solutions", stem).cells
    if role(cell, "grade")
}


def nbgrader(course: Path, *words: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(find_root()), "OMP_NUM_THREADS": "1"}
    environment |= {"HOME": str(course), "JUPYTER_PREFER_ENV_PATH": "1"}
    programs = str(Path(sys.executable).parent)  # nbgrader looks for its alembic on the path
    environment["PATH"] = os.pathsep.join([programs, os.environ["PATH"]])
    command = [sys.executable, "-m", "nbgrader", *words]
    done = subprocess.run(
        command, check=False, cwd=course, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def course(tmp_path_factory) -> Path:
    """A course of one assignment, released."""
    course = tmp_path_factory.mktemp("class")
    shutil.copy(FOLDER / "nbgrader_config.py", course)
    shutil.copytree(FOLDER / "solutions", course / "source" / ASSIGNMENT)
    nbgrader(course, "generate_assignment", ASSIGNMENT)
    return course


def submit(course: Path, student: str, every: int) -> list[tuple[str, str]]:
    """Hand in the assignment with every so-manieth exercise solved, none for 0.

    Returns:
        The checks of what was solved.
    """
    home = course / "submitted" / student / ASSIGNMENT
    home.mkdir(parents=True)
    solved = []
    for stem in STEMS:
        notebook = nbformat.read(course / "release" / ASSIGNMENT / f"{stem}.ipynb", as_version=4)
        answers, place = solutions_of(stem), 0
        for cell in notebook.cells:
            if role(cell, "solution"):
                place += 1
                if every and place % every == 0:
                    cell.source = answers[cell.metadata.nbgrader.grade_id]
            elif role(cell, "grade") and every and place % every == 0:
                solved.append((stem, cell.metadata.nbgrader.grade_id))
        nbformat.write(notebook, home / f"{stem}.ipynb")
    return solved


def test_nbgrader_releases_the_exercises_that_are_committed(course):
    for stem in STEMS:
        released = nbformat.read(course / "release" / ASSIGNMENT / f"{stem}.ipynb", as_version=4)
        sources = [
            [cell.source for cell in book.cells] for book in (released, read("exercises", stem))
        ]
        assert sources[0] == sources[1]


@pytest.mark.parametrize("student, every", [("nobody", 0), ("everybody", 1), ("somebody", 2)])
def test_the_grade_is_the_sum_of_what_was_solved(course, student, every):
    solved = submit(course, student, every)
    assert len(solved) == (every and sum(len(solutions_of(s)) // every for s in STEMS))
    nbgrader(course, "autograde", ASSIGNMENT, "--create", "--student", student)
    with api.Gradebook(f"sqlite:///{course / 'gradebook.db'}") as book:
        submission = book.find_submission(ASSIGNMENT, student)
        assert submission.max_score == sum(POINTS.values())
        assert submission.score == sum(POINTS[check] for check in solved)
        assert not submission.needs_manual_grade

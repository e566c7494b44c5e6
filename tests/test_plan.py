"""Which notebooks are to be run, to begin at any lesson."""

from __future__ import annotations

import subprocess

import nbformat
import pytest
from fake_project import make_project
from nbformat.v4 import new_code_cell, new_notebook

from affinity_lib.__main__ import main
from affinity_lib.data.paths import find_root
from affinity_lib.errors import InputError
from affinity_lib.running.plan import make_plan, notebooks_before
from affinity_lib.running.stage import Stage


def test_a_notebook_that_takes_no_profile_has_no_place_in_a_run(tmp_path):
    folder = make_project(tmp_path)
    cell = new_code_cell('folder: str = "data"', metadata={"tags": ["parameters"]})
    nbformat.write(new_notebook(cells=[cell]), folder / "03_about.ipynb")
    assert list(make_plan("tiny", folder).notebooks) == ["00_draw", "01_walk", "02_learn"]


@pytest.mark.parametrize("number", ["4", "04"])
def test_a_lesson_needs_those_that_come_before_it(number):
    plan = make_plan("toy")
    assert notebooks_before(plan, number) == list(plan.notebooks)[:4]


@pytest.mark.parametrize(
    "number, words",
    [
        ("", "which notebook"),
        ("0", "00_data_and_overview reads nothing"),
        ("9", "no notebook starts with '09'"),
    ],
)
def test_a_lesson_that_needs_none_or_is_none_is_refused(number, words, capsys):
    with pytest.raises(InputError, match=words):
        notebooks_before(make_plan("toy"), number)
    assert main(["run", "toy", "--before", number]) == 2
    assert words in capsys.readouterr().err


def test_a_lesson_to_begin_at_and_notebooks_to_run_are_not_given_together(capsys):
    assert main(["run", "toy", "--before", "4", "--notebooks", "03"]) == 2
    assert "leave out one" in capsys.readouterr().err


def test_make_chapter_hands_its_number_on():
    words = ["make", "--dry-run", "--old-file=.venv/.ready", "chapter", "N=4", "PROFILE=photos"]
    done = subprocess.run(words, check=True, cwd=find_root(), capture_output=True, text=True)
    assert "-m affinity_lib run photos --before '4'" in done.stdout


def test_a_lesson_whose_inputs_are_missing_names_the_command_that_makes_all_of_them(tmp_path):
    stage = Stage("04_random_walk", {"run_dir": str(tmp_path / "run")})
    with pytest.raises(InputError, match="python -m affinity_lib run toy --before 04$"):
        stage.input("01_class_activation_maps/cams")

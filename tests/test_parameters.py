from __future__ import annotations

from pathlib import Path

import papermill
import pytest
from fake_project import write_notebook
from hypothesis import given
from hypothesis import strategies as st

from affinity_lib.data.paths import find_root
from affinity_lib.errors import InputError
from affinity_lib.running.parameters import (
    Parameter,
    checked,
    declared_parameters,
    load_profile,
    parse_settings,
)

NOTEBOOKS = sorted((find_root() / "notebooks").glob("*.ipynb"))
KINDS = {
    "alpha": "float",
    "steps": "int",
    "flip": "bool",
    "backbone": "str",
    "scales": "list[float]",
    "limit": "int | None",
}
DECLARED = {"01_walk": {name: Parameter(name, kind, None) for name, kind in KINDS.items()}}


def write_profile(folder: Path, text: str) -> Path:
    path = folder / "own.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_parameters_cell_is_read_with_kinds_and_defaults(tmp_path):
    notebook = tmp_path / "01_walk.ipynb"
    write_notebook(
        notebook, "alpha: float = 16  # Eq. 2, with gamma=5\nto: list[int] = [1,\n2]", []
    )
    found = declared_parameters(notebook)
    assert found["alpha"] == Parameter("alpha", "float", 16.0)
    assert found["to"] == Parameter("to", "list[int]", [1, 2])
    assert list(found) == ["profile", "run_dir", "seed", "alpha", "to"]


@pytest.mark.parametrize("line", ["alpha = 16", "import os", "x: float = 2 * 8", "y: int = 'a'"])
def test_parameter_line_of_another_form_is_refused(tmp_path, line):
    notebook = tmp_path / "01_walk.ipynb"
    write_notebook(notebook, line, [])
    with pytest.raises(InputError, match=r"01_walk\.ipynb"):
        declared_parameters(notebook)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_papermill_finds_the_parameters_of_each_notebook_too(notebook):
    assert list(papermill.inspect_notebook(notebook)) == list(declared_parameters(notebook))


@given(st.integers(-(2**53), 2**53))
def test_an_int_is_good_enough_for_a_float(value):
    result = checked({"alpha": value}, DECLARED)["alpha"]
    assert type(result) is float and result == value


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", True),
        ("alpha", False),
        ("steps", 8.0),
        ("alpha", "16"),
        ("alpha", [16]),
        ("alpha", float("nan")),
        ("alpha", 10**400),
        ("backbone", ["small"]),
        ("backbone", 38),
        ("scales", 0.5),
        ("scales", [0.5, "1"]),
        ("flip", 1),
        ("limit", "4"),
        ("steps", None),
    ],
)
def test_value_of_another_kind_is_refused_with_a_sentence(name, value):
    with pytest.raises(InputError) as refused:
        checked({name: value}, DECLARED)
    assert f"{name} must be {KINDS[name]} (01_walk), got the" in str(refused.value)
    assert repr(value) in str(refused.value) and "\n" not in str(refused.value)


def test_value_of_the_declared_kind_is_kept():
    values = {"steps": 3, "flip": True, "backbone": "small", "scales": [0.5, 1], "limit": None}
    assert checked(values, DECLARED) == values


def test_unknown_name_is_refused_with_the_nearest_one():
    with pytest.raises(InputError, match="no notebook has a parameter 'alhpa': did you mean 'alp"):
        checked({"alhpa": 16.0}, DECLARED)


def test_profile_numbers_in_every_notation_are_numbers(tmp_path):
    path = write_profile(tmp_path, "profile: own\nlr: 1e-3\nalpha: 16\nscales: [0.5, 1]\n")
    assert load_profile(path) == {"profile": "own", "lr": 0.001, "alpha": 16, "scales": [0.5, 1]}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("profile: other\n", "profile: own"),
        ("- profile\n", "mapping"),
        ("profile: own\nalpha: 1\nalpha: 2\n", "alpha is given twice"),
        ("profile: own\nx: [1\n", "not YAML"),
        ("profile: own\nx: ${HOME}/voc\n", "no other variable"),
    ],
)
def test_profile_that_is_not_one_is_refused(tmp_path, text, words):
    with pytest.raises(InputError, match=words):
        load_profile(write_profile(tmp_path, text))


def test_missing_profile_is_refused_with_those_there_are(tmp_path):
    write_profile(tmp_path, "profile: own\n")
    with pytest.raises(InputError, match="the profiles are own"):
        load_profile(tmp_path / "twn.yaml")


def test_folder_of_photographs_comes_from_the_environment(tmp_path, monkeypatch):
    path = write_profile(tmp_path, "profile: own\nvoc: ${VOC_ROOT}\n")
    monkeypatch.setenv("VOC_ROOT", "photos")
    monkeypatch.chdir(tmp_path)
    assert load_profile(path)["voc"] == str(tmp_path / "photos")
    monkeypatch.delenv("VOC_ROOT")
    with pytest.raises(InputError, match="set VOC_ROOT="):
        load_profile(path)


def test_settings_are_split_at_commas_outside_of_lists():
    settings = ["alpha=8,1.5e1", "scales=[0.5, 1],[1]", "backbone=small,38", "flip=true"]
    assert parse_settings(settings, DECLARED) == {
        "alpha": [8, 15.0],
        "scales": [[0.5, 1], [1]],
        "backbone": ["small", "38"],
        "flip": [True],
    }


@pytest.mark.parametrize("text", ["alpha", "alpha=", "alpha=[1", "beta=4"])
def test_setting_of_another_form_is_refused(text):
    with pytest.raises(InputError):
        parse_settings([text], DECLARED)


def test_setting_given_twice_is_refused():
    with pytest.raises(InputError, match="once a name"):
        parse_settings(["alpha=1", "alpha=2"], DECLARED)

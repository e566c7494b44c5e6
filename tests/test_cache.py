"""What a result depends on: found in the code that makes it, and no more than that."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from hypothesis import given
from hypothesis import strategies as st

from affinity_lib.data.paths import find_root
from affinity_lib.running import cache
from affinity_lib.running.cache import differences, library, needed_cells, plain

NOTEBOOKS = sorted((find_root() / "notebooks").glob("*.ipynb"))


def cells_of(stem: str) -> list[str]:
    (path,) = (path for path in NOTEBOOKS if path.stem.startswith(stem))
    cells = nbformat.read(path, as_version=4).cells
    return [cell.source for cell in cells if cell.cell_type == "code"]


def until(cells: list[str], words: str) -> list[str]:
    """The cells up to the one with these words."""
    (place,) = (k for k, cell in enumerate(cells) if words in cell)
    return cells[: place + 1]


def needed_code(cells: list[str]) -> str:
    return "\n".join(filter(None, needed_cells(cells)))


MAKERS = [
    ("01", 'stage.output("network")'),
    ("01", 'stage.output("cams")'),
    ("02", 'stage.output("labels")'),
    ("03", 'stage.output("network")'),
    ("04", 'stage.output("walked")'),
    ("05", 'stage.output("labels")'),
    ("06", 'stage.output("network")'),
    ("06", 'stage.output("predictions")'),
]
"""The cells that make what costs time."""


@pytest.mark.parametrize(
    ("cells", "needed"),
    [
        (["a = 1\nb = 2", "c = a"], "a = 1\nc = a"),
        (["a = 1", "a = 2", "c = a"], "a = 2\nc = a"),
        (["a = 1", "a += 1", "c = a"], "a = 1\na += 1\nc = a"),
        (["a = []", "a.append(1)", "c = a"], "a = []\na.append(1)\nc = a"),
        (["a = []", "print(a)", "c = a"], "a = []\nc = a"),
        (["a = [0]", "a[0] = b", "c = a"], "a = [0]\na[0] = b\nc = a"),
        (
            ["b = 1", "def f():\n    return b", "c = f()"],
            "b = 1\ndef f():\n    return b\nc = f()",
        ),
        (["b = 1", "def f(b):\n    return b", "c = f(2)"], "def f(b):\n    return b\nc = f(2)"),
        (["for k in (1, 2):\n    x = k", "c = [k for k in (3,)]"], "c = [k for k in (3,)]"),
        (["import os, sys", "c = sys.path"], "import sys\nc = sys.path"),
        (["c = 1", "d = 2", "c = 1"], "c = 1"),
        (["a = 1", "if a:\n    a = 2", "c = a"], "a = 1\nif a:\n    a = 2\nc = a"),
    ],
)
def test_a_statement_is_needed_if_it_binds_or_changes_what_is_needed(cells, needed):
    assert needed_code(cells) == needed


def test_a_figure_changes_nothing_whatever_it_is_given():
    before = ["from affinity_lib import plots", "data = load()"]
    figure = "plots.show([[data.image(i) for i in ids]], names=data.classes)"
    assert needed_code([*before, figure, "c = data"]) == needed_code([*before, "c = data"])


def test_an_edited_cell_that_was_run_again_counts_and_its_old_form_does_not():
    assert needed_code(["lr = 1", "x = lr", "lr = 2", "x = lr", "fit(x)"]) == needed_code(
        ["lr = 2", "x = lr", "fit(x)"]
    )


def test_comments_docstrings_and_layout_do_not_count():
    one = 'def f(x):\n    """Says so."""\n    # why\n    return (x +\n        1)\n'
    other = "def f(x):\n    return x + 1  # because\n"
    assert plain(one) == plain(other) != plain("def f(x):\n    return x + 2")


def test_what_is_no_python_is_left_to_the_notebook_to_tell():
    assert plain("this is not python") == "this is not python"
    assert library("this is not python") == {}


@pytest.mark.parametrize(("stem", "words"), MAKERS)
def test_another_figure_text_or_example_by_hand_makes_nothing_anew(stem, words):
    cells = until(cells_of(stem), words)
    edited = [
        cell.replace("plots.show(", "plots.show([], size=3.0) or plots.show(")
        .replace("plots.curve(", "plots.curve([1], 'another') or plots.curve(")
        .replace("torch.testing.assert_close(", "print(1), torch.testing.assert_close(")
        for cell in cells
    ]
    edited = [f"# another comment\n{cell}\n" for cell in edited]
    assert needed_code(edited) == needed_code(cells)


@pytest.mark.parametrize(("stem", "words"), MAKERS)
def test_the_parameters_cell_is_no_part_of_the_code(stem, words):
    code = needed_code(until(cells_of(stem), words))
    assert "profile:" not in code and "= None" not in code


@pytest.mark.parametrize(
    ("stem", "words", "edit"),
    [
        ("01", 'stage.output("network")', ("forward(model, seen), tags)", "forward(model, seen), 1 - tags)")),
        ("01", 'stage.output("network")', ("tags=True", "tags=True, scale=None")),
        ("03", 'stage.output("network")', ("weights=config.loss_weights", "weights=(1, 1, 1)")),
        ("03", 'stage.output("network")', ("half_plane_offsets(config.gamma)", "half_plane_offsets(3)")),
        ("04", 'stage.output("walked")', ("net.eval().to", "net.train().to")),
        ("06", 'stage.output("network")', ("segmentation_loss(forward", "2 * segmentation_loss(forward")),
    ],
)  # fmt: skip
def test_an_edit_that_could_change_a_number_is_part_of_the_code(stem, words, edit):
    cells = until(cells_of(stem), words)
    edited = [cell.replace(*edit) for cell in cells]
    assert edited != cells and needed_code(edited) != needed_code(cells)


def modules_of(stem: str, words: str) -> set[str]:
    return set(library(needed_code(until(cells_of(stem), words))))


def test_the_walk_depends_on_its_module_and_no_training_does():
    assert "affinity_lib.random_walk" in modules_of("04", 'stage.output("walked")')
    for stem, words in MAKERS:
        if "network" in words or stem in ("01", "02"):
            assert "affinity_lib.random_walk" not in modules_of(stem, words), stem


@pytest.mark.parametrize(("stem", "words"), MAKERS)
def test_what_draws_or_runs_notebooks_changes_no_result(stem, words):
    found = modules_of(stem, words)
    assert "affinity_lib.data.voc" in found or stem == "06"
    assert not [n for n in found if n.startswith(("affinity_lib.running.", "affinity_lib.showing"))]
    assert "affinity_lib.plots" not in found


@pytest.mark.parametrize(("stem", "words"), MAKERS)
def test_a_changed_module_in_a_package_is_noticed(stem, words, monkeypatch):
    code = needed_code(until(cells_of(stem), words))
    before = library(code)
    read = Path.read_text

    def edited(path: Path, *arguments: object, **how: object) -> str:
        text = read(path, *arguments, **how)
        return text + "\nEDITED = True\n" if path.match("affinity_lib/data/files.py") else text

    cache._module.cache_clear()
    monkeypatch.setattr(Path, "read_text", edited)
    after = library(code)
    cache._module.cache_clear()
    assert [name for name in before if before[name] != after[name]] == ["affinity_lib.data.files"]


def test_a_note_is_compared_in_what_it_names():
    old = {"code": "a", "settings": {"t": 256}, "inputs": {"x": "1"}, "library": {"m": "1"}}
    new = {"code": "a", "settings": {"t": 256, "beta": 8}, "inputs": {"x": "1", "y": "2"}}
    assert differences(old, {**new, "library": {"m": "1"}}) == []
    assert differences(old, {**new, "library": {"m": "2"}}) == ["m"]
    assert differences(old, {**new, "library": {"m": "1"}, "inputs": {}}) == ["x"]
    assert differences({"machine": {"device": "cpu"}}, {"machine": {"device": "cuda"}}) == [
        "device cpu -> cuda"
    ]


@given(st.dictionaries(st.text(), st.integers()))
def test_a_digest_does_not_see_the_order_of_names(mapping):
    assert cache.digest(mapping) == cache.digest(dict(reversed(mapping.items())))


def test_the_packages_that_compute_are_known():
    assert {"torch", "torchvision", "timm", "numpy", "scipy"} < set(cache.versions(cache.PACKAGES))


def test_a_data_set_is_another_one_with_another_file(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"1")
    before = cache.listing(tmp_path)
    (tmp_path / ".hidden").touch()
    assert cache.listing(tmp_path) == before
    (tmp_path / "a.jpg").write_bytes(b"12")
    assert cache.listing(tmp_path) != before

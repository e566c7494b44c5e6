"""The house: the paper's modules on top, and rooms whose imports point one way."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import affinity_lib

FOLDER = Path(affinity_lib.__file__).parent
PAPER = {
    *("cam", "affinity_labels", "affinity", "affinitynet", "random_walk", "segmentation_labels"),
    *("segmentation", "crf", "evaluation", "presets", "plots", "errors"),
}
ROOMS = (
    *("paper", "data", "backbones", "training", "stages", "running", "showing", "teaching"),
    "__main__",
)
"""From the inside outwards: a room knows those before it and none after it."""

OF_FILES = {"csv", "io", "json", "os", "pathlib", "shutil", "tempfile", "tqdm", "zipfile"}
FILES = {
    path.relative_to(FOLDER.parent).with_suffix("").as_posix().replace("/", "."): path
    for path in sorted(FOLDER.rglob("*.py"))
    if path != FOLDER / "__init__.py"
}


def room_of(module: str) -> str:
    name = module.split(".")[1]
    return "paper" if name in PAPER else name


def imported(module: str) -> set[str]:
    """All that a module imports: at its top, late, or for type checkers alone."""
    names = set()
    for node in ast.walk(ast.parse(FILES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_the_readme_draws_the_rooms_in_this_order():
    readme = (FOLDER.parent / "README.md").read_text(encoding="utf-8")
    drawn = re.search(r"```mermaid\nflowchart LR\n(.*)\n```", readme)[1].split(" --> ")
    assert tuple(re.sub(r'.*"(\w+)".*', r"\1", room).strip() for room in drawn) == ROOMS
    about = re.findall(r"^- \*\*`?(\w+)`?\*\*", readme, re.MULTILINE)
    assert tuple(about) == ROOMS


def test_every_module_has_a_room():
    assert {room_of(module) for module in FILES} == set(ROOMS)


def test_the_top_level_shows_the_paper_and_little_else():
    top = {path.stem for path in FOLDER.glob("*.py")}
    assert top - PAPER == {"__init__", "__main__"} and len(top) <= 15


@pytest.mark.parametrize("module", FILES)
def test_imports_point_one_way(module):
    place = ROOMS.index(room_of(module))
    ours = [name for name in imported(module) if name.startswith("affinity_lib.")]
    wrong = [name for name in ours if ROOMS.index(room_of(name)) > place]
    assert not wrong, f"{module}, in the room {ROOMS[place]}, imports {', '.join(wrong)}"


@pytest.mark.parametrize("module", [m for m in FILES if room_of(m) == "paper"])
def test_the_papers_modules_know_tensors_and_no_files(module):
    assert not {name.split(".")[0] for name in imported(module)} & OF_FILES
    calls = [n for n in ast.walk(ast.parse(FILES[module].read_text())) if isinstance(n, ast.Call)]
    assert not [c for c in calls if isinstance(c.func, ast.Name) and c.func.id == "open"]

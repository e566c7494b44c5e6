"""The pages beside the notebooks: for teachers, for who is stuck, for who cites or contributes."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import nbformat
import pytest
import yaml
from exercise_books import FOLDER, STEMS, read, role

import affinity_lib

ROOT = FOLDER.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(FOLDER.glob("*.md"))]


def points(stem: str) -> int:
    cells = read("solutions", stem).cells
    return sum(cell.metadata.nbgrader.points for cell in cells if role(cell, "grade"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_link_of_a_page_leads_to_a_file(page):
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_the_picture_of_the_readme_is_the_last_figure_of_lesson_5():
    lesson = nbformat.read(FOLDER / "05_segmentation_labels.ipynb", as_version=4)
    outputs = [output for cell in lesson.cells for output in cell.get("outputs", [])]
    figures = [o.data["image/png"] for o in outputs if "image/png" in o.get("data", {})]
    picture = (FOLDER / "overview.png").read_bytes()
    assert base64.b64decode(figures[-1]) == picture, "save the lesson's figure as overview.png"


def test_the_page_for_teachers_counts_the_points_as_nbgrader_does():
    page = (FOLDER / "TEACHING.md").read_text(encoding="utf-8")
    for stem in STEMS:
        (row,) = re.findall(rf"^\|.*\({stem}\.ipynb\).*$", page, re.MULTILINE)
        assert row.endswith(f"| {points(stem)} |")
    total = sum(map(points, STEMS))
    assert f"worth {total} points" in page and f"a solved one all {total}" in page


@pytest.mark.parametrize("name", ["TEACHING.md", "HELP.md", "CONTRIBUTING.md"])
def test_every_target_of_make_that_a_page_names_is_one(name):
    (page,) = (page for page in PAGES if page.name == name)
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    named = re.findall(r"(?:`|^)make (\w+)", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert named and set(named) <= set(targets)


def test_the_citation_is_of_this_version_and_has_the_papers_in_it():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["version"] == affinity_lib.__version__
    assert citation["license"] == ["MIT", "CC-BY-4.0"]
    (paper,) = citation["references"]
    assert [author["family-names"] for author in paper["authors"]] == ["Ahn", "Kwak"]
    assert paper["year"] == 2018 and paper["title"].startswith("Learning Pixel-level")


def test_text_and_code_have_a_license_each():
    license_of = {
        path: Path(path / "LICENSE").read_text(encoding="utf-8") for path in (ROOT, FOLDER)
    }
    assert license_of[ROOT].startswith("MIT License") and "CC-BY-4.0" in license_of[FOLDER]

"""What slides and site make of the notebooks, before any browser is asked."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from affinity_lib.data.paths import find_root
from affinity_lib.showing.report import describe
from affinity_lib.showing.widget import MIME

HERE = find_root() / "notebooks" / "site"
sys.path.append(str(HERE))
import build
import slides

LESSONS = sorted(HERE.parent.glob("[0-9]*.ipynb"))
PICTURE = new_output("display_data", {"image/png": "AAAA"})
CAPTION = "*A figure in which one sees $\\alpha$ at work.*"


def texts_of(cells) -> list[list[str]]:
    deck = slides.slides(slides.blocks(new_notebook(cells=cells)))
    return [[cell.source for cell in slide] for slide in deck]


def test_a_heading_begins_a_slide():
    assert texts_of([new_markdown_cell("# A\n\nOne.\n## B\nTwo.\n\n## C\n\nThree.")]) == [
        ["# A", "One."],
        ["## B", "Two."],
        ["## C", "Three."],
    ]


def test_a_figure_and_its_caption_are_a_slide_with_the_title_of_the_one_before():
    figure = new_code_cell("plot()", metadata={"tags": ["figure"]}, outputs=[PICTURE])
    below = new_markdown_cell(f"{CAPTION}\n\nAfter it.")
    shown = texts_of([new_markdown_cell("## A\n\nBefore it."), figure, below])
    assert shown == [["## A", "Before it."], ["## A", "plot()", CAPTION], ["## A", "After it."]]


def test_a_heading_with_nothing_but_a_figure_is_no_slide_of_its_own():
    figure = new_code_cell("plot()", metadata={"tags": ["figure"]}, outputs=[PICTURE])
    shown = texts_of([new_markdown_cell("## A"), figure, new_markdown_cell(CAPTION)])
    assert shown == [["## A", "plot()", CAPTION]]


@pytest.mark.parametrize("tag", ["parameters", "train", "per-image"])
def test_parameters_and_loops_are_left_out(tag):
    cell = new_code_cell(
        "x = 1", metadata={"tags": [tag]}, outputs=[new_output("stream", text="1")]
    )
    assert texts_of([new_markdown_cell("# A"), cell]) == [["# A"]]


def test_of_a_long_cell_the_output_is_shown():
    long = new_code_cell("x = 1\n" * 20, outputs=[new_output("stream", text="1")])
    silent = new_code_cell("x = 1\n" * 20)
    (slide,) = slides.slides(
        slides.blocks(new_notebook(cells=[new_markdown_cell("# A"), long, silent]))
    )
    assert [cell.metadata.get("tags") for cell in slide] == [None, [slides.HIDDEN]]


def test_a_line_that_ends_in_a_colon_stays_with_what_it_announces():
    filled = "\n\n".join(["Words and more words."] * 9)
    code = new_code_cell("\n".join(["x = 1"] * 11))
    shown = texts_of([new_markdown_cell(f"## A\n\n{filled}\n\nBy hand:"), code])
    assert shown[-1][1:] == ["By hand:", code.source]


def test_formulas_code_and_folds_are_not_torn_apart():
    whole = [
        "$$a\n\n= b$$",
        "```\na\n\nb\n```",
        "<details><summary>?</summary>\n\nYes.\n\n</details>",
    ]
    assert list(slides.paragraphs("\n\n".join(whole))) == whole


def test_a_long_table_becomes_several_with_its_header():
    rows = [f"| {i} | x |" for i in range(24)]
    parts = slides.pieces_of_table("\n".join(["| a | b |", "|---|---|", *rows]))
    assert [part.splitlines()[2:] for part in parts] == [rows[:8], rows[8:16], rows[16:]]
    assert {tuple(part.splitlines()[:2]) for part in parts} == {("| a | b |", "|---|---|")}


def test_a_long_table_of_an_output_goes_on_without_its_code():
    table = "\n".join(["| a | b |", "|---|---|", *(f"| {i} | x |" for i in range(24))])
    outputs = [
        new_output("stream", text="before"),
        new_output("display_data", {"text/markdown": table}),
        new_output("stream", text="after"),
    ]
    parts = list(slides.pieces_of_outputs(new_code_cell("show()", outputs=outputs)))
    assert [slides.HIDDEN in part.metadata.get("tags", []) for part in parts] == [False, True, True]
    assert [len(part.outputs) for part in parts] == [2, 1, 2]
    shown = [o.data["text/markdown"] for part in parts for o in part.outputs if "data" in o]
    assert shown == slides.pieces_of_table(table)


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_a_deck_has_every_figure_with_words_and_all_that_is_said(path):
    lesson = nbformat.read(path, as_version=4)
    drawn = sum(
        "image/png" in o.data for c in lesson.cells for o in c.get("outputs", []) if "data" in o
    )
    deck = slides.deck(lesson)
    pictures = [
        o for c in deck.cells for o in c.get("outputs", []) if "image/png" in o.get("data", {})
    ]
    assert len(pictures) == drawn and all(p.metadata["image/png"]["alt"] for p in pictures)
    said = "\n".join(cell.source for cell in deck.cells)
    lesson = nbformat.read(path, as_version=4)
    for heading in re.findall(r"^## .*", "\n".join(c.source for c in lesson.cells), re.MULTILINE):
        assert heading in said


def test_a_picture_is_described_by_its_caption():
    figure = new_code_cell("plot()", outputs=[PICTURE])
    describe(new_notebook(cells=[figure, new_markdown_cell(CAPTION)]))
    assert (
        figure.outputs[0].metadata["image/png"]["alt"]
        == "A figure in which one sees alpha at work."
    )


def test_the_walk_is_to_be_touched_and_without_scripts_its_described_picture_stays():
    walks = [new_output("display_data", {"image/png": "AAAA", MIME: {"t": t}}) for t in (1, 2)]
    cell = new_code_cell("walk", outputs=[PICTURE, *walks])
    page = new_notebook(cells=[cell, new_markdown_cell(CAPTION)])
    describe(page)
    build.touched(page)
    plain, first, second = (output.data for output in cell.outputs)
    assert plain == PICTURE.data and set(first) == set(second) == {"text/html"}
    still = '<img src="data:image/png;base64,AAAA" alt="A figure in which one sees alpha at work.">'
    assert second["text/html"] == f'{still}<script type="{MIME}">{{"t": 2}}</script>'
    assert first["text/html"].startswith(f'{still}<script type="{MIME}">')
    assert first["text/html"].count("mount(document);") == 1


def test_a_link_leads_to_the_page_of_the_site_and_elsewhere_only_words_stay():
    readme, lesson = find_root() / "README.md", LESSONS[0]
    places = {readme: "index.md", lesson: lesson.name, HERE.parent / "REPRODUCE.md": "REPRODUCE.md"}
    text = f"[a](notebooks/{lesson.name}) [b](notebooks/REPRODUCE.md#x) [c](LICENSE) [d](https://e.org)"
    assert build.with_links(text, readme, places) == (
        f"[a]({lesson.name}) [b](REPRODUCE.md#x) c [d](https://e.org)"
    )
    places[HERE.parent / "exercises" / "00.ipynb"] = "exercises/00.ipynb"
    assert build.with_links("[a](exercises/00.ipynb)", lesson, places) == "[a](exercises/00.ipynb)"
    back = build.with_links("[a](../REPRODUCE.md)", HERE.parent / "exercises" / "00.ipynb", places)
    assert back == "[a](../REPRODUCE.md)"


@pytest.fixture
def course(tmp_path, monkeypatch) -> Path:
    """A lesson with an exercise and its solution, and a page for teachers."""
    full = "def my_sum(a, b):\n    ### BEGIN SOLUTION\n    return secret(a)\n    ### END SOLUTION"
    blank = "def my_sum(a, b):\n    ..."
    for folder, source in (("exercises", blank), ("solutions", full)):
        cells = [new_markdown_cell("# 0. Sums"), new_code_cell(source), new_code_cell("check()")]
        (tmp_path / folder).mkdir()
        nbformat.write(new_notebook(cells=cells), tmp_path / folder / "00_sums.ipynb")
    lesson = new_markdown_cell("# 0. Sums\n\nSee [teaching](TEACHING.md).\n\n## Notation\n\n| a |")
    nbformat.write(new_notebook(cells=[lesson]), tmp_path / "00_sums.ipynb")
    (tmp_path / "TEACHING.md").write_text("# Teaching\n\nThe secret is told.\n")
    monkeypatch.setattr(build, "NOTEBOOKS", tmp_path)
    return tmp_path


def gathered(folder: Path, for_class: bool) -> dict[str, str]:
    build.gather(folder, for_class)
    return {p.relative_to(folder).as_posix(): p.read_text("utf-8") for p in folder.rglob("*.*")}


def test_a_solution_is_folded_below_its_exercise(course, tmp_path):
    page = json.loads(gathered(tmp_path / "made", False)["exercises/00_sums.ipynb"])
    shown = [("".join(c["source"]), c["metadata"].get("tags", [])) for c in page["cells"]]
    assert shown == [
        ("# 0. Sums", []),
        ("def my_sum(a, b):\n    ...", []),
        ("def my_sum(a, b):\n    return secret(a)\n", ["hide-input"]),
        ("check()", []),
    ]


def test_the_class_edition_has_the_exercises_and_no_solution(course, tmp_path):
    made = gathered(tmp_path / "made", True)
    assert "def my_sum" in made["exercises/00_sums.ipynb"] and "TEACHING.md" not in made
    assert not [name for name, text in made.items() if "secret" in text or "TEACHING" in text]


def test_every_module_of_the_library_has_its_place_in_the_reference():
    pages = "\n".join(build.reference(for_class=False).values())
    library = find_root() / "affinity_lib"
    for path in library.rglob("*.py"):
        name = ".".join(path.relative_to(library).with_suffix("").parts).removesuffix(".__init__")
        assert name.startswith("__") or f"affinity_lib.{name}\n" in pages, name


def test_what_comes_from_npm_is_pinned_with_a_digest():
    wanted = json.loads((HERE / "package.json").read_text())
    locked = json.loads((HERE / "package-lock.json").read_text())["packages"]
    for name, release in (wanted["dependencies"] | wanted["devDependencies"]).items():
        entry = locked[f"node_modules/{name}"]
        assert entry["version"] == release and entry["integrity"].startswith("sha512-")


def test_the_sites_environment_is_pinned_as_a_whole():
    lines = (HERE / "requirements.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in pins)
    names = {canonicalize_name(line.split("==")[0]) for line in pins}
    assert {"sphinx", "myst-nb", "sphinx-book-theme", "docutils"} <= names


def test_binder_installs_no_more_than_the_lessons_need_at_the_pinned_versions():
    folder = find_root() / ".binder"
    lines = (folder / "requirements.txt").read_text().splitlines()
    words = [line for line in lines if not line.startswith("#")]
    assert words[1:] == ["-c ../constraints.txt", "-e ."] and words[0].endswith("/whl/cpu")
    python = (folder / "runtime.txt").read_text().strip().removeprefix("python-")
    project = tomllib.loads((find_root() / "pyproject.toml").read_text())["project"]
    assert SpecifierSet(project["requires-python"]).contains(f"{python}.0")


def test_the_container_for_editors_makes_the_environment_by_make():
    settings = json.loads((find_root() / ".devcontainer/devcontainer.json").read_text())
    target = settings["postCreateCommand"].removeprefix("make ")
    shown = subprocess.run(
        ["make", "--dry-run", "--always-make", target],
        check=True,
        cwd=find_root(),
        capture_output=True,
        text=True,
    )
    assert ".ci/environment" in shown.stdout

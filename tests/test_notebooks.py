"""The seven notebooks of the chain and the one about it, as they are committed."""

from __future__ import annotations

import ast
import re

import nbformat
import pytest
from exercise_books import CAPTION, FOLDER, tags
from nbformat import NotebookNode

from affinity_lib.running.plan import make_plan

STEMS = [
    "00_data_and_overview",
    "01_class_activation_maps",
    "02_affinity_labels",
    "03_affinitynet",
    "04_random_walk",
    "05_segmentation_labels",
    "06_segmentation_network",
]
LESSONS = [*STEMS, "07_what_matters", "08_beyond"]
"""The stages of a run, and what looks at all of them."""

LONGEST_CELL = 33
LONGEST_PARAMETERS, MOST_IMPORTS = 12, 12
ABSOLUTE = re.compile(
    r"(?<![\w.:/<])/(?:home|root|tmp|usr|var|opt|mnt|work|Users|private|workspace|content|data)/"
    r"|\b[A-Z]:\\\\?\w|file://"
)


def read(stem: str) -> NotebookNode:
    return nbformat.read(FOLDER / f"{stem}.ipynb", as_version=4)


@pytest.fixture(params=LESSONS)
def notebook(request) -> NotebookNode:
    return read(request.param)


def code(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def texts(notebook: NotebookNode) -> list[str]:
    """All text that stands in outputs."""
    found = []
    for cell in code(notebook):
        for output in cell.outputs:
            found.append("".join(output.get("text", "")))
            for kind, value in output.get("data", {}).items():
                if not kind.startswith("image/png"):
                    found.append(value if isinstance(value, str) else str(value))
    return found


def test_the_nine_notebooks_are_there_and_seven_are_stages():
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == LESSONS
    assert list(make_plan("toy").notebooks) == STEMS


def test_it_is_a_valid_notebook_for_the_python3_kernel(notebook):
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"


def test_nothing_of_one_execution_stays_in_its_metadata(notebook):
    assert set(notebook.metadata) <= {"kernelspec", "language_info"}
    for cell in notebook.cells:
        assert set(cell.metadata) <= {"tags", "caption"}
        assert not set(tags(cell)) & {"injected-parameters", "raises-exception"}
        for output in cell.get("outputs", []):
            assert not any("widget" in kind for kind in output.get("data", {}))


def test_one_cell_declares_the_parameters_and_says_what_they_are(notebook):
    cells = [cell for cell in notebook.cells if "parameters" in tags(cell)]
    assert [cell.cell_type for cell in cells] == ["code"]
    first_code = code(notebook)[0]
    assert cells[0] is first_code
    for line in ast.parse(cells[0].source).body:
        assert isinstance(line, ast.AnnAssign) and line.simple
        ast.literal_eval(line.value)


def test_the_parameters_are_few_and_each_says_what_it_is(notebook):
    lines = code(notebook)[0].source.splitlines()
    assert len(lines) <= LONGEST_PARAMETERS
    assert all("# " in line or re.match(r"\w*(seed|epochs|iterations)\b", line) for line in lines)


def test_the_first_lesson_comes_after_few_imports(notebook):
    first = code(notebook)[1].source
    imported = sum(
        len(node.names)
        for node in ast.parse(first).body
        if isinstance(node, ast.Import | ast.ImportFrom) and "torch" not in ast.unparse(node)
    )
    assert imported <= MOST_IMPORTS, imported


def test_no_code_cell_is_longer_than_a_screen(notebook):
    for cell in code(notebook):
        assert len(cell.source.splitlines()) <= LONGEST_CELL, cell.source


@pytest.mark.parametrize("stem", STEMS)
def test_a_notebook_begins_with_its_stage_and_shows_the_settings(stem):
    first = code(read(stem))[1].source
    assert re.search(r'^stage = Stage\("\d\d_\w+"\)$', first, re.MULTILINE)
    assert first.splitlines()[-1] == "stage"


def test_cells_per_image_work_on_the_share_of_a_job(notebook):
    for cell in code(notebook):
        if "per-image" in tags(cell):
            assert "stage.share(" in cell.source and "evaluate(" not in cell.source


def test_no_cell_is_empty(notebook):
    assert all(cell.source.strip() for cell in notebook.cells)


def test_outputs_hold_no_error_and_no_path_of_a_machine(notebook):
    outputs = [output for cell in code(notebook) for output in cell.outputs]
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]
    assert not [text for text in texts(notebook) if ABSOLUTE.search(text)]
    assert not [cell.source for cell in notebook.cells if ABSOLUTE.search(cell.source)]


def test_executed_cells_are_counted_from_one_without_a_gap(notebook):
    counts = [cell.execution_count for cell in code(notebook)]
    if any(cell.outputs for cell in code(notebook)):
        assert counts == list(range(1, len(counts) + 1))
    else:
        assert set(counts) == {None}


@pytest.mark.parametrize("stem", LESSONS)
def test_a_file_stays_below_a_megabyte(stem):
    assert (FOLDER / f"{stem}.ipynb").stat().st_size < 1_000_000


def test_under_every_figure_a_sentence_in_italics_says_what_to_see(notebook):
    followers = [*notebook.cells[1:], None]
    for cell, below in zip(notebook.cells, followers, strict=True):
        if "figure" in tags(cell):
            assert below is not None and below.cell_type == "markdown", cell.source
            assert CAPTION.match(below.source), below.source


def test_a_cell_that_draws_is_tagged_as_a_figure(notebook):
    for cell in code(notebook):
        drawn = any("image/png" in output.get("data", {}) for output in cell.outputs)
        assert not drawn or "figure" in tags(cell), cell.source


def test_every_notebook_is_shown_and_opens_and_closes_as_the_others_do(notebook):
    pages = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    assert pages[0].startswith("# ") and "**You will**" in pages[0]
    for row in ("| paper |", "| reads |", "| writes |"):
        assert row in pages[0]
    assert "## Recap" in "\n".join(pages[-2:]) and "You have" in "\n".join(pages[-2:])
    assert "Try this next" in "\n".join(pages[-2:])


def test_it_speaks_of_nothing_but_itself(notebook):
    words = re.compile(r"\b(issues?|sessions?|helpers?)\b|/work\b|\bshared/", re.IGNORECASE)
    found = [
        match[0]
        for text in [*(cell.source for cell in notebook.cells), *texts(notebook)]
        for match in [words.search(text)]
        if match
    ]
    assert found == []


def test_a_link_to_another_notebook_leads_to_one(notebook):
    for cell in notebook.cells:
        for target in re.findall(r"\]\((\w+)\.ipynb\)", cell.source):
            assert target in LESSONS


def test_every_equation_of_the_paper_stands_in_a_notebook_and_is_asserted():
    told = set()
    for stem in STEMS:
        notebook = read(stem)
        text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
        for first, last in re.findall(
            r"Eq(?:uation)?s?\.?\s*(\d+)(?:\s*(?:-|to|and)\s*(\d+))?", text
        ):
            told |= set(range(int(first), int(last or first) + 1))
        for number in re.findall(r"\\tag\{(\d+)\}", text):
            told.add(int(number))
        asserts = [c for c in code(notebook) if re.search(r"assert", c.source)]
        assert asserts or stem.startswith(("00", "05")), stem
    assert told >= set(range(1, 13)), sorted(set(range(1, 13)) - told)


def test_two_questions_are_asked_before_their_answers_are_shown(notebook):
    asked = [k for k, c in enumerate(notebook.cells) if c.source.startswith("**Predict first.**")]
    assert len(asked) == 2
    for k in asked:
        assert notebook.cells[k + 1].cell_type == "code"
        asked_for, _, answer = notebook.cells[k].source.partition("\n\n<details>\n<summary>")
        assert "?" in asked_for and answer.endswith("\n\n</details>")


@pytest.mark.parametrize("stem", LESSONS)
def test_a_lesson_tells_what_it_wants_and_links_both_ways_at_both_ends(stem):
    cells, place = read(stem).cells, LESSONS.index(stem)
    for row in ("| know |", "| read |", "| computes |", "| exercises |"):
        assert row in cells[0].source
    for end in (cells[0].source, cells[-1].source):
        assert (f"(exercises/{stem}.ipynb)" in end) == (stem in STEMS)
        assert all(
            f"({LESSONS[k]}.ipynb)" in end for k in (place - 1, place + 1) if 0 <= k < len(LESSONS)
        )
    assert (f"`make chapter N={place}`" in cells[0].source) == (2 <= place <= 6)

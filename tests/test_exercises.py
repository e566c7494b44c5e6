"""The exercises: made of the solutions, open at first, and nobody's run is touched by them."""

from __future__ import annotations

import re
import shutil

import nbformat
import pytest
from exercise_books import CAPTION, FOLDER, STEMS, execute, read, role, solutions_of, tags

from affinity_lib.errors import InputError
from affinity_lib.running import manifest
from affinity_lib.running.plan import make_plan
from affinity_lib.running.runner import reasons_to_run
from affinity_lib.teaching import checking
from affinity_lib.teaching.checking import EXERCISES
from affinity_lib.teaching.generate import exercise_of, write_exercises


@pytest.fixture(autouse=True)
def nothing_failed_before(monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")
    checking._failed.clear()


def numbers(stem: str) -> list[str]:
    return [number for number in EXERCISES if number.startswith(f"{int(stem[:2])}.")]


def verdicts(capsys) -> list[str]:
    said = capsys.readouterr()
    assert said.err == ""
    return [line for line in said.out.splitlines() if re.match(r"\d\.\d is ", line)]


def test_every_lesson_has_three_or_four_exercises():
    assert list(make_plan("toy").notebooks) == STEMS
    assert all(3 <= len(numbers(stem)) <= 4 for stem in STEMS)


@pytest.mark.parametrize("stem", STEMS)
def test_a_committed_exercise_is_what_its_solution_makes_byte_for_byte(stem):
    committed = (FOLDER / "exercises" / f"{stem}.ipynb").read_bytes()
    made = exercise_of(FOLDER / "solutions" / f"{stem}.ipynb").encode()
    assert committed == made, "edit the solution, then: make exercises (it keeps your answers)"


def test_no_exercise_is_left_without_a_solution():
    stems = {path.name.partition(".")[0] for path in (FOLDER / "exercises").glob("*.ipynb")}
    assert sorted(stems) == STEMS


@pytest.mark.parametrize("stem", STEMS)
def test_the_solutions_solve_every_exercise_in_its_order(stem, capsys):
    execute(read("solutions", stem))
    assert [line[:14] for line in verdicts(capsys)] == [f"{n} is solved." for n in numbers(stem)]


@pytest.mark.parametrize("stem", STEMS)
def test_an_exercise_as_committed_runs_through_and_says_what_is_still_open(stem, capsys):
    execute(read("exercises", stem))
    assert verdicts(capsys) == [f"{number} is still open." for number in numbers(stem)]


@pytest.mark.parametrize("stem", STEMS)
def test_solving_one_exercise_turns_exactly_one_green(stem, capsys):
    for name, solved in solutions_of(stem).items():
        checking._failed.clear()
        notebook = read("exercises", stem)
        (cell,) = (
            c for c in notebook.cells if c.metadata.get("nbgrader", {}).get("grade_id") == name
        )
        cell.source = solved
        execute(notebook)
        said = sorted(re.sub(r"[\d.]+ is (still )?(\w+)\..*", r"\2", v) for v in verdicts(capsys))
        assert said == ["open"] * (len(numbers(stem)) - 1) + ["solved"]


@pytest.mark.parametrize("stem", STEMS)
def test_a_solution_is_a_notebook_that_nbgrader_understands(stem):
    notebook = read("solutions", stem)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    marked = [cell for cell in notebook.cells if "nbgrader" in cell.metadata]
    names = [cell.metadata.nbgrader.grade_id for cell in marked]
    assert len(set(names)) == len(names) == 2 * len(numbers(stem))
    for cell in marked:
        about = cell.metadata.nbgrader
        assert about.schema_version == 3 and not about.task
        assert about.grade != about.solution and about.locked == about.grade
        assert ("points" in about) == about.grade
    for answer, test in zip(marked[::2], marked[1::2], strict=True):
        number, name = re.fullmatch(r'check\("(.*)", (\w+)\)', test.source).groups()
        assert number in numbers(stem) and name == answer.metadata.nbgrader.grade_id


@pytest.mark.parametrize("stem", STEMS)
def test_a_page_of_exercises_lists_them_and_links_to_its_lesson_and_the_next(stem):
    pages = [cell.source for cell in read("solutions", stem).cells if cell.cell_type == "markdown"]
    tests = [cell for cell in read("solutions", stem).cells if role(cell, "grade")]
    points = {
        number: t.metadata.nbgrader.points for number, t in zip(numbers(stem), tests, strict=True)
    }
    for number, worth in points.items():
        assert re.search(rf"\| {re.escape(number)} \|.*\| {worth} \|", pages[0])
        assert any(f"## {number} " in page for page in pages)
    assert f"{sum(points.values())} points" in pages[0]
    assert (
        f"](../{stem}.ipynb)" in pages[0] and "**Back:**" in pages[-1] and "**Next:**" in pages[-1]
    )
    for target in re.findall(r"\]\(([\w./]+\.ipynb)\)", "\n".join(pages)):
        assert (FOLDER / "exercises" / target).is_file(), target


def test_every_equation_of_the_paper_is_asked_for():
    asked = set()
    for stem in STEMS:
        for cell in read("solutions", stem).cells[1:]:
            for first, last in re.findall(r"Eq\. (\d+)(?:-(\d+))?", cell.source):
                asked |= set(range(int(first), int(last or first) + 1))
    assert asked == set(range(1, 13))


@pytest.mark.parametrize("stem", STEMS)
def test_a_picture_has_its_caption_and_a_page_stays_small(stem):
    cells = read("solutions", stem).cells
    for cell, below in zip(cells, [*cells[1:], None], strict=True):
        drawn = any("image/png" in output.get("data", {}) for output in cell.get("outputs", []))
        assert drawn == ("figure" in tags(cell)), cell.source
        assert not drawn or CAPTION.match(below.source), below.source
    assert (FOLDER / "solutions" / f"{stem}.ipynb").stat().st_size < 600_000


@pytest.fixture
def copy(tmp_path):
    """The notebooks' folder, for generating into."""
    for kind in ("solutions", "exercises"):
        names = shutil.ignore_patterns("*.answers*.ipynb", ".*")
        shutil.copytree(FOLDER / kind, tmp_path / kind, ignore=names)
    return tmp_path


def test_making_the_exercises_again_leaves_a_clean_tree(copy):
    def files():
        return {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}

    before = files()
    assert write_exercises(copy) == [] and files() == before


def test_answers_are_kept_when_the_exercises_are_made_again(copy):
    path = copy / "exercises" / f"{STEMS[4]}.ipynb"
    made, answered = path.read_bytes(), path.read_text().replace("    ...", "    return W", 1)
    for _ in range(2):
        path.write_text(answered)
        (kept,) = write_exercises(copy)
        assert path.read_bytes() == made and "return W" in kept.read_text()
    path.write_text(answered.replace("return W", "return W\\n    ..."))  # it need not go
    assert len(write_exercises(copy)) == 1
    names = sorted(p.name for p in path.parent.glob("*.answers*"))
    assert names == [f"{STEMS[4]}.answers{k}.ipynb" for k in ("", 1, 2)]


@pytest.mark.parametrize(
    "old, new",
    [
        ("### END SOLUTION", "### end of it"),
        ("### BEGIN SOLUTION", "### BEGIN"),
        ('"solution": true', '"solution": false'),
    ],
)
def test_a_solution_with_broken_marks_is_refused_by_name(copy, old, new):
    path = copy / "solutions" / f"{STEMS[0]}.ipynb"
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(InputError, match=rf"cell e0-my-iou of {STEMS[0]}\.ipynb must be"):
        exercise_of(path)


def test_an_edited_exercise_leaves_a_run_up_to_date_and_verified(tiny_run, tmp_path):
    run, plan = tiny_run
    folder = tmp_path / "notebooks"
    shutil.copytree(FOLDER, folder, ignore=shutil.ignore_patterns(".*"))
    path = folder / "exercises" / f"{STEMS[4]}.ipynb"
    path.write_text(path.read_text().replace("    ...", "    return W", 1))
    stages = manifest.load_manifest(run)["stages"]
    edited = make_plan(plan.profile, folder).with_settings(plan.given)
    assert [reasons_to_run(edited, stem, run, stages[stem]) for stem in STEMS] == [[]] * 7
    assert manifest.verify(run)[1] == []

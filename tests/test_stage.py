"""What a notebook says to the machine: settings, inputs, outputs, numbers."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import nbformat
import papermill
import pytest
from fake_project import WALK, make_project, write_notebook
from nbclient import NotebookClient
from tiny import TINY

from affinity_lib.errors import InputError
from affinity_lib.running import runner
from affinity_lib.running.plan import make_plan
from affinity_lib.running.settings import KINDS, resolve
from affinity_lib.running.stage import NOTE, Stage, run_folder

NOTEBOOKS = list(make_plan("toy").notebooks.values())


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = make_project(tmp_path / "project")
    monkeypatch.chdir(folder)
    return folder


def execute(folder: Path, stem: str, **given: object) -> list[str]:
    """Execute a notebook by plain papermill, in its folder; returns what its cells printed."""
    done = papermill.execute_notebook(
        folder / f"{stem}.ipynb",
        "-",
        given,
        kernel_name="python3",
        cwd=folder,
        progress_bar=False,
    )
    return [o["text"] for cell in done.cells for o in cell.get("outputs", []) if "text" in o]


def stage(folder: Path, **given: object) -> Stage:
    return Stage("04_random_walk", {"run_dir": str(folder), **given})


def test_a_run_lives_where_it_is_told_to(project, tmp_path):
    assert run_folder("toy") == project.parent / "runs" / "toy"
    assert run_folder("toy", "runs/second") == project.parent / "runs" / "second"
    assert run_folder("toy", tmp_path / "x") == tmp_path / "x"


@pytest.mark.parametrize("profile", ["", "../toy", "a/b", ".."])
def test_a_profile_is_a_plain_name(profile):
    with pytest.raises(InputError, match="plain name"):
        run_folder(profile)


@pytest.mark.parametrize("made", ["nothing", "an empty folder"])
def test_a_missing_input_names_the_notebook_that_makes_it(tmp_path, made):
    if made == "an empty folder":
        (tmp_path / "01_class_activation_maps" / "cams").mkdir(parents=True)
    with pytest.raises(InputError, match=r"run notebooks/01_class_activation_maps\.ipynb"):
        stage(tmp_path).input("01_class_activation_maps/cams")


def test_metrics_are_saved_whole_or_not_at_all(tmp_path):
    one = stage(tmp_path)
    one.save({"table1": {"rw": 58.1, "cam": math.nan}})
    with pytest.raises(TypeError):
        one.save({"table1": object()})
    text = (tmp_path / "04_random_walk" / "metrics.json").read_text()
    assert json.loads(text) == {"table1": {"rw": 58.1, "cam": None}}
    numbers = stage(tmp_path).metrics("04_random_walk")["table1"]
    assert numbers["rw"] == 58.1 and math.isnan(numbers["cam"])


def test_a_result_stays_while_the_settings_that_were_read_stay(tmp_path):
    def walked(**given: object) -> Path:
        one = stage(tmp_path, **given)
        _ = one.config.beta, one.config.gamma
        return one.output("walked")

    (walked(beta=8) / "a.npz").touch()
    assert (walked(beta=8) / "a.npz").exists()
    assert (walked(beta=8, t=16) / "a.npz").exists()  # not read
    assert not (walked(beta=4) / "a.npz").exists()
    assert (walked(beta=8) / "a.npz").exists()  # it was put aside and comes back
    assert not (walked(beta=8, gamma=3) / "a.npz").exists()


def test_what_was_put_aside_is_gone_when_the_stage_is_finished(tmp_path):
    one, other = stage(tmp_path, beta=8), stage(tmp_path, beta=4)
    assert one.config.beta != other.config.beta
    (one.output("walked") / "a.npz").touch()
    (other.output("walked") / "b.npz").touch()
    other.save({})
    assert not [path for path in tmp_path.rglob("*") if ".before" in path.name]
    assert not list(stage(tmp_path, beta=8).output("walked").glob("a.npz"))


def test_a_folder_that_nobody_noted_is_not_taken_for_a_result(tmp_path):
    folder = tmp_path / "04_random_walk" / "walked"
    folder.mkdir(parents=True)
    (folder / "from an unknown source").touch()
    assert [path.name for path in stage(tmp_path).output("walked").iterdir()] == [NOTE]


def test_a_setting_that_names_a_file_stands_for_what_it_holds(tmp_path):
    weights = tmp_path / "weights.pth"

    def kept() -> bool:
        one = stage(tmp_path / "run", weights=str(weights))
        _ = one.config.weights
        there = (one.output("walked") / "a.npz").exists()
        (one.output("walked") / "a.npz").touch()
        return there

    weights.write_text("one")
    assert [kept(), kept()] == [False, True]
    weights.write_text("two")
    assert [kept(), kept()] == [False, True]


def test_another_input_makes_the_result_anew(tmp_path):
    cams = tmp_path / "01_class_activation_maps" / "cams"
    cams.mkdir(parents=True)

    def kept(note: str) -> bool:
        (cams / "a.npz").touch()
        (cams / NOTE).write_text(note)
        one = stage(tmp_path)
        one.input("01_class_activation_maps/cams")
        there = (one.output("walked") / "a.npz").exists()
        (one.output("walked") / "a.npz").touch()
        return there

    assert [kept("{}"), kept("{}"), kept('{"code": ""}')] == [False, True, False]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"alphas": "[1.0, 1.5]"}, "with papermill write -y 'alphas: [1.0, 1.5]'"),
        ({"bta": 4}, "there is no setting 'bta': did you mean 'beta'?"),
        ({"beta": "4"}, "beta must be float"),
        ({"profile": "tinny"}, "there is no profile 'tinny'"),
    ],
)
def test_a_notebook_refuses_by_itself_what_papermill_hands_over(project, given, sentence):
    execute(project, "01_walk")
    walked = project.parent / "runs/tiny/01_walk/walked/walk.txt"
    before = walked.read_bytes()
    with pytest.raises(papermill.exceptions.PapermillExecutionError) as refused:
        execute(project, "01_walk", **given)
    assert refused.value.ename == "InputError" and sentence in refused.value.evalue
    assert walked.read_bytes() == before
    execute(project, "01_walk")
    assert (walked.parent / "visits.txt").read_text() == "vv"


def test_any_setting_can_be_given_by_plain_papermill_and_the_profile_fills_in_the_rest(project):
    execute(project, "01_walk", beta=4, alphas=[2.0], run_dir="../run")
    text = (project.parent.parent / "run/01_walk/walked/walk.txt").read_text()
    assert text == "4.0 [2.0]"


def test_an_executed_notebook_can_be_executed_again(project, tmp_path):
    out = tmp_path / "executed.ipynb"
    how = {"kernel_name": "python3", "cwd": project, "progress_bar": False}
    papermill.execute_notebook(project / "01_walk.ipynb", out, {"beta": 4}, **how)
    papermill.execute_notebook(out, out, {"beta": 2}, **how)
    walk = project.parent / "runs/tiny/01_walk/walked/walk.txt"
    assert walk.read_text() == "2.0 [1.0, 4.0]"
    papermill.execute_notebook(out, out, {"beta": 3}, prepare_only=True, **how)
    assert walk.read_text() == "2.0 [1.0, 4.0]"


def test_a_value_written_into_the_parameters_cell_counts_as_one_given(project):
    write_notebook(
        project / "01_walk.ipynb",
        "beta: float = 2\nalphas: list[float] = [3]  # as a reader edits it\n",
        ["print(config.beta, config.alphas, config.gamma)\nstage"],
    )
    cells = nbformat.read(project / "01_walk.ipynb", as_version=4)
    done = NotebookClient(cells, resources={"metadata": {"path": str(project)}}).execute()
    printed, shown = done.cells[3].outputs
    assert printed["text"] == "2.0 [3.0] 5.0\n"
    table = shown["data"]["text/markdown"].splitlines()
    assert "| `beta` | 2 | 8 |" in table and "| `alphas` | 3 | 1, 2, 4, 6, 8, 12, 16, 24 |" in table


def test_a_kernel_that_keeps_no_history_makes_the_same(project):
    write_notebook(project / "01_walk.ipynb", "beta: float = 2\n", [WALK, "print(config.beta)"])
    nbval = ["-m", "pytest", "--nbval-lax", "-p", "no:cacheprovider", "01_walk.ipynb"]
    subprocess.run([sys.executable, *nbval], cwd=project, check=True, capture_output=True)
    walked = project.parent / "runs/tiny/01_walk/walked"
    assert (walked / "walk.txt").read_text().startswith("2.0 ")
    made = json.loads((walked / NOTE).read_text())
    execute(project, "01_walk")
    assert made == json.loads((walked / NOTE).read_text())


def test_what_an_edited_lesson_made_in_jupyter_a_run_keeps(project):
    plan, run = make_plan("tiny", project), project.parent / "runs" / "tiny"
    runner.execute(plan, run)
    path, walked = project / "01_walk.ipynb", run / "01_walk" / "walked"
    path.write_text(path.read_text().replace("{config.alphas}", "twice {2 * config.beta}"))
    lesson = nbformat.read(path, as_version=4)
    NotebookClient(lesson, resources={"metadata": {"path": str(project)}}).execute()
    made = [(walked / name).read_text() for name in ("walk.txt", NOTE)]
    assert made[0] == "8.0 twice 16.0" and (walked / "visits.txt").read_text() == "v"
    runner.execute(make_plan("tiny", project), run)
    assert [(walked / name).read_text() for name in ("walk.txt", NOTE)] == made
    assert (walked / "visits.txt").read_text() == "vv"  # its cell ran, and found what it had made


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_parameters_cell_names_settings_of_their_kind_and_no_values(path):
    found = papermill.inspect_notebook(path)
    own = {name: one for name, one in found.items() if name not in ("profile", "run_dir")}
    assert own.keys() <= KINDS.keys()
    assert {one["default"] for one in own.values()} == {"None"}
    for name, one in own.items():
        kind = KINDS[name]
        text = kind.__name__ if kind in (int, float, str, bool) else str(kind)
        if "Literal" in text:  # choices are words
            text = "str"
        assert one["inferred_type_name"] == text.split(" | ")[0]


def test_every_setting_that_a_stage_reads_is_noted_with_what_it_makes(tiny_run):
    """Changing a setting makes anew whatever has read it: what no result has read is listed."""
    run, _ = tiny_run
    noted: dict[str, set[str]] = {}
    for note in sorted(run.glob(f"*/*/{NOTE}")):
        for name in json.loads(note.read_text())["settings"]:
            noted.setdefault(name, set()).add(note.parent.relative_to(run).as_posix())
    touches_nothing = {
        # drawn or fetched by notebook 0, and noted as the data set itself
        "dataset", "train_images", "val_images", "image_size", "data_seed", "voc", "sbd",
        "alphas",  # tried for Table 1 alone
        "walked_alpha_strong", "walked_alpha_weak",  # of further rounds of AffinityNet
        "preset",  # its choices are settings of their own
        "test_split",  # without such a list there is nothing to predict
        "photograph",  # shown, not kept
        "device", "workers", "nproc",  # speed; the kind of device is noted by itself
    }  # fmt: skip
    values = resolve("toy", TINY)
    unread = KINDS.keys() - noted.keys() - touches_nothing
    assert unread == set(), sorted(unread)
    assert not touches_nothing & noted.keys()
    assert noted["beta"] == {"04_random_walk/walked"}
    assert noted["cam_epochs"] == {f"01_class_activation_maps/{n}" for n in ("network", "cams")}
    assert values["preset"] == "paper"

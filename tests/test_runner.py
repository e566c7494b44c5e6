from __future__ import annotations

import json
import shutil
import signal
import sys
from pathlib import Path

import nbformat
import pytest
from fake_project import WALK, make_project, write_notebook
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from PIL import Image

from affinity_lib.__main__ import main
from affinity_lib.errors import InputError
from affinity_lib.running import cache, execution, locks, runner
from affinity_lib.running import manifest as mf
from affinity_lib.running.execution import StageFailed
from affinity_lib.running.manifest import load_manifest, save_manifest, verify
from affinity_lib.running.plan import Plan, make_plan
from affinity_lib.running.results import seconds_of_sections, summary
from affinity_lib.running.stage import DATA

STEMS = ["00_draw", "01_walk", "02_learn"]


def go(folder: Path, run: Path, only: tuple[str, ...] = (), **overrides: object) -> list[str]:
    """Run the notebooks of a folder; returns the lines that were printed."""
    printed: list[str] = []

    def log(text: str, end: str = "\n", flush: bool = False) -> None:
        printed.append(text + end)

    plan = make_plan("tiny", folder).with_settings(overrides)
    runner.execute(plan, run, only=only, log=log)
    return "".join(printed).split("\n")[:-1]


def pretend(plan: Plan, stem: str, run: Path, manifest: object) -> None:
    """In place of papermill, where only the reason to run matters."""
    (run / stem).mkdir(exist_ok=True)
    (run / "notebooks" / f"{stem}.ipynb").write_text('{"cells": []}')


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, Path, list[str]]:
    """A project that has run once, where another kernel called python3 stands in the way."""
    root = tmp_path_factory.mktemp("project")
    folder = make_project(root)
    spec = {"argv": ["/bin/false"], "display_name": "not this one", "language": "python"}
    (root / "jupyter" / "kernels" / "python3").mkdir(parents=True)
    (root / "jupyter" / "kernels" / "python3" / "kernel.json").write_text(json.dumps(spec))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_PATH", str(root / "jupyter"))
        patch.chdir(tmp_path_factory.mktemp("elsewhere"))
        lines = go(folder, root / "run")
    return folder, root / "run", lines


@pytest.fixture
def project(finished, tmp_path) -> tuple[Path, Path]:
    """A copy of the finished project, to be played with."""
    root = tmp_path / "project"
    shutil.copytree(finished[0].parent, root)
    return root / "notebooks", root / "run"


def fail(folder: Path, run: Path, source: str) -> str:
    """Make the second notebook fail; returns what is said about it."""
    write_notebook(folder / "01_walk.ipynb", "beta: float = None\n", [source])
    with pytest.raises(StageFailed) as failed:
        go(folder, run, only=("01",))
    return str(failed.value)


def test_notebooks_run_in_order_with_a_line_each(finished):
    assert [line.split(" ...")[0] for line in finished[2]] == [
        f"[{number}/3] {stem} (new)" for number, stem in enumerate(STEMS, 1)
    ]


def test_executed_notebooks_lie_in_the_run(finished):
    files = sorted(path.name for path in (finished[1] / "notebooks").iterdir())
    assert files == [f"{stem}.ipynb" for stem in STEMS]


def test_results_merge_the_metrics_of_all_stages(finished):
    results = json.loads((finished[1] / "results.json").read_text())
    seconds, steps = results.pop("seconds"), results.pop("steps")
    assert list(seconds) == list(steps) == STEMS
    for stem in STEMS:
        assert sum(steps[stem].values()) == pytest.approx(seconds[stem], abs=0.5)
    assert results == {
        "profile": "tiny",
        "dataset": {"train": 4},
        "settings": {},
        "table1": {"cam": 48.25, "rw": 52.0},
        "segmentation": {"val": 48.0},
        "per_class": {"rw": {"cat": 51.0}, "cam": {"dog": 60.0}},
        "skipped": [],
        "details": {"01_walk": {"note": 8.0}},
    }


def test_manifest_tells_what_was_run_and_its_files_verify(finished):
    manifest = load_manifest(finished[1])
    record = manifest["stages"]["01_walk"]
    assert record["key"]["settings"] == {"alphas": [1.0, 4.0], "beta": 8.0, "seed": 0}
    assert record["key"]["code"] == cache.digest(
        runner.notebook_code(finished[0] / "01_walk.ipynb")
    )
    learned = manifest["stages"]["02_learn"]["key"]
    assert list(learned["inputs"]) == ["01_walk/walked"] and learned["settings"] == {"beta": 8.0}
    assert record["started"] <= record["ended"] and manifest["packages"]["papermill"]
    assert manifest["settings"]["seed"] == 0 and manifest["hash_seed"] == mf.hash_seed()
    assert record["threads"] == mf.threads() and record["machine"]["name"]
    assert {"commit", "dirty"} <= record.keys()
    assert verify(finished[1]) == (10, [])


def test_summary_shows_the_papers_table_with_gaps(finished):
    rows = [line.split() for line in summary(finished[1]).split("\n")]
    assert ["CAM,", "train", "48.2", "48.0"] in rows
    assert ["CAM", "+", "RW,", "train", "52.0", "58.1"] in rows
    assert ["CAM", "+", "dCRF,", "train", "-", "-"] in rows
    assert rows[-1] == ["Segmentation", "network,", "val", "48.0", "61.7"]


def test_nothing_runs_again_when_nothing_has_changed(project):
    assert go(*project) == [f"[{n}/3] {stem} ... skipped" for n, stem in enumerate(STEMS, 1)]
    assert json.loads((project[1] / "results.json").read_text())["skipped"] == STEMS


def test_changed_parameter_runs_its_stage_afresh_and_those_after_it(project):
    lines = go(*project, beta=16)
    assert lines[0] == "[1/3] 00_draw ... skipped"
    assert lines[1].startswith("[2/3] 01_walk (changed: beta 8.0 -> 16.0) ...")
    assert lines[2].startswith("[3/3] 02_learn (changed: beta 8.0 -> 16.0; 01_walk/walked) ...")
    assert (project[1] / "01_walk/walked/visits.txt").read_text() == "v"
    assert (project[1] / "01_walk/walked/walk.txt").read_text() == "16.0 [1.0, 4.0]"


def test_numbers_of_stages_that_are_out_of_date_and_their_settings_are_no_results(project):
    folder, run = project
    go(folder, run, only=("01",), beta=9)
    results = json.loads((run / "results.json").read_text())
    assert results["table1"]["rw"] == 52.25 and results["segmentation"] == {}
    assert "02_learn" not in results["seconds"] and load_manifest(run)["settings"]["beta"] == 9
    go(folder, run, only=("00",), beta=4)
    results = json.loads((run / "results.json").read_text())
    assert results["table1"]["rw"] == 52.25 and load_manifest(run)["settings"]["beta"] == 9
    go(folder, run, beta=9)
    assert json.loads((run / "results.json").read_text())["segmentation"] == {"val": 49.0}


def test_a_run_that_fails_keeps_the_settings_of_its_results(project):
    folder, run = project
    write_notebook(folder / "01_walk.ipynb", "beta: float = None\n", ["1 / 0"])
    with pytest.raises(StageFailed):
        go(folder, run, beta=9)
    assert load_manifest(run)["settings"]["beta"] == 8


def test_interrupted_stage_goes_on_with_what_it_has(project):
    manifest = load_manifest(project[1])
    manifest["stages"]["01_walk"]["state"] = "running"
    save_manifest(project[1], manifest)
    (project[1] / "01_walk" / ".left.1.part.npz").touch()
    started = manifest["stages"]["01_walk"]["started"]
    (line,) = go(*project, only=("01",))
    assert line.startswith("[1/1] 01_walk (resumed) ...")
    assert (project[1] / "01_walk/walked/visits.txt").read_text() == "vv"
    record = load_manifest(project[1])["stages"]["01_walk"]
    assert record["started"] == started <= record["resumed"][0] <= record["ended"]
    assert not list((project[1] / "01_walk").glob(".left*"))


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("02_learn/metrics.json", None, "02_learn/metrics.json is missing"),
        ("02_learn/metrics.json", "{}", "02_learn/metrics.json has changed"),
        ("notebooks/02_learn.ipynb", None, "notebooks/02_learn.ipynb is missing"),
    ],
)
def test_damaged_stage_is_run_again_and_says_why(project, monkeypatch, file, content, words):
    path = project[1] / file
    path.unlink() if content is None else path.write_text(content)
    monkeypatch.setattr(runner, "execute_notebook", pretend)
    lines = go(*project)
    assert lines[1] == "[2/3] 01_walk ... skipped"
    assert lines[2].startswith(f"[3/3] 02_learn ({words}) ...")


def test_changed_data_set_is_noticed(project, monkeypatch):
    data, manifest = project[0].parent / "drawn", load_manifest(project[1])
    key = manifest["stages"]["00_draw"]["key"]
    key["inputs"], key["settings"]["data_root"] = {DATA: cache.listing(data)}, str(data)
    save_manifest(project[1], manifest)
    settings = {"only": ("00",), "data_root": str(data)}
    assert go(*project, **settings) == ["[1/1] 00_draw ... skipped"]
    (data / "b.txt").touch()
    monkeypatch.setattr(runner, "execute_notebook", pretend)
    assert go(*project, **settings)[0].startswith("[1/1] 00_draw (changed: the data set) ...")


def test_a_run_of_an_earlier_version_is_made_anew_with_a_sentence(project, monkeypatch):
    manifest = load_manifest(project[1])
    del manifest["format"]
    save_manifest(project[1], manifest)
    assert main(["verify", str(project[1])]) == 2
    monkeypatch.setattr(runner, "execute_notebook", pretend)
    lines = go(*project)
    assert "was made by an earlier version of this project: it is made anew" in lines[0]
    assert lines[1].startswith("[1/3] 00_draw (new)")


def test_failing_notebook_tells_cell_error_and_path_and_keeps_what_ran(project):
    said = fail(*project, "before = 1\nbefore / 0")
    assert "01_walk failed in cell In [4], which begins with 'before = 1'" in said
    assert "ZeroDivisionError: division by zero" in said
    failed = project[1] / "notebooks" / "01_walk.failed.ipynb"
    assert str(failed) in said and failed.is_file()
    assert sorted(load_manifest(project[1])["stages"]) == STEMS


def test_a_notebook_that_fails_before_it_makes_anything_leaves_what_was_there(project):
    before, notebook = mf.artifacts(project[1], "01_walk"), project[0] / "01_walk.ipynb"
    source = notebook.read_bytes()
    fail(*project, "raise ValueError('beta')")
    assert before and mf.artifacts(project[1], "01_walk") == before
    assert verify(project[1])[1] == []
    notebook.write_bytes(source)
    assert go(*project, only=("01",)) == ["[1/1] 01_walk ... skipped"]


def test_ctrl_c_before_anything_was_made_leaves_what_was_there(project, monkeypatch):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    before = mf.artifacts(project[1], "01_walk")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(runner, "execute_notebook", interrupted)
        go(*project, only=("01",), beta=1.0)
    assert mf.artifacts(project[1], "01_walk") == before and verify(project[1])[1] == []


def test_what_another_setting_has_put_aside_comes_back_with_the_old_one(project):
    before = mf.artifacts(project[1], "01_walk")
    walk = WALK.replace("rw = ", "assert config.beta < 9, 'too large'\nrw = ")
    write_notebook(project[0] / "01_walk.ipynb", "beta: float = None\n", [walk])
    with pytest.raises(StageFailed, match="too large"):
        go(*project, only=("01",), beta=9)
    assert mf.artifacts(project[1], "01_walk") != before
    go(*project, only=("01",))
    assert (project[1] / "01_walk/walked/visits.txt").read_text() == "v"  # one walk, long ago


def test_a_notebook_that_fails_later_goes_on_from_what_it_made(project):
    fail(*project, 'out = stage.output("walked")\n(out / "half.txt").touch()\n1 / 0')
    assert "01_walk/walked/half.txt" in mf.artifacts(project[1], "01_walk")
    assert load_manifest(project[1])["stages"]["01_walk"]["state"] == "running"
    assert verify(project[1])[1] == [
        "01_walk is not finished",
        "01_walk/walked has changed since 02_learn has read it",
    ]


@pytest.mark.parametrize(
    "folder", [".", "..", "notebooks", "affinity_lib/run", "tests/../notebooks"]
)
def test_the_projects_own_folders_are_no_run(project, folder):
    with pytest.raises(InputError, match="holds the project's own files"):
        runner.execute(make_plan("tiny", project[0]), folder)


def test_a_file_is_no_run(project):
    with pytest.raises(InputError, match=r"pyproject\.toml is a file and cannot be"):
        runner.execute(make_plan("tiny", project[0]), "pyproject.toml")


def test_a_path_that_cannot_be_made_is_told_in_a_sentence(tmp_path, capsys):
    (tmp_path / "file").touch()
    Image.new("RGB", (50, 40)).save(tmp_path / "tom.png")
    (tmp_path / "labels.csv").write_text("file,tags\ntom.png,cat\n")
    given = (str(tmp_path), str(tmp_path / "labels.csv"), str(tmp_path / "file" / "voc"))
    assert main(["convert", "--val-fraction", "0", *given]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {tmp_path / 'file'}") and said.count("\n") == 1


def test_full_disk_is_reported_with_what_was_kept(project):
    said = fail(*project, "import errno\nraise OSError(errno.ENOSPC, 'No space left on device')")
    assert "is full: free some space" in said
    assert said.endswith("Kept, and not run again: 00_draw, 02_learn")


def test_dead_kernel_is_reported(project):
    said = fail(*project, "import os\nos._exit(1)")
    assert "01_walk failed: its kernel died" in said


def test_ctrl_c_leaves_a_run_that_goes_on(project):
    source = "import os, signal, time\n"
    source += "part = stage.output('walked') / 'part.txt'\n"
    source += "if not part.exists():\n    part.touch()\n"
    source += "    os.kill(os.getppid(), signal.SIGINT)\n    time.sleep(600)"
    write_notebook(project[0] / "01_walk.ipynb", "beta: float = None\n", [source])
    # what is started in the background, as these tests may be, ignores the signal
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt):
        go(*project, only=("01",))
    signal.signal(signal.SIGINT, before)
    (line,) = go(*project, only=("01",))
    assert line.startswith("[1/1] 01_walk (resumed) ...")


@pytest.mark.parametrize(
    "words, said", [([], "The same command"), (["--force"], "Without --force the same command")]
)
def test_ctrl_c_tells_which_command_goes_on(monkeypatch, capsys, words, said):
    def stop(*_, **__) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "execute", stop)
    assert main(["run", "toy", *words]) == 130
    assert f"Stopped. {said} goes on from here." in capsys.readouterr().err


def test_run_that_is_being_run_is_refused(project):
    with locks.Hold(project[1]), pytest.raises(InputError, match="is being run already"):
        go(*project)


def test_only_takes_the_first_letters_of_a_notebook(project):
    assert go(*project, only=("02",)) == ["[1/1] 02_learn ... skipped"]
    with pytest.raises(InputError, match="no notebook starts with '07': there are 00_draw"):
        go(*project, only=("07",))


@pytest.mark.parametrize(
    ("name", "instead"),
    [("profile", "PROFILE"), ("run_dir", "--run-dir"), ("shard", "--shard")],
)
def test_where_and_in_which_part_it_runs_is_no_setting(project, name, instead):
    with pytest.raises(InputError, match=f"{name} is no setting: give .*{instead}"):
        go(*project, **{name: "x"})


def test_folder_without_notebooks_is_refused(tmp_path):
    with pytest.raises(InputError, match="has no notebooks"):
        make_plan("tiny", tmp_path)


def test_kernel_is_this_python_with_figures_in_the_notebook(finished):
    spec = execution._ThisPython().kernel_spec
    assert spec.argv[0] == sys.executable and "inline" in spec.env["MPLBACKEND"]


def test_command_line_runs_reports_and_verifies(project, monkeypatch, capsys):
    folder, run = project
    monkeypatch.chdir(folder.parent)
    assert main(["run", "tiny", "--run-dir", "run"]) == 0
    shown = capsys.readouterr().out
    assert "[3/3] 02_learn ... skipped\n\nmIoU in percent" in shown
    last = shown.rstrip().splitlines()[-1]
    assert last.startswith("Next: make lab") and str(Path("run", "index.html")) in last
    assert (run / "tables" / "table1.csv").is_file()
    assert 'href="tables/table1.md"' in (run / "index.html").read_text()
    assert main(["verify", "run"]) == 0
    assert main(["compare", "run", "run"]) == 0
    (run / "tables" / "table1.csv").unlink()
    assert main(["report", "run"]) == 0
    assert (run / "tables" / "table1.csv").is_file()
    (run / "02_learn" / "metrics.json").unlink()
    assert main(["verify", "run"]) == 1


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["run", "tinny"], "there is no profile 'tinny'"),
        (["run", "tiny", "--set", "bta=1"], "did you mean 'beta'?"),
        (["run", "tiny", "--set", "beta=[1]"], "beta must be float, got the list [1]"),
        (["run", "tiny", "--set", "beta=1,x"], "beta must be float, got the text 'x'"),
        (["verify", "nothing"], "nothing is not a run"),
    ],
)
def test_bad_input_on_the_command_line_is_one_sentence(
    project, monkeypatch, capsys, words, sentence
):
    monkeypatch.chdir(project[0].parent)
    assert main(words) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and sentence in said and said.count("\n") == 1


def test_failing_notebook_ends_the_command_with_1(project, monkeypatch, capsys):
    monkeypatch.chdir(project[0].parent)

    def failing(*_: object) -> None:
        raise StageFailed("01_walk failed")

    monkeypatch.setattr(runner, "execute_notebook", failing)
    assert main(["run", "tiny", "--run-dir", "run", "--set", "beta=1"]) == 1
    assert capsys.readouterr().err == "error: 01_walk failed\n"


def test_the_sections_of_a_notebook_add_up_to_its_time(tmp_path):
    def code(seconds):
        return new_code_cell("pass", metadata={"papermill": {"duration": seconds}})

    cells = [new_markdown_cell("# 1. Title"), code(0.5), new_markdown_cell("## What $\\beta$ does")]
    cells += [code(2.0), new_markdown_cell("Text."), code(1.0), new_markdown_cell("## Recap")]
    cells += [code(None), code(0.01)]
    nbformat.write(new_notebook(cells=cells), tmp_path / "a.ipynb")
    steps = seconds_of_sections(tmp_path / "a.ipynb", 7.25)
    assert steps == {"start": 4.2, "What beta does": 3.0}

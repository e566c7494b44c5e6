from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from affinity_lib.data.files import save_json
from affinity_lib.errors import InputError
from affinity_lib.running import manifest as mf
from affinity_lib.running import results
from affinity_lib.running.stage import DATA, NOTE, input_hash, setting_hashes


def make_run(folder: Path, beta: float = 4.0) -> Path:
    """A finished run of one stage, without running anything."""
    metrics = {"table1": {"rw": 50 + beta}, "per_class": {"rw": {"cat": 51.0}}}
    save_json(folder / "01_walk" / "metrics.json", metrics)
    save_json(folder / "notebooks" / "01_walk.ipynb", {})
    record = {
        "state": "done",
        "key": {"settings": {"beta": beta}, "inputs": {}},
        "seconds": 1.5,
        "artifacts": mf.artifacts(folder, "01_walk"),
        "notebook": {"notebooks/01_walk.ipynb": mf.fingerprint(folder / "notebooks/01_walk.ipynb")},
    }
    manifest = {"format": mf.FORMAT, "profile": "tiny", "stages": {"01_walk": record}}
    manifest["settings"] = {"beta": beta}
    results.save_results(folder, "tiny", manifest, [])
    return folder


def test_hidden_files_are_no_artifacts(tmp_path):
    (tmp_path / "01_walk" / "deep").mkdir(parents=True)
    (tmp_path / "01_walk" / "deep" / "a.txt").write_text("a")
    (tmp_path / "01_walk" / ".b.part.txt").write_text("b")
    assert list(mf.artifacts(tmp_path, "01_walk")) == ["01_walk/deep/a.txt"]


def test_verify_finds_nothing_in_an_untouched_run(tmp_path):
    assert mf.verify(make_run(tmp_path / "run")) == (3, [])


def test_verify_names_what_was_changed_removed_and_added(tmp_path):
    run = make_run(tmp_path / "run")
    (run / "01_walk" / "metrics.json").write_text("{}")
    (run / "01_walk" / "more.txt").write_text("more")
    (run / "notebooks" / "01_walk.ipynb").unlink()
    (run / "results.json").write_text((run / "results.json").read_text().replace("5", "6"))
    assert mf.verify(run)[1] == [
        "01_walk/metrics.json has changed",
        "notebooks/01_walk.ipynb is missing",
        "01_walk/more.txt is not recorded",
        "results.json has changed",
    ]


def test_compare_marks_what_differs(tmp_path):
    text = results.compare(make_run(tmp_path / "a"), make_run(tmp_path / "b", beta=8.0))
    rows = {line[2:].split()[0]: line for line in text.split("\n")[1:]}
    assert rows["beta"].startswith("*") and rows["beta"].split()[2:] == ["4.0", "8.0"]
    assert rows["table1.rw"].split()[2:] == ["54.00", "58.00"]
    assert rows["per_class.rw.cat"].startswith("  ")


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"there is no .*manifest\.json"):
        mf.find_run(tmp_path)


def test_a_run_is_found_from_here_from_the_project_and_by_its_name(tmp_path, monkeypatch):
    for folder in ("runs/one", "elsewhere/two"):
        make_run(tmp_path / "project" / folder)
    monkeypatch.setattr(mf, "find_root", lambda: tmp_path / "project")
    monkeypatch.chdir(tmp_path)
    for name in ("project/runs/one", "one", "runs/one"):
        assert mf.find_run(name).resolve() == tmp_path / "project" / "runs" / "one"
    assert mf.find_run("elsewhere/two") == tmp_path / "project" / "elsewhere" / "two"


def test_git_state_tells_the_commit_and_whether_files_were_changed(tmp_path):
    def git(*words: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        done = subprocess.run(
            ["git", *who, *words], cwd=tmp_path, check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    assert mf.git_state(tmp_path) == {"commit": None, "dirty": None}
    git("init")
    git("commit", "--allow-empty", "-m", "first")
    assert mf.git_state(tmp_path) == {"commit": git("rev-parse", "HEAD"), "dirty": False}
    (tmp_path / "new.txt").touch()
    assert mf.git_state(tmp_path)["dirty"] is True


def test_threads_are_all_cores_unless_given(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert mf.surroundings()["threads"] == 3
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert mf.surroundings()["threads"] == mf.surroundings()["machine"]["cores"]


def test_verify_names_what_a_stage_has_read_and_is_another_one_now(tmp_path):
    run = make_run(tmp_path / "run")
    manifest = mf.load_manifest(run)
    key = manifest["stages"]["01_walk"]["key"]
    key["inputs"] = {"00_draw/drawn": input_hash(run, "00_draw/drawn")}
    mf.save_manifest(run, manifest)
    assert mf.verify(run)[1] == []
    save_json(run / "00_draw" / "drawn" / NOTE, {"code": "another"})
    assert mf.verify(run)[1] == ["00_draw/drawn has changed since 01_walk has read it"]


def test_verify_names_a_file_of_the_settings_that_is_another_one_now(tmp_path):
    run, file = make_run(tmp_path / "run"), tmp_path / "net.pth"
    file.write_text("trained")
    manifest = mf.load_manifest(run)
    settings = manifest["stages"]["01_walk"]["key"]["settings"]
    settings |= setting_hashes({"cam_network": str(file), "classes": ["a", "b"]}, ["cam_network"])
    mf.save_manifest(run, manifest)
    assert mf.verify(run)[1] == []
    file.write_text("trained again")
    assert mf.verify(run)[1] == [f"cam_network {file} has changed since 01_walk has read it"]
    file.unlink()
    assert mf.verify(run)[1] == [f"cam_network {file} has changed since 01_walk has read it"]


def test_a_text_that_is_too_long_for_the_name_of_a_file_is_a_setting_like_others():
    classes = ";".join(f"animal class number {k}" for k in range(20))
    assert setting_hashes({"classes": classes}, ["classes"]) == {"classes": classes}


@pytest.mark.parametrize("old, new", [("done", "running"), ('"seconds"', '"hours"'), ("1.5", "15")])
def test_a_manifest_that_was_changed_by_other_hands_is_refused(tmp_path, old, new):
    path = make_run(tmp_path / "run") / "manifest.json"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(InputError, match="is no whole manifest: remove it"):
        mf.verify(path.parent)


@pytest.mark.parametrize("folder", ["x" * 5000, "a\0b"])
def test_a_data_set_in_a_folder_that_cannot_be_has_changed(tmp_path, folder):
    run = make_run(tmp_path / "run")
    manifest = mf.load_manifest(run)
    key = manifest["stages"]["01_walk"]["key"]
    key["settings"]["data_root"], key["inputs"] = folder, {DATA: "hash"}
    mf.save_manifest(run, manifest)
    assert mf.verify(run)[1] == [f"{DATA} has changed since 01_walk has read it"]


@pytest.mark.parametrize("part", [3, [], {"cam": "much"}, {"cam": 10**400}, {"cam": [1]}])
def test_results_that_are_no_numbers_are_refused(tmp_path, part):
    run = make_run(tmp_path / "run")
    (run / "results.json").write_text(json.dumps({"table1": part, "segmentation": {}}))
    for read in (results.summary, lambda run: results.compare(run, run)):
        with pytest.raises(InputError, match="does not hold the results of a run"):
            read(run)

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from fake_project import write_notebook
from hypothesis import given
from hypothesis import strategies as st

from affinity_lib.data.files import save_json
from affinity_lib.errors import InputError
from affinity_lib.running import manifest as mf
from affinity_lib.running import results

LIBRARY = Path(mf.__file__).parents[1]


def key(folder: Path, source: str = "x = 1", parameters: dict | None = None, **others) -> dict:
    notebook = folder / "01_walk.ipynb"
    write_notebook(notebook, "beta: float = 4\n", [source])
    return mf.stage_key(notebook, parameters or {"beta": 4.0}, others or {"00_draw": "a"})


def make_run(folder: Path, beta: float = 4.0) -> Path:
    """A finished run of one stage, without running anything."""
    metrics = {"table1": {"rw": 50 + beta}, "per_class": {"rw": {"cat": 51.0}}}
    save_json(folder / "01_walk" / "metrics.json", metrics)
    save_json(folder / "notebooks" / "01_walk.ipynb", {})
    record = {
        "state": "done",
        "key": key(folder.parent, parameters={"beta": beta}),
        "seconds": 1.5,
        "artifacts": mf.artifacts(folder, "01_walk"),
        "notebook": {"notebooks/01_walk.ipynb": mf.fingerprint(folder / "notebooks/01_walk.ipynb")},
        "data": None,
    }
    results.save_results(folder, "tiny", {"profile": "tiny", "stages": {"01_walk": record}}, [])
    return folder


def test_key_is_the_same_for_the_same_things(tmp_path):
    assert key(tmp_path) == key(tmp_path)
    assert mf.changes(key(tmp_path), key(tmp_path)) == []


def test_key_does_not_see_how_many_processes_work(tmp_path):
    few, many = ({"beta": 4.0, "workers": n, "nproc": n} for n in (1, 8))
    assert key(tmp_path, parameters=few) == key(tmp_path, parameters=many)


def test_key_does_not_see_text_and_outputs(tmp_path):
    before = key(tmp_path)
    notebook = tmp_path / "01_walk.ipynb"
    content = json.loads(notebook.read_text())
    content["cells"][0]["source"] = "# Another heading"
    content["cells"][2]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "1"}]
    notebook.write_text(json.dumps(content))
    assert mf.stage_key(notebook, {"beta": 4.0}, {"00_draw": "a"}) == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"source": "x = 2"}, "its code"),
        ({"parameters": {"beta": 8.0}}, "beta 4.0 -> 8.0"),
        ({"00_draw": "b"}, "what 00_draw made"),
        ({"source": "from affinity_lib.data import toy_shapes"}, "affinity_lib.data.toy_shapes"),
    ],
)
def test_change_of_an_input_is_named(tmp_path, change, words):
    assert words in mf.changes(key(tmp_path), key(tmp_path, **change))


def test_key_holds_the_versions_of_the_packages_that_matter(tmp_path):
    old, new = key(tmp_path), key(tmp_path)
    assert {"torch", "torchvision", "timm", "numpy", "scipy"} < set(new["packages"])
    old["packages"] = old["packages"] | {"torch": "1.0"}
    assert mf.changes(old, new) == [f"torch 1.0 -> {new['packages']['torch']}"]


@pytest.mark.parametrize(
    "source",
    [
        "from affinity_lib.data.voc import VOCData",
        "%matplotlib inline\nfrom affinity_lib.data import voc",
        "def late():\n    import affinity_lib.data.voc as v",
    ],
)
def test_key_holds_the_modules_that_a_notebook_comes_to_import_and_no_others(tmp_path, source):
    found = key(tmp_path, source)["library"]
    names = ("", ".data", ".data.voc", ".errors")
    assert {f"affinity_lib{name}" for name in names} <= set(found)
    assert not [name for name in found if "running" in name or "showing" in name or "cam" in name]
    assert found["affinity_lib.data.voc"] == mf.fingerprint(LIBRARY / "data/voc.py")["sha256"]


def test_key_of_a_notebook_that_is_not_python_leaves_the_error_to_the_notebook(tmp_path):
    assert set(key(tmp_path, "this is not python")["library"]) == {"affinity_lib"}


def test_hidden_files_are_no_artifacts(tmp_path):
    (tmp_path / "01_walk" / "deep").mkdir(parents=True)
    (tmp_path / "01_walk" / "deep" / "a.txt").write_text("a")
    (tmp_path / "01_walk" / ".b.part.txt").write_text("b")
    assert list(mf.artifacts(tmp_path, "01_walk")) == ["01_walk/deep/a.txt"]


@given(st.dictionaries(st.text(), st.integers()))
def test_digest_does_not_see_the_order_of_names(mapping):
    assert mf.digest(mapping) == mf.digest(dict(reversed(mapping.items())))


def test_list_of_a_data_sets_files_changes_with_names_and_sizes(tmp_path):
    (tmp_path / "a.jpg").write_text("a")
    first = mf.data_listing(tmp_path)
    assert first["files"] == 1 and first == mf.data_listing(tmp_path)
    (tmp_path / "a.jpg").write_text("aa")
    second = mf.data_listing(tmp_path)
    (tmp_path / "b.jpg").write_text("a")
    assert len({first["sha256"], second["sha256"], mf.data_listing(tmp_path)["sha256"]}) == 3


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


def test_verify_names_a_stage_that_was_made_from_what_is_no_more(tmp_path):
    run = make_run(tmp_path / "run")
    manifest = mf.load_manifest(run)
    manifest["stages"]["00_draw"] = manifest["stages"]["01_walk"]
    mf.save_manifest(run, manifest)
    assert "01_walk was made from an earlier 00_draw" in mf.verify(run)[1]


def test_a_manifest_without_stages_is_refused(tmp_path):
    save_json(tmp_path / "manifest.json", {})
    with pytest.raises(InputError, match="is no manifest of a run: remove it"):
        mf.load_manifest(tmp_path)


def test_key_sees_the_content_of_the_weights_file(tmp_path):
    file = tmp_path / "w.pth"
    file.write_text("one")
    parameters = {"weights": str(file)}
    before = key(tmp_path, parameters=parameters)
    file.write_text("two")
    assert mf.changes(before, key(tmp_path, parameters=parameters)) == [f"the content of {file}"]

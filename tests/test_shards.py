"""Parts of a stage as jobs of their own, with tiny notebooks."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_project import make_project, write_notebook

from affinity_lib.__main__ import main
from affinity_lib.errors import InputError
from affinity_lib.running import locks, runner, shards
from affinity_lib.running.manifest import load_manifest, verify
from affinity_lib.running.plan import make_plan
from affinity_lib.running.stage import Stage, parse_shard

TRAIN = """
network = stage.output("network")
with (network / "trained.txt").open("a") as file:
    file.write("t")
"""
SHARE = """
from affinity_lib.data.files import missing
assert (network / "trained.txt").exists()
made = stage.output("made")
for image_id in missing(stage.share(["a", "b", "c"]), made, "txt"):
    (made / f"{image_id}.txt").write_text(f"{image_id} {config.beta}")
    with (made / "visits").open("a") as file:
        file.write(image_id)
"""
REST = """
assert len(list(made.glob("*.txt"))) == 3
stage.save({})
"""


@pytest.fixture
def project(tmp_path) -> tuple[Path, Path]:
    folder = make_project(tmp_path / "project")
    for path in folder.glob("*.ipynb"):
        path.unlink()
    declared = "beta: float = None\n"
    figure = 'assert stage.share([1, 2]) == [1, 2], "a figure has no place in a shard"\n'
    cells = {TRAIN: ["train"], figure: ["figure"], SHARE: ["per-image"], REST: []}
    notebook = folder / "03_share.ipynb"
    write_notebook(notebook, declared, list(cells), tags=list(cells.values()))
    return folder, tmp_path / "run"


def part(project: tuple[Path, Path], beta: float = 4.0, **how) -> str:
    said: list[str] = []
    plan = make_plan("tiny", project[0]).with_settings({"beta": beta})
    log = lambda text, **_: said.append(text)
    shards.execute_part(plan, project[1], only="03", log=log, **how)
    return " ".join(said)


def test_shards_share_the_images_without_gap_and_overlap(tmp_path):
    ids = [str(k) for k in range(7)]
    stages = [Stage("03_share", {"run_dir": tmp_path, "shard": f"{k}/3"}) for k in range(3)]
    parts = [stage.share(ids) for stage in stages]
    assert sorted(parts[0] + parts[1] + parts[2]) == ids
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert Stage("03_share", {"run_dir": tmp_path}).share(ids) == ids


@pytest.mark.parametrize("text", ["1", "a/2", "-1/2", "1/", "2/2", "0/0"])
def test_a_shard_that_is_none_of_them_is_refused(text):
    with pytest.raises(InputError, match="a shard is K/N with K from 0 to N - 1"):
        parse_shard(text)


def test_training_shards_and_the_rest_make_one_stage(project):
    folder, run = project
    assert part(project, until="train").startswith("03_share, training (new)")
    assert part(project, shard="1/2").startswith("03_share, shard 1/2 (resumed)")
    assert (run / "03_share/made/visits").read_text() == "b"
    part(project, shard="0/2")
    stage = load_manifest(run)["stages"]["03_share"]
    assert stage["state"] == "running" and sorted(stage["parts"]) == ["0of2", "1of2", "train"]
    assert list((run / "notebooks").iterdir()) == []

    plan = make_plan("tiny", folder).with_settings({"beta": 4.0})
    runner.execute(plan, run, log=lambda *_, **__: None)
    assert (run / "03_share/made/visits").read_text() == "bac"
    assert verify(run)[1] == []
    record = load_manifest(run)["stages"]["03_share"]
    assert record["state"] == "done" and len(record["parts"]) == 3
    assert part(project, shard="0/2").endswith("... skipped")


def test_stage_that_has_changed_is_trained_again_first(project, monkeypatch):
    monkeypatch.setattr(shards, "execute_notebook", lambda *_: None)
    part(project, until="train")
    part(project, shard="0/2")
    with pytest.raises(InputError, match="03 --until train first"):
        part(project, beta=8.0, shard="0/2")


def test_shards_of_one_stage_work_beside_each_other_and_nobody_else(project):
    part(project, until="train")
    with locks.Hold(project[1], beside=True) as other:
        other.share()
        assert "resumed" in part(project, shard="0/3")
        with pytest.raises(InputError, match="with something else .changed: beta 4.0 -> 8.0"):
            part(project, beta=8.0, shard="0/3")
        with pytest.raises(InputError, match="is being run already"):
            part(project, until="train")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--shard", "0/2"], "give --notebooks NN"),
        (["--shard", "0/2", "--notebooks", "03", "--set", "beta=1,2"], "and no grid"),
        (["--shard", "2/2", "--notebooks", "03"], "got '2/2'"),
        (["--shard", "0/2", "--notebooks", "03", "--force"], "cannot be given together"),
        (["--shard", "0/2", "--notebooks", "03"], "03_share is not trained yet"),
    ],
)
def test_bad_part_is_one_sentence(project, monkeypatch, capsys, words, sentence):
    monkeypatch.chdir(project[0].parent)
    assert main(["run", "tiny", *words]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and sentence in said and said.count("\n") == 1


def test_notebook_without_such_a_cell_is_refused(project):
    write_notebook(project[0] / "03_share.ipynb", "beta: float = None\n", ["x = 1"])
    with pytest.raises(InputError, match="none of its cells is tagged per-image"):
        part(project, shard="0/2")


def test_the_folder_of_a_result_is_emptied_once_when_several_ask_for_it(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    def stage(beta: float) -> Stage:
        own = Stage("04_random_walk", {"run_dir": tmp_path, "beta": beta})
        assert own.config.beta == beta
        return own

    (stage(4).output("walked") / "old.npz").touch()

    def arrive(k: int) -> None:
        (stage(8).output("walked") / f"{k}.npz").touch()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(arrive, range(32)))
    names = {path.name for path in (tmp_path / "04_random_walk" / "walked").iterdir()}
    assert names == {"made_with.json", *(f"{k}.npz" for k in range(32))}

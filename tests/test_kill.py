"""A run that is killed again and again ends with the same files as one that is not."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

from affinity_lib import runner
from affinity_lib.manifest import artifacts, load_manifest, verify

KILLS = 20


def work(todo: runner.Plan, run: Path, lines: Connection) -> None:
    """What the killed process does: the runner, which tells the test where it is."""
    runner.execute(todo, run, say=lambda text, **_: lines.send(text))


@contextmanager
def working(todo: runner.Plan, run: Path) -> Iterator[tuple[Connection, object]]:
    """A runner in a process of its own, which is killed at the end."""
    processes = get_context("forkserver")
    processes.set_forkserver_preload(["affinity_lib.runner"])
    ours, its = processes.Pipe(duplex=False)
    process = processes.Process(target=work, args=(todo, run, its))
    process.start()
    its.close()
    try:
        yield ours, process
    finally:
        process.kill()
        process.join()


def moments(seconds: dict[str, float]) -> list[tuple[str, float]]:
    """Twenty moments in the order of the stages: a stage, and seconds after its beginning."""
    chance = random.Random(20)
    stems = sorted(seconds)
    places = sorted(k * len(stems) // KILLS for k in range(KILLS))
    return [(stems[k], chance.uniform(0, 1.1 * seconds[stems[k]])) for k in places]


def without_times(results: Path) -> dict:
    told = json.loads(results.read_text())
    return {name: value for name, value in told.items() if name not in ("seconds", "skipped")}


def test_run_that_is_killed_twenty_times_ends_with_the_files_of_an_undisturbed_one(
    tiny_run, tmp_path, monkeypatch
):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    undisturbed, todo = tiny_run
    killed = tmp_path / "run"
    seconds = json.loads((undisturbed / "results.json").read_text())["seconds"]
    for stem, moment in moments(seconds):
        with working(todo, killed) as (lines, process):
            while stem not in lines.recv():
                pass
            process.join(moment)
            assert process.exitcode is None, "it ended before it was killed"
    stages = load_manifest(killed)["stages"]
    assert sum(len(record.get("resumed", [])) for record in stages.values()) > KILLS / 2
    runner.execute(todo, killed)
    for stem in todo.notebooks:
        assert artifacts(killed, stem) == artifacts(undisturbed, stem)
    assert without_times(killed / "results.json") == without_times(undisturbed / "results.json")
    assert verify(killed)[1] == []
    assert not [path for path in killed.rglob("*") if ".part" in path.name]

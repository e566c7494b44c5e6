"""A run that is killed again and again ends with the same files as one that is not."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

from affinity_lib.running import runner
from affinity_lib.running.manifest import artifacts, load_manifest, verify
from affinity_lib.running.plan import Plan

KILLS = 20


def work(plan: Plan, run: Path, lines: Connection) -> None:
    """What the killed process does: the runner, which tells the test where it is."""
    runner.execute(plan, run, log=lambda text, **_: lines.send(text))


def moments(plan: Plan) -> Iterator[tuple[str, float, float]]:
    """Twenty random moments, in the order of the stages.

    A moment is a stage, the share of its cells that have ended, and seconds from there on: the
    pace of the cells, not of a clock, makes them the same on a busy machine. The last cells of
    the last stage are left alone, so that the run does not come to its end.
    """
    chance = random.Random(20)
    stems = list(plan.notebooks)
    for k in range(KILLS):
        stem = stems[k * len(stems) // KILLS]
        yield stem, chance.uniform(0, 0.6 if stem == stems[-1] else 1), chance.uniform(0, 1)


def kill_a_runner(plan: Plan, run: Path, stem: str, share: float, seconds: float) -> None:
    """Let a runner come to that moment, or to the next stage, and kill it."""
    processes = get_context("forkserver")  # its processes have the imports already
    processes.set_forkserver_preload(["affinity_lib.running.runner"])
    ours, its = processes.Pipe(duplex=False)
    process = processes.Process(target=work, args=(plan, run, its))
    notebook = run / "notebooks" / f"{stem}.running.ipynb"
    notebook.unlink(missing_ok=True)  # of the one before
    process.start()
    its.close()
    while stem not in ours.recv():
        pass
    while not (ours.poll(0.02) and ours.recv().startswith("[")):
        states = notebook.read_text().split('"status": ')[1:] if notebook.exists() else []
        if states and sum('"completed"' in state for state in states) >= share * len(states):
            process.join(seconds)
            break
    assert process.exitcode is None, "it ended before it was killed"
    process.kill()
    process.join()


def without_times(results: Path) -> dict:
    told = json.loads(results.read_text())
    return {
        name: value for name, value in told.items() if name not in ("seconds", "steps", "skipped")
    }


def test_run_that_is_killed_twenty_times_ends_with_the_files_of_an_undisturbed_one(
    tiny_run, tmp_path, monkeypatch
):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    undisturbed, plan = tiny_run
    killed = tmp_path / "run"
    for moment in moments(plan):
        kill_a_runner(plan, killed, *moment)
    stages = load_manifest(killed)["stages"]
    assert sum(len(record.get("resumed", [])) for record in stages.values()) > KILLS / 3
    runner.execute(plan, killed)
    for stem in plan.notebooks:
        assert artifacts(killed, stem) == artifacts(undisturbed, stem)
    assert without_times(killed / "results.json") == without_times(undisturbed / "results.json")
    assert verify(killed)[1] == []
    assert not [path for path in killed.rglob("*") if ".part" in path.name]

"""Parts of one stage as jobs of their own: its training, or a share of its images.

A notebook's cells are tagged ``train`` where it trains and ``per-image`` where it works through the
images one by one. A part executes the cells up to such a one, without the figures, and leaves the
rest to the plain ``run`` of the stage, which finds the work done. Several shards may run at once,
on several machines if they share the disk; a scheduler such as Snakemake starts them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

from affinity_lib.errors import InputError
from affinity_lib.running import locks
from affinity_lib.running import manifest as mf
from affinity_lib.running.execution import run_part
from affinity_lib.running.plans import Plan, chosen_notebooks
from affinity_lib.running.runner import RESUMED, begin, key_now, new_manifest, reasons_to_run
from affinity_lib.running.runs import Run, shard_of

TRAIN, PER_IMAGE = "train", "per-image"
_ONLY_SHOWN = {"figure", "evaluation"}  # cells that no later cell of a part needs


def parse_shard(text: str) -> tuple[int, int]:
    """Read ``K/N`` as ``--shard`` gives it.

    Raises:
        InputError: it has another form, or K is not one of 0 to N - 1.

    >>> parse_shard("0/4")
    (0, 4)
    """
    shard, _, num_shards = text.partition("/")
    if not (shard.isdecimal() and num_shards.isdecimal()):
        raise InputError(f"--shard wants K/N, such as 0/4 for the first of four, got {text!r}")
    shard_of([], int(shard), int(num_shards))
    return int(shard), int(num_shards)


def execute_part(
    todo: Plan,
    run_dir: str | Path = "",
    *,
    only: str,
    until: str = PER_IMAGE,
    shard: int = 0,
    num_shards: int = 1,
    say: Callable[..., None] = print,
) -> Path:
    """Run one notebook up to a tagged cell, unless the stage is up to date.

    Args:
        todo: from :func:`affinity_lib.running.plans.plan`.
        run_dir: folder of the run, ``runs/PROFILE`` if empty.
        only: first letters of the notebook.
        until: tag of the last cell that is executed, ``"train"`` or ``"per-image"``.
        shard, num_shards: which share of the images is worked on, as for
            :func:`affinity_lib.running.runs.shard_of`.
        say: prints; called like :func:`print`.

    Returns:
        The folder of the run.

    Raises:
        InputError: ``only`` fits several notebooks, the notebook has no such cell, it is to be
            trained first, or the run is in use for something else.
        StageFailed: the notebook failed.
    """
    stems = chosen_notebooks(todo, [only])
    if len(stems) > 1:
        raise InputError(f"a part is of one notebook: {only!r} fits {', '.join(stems)}")
    (stem,) = stems
    cells = cells_until(nbformat.read(todo.notebooks[stem], as_version=4), until, stem)
    name = until if until == TRAIN else f"{shard}of{num_shards}"
    trains = until != TRAIN and any(TRAIN in _tags(cell) for cell in cells.cells)
    run = Run(todo.profile, run_dir).path
    (run / "notebooks").mkdir(parents=True, exist_ok=True)
    say(f"{stem}, {'training' if until == TRAIN else f'shard {shard}/{num_shards}'}", end=" ")
    with ExitStack() as until_done:
        with locks.briefly(run / ".manifest.lock"):
            hold = until_done.enter_context(locks.Hold(run, beside=until == PER_IMAGE))
            manifest = new_manifest(todo, run)
            reasons = _begin(todo, stem, run, manifest, hold)
            if trains and reasons and not manifest["stages"][stem].get("trained"):
                raise InputError(
                    f"{stem} is not trained yet: run {todo.profile} --notebooks {stem[:2]} "
                    f"--until {TRAIN} first"
                )
            if until == PER_IMAGE:
                hold.share()
        if not reasons:
            say("... skipped", flush=True)
            return run
        say(f"({'; '.join(reasons[:3])})", end=" ", flush=True)
        started, start = datetime.now(UTC).isoformat(timespec="seconds"), time.perf_counter()
        values = {"shard": shard, "num_shards": num_shards}
        run_part(todo, stem, run, manifest, cells, name, values)
        seconds = time.perf_counter() - start
        note = {"started": started, "ended": datetime.now(UTC).isoformat(timespec="seconds")}
        _note(run, stem, name, note | mf.computer())
    say(f"... {seconds:.1f} s", flush=True)
    return run


def cells_until(notebook: NotebookNode, tag: str, stem: str) -> NotebookNode:
    """The cells of a notebook up to the first one with a tag, without those that only show.

    Raises:
        InputError: no cell has the tag.
    """
    places = [k for k, cell in enumerate(notebook.cells) if tag in _tags(cell)]
    if not places:
        raise InputError(f"{stem} has no part of that kind: none of its cells is tagged {tag}")
    cells = [cell for cell in notebook.cells[: places[0] + 1] if not _ONLY_SHOWN & _tags(cell)]
    return NotebookNode(notebook | {"cells": cells})


def _begin(
    todo: Plan, stem: str, run: Path, manifest: dict[str, Any], hold: locks.Hold
) -> list[str]:
    """Open the stage if this is the first part that comes; why it has to run, or nothing."""
    record = manifest["stages"].get(stem)
    key = key_now(todo, stem, manifest["stages"])
    reasons = reasons_to_run(run, stem, record, key)
    if reasons and hold.alone:
        begin(todo, stem, run, manifest, key, resumed=reasons == [RESUMED])
    elif reasons and reasons != [RESUMED]:
        raise InputError(
            f"{run} is being run with something else ({'; '.join(reasons[:3])}): "
            "wait, or give --run-dir"
        )
    return reasons


def _note(run: Path, stem: str, name: str, note: Mapping[str, Any]) -> None:
    """Add to the stage's record that a part of it is done, and where and when."""
    with locks.briefly(run / ".manifest.lock"):
        manifest = mf.load_manifest(run)
        record = manifest["stages"][stem]
        record.setdefault("parts", {})[name] = dict(note)
        if name == TRAIN:
            record["trained"] = True
        mf.save_manifest(run, manifest)


def _tags(cell: NotebookNode) -> set[str]:
    return set(cell.metadata.get("tags", []))

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
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

from affinity_lib.data.progress import shown_after
from affinity_lib.errors import InputError
from affinity_lib.running import locks, preflight
from affinity_lib.running import manifest as mf
from affinity_lib.running.cache import needed_cells
from affinity_lib.running.execution import execute_notebook
from affinity_lib.running.plan import Plan, chosen_notebooks
from affinity_lib.running.runner import RESUMED, begin, new_manifest, reasons_to_run
from affinity_lib.running.stage import parse_shard, run_folder

TRAIN, PER_IMAGE = "train", "per-image"
_ONLY_SHOWN = {"figure", "evaluation"}  # cells that no later cell of a part needs


def execute_part(
    plan: Plan,
    run_dir: str | Path = "",
    *,
    only: str,
    until: str = PER_IMAGE,
    shard: str = "0/1",
    log: Callable[..., None] = print,
) -> Path:
    """Run one notebook up to a tagged cell, unless the stage is up to date.

    Args:
        plan: from :func:`affinity_lib.running.plan.make_plan`.
        run_dir: folder of the run, ``runs/PROFILE`` if empty.
        only: first letters of the notebook.
        until: tag of the last cell that is executed, ``"train"`` or ``"per-image"``.
        shard: ``K/N``, which share of the images is worked on.
        log: prints; called like :func:`print`.

    Returns:
        The folder of the run.

    Raises:
        InputError: ``only`` fits several notebooks, the notebook has no such cell, it is to be
            trained first, or the run is in use for something else.
        StageFailed: the notebook failed.
    """
    stems = chosen_notebooks(plan, [only])
    if len(stems) > 1:
        raise InputError(f"a part is of one notebook: {only!r} fits {', '.join(stems)}")
    (stem,) = stems
    cells = cells_until(nbformat.read(plan.notebooks[stem], as_version=4), until, stem)
    parse_shard(shard)
    name = until if until == TRAIN else shard.replace("/", "of")
    trains = until != TRAIN and any(TRAIN in _tags(cell) for cell in cells.cells)
    run = run_folder(plan.profile, run_dir)
    (run / "notebooks").mkdir(parents=True, exist_ok=True)
    head = f"{stem}, {'training' if until == TRAIN else f'shard {shard}'}"
    log(head, end=" ")
    with ExitStack() as until_done:
        with locks.locked(run / ".manifest.lock"):
            hold = until_done.enter_context(locks.Hold(run, beside=until == PER_IMAGE))
            preflight.check(plan, [stem], mf.load_manifest(run)["stages"], run)
            manifest = new_manifest(plan, run, log)
            reasons = _begin(plan, stem, run, manifest, hold)
            if trains and reasons and not manifest["stages"][stem].get("trained"):
                raise InputError(
                    f"{stem} is not trained yet: run {plan.profile} --notebooks {stem[:2]} "
                    f"--until {TRAIN} first"
                )
            if until == PER_IMAGE:
                hold.share()
        if not reasons:
            log("... skipped", flush=True)
            return run
        log(f"({'; '.join(reasons[:3])})", end=" ", flush=True)
        started, start = mf.now(), time.perf_counter()
        with shown_after(head, log):
            part = "" if until == TRAIN else shard
            execute_notebook(plan, stem, run, manifest, cells, f".{name}", part)
        # only a failed one is kept
        (run / "notebooks" / f"{stem}.{name}.ipynb").unlink(missing_ok=True)
        seconds = time.perf_counter() - start
        note = {"started": started, "ended": mf.now()}
        _note(run, stem, name, note | mf.computer(plan.values["device"]))
    log(f"... {seconds:.1f} s", flush=True)
    return run


def cells_until(notebook: NotebookNode, tag: str, stem: str) -> NotebookNode:
    """The code cells of a notebook up to the first one with a tag.

    Of those that only show something, there is what the others need.

    Raises:
        InputError: no cell has the tag.
    """
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    places = [k for k, cell in enumerate(cells) if tag in _tags(cell)]
    if not places:
        raise InputError(f"{stem} has no part of that kind: none of its cells is tagged {tag}")
    cells = cells[: places[0] + 1]
    for cell, needed in zip(cells, needed_cells([c.source for c in cells]), strict=True):
        cell.source = needed if _ONLY_SHOWN & _tags(cell) else cell.source
    return NotebookNode(notebook | {"cells": [cell for cell in cells if cell.source]})


def _begin(
    plan: Plan, stem: str, run: Path, manifest: dict[str, Any], hold: locks.Hold
) -> list[str]:
    """Open the stage if this is the first part that comes; why it has to run, or nothing."""
    record = manifest["stages"].get(stem)
    reasons = reasons_to_run(plan, stem, run, record)
    if reasons and hold.alone:
        begin(plan, stem, run, manifest, resumed=reasons == [RESUMED])
    elif reasons and reasons != [RESUMED]:
        raise InputError(
            f"{run} is being run with something else ({'; '.join(reasons[:3])}): "
            "wait, or give --run-dir"
        )
    return reasons


def _note(run: Path, stem: str, name: str, note: Mapping[str, Any]) -> None:
    """Add to the stage's record that a part of it is done, and where and when."""
    with locks.locked(run / ".manifest.lock"):
        manifest = mf.load_manifest(run)
        record = manifest["stages"][stem]
        record.setdefault("parts", {})[name] = dict(note)
        if name == TRAIN:
            record["trained"] = True
        mf.save_manifest(run, manifest)


def _tags(cell: NotebookNode) -> set[str]:
    return set(cell.metadata.get("tags", []))

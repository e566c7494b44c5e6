"""Runs the notebooks in order with papermill, and again only where something has changed.

The files are the state: ``manifest.json`` holds a key for each stage and the hashes of what it
made. A stage is skipped when its key is the same and its files are whole.
"""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from affinity_lib.data.paths import filled
from affinity_lib.running import locks
from affinity_lib.running import manifest as mf
from affinity_lib.running.execution import StageFailed, disk_full, execute_notebook
from affinity_lib.running.plans import Plan, chosen_notebooks
from affinity_lib.running.results import save_results, seconds_of_sections
from affinity_lib.running.runs import Run
from affinity_lib.training.progress import Display

RESUMED = "resumed"
"""The only reason to run a stage that was stopped and goes on with what it has."""


def execute(
    todo: Plan,
    run_dir: str | Path = "",
    *,
    only: Sequence[str] = (),
    force: bool = False,
    donors: Sequence[Path] = (),
    say: Callable[..., None] = print,
) -> Path:
    """Run the stages of a plan that are not up to date.

    Args:
        todo: from :func:`affinity_lib.running.plans.plan`.
        run_dir: folder of the run, ``runs/PROFILE`` if empty.
        only: first letters of the notebooks to run, such as "03"; all if empty.
        force: run them even if nothing has changed.
        donors: other runs, from which a stage with an equal key is taken.
        say: prints; called like :func:`print`.

    Returns:
        The folder of the run.

    Raises:
        StageFailed: a notebook failed, or the disk is full.
        InputError: a name in ``only`` fits no notebook, or the run is in use.
    """
    chosen = chosen_notebooks(todo, only)
    run = Run(todo.profile, run_dir).path
    (run / "notebooks").mkdir(parents=True, exist_ok=True)
    with locks.Hold(run):
        manifest = new_manifest(todo, run)
        skipped: list[str] = []
        for number, stem in enumerate(chosen, 1):
            head = f"[{number}/{len(chosen)}] {stem}"
            say(head, end=" ", flush=True)
            display = Display(head, run / f".progress.{os.getpid()}.json", say)
            try:
                seconds = _stage(todo, stem, run, manifest, force, donors, say, display)
                skipped += [] if seconds else [stem]
                save_results(run, todo.profile, manifest, skipped)
            except OSError as error:
                say("failed")
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                raise StageFailed(disk_full(run, manifest)) from error
            except BaseException as error:
                say("stopped" if isinstance(error, KeyboardInterrupt) else "failed", flush=True)
                raise
            say(f"... {seconds:.1f} s" if seconds else "... skipped", flush=True)
    return run


def new_manifest(todo: Plan, run: Path) -> dict[str, Any]:
    """The manifest of a run that is about to go on: its stages, and all else as it is now."""
    stages = mf.load_manifest(run)["stages"]
    parameters = {name: value for s in todo.notebooks for name, value in todo.parameters(s).items()}
    head = {"profile": todo.profile, "parameters": parameters}
    return head | mf.surroundings() | {"stages": stages}


def key_now(todo: Plan, stem: str, stages: Mapping[str, Any]) -> dict[str, Any]:
    """The key of a stage, with what the stages before it have made."""
    earlier = [name for name in todo.notebooks if name < stem and name in stages]
    done = {name: stages[name] for name in earlier if stages[name]["state"] == "done"}
    inputs = {name: mf.digest(record["artifacts"]) for name, record in done.items()}
    return mf.stage_key(todo.notebooks[stem], todo.parameters(stem), inputs)


def begin(
    todo: Plan, stem: str, run: Path, manifest: dict[str, Any], key: Mapping, resumed: bool
) -> dict[str, Any]:
    """Note in the manifest that a stage runs; what it had goes first, unless it is resumed.

    Returns:
        The stage's record. It keeps the start of a stage that goes on, with the later starts.
    """
    if not resumed:
        _clear(run, stem)
    own = [folder for folder in (run / stem, run / "levels") if not folder.is_symlink()]
    for folder in own:
        for left in folder.rglob(".*.part*"):  # of a writer that was killed
            shutil.rmtree(left) if left.is_dir() else left.unlink()
    now = datetime.now(UTC).isoformat(timespec="seconds")
    record = {"state": "running", "key": key, "started": now}
    if resumed:
        record = dict(manifest["stages"][stem])
        record["resumed"] = [*record.get("resumed", []), now]
    record |= mf.git_state(todo.root) | mf.computer()
    manifest["stages"][stem] = record
    mf.save_manifest(run, manifest)
    return record


def _stage(
    todo: Plan,
    stem: str,
    run: Path,
    manifest: dict[str, Any],
    force: bool,
    donors: Sequence[Path],
    say: Callable[..., None],
    display: Display,
) -> float | None:
    """Bring one stage up to date; the seconds that it took, None if nothing had to run."""
    stages = manifest["stages"]
    key = key_now(todo, stem, stages)
    record = stages.get(stem)
    kept = run / f".before.{stem}"
    if kept.exists() and record and record["state"] == "done":
        _move(kept, run, stem)  # a runner was killed before the stage had begun
    shutil.rmtree(kept, ignore_errors=True)
    reasons = ["forced"] if force else reasons_to_run(run, stem, record, key)
    if not reasons:
        return None
    for donor in () if force else donors:
        found = mf.load_manifest(donor)["stages"].get(stem)
        if donor != run and not reasons_to_run(donor, stem, found, key):
            _clear(run, stem)
            shutil.copytree(
                donor / stem, run / stem, ignore=shutil.ignore_patterns(".*"), copy_function=_link
            )
            _link(donor / "notebooks" / f"{stem}.ipynb", run / "notebooks" / f"{stem}.ipynb")
            stages[stem] = found | {"taken_from": str(donor)}
            say(f"(taken from {donor.name})", end=" ")
            return None
    say(f"({'; '.join(reasons[:3])}{'; ...' if len(reasons) > 3 else ''})", end=" ", flush=True)

    resumed = reasons == [RESUMED]
    if not resumed:
        _move(run, kept, stem)
    begun = begin(todo, stem, run, manifest, key, resumed)
    start = time.perf_counter()
    try:
        with display:
            execute_notebook(todo, stem, run, manifest)
    except BaseException:  # Ctrl-C, too
        if record is not None and not resumed and not _made_anything(run, stem):
            _clear(run, stem)
            _move(kept, run, stem)
            stages[stem] = record
            mf.save_manifest(run, manifest)
        raise
    finally:
        shutil.rmtree(kept, ignore_errors=True)
    seconds = time.perf_counter() - start
    (run / stem).mkdir(exist_ok=True)
    data = todo.parameters(stem).get("data_root")
    stages[stem] = begun | {
        "state": "done",
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
        "steps": seconds_of_sections(run / "notebooks" / f"{stem}.ipynb", seconds),
        "artifacts": mf.artifacts(run, stem),
        "notebook": {
            f"notebooks/{stem}.ipynb": mf.fingerprint(run / "notebooks" / f"{stem}.ipynb")
        },
        "data": mf.data_listing(todo.root / filled(data)) if data else None,
    }
    return seconds


def reasons_to_run(
    run: Path, stem: str, record: Mapping[str, Any] | None, key: Mapping
) -> list[str]:
    """Why a stage has to run, in words; empty if it is up to date."""
    if record is None:
        return ["new"]
    different = mf.changes(record["key"], key)
    if different:
        return [f"changed: {different[0]}", *different[1:]]
    if record["state"] != "done":
        return [RESUMED]
    if data := mf.data_changes(record):
        return data
    if not (run / "notebooks" / f"{stem}.ipynb").is_file():
        return [f"notebooks/{stem}.ipynb is missing"]
    return mf.damage(run, record["artifacts"])


def _clear(run: Path, stem: str) -> None:
    shutil.rmtree(run / stem, ignore_errors=True)
    for ending in (".ipynb", ".html"):
        (run / "notebooks" / f"{stem}{ending}").unlink(missing_ok=True)


def _move(source: Path, target: Path, stem: str) -> None:
    """What a stage has, from one folder to another, so that it can come back."""
    names = [stem, f"notebooks/{stem}.ipynb", f"notebooks/{stem}.html"]
    for name in names:
        if (source / name).exists():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).rename(target / name)


def _made_anything(run: Path, stem: str) -> bool:
    return any(path.is_file() for path in (run / stem).rglob("*"))


def _link(source: str | Path, target: str | Path) -> None:
    """A second name for a file that nothing writes into; a copy where disks cannot do that."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)

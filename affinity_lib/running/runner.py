"""Runs the notebooks in order with papermill, and again only where something has changed.

The files are the state: ``manifest.json`` holds a key for each stage, which is all that its notebook
has read, and the hashes of what it made. A stage is skipped while nothing in its key has changed and
its files are whole; else its notebook is executed, and keeps of its results what is up to date.
"""

from __future__ import annotations

import errno
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nbformat

from affinity_lib.data.files import link, load_json
from affinity_lib.data.progress import shown_after
from affinity_lib.running import cache, locks, preflight
from affinity_lib.running import manifest as mf
from affinity_lib.running.execution import StageFailed, disk_full, execute_notebook
from affinity_lib.running.plan import Plan, chosen_notebooks
from affinity_lib.running.results import save_results, seconds_of_sections
from affinity_lib.running.stage import NOTE, machine_now, run_folder, setting_hashes

RESUMED = "resumed"
"""The only reason to run a stage that was stopped and goes on with what it has."""


def execute(
    plan: Plan,
    run_dir: str | Path = "",
    *,
    only: Sequence[str] = (),
    force: bool = False,
    donors: Sequence[Path] = (),
    log: Callable[..., None] = print,
) -> Path:
    """Run the stages of a plan that are not up to date.

    Args:
        plan: from :func:`affinity_lib.running.plan.make_plan`.
        run_dir: folder of the run, ``runs/PROFILE`` if empty.
        only: first letters of the notebooks to run, such as "03"; all if empty.
        force: run them even if nothing has changed.
        donors: other runs, from which a stage with an equal key is taken.
        log: prints; called like :func:`print`.

    Returns:
        The folder of the run.

    Raises:
        StageFailed: a notebook failed, or the disk is full.
        InputError: a name in ``only`` fits no notebook, the run is in use, or something that it
            needs is missing.
    """
    chosen = chosen_notebooks(plan, only)
    run = run_folder(plan.profile, run_dir)
    (run / "notebooks").mkdir(parents=True, exist_ok=True)
    with locks.Hold(run):
        stages = mf.load_manifest(run)["stages"]
        preflight.check(plan, chosen, {} if force else stages, run)
        manifest = new_manifest(plan, run, log)
        skipped: list[str] = []
        for number, stem in enumerate(chosen, 1):
            head = f"[{number}/{len(chosen)}] {stem}"
            log(head, end=" ", flush=True)
            try:
                seconds = _stage(plan, stem, run, manifest, force, donors, log, head)
                skipped += [] if seconds else [stem]
                save_results(run, plan.profile, manifest, skipped)
            except BaseException as error:
                log("stopped" if isinstance(error, KeyboardInterrupt) else "failed", flush=True)
                if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
                    raise StageFailed(disk_full(run, manifest)) from error
                raise
            log(f"... {seconds:.1f} s" if seconds else "... skipped", flush=True)
    return run


def new_manifest(plan: Plan, run: Path, log: Callable[..., None] = print) -> dict[str, Any]:
    """The manifest of a run that is about to go on: its stages, and all else as it is now."""
    manifest = mf.load_manifest(run)
    if manifest["format"] != mf.FORMAT:
        log(f"{run} was made by an earlier version of this project: it is made anew")
    settings = mf.settings_of(plan.values, run, manifest["stages"])
    head = {"format": mf.FORMAT, "profile": plan.profile, "settings": settings}
    return head | mf.surroundings(plan.values["device"]) | {"stages": manifest["stages"]}


def key_now(plan: Plan, stem: str, run: Path, key: Mapping[str, Any]) -> dict[str, Any]:
    """What a stage depends on, as it is now; ``key`` tells which things it has read."""
    code = notebook_code(plan.notebooks[stem])
    return {
        "code": cache.digest(code),
        "settings": setting_hashes(plan.values, plan.values),
        "inputs": mf.inputs_now(run, key),
        "library": cache.library(code, figures=True),
        "packages": cache.versions(cache.PACKAGES),
        "machine": machine_now(plan.values["device"]) if key["machine"] else {},
    }


def notebook_code(notebook: Path) -> str:
    """The code cells of a notebook as they run; text, comments and outputs do not count."""
    cells = nbformat.read(notebook, as_version=4).cells
    return "\n".join(cache.plain(cell.source) for cell in cells if cell.cell_type == "code")


def begin(
    plan: Plan, stem: str, run: Path, manifest: dict[str, Any], resumed: bool
) -> dict[str, Any]:
    """Note in the manifest that a stage runs.

    Returns:
        The stage's record. It keeps the start of a stage that goes on, with the later starts.
    """
    for folder in (run / stem, run / "levels"):
        for left in [] if folder.is_symlink() else folder.rglob(".*.part*"):  # of a killed writer
            shutil.rmtree(left) if left.is_dir() else left.unlink()
    unread = {"inputs": {}, "machine": {}}
    record = {"state": "running", "key": key_now(plan, stem, run, unread), "started": mf.now()}
    if resumed:
        record = dict(manifest["stages"][stem])
        record["resumed"] = [*record.get("resumed", []), mf.now()]
    record |= mf.git_state(plan.root) | mf.computer(plan.values["device"])
    manifest["stages"][stem] = record
    mf.save_manifest(run, manifest)
    return record


def _stage(
    plan: Plan,
    stem: str,
    run: Path,
    manifest: dict[str, Any],
    force: bool,
    donors: Sequence[Path],
    log: Callable[..., None],
    head: str,
) -> float | None:
    """Bring one stage up to date; the seconds that it took, None if nothing had to run."""
    stages = manifest["stages"]
    record = stages.get(stem)
    reasons = ["forced"] if force else reasons_to_run(plan, stem, run, record)
    if not reasons:
        return None
    for donor in () if force else donors:
        found = mf.load_manifest(donor)["stages"].get(stem)
        if donor != run and found and not reasons_to_run(plan, stem, run, found, donor):
            _take(stem, donor, run)
            stages[stem] = found | {"taken_from": str(donor)}
            log(f"(taken from {donor.name})", end=" ")
            return None
    log(f"({'; '.join(reasons[:3])}{'; ...' if len(reasons) > 3 else ''})", end=" ", flush=True)
    if force:
        shutil.rmtree(run / stem, ignore_errors=True)
    begun = begin(plan, stem, run, manifest, resumed=reasons == [RESUMED])
    start = time.perf_counter()
    try:
        with shown_after(head, log):
            execute_notebook(plan, stem, run, manifest)
    except BaseException:  # Ctrl-C, too
        if record and record["state"] == "done" and not mf.damage(run, record["artifacts"]):
            stages[stem] = record  # as it was: nothing has been replaced
            mf.save_manifest(run, manifest)
        raise
    seconds = time.perf_counter() - start
    stages[stem] = begun | {
        "state": "done",
        "key": begun["key"] | _what_it_read(run / stem),
        "ended": mf.now(),
        "seconds": round(seconds, 1),
        "steps": seconds_of_sections(run / "notebooks" / f"{stem}.ipynb", seconds),
        "artifacts": mf.artifacts(run, stem),
        "notebook": {
            f"notebooks/{stem}.ipynb": mf.fingerprint(run / "notebooks" / f"{stem}.ipynb")
        },
    }
    return seconds


def _what_it_read(folder: Path) -> dict[str, Any]:
    """What the notebook has noted at its end; one that notes nothing may have read any setting."""
    path = folder / f".{NOTE}"
    note = load_json(path) if path.is_file() else {}
    return {part: note[part] for part in ("settings", "inputs", "machine") if part in note}


def reasons_to_run(
    plan: Plan, stem: str, run: Path, record: Mapping[str, Any] | None, donor: Path | None = None
) -> list[str]:
    """Why a stage has to run, in words; empty if it is up to date.

    Args:
        plan: what is to be run.
        stem: of the notebook.
        run: folder of the run.
        record: of the stage, None if it has never run.
        donor: another run, whose record it is.
    """
    if record is None:
        return ["new"]
    found = cache.differences(record["key"], key_now(plan, stem, run, record["key"]))
    if found:
        return [f"changed: {found[0]}", *found[1:]]
    if record["state"] != "done":
        return [RESUMED]
    home = donor or run
    if not (home / "notebooks" / f"{stem}.ipynb").is_file():
        return [f"notebooks/{stem}.ipynb is missing"]
    return mf.damage(home, record["artifacts"])


def _take(stem: str, donor: Path, run: Path) -> None:
    """Give a run the stage of another one."""
    shutil.rmtree(run / stem, ignore_errors=True)
    notebook = run / "notebooks" / f"{stem}.ipynb"
    notebook.unlink(missing_ok=True)
    skip = shutil.ignore_patterns(".*.lock", ".*.before")
    shutil.copytree(donor / stem, run / stem, ignore=skip, copy_function=link)
    link(donor / "notebooks" / notebook.name, notebook)

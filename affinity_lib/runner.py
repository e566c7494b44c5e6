"""Runs the notebooks in order with papermill, and again only where something has changed.

The files are the state: ``manifest.json`` holds a key for each stage and the hashes of what it
made. A stage is skipped when its key is the same and its files are whole.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import papermill
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError

from affinity_lib import manifest as mf
from affinity_lib.errors import InputError
from affinity_lib.parameters import Parameter, checked, declared_parameters, load_profile
from affinity_lib.results import save_results, seconds_of_sections, shown
from affinity_lib.runs import Run, find_root

_RESUMED = "resumed"


class StageFailed(RuntimeError):
    """A notebook did not end well; the text says where, why, and which file shows it."""


@dataclass(frozen=True)
class Plan:
    """What is to be run: checked parameters and the notebooks that they belong to.

    Made by :func:`plan`. ``values`` are the profile's and the overrides; ``notebooks`` are all
    stages by stem, in order; ``declared`` is what their parameter cells declare.
    """

    profile: str
    values: Mapping[str, Any]
    notebooks: Mapping[str, Path]
    declared: Mapping[str, Mapping[str, Parameter]]

    @property
    def root(self) -> Path:
        """The project's folder."""
        return next(iter(self.notebooks.values())).parent.parent

    def parameters(self, stem: str) -> dict[str, Any]:
        """All values that a notebook runs with, but for the folder of the run."""
        declared = self.declared[stem]
        values = {name: self.values.get(name, one.default) for name, one in declared.items()}
        values.pop("run_dir", None)
        return values

    def with_values(self, overrides: Mapping[str, Any]) -> Plan:
        """The same plan with some values in place of the profile's.

        Raises:
            InputError: an unknown parameter, or a value of the wrong kind.
        """
        for name in ("profile", "run_dir"):
            if name in overrides:
                raise InputError(f"{name} cannot be set: give PROFILE and --run-dir instead")
        return replace(self, values=checked({**self.values, **overrides}, self.declared))


def plan(profile: str, folder: Path | None = None) -> Plan:
    """Read the notebooks and the profile, and check every parameter.

    Args:
        profile: a file in ``notebooks/profiles``, without its ``.yaml``.
        folder: the notebooks' folder; the project's unless given.

    Raises:
        InputError: no notebooks or profile, an unknown parameter or one of the wrong kind.
    """
    folder = folder or find_root() / "notebooks"
    notebooks = {path.stem: path for path in sorted(folder.glob("[0-9][0-9]_*.ipynb"))}
    if not notebooks:
        raise InputError(f"{folder} has no notebooks named like 00_name.ipynb")
    declared = {stem: declared_parameters(path) for stem, path in notebooks.items()}
    values = load_profile(folder / "profiles" / f"{profile}.yaml")
    if "run_dir" in values:
        raise InputError("run_dir is not a setting of a profile: give --run-dir FOLDER")
    return Plan(profile, checked(values, declared), notebooks, declared)


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
        todo: from :func:`plan`.
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
    for name in only:
        if not any(stem.startswith(name) for stem in todo.notebooks):
            raise InputError(
                f"no notebook starts with {name!r}: there are {', '.join(todo.notebooks)}"
            )
    chosen = [stem for stem in todo.notebooks if stem.startswith(tuple(only) or "")]
    run = Run(todo.profile, run_dir).path
    (run / "notebooks").mkdir(parents=True, exist_ok=True)
    with _alone(run):
        manifest = {"profile": todo.profile, "parameters": dict(todo.values)}
        manifest |= mf.surroundings() | {"stages": mf.load_manifest(run)["stages"]}
        skipped: list[str] = []
        for number, stem in enumerate(chosen, 1):
            say(f"[{number}/{len(chosen)}] {stem}", end=" ", flush=True)
            try:
                seconds = _stage(todo, stem, run, manifest, force, donors, say)
                skipped += [] if seconds else [stem]
                save_results(run, todo.profile, manifest, skipped)
            except OSError as error:
                say("failed")
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                raise StageFailed(_disk_full(run, manifest)) from error
            except BaseException as error:
                say("stopped" if isinstance(error, KeyboardInterrupt) else "failed", flush=True)
                raise
            say(f"... {seconds:.1f} s" if seconds else "... skipped", flush=True)
    return run


def _stage(
    todo: Plan,
    stem: str,
    run: Path,
    manifest: dict[str, Any],
    force: bool,
    donors: Sequence[Path],
    say: Callable[..., None],
) -> float | None:
    """Bring one stage up to date; the seconds that it took, None if nothing had to run."""
    stages = manifest["stages"]
    earlier = [name for name in todo.notebooks if name < stem and name in stages]
    done = {name: stages[name] for name in earlier if stages[name]["state"] == "done"}
    key = mf.stage_key(
        todo.notebooks[stem],
        todo.parameters(stem),
        {name: mf.digest(record["artifacts"]) for name, record in done.items()},
    )
    record = stages.get(stem)
    reasons = ["forced"] if force else _reasons(run, stem, record, key)
    if not reasons:
        return None
    for donor in () if force else donors:
        found = mf.load_manifest(donor)["stages"].get(stem)
        if donor != run and not _reasons(donor, stem, found, key):
            _clear(run, stem)
            shutil.copytree(
                donor / stem, run / stem, ignore=shutil.ignore_patterns(".*"), copy_function=_link
            )
            _link(donor / "notebooks" / f"{stem}.ipynb", run / "notebooks" / f"{stem}.ipynb")
            stages[stem] = found | {"taken_from": str(donor)}
            say(f"(taken from {donor.name})", end=" ")
            return None
    say(f"({'; '.join(reasons[:3])}{'; ...' if len(reasons) > 3 else ''})", end=" ", flush=True)

    if reasons != [_RESUMED]:
        _clear(run, stem)
    for left in (run / stem).rglob(".*.part*"):
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    started = datetime.now(UTC).isoformat(timespec="seconds")
    record = {"state": "running", "key": key, "started": started}
    record |= mf.git_state(todo.root)
    stages[stem] = record
    mf.save_manifest(run, manifest)
    begin = time.perf_counter()
    _papermill(todo, stem, run, manifest)
    seconds = time.perf_counter() - begin
    (run / stem).mkdir(exist_ok=True)
    data = todo.parameters(stem).get("data_root")
    stages[stem] = record | {
        "state": "done",
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
        "steps": seconds_of_sections(run / "notebooks" / f"{stem}.ipynb", seconds),
        "artifacts": mf.artifacts(run, stem),
        "notebook": {
            f"notebooks/{stem}.ipynb": mf.fingerprint(run / "notebooks" / f"{stem}.ipynb")
        },
        "data": mf.data_listing(todo.root / data) if data else None,
    }
    return seconds


def _reasons(run: Path, stem: str, record: Mapping[str, Any] | None, key: Mapping) -> list[str]:
    """Why a stage has to run, in words; empty if it is up to date."""
    if record is None:
        return ["new"]
    different = mf.changes(record["key"], key)
    if different:
        return [f"changed: {different[0]}", *different[1:]]
    if record["state"] != "done":
        return [_RESUMED]
    if data := mf.data_changes(record):
        return data
    if not (run / "notebooks" / f"{stem}.ipynb").is_file():
        return [f"notebooks/{stem}.ipynb is missing"]
    return mf.damage(run, record["artifacts"])


def _papermill(todo: Plan, stem: str, run: Path, manifest: Mapping[str, Any]) -> None:
    notebook = todo.notebooks[stem]
    final = run / "notebooks" / f"{stem}.ipynb"
    failed = final.with_suffix(".failed.ipynb")
    running = final.with_suffix(".running.ipynb")
    declared = todo.declared[stem]
    values = {name: todo.values[name] for name in declared if name in todo.values}
    if "run_dir" in declared:
        values["run_dir"] = str(run)
    try:
        papermill.execute_notebook(
            notebook,
            running,
            parameters=values,
            kernel_name="python3",
            kernel_manager_class=_ThisPython,
            cwd=notebook.parent,
            progress_bar=False,
            start_timeout=180,
            iopub_timeout=60,
        )
    except PapermillExecutionError as error:
        os.replace(running, failed)
        if error.ename == "KeyboardInterrupt":
            raise KeyboardInterrupt from error
        if _is_full(run, error.evalue):
            raise StageFailed(_disk_full(run, manifest)) from error
        begins = next(iter(error.source.splitlines()), "")
        raise StageFailed(
            f"{stem} failed in cell In [{error.exec_count}], which begins with {begins!r}\n"
            f"{error.ename}: {error.evalue}\n"
            f"The notebook up to there: {shown(failed)}"
        ) from error
    except DeadKernelError as error:
        os.replace(running, failed)
        raise StageFailed(
            f"{stem} failed: its kernel died, as it does when memory runs out\n"
            f"The notebook up to there: {shown(failed)}"
        ) from error
    os.replace(running, final)
    failed.unlink(missing_ok=True)


class _ThisPython(AsyncKernelManager):
    """Kernels of the Python that runs this, whatever a ``python3`` kernelspec elsewhere says."""

    @property
    def kernel_spec(self) -> KernelSpec:
        paths = [str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
        env = {
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "PYTHONHASHSEED": os.environ.get("PYTHONHASHSEED", "0"),
            "OMP_NUM_THREADS": str(mf.threads()),
            "MPLBACKEND": "module://matplotlib_inline.backend_inline",
            "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        }
        # Only what is fatal: the kernel's other messages are about itself, not about the notebook.
        return KernelSpec(env=env, **get_kernel_dict(["--log-level=50"]))


def _clear(run: Path, stem: str) -> None:
    shutil.rmtree(run / stem, ignore_errors=True)
    for ending in (".ipynb", ".html"):
        (run / "notebooks" / f"{stem}{ending}").unlink(missing_ok=True)


def _link(source: str | Path, target: str | Path) -> None:
    """A second name for a file that nothing writes into; a copy where disks cannot do that."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _is_full(run: Path, error: str) -> bool:
    return "No space left on device" in error or shutil.disk_usage(run).free < 2**20


def _disk_full(run: Path, manifest: Mapping[str, Any]) -> str:
    done = [stem for stem, record in manifest["stages"].items() if record["state"] == "done"]
    return (
        f"The disk of {shown(run)} is full: free some space and give the same command.\n"
        f"Kept, and not run again: {', '.join(done) or 'nothing yet'}"
    )


@contextmanager
def _alone(run: Path) -> Iterator[None]:
    """Keep a second runner out of the same run."""
    if sys.platform == "win32":
        yield
        return
    import fcntl

    with (run / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(
                f"{shown(run)} is being run already: wait, or give --run-dir"
            ) from error
        yield

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
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

import papermill
from ipykernel.kernelspec import get_kernel_dict, make_ipkernel_cmd
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient.exceptions import DeadKernelError
from nbformat import NotebookNode
from papermill.exceptions import PapermillExecutionError

from affinity_lib import locks
from affinity_lib import manifest as mf
from affinity_lib.errors import InputError
from affinity_lib.parameters import Parameter, checked, declared_parameters, load_profile
from affinity_lib.progress import Display
from affinity_lib.results import save_results, seconds_of_sections, shown
from affinity_lib.runs import Run, find_root

RESUMED = "resumed"
"""The only reason to run a stage that was stopped and goes on with what it has."""

OF_THE_COMMAND = {
    "profile": "PROFILE",
    "run_dir": "--run-dir FOLDER",
    "shard": "--shard K/N",
    "num_shards": "--shard K/N",
}
"""Parameters that say where and in which part something runs, and how the command gives them."""


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
        """All values that decide what a notebook makes: not where, and in which part, it runs."""
        declared = self.declared[stem]
        values = {name: self.values.get(name, one.default) for name, one in declared.items()}
        places = OF_THE_COMMAND.keys() - {"profile"}
        return {name: value for name, value in values.items() if name not in places}

    def with_values(self, overrides: Mapping[str, Any]) -> Plan:
        """The same plan with some values in place of the profile's.

        Raises:
            InputError: an unknown parameter, or a value of the wrong kind.
        """
        for name in overrides:
            if name in OF_THE_COMMAND:
                raise InputError(f"{name} cannot be set: give {OF_THE_COMMAND[name]} instead")
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
    for name in values:
        if name != "profile" and name in OF_THE_COMMAND:
            raise InputError(f"{name} is no setting of a profile: give {OF_THE_COMMAND[name]}")
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
                raise StageFailed(_disk_full(run, manifest)) from error
            except BaseException as error:
                say("stopped" if isinstance(error, KeyboardInterrupt) else "failed", flush=True)
                raise
            say(f"... {seconds:.1f} s" if seconds else "... skipped", flush=True)
    return run


def chosen_notebooks(todo: Plan, only: Sequence[str]) -> list[str]:
    """The stems that begin with one of some letters; all if there are none.

    Raises:
        InputError: nothing begins like that.
    """
    for name in only:
        if not any(stem.startswith(name) for stem in todo.notebooks):
            raise InputError(
                f"no notebook starts with {name!r}: there are {', '.join(todo.notebooks)}"
            )
    return [stem for stem in todo.notebooks if stem.startswith(tuple(only) or "")]


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

    record = begin(todo, stem, run, manifest, key, resumed=reasons == [RESUMED])
    start = time.perf_counter()
    with display:
        _papermill(todo, stem, run, manifest)
    seconds = time.perf_counter() - start
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


def run_part(
    todo: Plan,
    stem: str,
    run: Path,
    manifest: Mapping[str, Any],
    cells: NotebookNode,
    name: str,
    values: Mapping[str, Any],
) -> None:
    """Execute some cells of a notebook; what was executed is kept only if it fails.

    Args:
        todo, stem, run, manifest: as for the whole notebook.
        cells: a notebook with these cells.
        name: of the part, for the file of a failed one.
        values: of the parameters ``shard`` and ``num_shards``.
    """
    _papermill(todo, stem, run, manifest, cells, f".{name}", values)
    (run / "notebooks" / f"{stem}.{name}.ipynb").unlink()


def _papermill(
    todo: Plan,
    stem: str,
    run: Path,
    manifest: Mapping[str, Any],
    cells: NotebookNode | None = None,
    part: str = "",
    more: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    notebook = todo.notebooks[stem]
    final = run / "notebooks" / f"{stem}{part}.ipynb"
    failed = final.with_suffix(".failed.ipynb")
    running = final.with_suffix(".running.ipynb")
    declared = todo.declared[stem]
    values = {name: todo.values[name] for name in declared if name in todo.values}
    if "run_dir" in declared:
        values["run_dir"] = str(run)
    try:
        papermill.execute_notebook(
            cells or notebook,
            running,
            parameters=values | dict(more),
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
            "PYTHONHASHSEED": mf.hash_seed(),
            "OMP_NUM_THREADS": str(mf.threads()),
            "MPLBACKEND": "module://matplotlib_inline.backend_inline",
            "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        }
        # Only what is fatal: the kernel's other messages are about itself, not about the notebook.
        argv = make_ipkernel_cmd("affinity_lib.kernel", extra_arguments=["--log-level=50"])
        return KernelSpec(env=env, **get_kernel_dict() | {"argv": argv})

    async def start_kernel(self, **how: Any) -> None:
        await super().start_kernel(pass_fds=locks.inherited(), **how)


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

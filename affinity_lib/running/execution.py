"""One notebook executed by papermill in this Python, and why it did not end well, in words."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import papermill
from ipykernel.kernelspec import get_kernel_dict, make_ipkernel_cmd
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient.exceptions import DeadKernelError
from nbformat import NotebookNode
from papermill.exceptions import PapermillExecutionError

from affinity_lib.data import progress
from affinity_lib.data.paths import filled
from affinity_lib.running import locks
from affinity_lib.running import manifest as mf
from affinity_lib.running.plan import Plan
from affinity_lib.running.results import display_path


class StageFailed(RuntimeError):
    """A notebook did not end well; the text says where, why, and which file shows it."""


def execute_notebook(
    plan: Plan,
    stem: str,
    run: Path,
    manifest: Mapping[str, Any],
    cells: NotebookNode | None = None,
    part: str = "",
    shard: str = "",
) -> None:
    """Execute a notebook with papermill; what was executed stays in the run.

    Args:
        plan: from :func:`affinity_lib.running.plan.make_plan`.
        stem: of the notebook.
        run: folder of the run.
        manifest: of the run.
        cells: to execute in place of the whole notebook's.
        part: their name, in the name of the file.
        shard: ``K/N``, the share of the images that it works on; all if empty.

    Raises:
        StageFailed: a cell failed, the kernel died, or the disk is full.
        KeyboardInterrupt: the notebook was interrupted.
    """
    notebook = plan.notebooks[stem]
    final = run / "notebooks" / f"{stem}{part}.ipynb"
    failed = final.with_suffix(".failed.ipynb")
    running = final.with_suffix(".running.ipynb")
    values = {"profile": plan.profile, "run_dir": str(run), **plan.given}
    logging.getLogger("papermill").setLevel(logging.ERROR)  # it knows a notebook's own names only
    try:
        papermill.execute_notebook(
            cells or notebook,
            running,
            parameters=values | ({"shard": shard} if shard else {}),
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
            raise StageFailed(disk_full(run, manifest)) from error
        begins = next(iter(error.source.splitlines()), "")
        raise StageFailed(
            f"{stem} failed in cell In [{error.exec_count}], which begins with {begins!r}\n"
            f"{error.ename}: {error.evalue}\n"
            f"The notebook up to there: {display_path(failed)}"
        ) from error
    except DeadKernelError as error:
        os.replace(running, failed)
        raise StageFailed(
            f"{stem} failed: its kernel died, as it does when memory runs out\n"
            f"The notebook up to there: {display_path(failed)}"
        ) from error
    os.replace(running, final)
    failed.unlink(missing_ok=True)


def _is_full(run: Path, error: str) -> bool:
    return "No space left on device" in error or shutil.disk_usage(run).free < 2**20


def disk_full(run: Path, manifest: Mapping[str, Any]) -> str:
    """Which disk is full, what to do, and what was kept."""
    done = [stem for stem, record in manifest["stages"].items() if record["state"] == "done"]
    return (
        f"The disk of {display_path(run)} is full: free some space and give the same command.\n"
        f"Kept, and not run again: {', '.join(done) or 'nothing yet'}"
    )


class _ThisPython(AsyncKernelManager):
    """Kernels of the Python that runs this, whatever a ``python3`` kernelspec elsewhere says."""

    @property
    def kernel_spec(self) -> KernelSpec:
        paths = [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]
        env = {
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "PYTHONHASHSEED": mf.hash_seed(),
            "OMP_NUM_THREADS": str(mf.threads()),
            "MPLBACKEND": "module://matplotlib_inline.backend_inline",
            "VOC_ROOT": filled("${VOC_ROOT}") if os.environ.get("VOC_ROOT") else "",
            "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        }
        # Only what is fatal: the kernel's other messages are about itself, not about the notebook.
        argv = make_ipkernel_cmd("affinity_lib.running.kernel", extra_arguments=["--log-level=50"])
        return KernelSpec(env=env, **get_kernel_dict() | {"argv": argv})

    async def start_kernel(self, **how: Any) -> None:
        await super().start_kernel(pass_fds=locks.inherited() + progress.inherited(), **how)

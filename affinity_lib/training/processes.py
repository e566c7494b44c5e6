"""A call made in several processes of this machine at once, under ``torchrun``."""

from __future__ import annotations

import copyreg
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from threading import Thread
from typing import Any

import cloudpickle
import torch
import torch.distributed as dist

from affinity_lib.errors import InputError
from affinity_lib.training import progress

_FAILED = "affinity_lib failed: "
for _module in (torch.classes, torch.ops):  # cloudpickle takes ``data.classes`` for the first
    copyreg.pickle(type(_module), lambda module: (import_module, (module.__name__,)))


def launch(
    nproc: int, device: str, folder: Path, function: Callable[..., Any], *arguments: Any
) -> None:
    """Call ``function(*arguments)`` in ``nproc`` processes on this machine, under ``torchrun``.

    What they print is printed here. All of them end when this call does, whether it returns,
    raises, is interrupted, or its process dies.

    Args:
        nproc: how many.
        device: "cpu", where they talk through gloo, or "cuda", a GPU each, through NCCL.
        folder: for the file that hands the call over; it is gone once they have read it.
        function: anything that cloudpickle takes, also from a notebook's cell.
        arguments: likewise; tensors on the CPU.

    Raises:
        InputError: one of them raised it, or there is no GPU for each.
        RuntimeError: one of them failed otherwise; the text is its error.
    """
    if device != "cpu" and (there := torch.cuda.device_count()) < nproc:
        raise InputError(
            f"nproc = {nproc} needs {nproc} GPUs or device cpu, and this machine has {there} for "
            f"{device}: lower nproc"
        )
    with tempfile.TemporaryDirectory(dir=folder, prefix=".job.", suffix=".part") as job:
        with (Path(job) / "call").open("wb") as file:
            cloudpickle.dump((device, function, arguments), file)
        child = subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr"]
            + ["127.0.0.1", "--nproc-per-node", str(nproc), "-m", __name__, job],
            env=os.environ
            | {
                "OMP_NUM_THREADS": str(max(torch.get_num_threads() // nproc, 1)),
                "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
            },
            stdin=subprocess.PIPE,  # when it ends, so do they
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for this process alone
        )
        failures: list[list[str]] = []
        last: deque[str] = deque(maxlen=40)
        listener = Thread(target=_listen, args=(child.stderr, failures, last), daemon=True)
        listener.start()
        try:
            for line in child.stdout:
                print(line, end="", flush=True)
        finally:
            child.stdin.close()
            child.wait()
            listener.join()
    if child.returncode:
        raise _error(failures, "\n".join(last))


def _error(failures: list[list[str]], last: str) -> Exception:
    """What to raise: after the first failure, its rank's death or connection may fail others."""
    if killed := re.search(r"Signal \d+ \((SIG(?!TERM)\w+)\)", last):
        return RuntimeError(
            f"a process of those that train together was ended by {killed[1]}, as happens when "
            "memory runs out"
        )
    if not failures:
        return RuntimeError(f"torchrun failed: {last.splitlines()[-1] if last else 'no word'}")
    kind, text = failures[0]
    return InputError(text) if kind == "InputError" else RuntimeError(f"{kind}: {text}")


def _listen(stream, failures: list[list[str]], last: deque[str]) -> None:
    for line in stream:
        if line.startswith(_FAILED):
            failures.append(json.loads(line.removeprefix(_FAILED)))
        elif line.strip():
            last.append(line.strip())


def _end_with_the_parent(job: Path) -> None:
    os.read(0, 1)  # nothing is ever written: it returns when the other end is closed
    shutil.rmtree(job, ignore_errors=True)
    os._exit(1)


def _tell(kind: type[BaseException], error: BaseException, _: object) -> None:
    told = json.dumps([kind.__name__, str(error)[:1000]])
    os.write(2, f"\n{_FAILED}{told}\n".encode())  # in one piece, whatever others write
    os._exit(1)


def _work(job: Path) -> None:
    """What each process does that ``torchrun`` starts."""
    sys.excepthook = _tell
    Thread(target=_end_with_the_parent, args=(job,), daemon=True).start()
    if os.environ["RANK"] != "0":
        os.environ.pop(progress.FILE, None)  # one of them tells how far all of them are
    with (job / "call").open("rb") as file:
        kind, function, arguments = cloudpickle.load(file)
    if kind == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if kind == "cuda" else "gloo")
    dist.barrier()
    (job / "call").unlink(missing_ok=True)
    function(*arguments)
    dist.destroy_process_group()


if __name__ == "__main__":
    _work(Path(sys.argv[1]))

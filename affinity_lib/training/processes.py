"""A call made in several processes of this machine at once, which train together."""

from __future__ import annotations

import copyreg
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module
from multiprocessing import connection, get_context, parent_process
from threading import Thread
from types import ModuleType
from typing import Any
from unittest.mock import patch

import cloudpickle
import torch
import torch.distributed as dist

from affinity_lib.errors import InputError

for _module in (torch.classes, torch.ops):  # cloudpickle takes ``data.classes`` for the first
    copyreg.pickle(type(_module), lambda module: (import_module, (module.__name__,)))


def launch(
    nproc: int,
    device: str,
    function: Callable[..., Any],
    arguments: Sequence[Any],
    report: Callable[..., Any],
) -> None:
    """Call ``function(*arguments, report)`` in ``nproc`` processes that form a process group.

    All of them end when this call does, whether it returns, raises, is interrupted, or its own
    process dies.

    Args:
        nproc: how many, each with its share of torch's threads.
        device: "cpu", where they talk through gloo, or "cuda", a GPU each, through NCCL.
        function: anything that cloudpickle takes, also from a notebook's cell.
        arguments: likewise; tensors on the CPU.
        report: called here with what any of them calls its ``report`` with.

    Raises:
        InputError: one of them raised it, or there is no GPU for each.
        RuntimeError: one of them failed otherwise; the text is its error.
    """
    if device != "cpu" and (there := torch.cuda.device_count()) < nproc:
        raise InputError(
            f"nproc = {nproc} needs {nproc} GPUs or device cpu, and this machine has {there} for "
            f"{device}: lower nproc"
        )
    spawn = get_context("spawn")
    receiver, sender = spawn.Pipe(duplex=False)
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    threads = max(torch.get_num_threads() // nproc, 1)
    call = cloudpickle.dumps((function, arguments))
    job = (nproc, device, store.port, threads, call, sender, spawn.Lock())
    ranks = [spawn.Process(target=_work, args=(number, *job)) for number in range(nproc)]
    codes, failures = [None] * nproc, []
    try:
        with patch.dict(sys.modules, __main__=ModuleType("__main__")):  # a script is not run again
            for rank in ranks:
                rank.start()
        while None in codes and not any(codes):
            running = [
                rank.sentinel for rank, code in zip(ranks, codes, strict=True) if code is None
            ]
            connection.wait([receiver, *running])
            codes = [rank.exitcode for rank in ranks]  # before all that they had sent is read
            while receiver.poll():
                message = receiver.recv()
                if isinstance(message[0], Exception):
                    failures += message
                else:
                    report(*message)
    finally:
        for rank in filter(lambda rank: rank.pid, ranks):
            rank.kill()
            rank.join()
    code = min(filter(None, codes), default=0)
    if code < 0:  # the others fail because of it
        how = f"by {signal.Signals(-code).name}, as happens when memory runs out"
        raise RuntimeError(f"a process of those that train together was ended {how}")
    if code > 0:
        raise failures[0] if failures else RuntimeError("a process did not start: see above")


def _work(rank: int, nproc: int, device: str, port: int, threads: int, call, sender, lock) -> None:
    """What each process does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started it
    Thread(target=_end_with_the_parent, daemon=True).start()

    def send(*message: Any) -> None:
        with lock:
            sender.send(message)

    try:
        torch.set_num_threads(threads)
        if device == "cuda":
            torch.cuda.set_device(rank)
        store = dist.TCPStore("127.0.0.1", port)
        backend = "nccl" if device == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=nproc)
        function, arguments = cloudpickle.loads(call)
        function(*arguments, send)
        dist.destroy_process_group()
    except Exception as error:
        failure = InputError(str(error))
        if not isinstance(error, InputError):
            failure = RuntimeError(f"{type(error).__name__}: {error}")
            failure.add_note(traceback.format_exc())
        send(failure)
        raise SystemExit(1) from error


def _end_with_the_parent() -> None:
    parent_process().join()
    os._exit(1)

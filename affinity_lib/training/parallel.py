"""Many images over all cores of the machine: in processes, or in threads that share a network."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from threading import current_thread
from typing import Any, Self, TypeVar

import torch

from affinity_lib.data.progress import Progress
from affinity_lib.errors import InputError
from affinity_lib.training.cores import available_cores

T = TypeVar("T")
R = TypeVar("R")

# How workers start, and the seconds of work that are worth a pool of them. A forked worker has the
# parent's imports and is there at once; elsewhere than on Linux forking is not safe.
START_METHOD, _START_UP = ("fork", 0.5) if sys.platform == "linux" else ("spawn", 3.0)

# The thread that computes on a GPU.
_GPU_THREAD = "affinity_lib GPU"
_GPU = ThreadPoolExecutor(1, _GPU_THREAD)

# How a training shares the cores with others: after so many seconds it looks how long its threads had
# to wait for a core. Above this share of the time some of them rest.
_WINDOW, _TAKEN = 5.0, 0.3


def map_images(
    function: Callable[[Any], Any],
    jobs: Iterable[Any],
    workers: int | None = None,
    what: str = "label maps",
) -> list[Any]:
    """``[function(job) for job in jobs]`` over a pool of processes, one thread in each.

    ``function`` must be importable (defined in a module, not in a notebook cell; a
    `functools.partial` of such a function is fine), and jobs and results must pickle: pass
    names of files rather than arrays where you can. The results do not depend on ``workers``.

    Args:
        function: takes one job.
        jobs: any iterable.
        workers: number of processes, None for one per core; 1 stays in this process, as do jobs
            that are done sooner than a pool starts.
        what: the work's name for the progress line.

    Returns:
        The results in the order of ``jobs``.

    Raises:
        InputError: ``workers`` is below 1.

    >>> map_images(abs, [-2, -1], workers=1)
    [2, 1]
    """
    workers = available_cores() if workers is None else workers
    if workers < 1:
        raise InputError(f"workers must be >= 1, got {workers}")
    jobs, results, start = list(jobs), [], time.perf_counter()
    with Progress(desc=what, total=len(jobs)) as progress:
        for number, job in enumerate(jobs):
            seconds = time.perf_counter() - start
            # begin here: a pool that starts for less work than it takes to start would be slower
            if workers > 1 and number and seconds / number * (len(jobs) - number) > _START_UP:
                break
            results.append(function(job))
            progress.update()
        if left := jobs[len(results) :]:
            how = get_context(START_METHOD), _use_one_thread
            pool = ProcessPoolExecutor(min(workers, len(left)), *how)
            try:
                for result in pool.map(function, left):
                    results.append(result)
                    progress.update()
            finally:
                pool.shutdown(cancel_futures=True)
    return results


def each_image(
    work: Callable[[T], R],
    jobs: Sequence[T],
    what: str,
    count: Callable[[T], int] = lambda job: 1,
) -> list[R]:
    """``[work(job) for job in jobs]``, as many at once as torch has threads.

    Each job computes with a single thread: what comes out does not depend on how many there are,
    and none waits for one that the system has put aside. For work that torch does; Python's own
    runs one thread at a time. What a job does on a GPU goes through ``compute_on``.

    Args:
        work: gradients, autocast and inference mode are a thread's own: enter them inside.
        jobs: mostly ids of images.
        what: the work's name for the progress line.
        count: images in a job.

    Returns:
        The results in the order of ``jobs``.

    >>> each_image(len, ["2007_000032", "2007_000039"], "nothing")
    [11, 11]
    """
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
    try:
        with Progress(desc=what, total=sum(map(count, jobs))) as progress:
            futures = {pool.submit(work, job): count(job) for job in jobs}
            for future in as_completed(futures):
                future.result()
                progress.update(futures[future])
        return [future.result() for future in futures]
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # of threads that start later


def compute_on(device: torch.device | str, compute: Callable[[], R]) -> R:
    """``compute()``: what a job of ``each_image`` does on a device.

    On a GPU one thread does it, for one job after the other while the others read and write: the
    memory is for one; and what cuDNN finds out about a convolution of some size it finds out once,
    as torch keeps that for each thread (and never frees it).

    >>> compute_on("cpu", lambda: 1)
    1
    """
    if torch.device(device).type == "cpu" or current_thread().name.startswith(_GPU_THREAD):
        return compute()
    inference = torch.is_inference_mode_enabled()

    def work() -> R:
        with torch.inference_mode(inference):
            return compute()

    return _GPU.submit(work).result()


class SpareCores:
    """Threads for a training on the CPU: torch's, less one for each core that others take.

    Threads that share an operation wait for whichever the system has put aside, so beside one busy
    process two threads on two cores are several times slower than one. The system counts how long
    threads had to wait for a core and how long cores had nothing to do (Linux; elsewhere all threads
    are kept). On an idle machine nothing changes, so results, which the number of threads changes by
    rounding, stay as they are.

    >>> with SpareCores() as cores:
    ...     cores.after_step()
    """

    def __init__(self) -> None:
        self._all = torch.get_num_threads()

    def __enter__(self) -> Self:
        self._look()
        return self

    def __exit__(self, *exception: object) -> None:
        torch.set_num_threads(self._all)

    def after_step(self) -> None:
        """Call after each step of the training."""
        passed = time.perf_counter() - self._since
        if passed < _WINDOW:
            return
        waited, idle = self._waited, self._idle
        self._look()
        taken, free = (self._waited - waited) / passed, (self._idle - idle) / passed
        change = -math.ceil(taken) if taken > _TAKEN else math.floor(free + _TAKEN)
        torch.set_num_threads(min(max(torch.get_num_threads() + change, 1), self._all))

    def _look(self) -> None:
        self._since = time.perf_counter()
        self._waited, self._idle = _waiting_and_idle()


def _waiting_and_idle() -> tuple[float, float]:
    """Seconds that this process's threads had to wait for a core, and that its cores were idle."""
    waited, idle = 0, 0
    for account in Path("/proc/self/task").glob("*/schedstat"):
        with suppress(OSError):  # a thread that has ended
            waited += int(account.read_text().split()[1])
    if not waited:  # not counted on this system
        return 0.0, 0.0
    cores = {f"cpu{number}" for number in os.sched_getaffinity(0)}
    for name, *ticks in map(str.split, Path("/proc/stat").read_text().splitlines()):
        idle += int(ticks[3]) if name in cores else 0
    return waited / 1e9, idle / os.sysconf("SC_CLK_TCK")


def _use_one_thread() -> None:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = "1"
    torch.set_num_threads(1)

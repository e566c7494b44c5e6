"""Many images over all cores of the machine: in processes, or in threads that share a network."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from itertools import islice
from multiprocessing import get_context
from typing import Any, TypeVar

import torch

from affinity_lib.errors import InputError
from affinity_lib.training.cores import available_cores
from affinity_lib.training.progress import Progress

T = TypeVar("T")

# How processes start, and the seconds of work that are worth a pool of them. A forked worker has
# the parent's imports and is there at once; elsewhere than on Linux forking is not safe.
_METHOD, _START_UP = ("fork", 0.5) if sys.platform == "linux" else ("spawn", 3.0)


def map_images(
    function: Callable[[Any], Any],
    jobs: Iterable[Any],
    workers: int | None = None,
    progress: str = "",
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
        progress: description of a plain progress line; empty for none.

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
    jobs = list(jobs)
    if progress:
        from tqdm import tqdm

        with tqdm(total=len(jobs), desc=progress) as line:
            return _map(function, jobs, workers, line.update)
    return _map(function, jobs, workers, Progress("label maps", len(jobs)).advance)


def each_image(
    work: Callable[[T], Any],
    jobs: Sequence[T],
    what: str,
    device: torch.device | str = "cpu",
    count: Callable[[T], int] = lambda job: 1,
) -> None:
    """Call ``work(job)`` for each job, on a CPU for as many at once as torch has threads.

    Each job computes with a single thread, so that what comes out does not depend on how many
    there are. For work that torch does; Python's own runs one thread at a time. On a GPU the jobs
    follow one another.

    Args:
        work: writes its result to a file of its own. Gradients and inference mode are a thread's
            own: enter them inside.
        jobs: mostly ids of images.
        what: the work's name for the progress line.
        device: where ``work`` computes.
        count: images in a job.

    >>> seen = []
    >>> each_image(seen.append, ["2007_000032", "2007_000039"], "nothing")
    >>> sorted(seen)
    ['2007_000032', '2007_000039']
    """
    progress = Progress(what, sum(map(count, jobs)))
    if torch.device(device).type != "cpu":
        for job in jobs:
            work(job)
            progress.advance(count(job))
        return
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
    try:
        waiting = {pool.submit(work, job): job for job in jobs}
        for future in as_completed(waiting):
            future.result()
            progress.advance(count(waiting.pop(future)))
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # of threads that start later


def _map(
    function: Callable[[Any], Any], jobs: list[Any], workers: int, done: Callable[[], Any]
) -> list[Any]:
    results = []

    def collect(result: Any) -> None:
        results.append(result)
        done()

    start = time.perf_counter()
    for number, job in enumerate(jobs):
        seconds = time.perf_counter() - start
        # begin here: a pool that starts for less work than it takes to start would be slower
        if workers > 1 and number and seconds / number * (len(jobs) - number) > _START_UP:
            break
        collect(function(job))
    remaining = iter(jobs[len(results) :])
    workers = min(workers, len(jobs) - len(results))
    if workers == 0:
        return results
    pool = ProcessPoolExecutor(workers, get_context(_METHOD), _use_one_thread)
    try:
        waiting = deque(pool.submit(function, job) for job in islice(remaining, 16 * workers))
        while waiting:
            collect(waiting.popleft().result())
            waiting.extend(pool.submit(function, job) for job in islice(remaining, 1))
    finally:
        pool.shutdown(cancel_futures=True)
    return results


def _use_one_thread() -> None:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = "1"
    torch.set_num_threads(1)

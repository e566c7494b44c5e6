"""Many images at once: the pool of processes, and the threads that share a network."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from itertools import groupby
from threading import Barrier, active_count, current_thread
from time import sleep

import pytest
import torch

from affinity_lib.errors import InputError
from affinity_lib.training import parallel
from affinity_lib.training.parallel import SpareCores, compute_on, each_image, map_images


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("method", sorted({parallel.START_METHOD, "spawn"}))
def test_results_do_not_depend_on_the_number_of_processes(
    monkeypatch: pytest.MonkeyPatch, method: str
):
    monkeypatch.setattr(parallel, "_START_UP", 0)
    monkeypatch.setattr(parallel, "START_METHOD", method)
    jobs = list(range(-40, 40))
    expected = [abs(job) for job in jobs]
    assert map_images(abs, jobs, workers=1) == expected
    assert map_images(abs, iter(jobs), workers=2) == expected


def test_workers_run_one_thread_each(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(parallel, "_START_UP", 0)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    threads = map_images(os.getenv, ["OMP_NUM_THREADS"] * 3, workers=2)
    assert threads == [None, "1", "1"]


def test_torch_has_one_thread_in_a_worker_and_works_there(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(parallel, "_START_UP", 0)
    torch.rand(200, 200) @ torch.rand(200, 200)  # this process has its threads already
    here, *there = map_images(_threads_of_torch, range(4), workers=2)
    assert here == torch.get_num_threads()
    assert there == [1, 1, 1]


def test_work_that_is_done_sooner_than_a_pool_starts_stays_in_this_process():
    assert set(map_images(_process, range(20), workers=2)) == {os.getpid()}


def test_an_error_in_a_worker_reaches_the_caller(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(parallel, "_START_UP", 0)
    with pytest.raises(ZeroDivisionError):
        map_images(partial(divmod, 1), [1, 2, 0, 4], workers=2)


def test_fewer_than_one_process_is_refused():
    with pytest.raises(InputError, match="workers must be"):
        map_images(abs, [1], workers=0)


def test_threads_do_every_job_with_one_thread_of_torch_each():
    before, seen = torch.get_num_threads(), {}

    def work(job: int) -> None:
        seen[job] = torch.get_num_threads()

    torch.set_num_threads(3)
    try:
        each_image(work, range(40), "jobs")
        assert torch.get_num_threads() == 3
        with ThreadPoolExecutor(1) as pool:  # threads that start later have them all again
            assert pool.submit(torch.get_num_threads).result() == 3
    finally:
        torch.set_num_threads(before)
    assert seen == dict.fromkeys(range(40), 1)


def test_threads_work_at_the_same_time(two_threads):
    barrier = Barrier(2, timeout=30)
    # one after the other would wait for ever and break it
    each_image(lambda job: barrier.wait(), range(4), "jobs")


def test_the_number_of_threads_changes_no_bit():
    before = torch.get_num_threads()
    net = torch.nn.Conv2d(3, 8, 3)
    images = torch.randn(6, 1, 3, 40, 50, generator=torch.Generator().manual_seed(0))
    work, results = torch.inference_mode()(lambda k: net(images[k])), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(each_image(work, range(6), "jobs"))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))


def test_an_error_in_a_thread_reaches_the_caller_and_ends_the_work():
    done = []

    def work(job: int) -> None:
        if job == 3:
            raise InputError("image 3 is broken")
        done.append(job)
        sleep(0.001)

    with pytest.raises(InputError, match="image 3 is broken"):
        each_image(work, range(2000), "jobs")
    assert len(done) < 1999


def test_each_job_tells_how_many_images_are_done(monkeypatch: pytest.MonkeyPatch):
    seen = []
    monkeypatch.setattr(parallel.Progress, "update", lambda self, count=1: seen.append(count))
    each_image(lambda some: None, [[1, 2, 3], [4]], "jobs", count=len)
    assert sorted(seen) == [1, 3]


def test_a_pool_tells_how_many_jobs_are_done(monkeypatch: pytest.MonkeyPatch):
    seen = []
    monkeypatch.setattr(parallel.Progress, "update", lambda self: seen.append(1))
    monkeypatch.setattr(parallel, "_START_UP", 0)
    map_images(abs, [1, 2, 3], workers=2)
    assert len(seen) == 3


def test_one_thread_computes_on_a_gpu_while_jobs_read_beside_each_other(two_threads):
    together, where, modes = Barrier(2, timeout=60), [], []

    def compute() -> int:
        where.append(compute_on("cuda", current_thread))  # a part of it does not wait for itself
        modes.append(torch.is_inference_mode_enabled())
        return len(where)

    def work(job: int) -> int:
        together.wait()  # both have read
        with torch.inference_mode(job % 2 == 0):
            number = compute_on("cuda", compute)
        assert compute_on("cpu", current_thread) is current_thread()
        together.wait()  # neither waits for the other
        return number

    assert sorted(each_image(work, range(8), "jobs")) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert set(where) == {compute_on("cuda", current_thread)} != {current_thread()}
    assert sorted(modes) == [False] * 4 + [True] * 4


def test_what_fails_on_a_gpu_reaches_the_caller_and_ends_the_work(two_threads):
    asked = []

    def fail() -> None:
        asked.append(sleep(0.01))
        raise ValueError("no memory")

    for _ in range(2):
        with pytest.raises(ValueError, match="no memory"):
            each_image(lambda job: compute_on("cuda", fail), range(2000), "jobs")
    assert len(asked) < 100


def test_an_interrupt_ends_the_jobs_that_wait_for_a_gpu(two_threads, monkeypatch):
    def interrupted(self, count: int = 1) -> None:
        raise KeyboardInterrupt

    compute_on("cuda", int)  # the thread is there
    before, done = active_count(), []
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(parallel.Progress, "update", interrupted)
        each_image(
            lambda job: compute_on("cuda", lambda: done.append(sleep(0.05))), range(20), "jobs"
        )
    assert active_count() == before
    assert len(done) < 10
    assert each_image(lambda job: compute_on("cuda", lambda: job), [1, 2], "jobs") == [1, 2]


def _threads_of_torch(_: int) -> int:
    assert torch.isfinite(torch.rand(200, 200) @ torch.rand(200, 200)).all()
    return torch.get_num_threads()


def _process(_: int) -> int:
    return os.getpid()


class Machine:
    """A clock, and the cores of a process of which each step takes half a second."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, cores: int):
        self.wall, self.waited, self.idle, self.cores = 0.0, 0.0, 0.0, cores
        monkeypatch.setattr(parallel.time, "perf_counter", lambda: self.wall)
        monkeypatch.setattr(parallel, "_waiting_and_idle", lambda: (self.waited, self.idle))

    def steps(self, number: int, others: int) -> list[int]:
        """The threads of each step, beside as many busy processes."""
        used = []
        for _ in range(number):
            used.append(torch.get_num_threads())
            runnable = used[-1] + others
            self.wall += 0.5
            self.waited += 0.5 * used[-1] * max(1 - self.cores / runnable, 0)
            self.idle += 0.5 * max(self.cores - runnable, 0)
            self.training.after_step()
        return used


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch):
    def start(cores: int):
        torch.set_num_threads(cores)
        found = Machine(monkeypatch, cores)
        found.training = stack.enter_context(SpareCores())
        return found

    before = torch.get_num_threads()
    with ExitStack() as stack:
        yield start
    torch.set_num_threads(before)


def test_on_an_idle_machine_a_training_keeps_its_threads(machine):
    assert set(machine(2).steps(200, others=0)) == {2}


def test_a_training_leaves_cores_to_busy_processes_and_takes_them_back(machine):
    two = machine(2)
    assert two.steps(20, others=1) == [2] * 10 + [1] * 10
    assert two.steps(20, others=0) == [1] * 10 + [2] * 10


@pytest.mark.parametrize(("others", "threads"), [(1, [16, 15]), (8, [16, 10, 8]), (40, [16, 4, 1])])
def test_a_training_leaves_as_many_cores_as_others_take(machine, others, threads):
    used = machine(16).steps(500, others)
    assert [number for number, _ in groupby(used)] == threads


def test_a_training_has_its_threads_back_after_it():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with SpareCores():
            torch.set_num_threads(1)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_training_on_one_thread_tries_no_other(machine):
    assert set(machine(1).steps(100, others=3)) == {1}


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts how long threads wait")
def test_the_system_counts_how_long_threads_wait_for_a_core():
    before, _ = parallel._waiting_and_idle()
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(4)]
    try:
        os.sched_setaffinity(0, (cores := os.sched_getaffinity(0)))
        for other in others:
            os.sched_setaffinity(other.pid, {min(cores)})
        os.sched_setaffinity(0, {min(cores)})
        end = time.monotonic() + 10
        while parallel._waiting_and_idle()[0] - before < 0.1:
            assert time.monotonic() < end
    finally:
        os.sched_setaffinity(0, cores)
        for other in others:
            other.kill()
            other.wait()

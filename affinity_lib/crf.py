"""Fully connected CRF (dCRF) for one image, and for many over all cores (Sec. 3.2.1, 3.4)."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import islice
from multiprocessing import get_context
from typing import Any

import numpy as np
from pydensecrf.densecrf import DenseCRF2D

from affinity_lib.errors import InputError
from affinity_lib.progress import Progress

# How processes start, and the seconds of work that are worth a pool of them. A forked worker has
# the parent's imports and is there at once; elsewhere than on Linux forking is not safe.
_METHOD, _START_UP = ("fork", 0.5) if sys.platform == "linux" else ("spawn", 3.0)


@dataclass(frozen=True)
class CRFSettings:
    """Settings of `dense_crf`; the defaults are those of the released code.

    ``gaussian_sxy`` and ``bilateral_sxy`` are standard deviations in pixels, ``bilateral_srgb``
    in intensity levels (0..255); ``*_compat`` are Potts weights; ``iterations`` of mean-field
    inference; probabilities are clipped from below at ``clip`` before the logarithm.

    >>> CRFSettings(iterations=5).bilateral_sxy
    80.0
    """

    gaussian_sxy: float = 3.0
    gaussian_compat: float = 3.0
    bilateral_sxy: float = 80.0
    bilateral_srgb: float = 13.0
    bilateral_compat: float = 10.0
    iterations: int = 10
    clip: float = 1e-5

    def __post_init__(self) -> None:
        for name in ("gaussian_sxy", "bilateral_sxy", "bilateral_srgb", "clip"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} of the dCRF must be > 0, got {getattr(self, name)}")
        if self.iterations < 0:
            raise InputError(f"iterations of the dCRF must be >= 0, got {self.iterations}")


def dense_crf(
    image: np.ndarray, probabilities: np.ndarray, settings: CRFSettings | None = None
) -> np.ndarray:
    """Refine label probabilities along the edges of an image (Sec. 3.2.1 and 3.4).

    Args:
        image: RGB, uint8, (H, W, 3).
        probabilities: (L, H, W), one map per label present; need not sum to one, only the
            values between ``settings.clip`` and 1 matter.
        settings: default `CRFSettings()`.

    Returns:
        Probabilities (L, H, W), float32, that sum to one over the labels.

    Raises:
        InputError: a shape or a type does not fit.

    >>> image = np.zeros((4, 6, 3), np.uint8)
    >>> dense_crf(image, np.full((2, 4, 6), 0.5)).shape
    (2, 4, 6)
    """
    return PairwiseCRF(image, settings)(probabilities)


class PairwiseCRF:
    """The pairwise terms of one image, set up once and used for several unaries.

    Call it like `dense_crf` without the image.

    >>> crf = PairwiseCRF(np.zeros((4, 6, 3), np.uint8))
    >>> strong, weak = (crf(np.full((2, 4, 6), value)) for value in (0.9, 0.1))
    >>> strong.shape == weak.shape
    True
    """

    def __init__(self, image: np.ndarray, settings: CRFSettings | None = None) -> None:
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise InputError(
                f"the dCRF needs an RGB image (H, W, 3) of uint8, got {image.dtype} {image.shape}"
            )
        self.settings = settings or CRFSettings()
        self._image = np.ascontiguousarray(image)
        self._set_up: dict[int, DenseCRF2D] = {}

    def __call__(self, probabilities: np.ndarray) -> np.ndarray:
        """Probabilities (L, H, W) before -> after inference; see `dense_crf`."""
        height, width = self._image.shape[:2]
        if probabilities.ndim != 3 or probabilities.shape[1:] != (height, width):
            raise InputError(
                f"probabilities must be (L, {height}, {width}) like the image, got "
                f"{probabilities.shape}; resize them first"
            )
        count = len(probabilities)
        if count == 0 or not np.isfinite(probabilities).all():
            raise InputError(
                "probabilities must be finite maps of at least one label, got "
                + ("none" if count == 0 else "infinite or NaN values")
            )
        crf = self._pairwise(count)
        unary = -np.log(np.clip(probabilities, self.settings.clip, 1.0))
        crf.setUnaryEnergy(np.ascontiguousarray(unary.reshape(count, -1), dtype=np.float32))
        refined = np.array(crf.inference(self.settings.iterations), dtype=np.float32)
        return refined.reshape(count, height, width)

    def _pairwise(self, count: int) -> DenseCRF2D:
        if count not in self._set_up:
            height, width = self._image.shape[:2]
            s = self.settings
            crf = DenseCRF2D(width, height, count)
            crf.addPairwiseGaussian(sxy=s.gaussian_sxy, compat=s.gaussian_compat)
            crf.addPairwiseBilateral(
                sxy=s.bilateral_sxy,
                srgb=s.bilateral_srgb,
                rgbim=self._image,
                compat=s.bilateral_compat,
            )
            self._set_up[count] = crf
        return self._set_up[count]


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


def available_cores() -> int:
    """Cores that this process may use.

    >>> available_cores() >= 1
    True
    """
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


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
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)

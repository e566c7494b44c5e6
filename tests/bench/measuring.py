"""Time and memory of a call, and the machine that it was measured on."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from affinity_lib.training.cores import available_cores

_STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Measurement:
    """Median seconds of a call, and the most memory in bytes that it took on top of what the
    process held before (None where the system does not tell)."""

    seconds: float
    memory: int | None


def measure(call: Callable[[], Any], repeat: int) -> Measurement:
    """Median time of ``repeat`` calls and the peak of memory over them; the first of several calls
    is not counted.

    >>> measure(lambda: sum(range(100)), repeat=3).seconds > 0
    True
    """
    if repeat > 1:
        call()
    before = _start_peak()
    seconds = []
    for _ in range(repeat):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    memory = None if before is None else max(_kibibytes(_STATUS, "VmHWM") - before, 0)
    return Measurement(statistics.median(seconds), memory)


def describe_machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
    return {
        "processor": model,
        "cores": available_cores(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "mkl": torch.backends.mkl.is_available(),
    }


def free_memory() -> float:
    """Bytes that the system can still give; infinity where it does not tell."""
    if not Path("/proc/meminfo").exists():
        return float("inf")
    return _kibibytes(Path("/proc/meminfo"), "MemAvailable")


def _start_peak() -> int | None:
    """Start to watch the peak of resident memory; its value now, None where Linux does not tell."""
    clear = Path("/proc/self/clear_refs")
    if not os.access(clear, os.W_OK):
        return None
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    clear.write_text("5")
    return _kibibytes(_STATUS, "VmHWM")


def _kibibytes(path: Path, name: str) -> int:
    for line in path.read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise KeyError(name)

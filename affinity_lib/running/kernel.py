"""The kernel that the runner starts: ipykernel's own, but it never outlives the runner.

A runner that is killed cannot tell its kernel to stop, and a kernel that went on would write into
a run that has been started again. On Linux the system ends it, and the processes that it forked,
in the moment in which the runner dies; elsewhere ipykernel notices within a second.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with_parent() -> None:
    """Have the system kill this process when the thread that started it is gone (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    die_with_parent()
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=die_with_parent)
        if os.environ.get("JPY_PARENT_PID") != str(os.getppid()):
            sys.exit("the process that started this kernel is gone")
    runpy.run_module("ipykernel_launcher", run_name="__main__")

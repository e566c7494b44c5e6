"""Who may work in a run, and that nothing of a killed runner goes on."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fake_project import make_project, write_notebook

from affinity_lib.errors import InputError
from affinity_lib.running import locks

ENDLESS = """
import os, time
from pathlib import Path
child = os.fork()
if child:
    note = Path(run_dir) / "pids.txt"
    (note.parent / "new.txt").write_text(f"{os.getpid()} {child}")
    os.replace(note.parent / "new.txt", note)
time.sleep(600)
"""
RUN = "from affinity_lib.running import plan, runner; from pathlib import Path; import sys\n"
RUN += "runner.execute(plan.make_plan('tiny', Path(sys.argv[1])), sys.argv[2], only=['01'])"


def test_one_works_alone_or_several_beside_each_other(tmp_path):
    with locks.Hold(tmp_path) as first:
        assert first.alone
        for beside in (True, False):
            with pytest.raises(InputError, match="being run already"), locks.Hold(tmp_path, beside):
                pass
    with locks.Hold(tmp_path, beside=True) as first:
        first.share()
        with locks.Hold(tmp_path, beside=True) as second:
            assert not first.alone and not second.alone
        with pytest.raises(InputError, match="being run already"), locks.Hold(tmp_path):
            pass
    assert locks.inherited() == ()
    with locks.Hold(tmp_path) as last:
        assert last.alone and len(locks.inherited()) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends the kernel at once")
def test_kernel_and_its_children_are_gone_before_another_runner_works(tmp_path):
    folder, run = make_project(tmp_path / "project"), tmp_path / "run"
    write_notebook(folder / "01_walk.ipynb", "beta: float = None\n", [ENDLESS])
    runner = subprocess.Popen([sys.executable, "-c", RUN, folder, run], cwd=Path.cwd())
    while not (run / "pids.txt").exists():
        assert runner.poll() is None
        time.sleep(0.02)
    pids = [int(pid) for pid in (run / "pids.txt").read_text().split()]
    assert all(map(running, pids))
    runner.send_signal(signal.SIGKILL)
    runner.wait()
    with locks.Hold(run) as next_one:
        assert next_one.alone and not any(map(running, pids))


def running(pid: int) -> bool:
    """Whether a process still runs its program: one that the system is taking down does not."""
    try:
        state, *numbers = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (FileNotFoundError, ProcessLookupError):
        return False
    exiting = int(numbers[5]) & 0x4  # PF_EXITING of the flags
    return state not in "ZX" and not exiting

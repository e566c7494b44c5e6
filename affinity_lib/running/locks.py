"""Who works in a run: one runner alone, or several that share the images of one stage.

Two files of the run are locked with ``flock``, which the system undoes when a process ends, however
it ends. ``.lock`` is the runner's. ``.kernels.lock`` is held by its kernels as well: they inherit
it, so a runner that follows one which was killed waits until nothing of it writes any more.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Self

from affinity_lib.errors import InputError

if sys.platform != "win32":
    import fcntl

_inherited: list[int] = []


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file for a moment; waits while another process has it.

    Args:
        path: the file; folders above it are made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        _flock(file, "LOCK_EX")
        yield


class Hold:
    """The right to work in a run, until it is left: ``with Hold(run): ...``.

    Args:
        run: folder of the run.
        beside: be content to work beside others that are content with it, too.

    Raises:
        InputError: somebody else works there and does not share it.
    """

    def __init__(self, run: Path, beside: bool = False) -> None:
        self.run, self.beside = run, beside
        self.alone = False
        """Whether nobody else works in the run; so it is at the start, or never."""

    def __enter__(self) -> Self:
        self._files = [(self.run / name).open("a") for name in (".lock", ".kernels.lock")]
        try:
            with locked(self.run / ".entry.lock"):
                self._enter()
        except BaseException:
            self._close()
            raise
        _inherited.append(self._files[1].fileno())
        return self

    def _enter(self) -> None:
        runners, kernels = self._files
        self.alone = _flock(runners, "LOCK_EX", wait=False)
        if not self.alone and not (self.beside and _flock(runners, "LOCK_SH", wait=False)):
            raise InputError(f"{self.run} is being run already: wait, or give --run-dir")
        _flock(kernels, "LOCK_EX" if self.alone else "LOCK_SH")

    def share(self) -> None:
        """Let others in that are content to work beside this one."""
        with locked(self.run / ".entry.lock"):
            for file in self._files:
                _flock(file, "LOCK_SH")
        self.alone = False

    def __exit__(self, *_: object) -> None:
        _inherited.remove(self._files[1].fileno())
        self._close()

    def _close(self) -> None:
        for file in self._files:
            file.close()


def inherited() -> tuple[int, ...]:
    """The open files that a kernel is to inherit, so that what it works in stays locked."""
    return tuple(_inherited)


def _flock(file: IO[str], kind: str, wait: bool = True) -> bool:
    if sys.platform == "win32":
        return True
    try:
        fcntl.flock(file, getattr(fcntl, kind) | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True

"""How far a long loop is: one live line, which is gone when the loop ends.

Who looks decides where it is shown:

* a run by ``python -m affinity_lib``: the runner's terminal, whose descriptor the kernel inherits;
  a plain line every 30 s if it is none, and nothing where the environment variable ``CI`` is set;
* JupyterLab, Notebook 7, VS Code: below the cell that runs, where an empty output stays;
* a terminal, IPython's too: its last line;
* papermill, nbconvert, nbval: nobody, so nowhere.
"""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from threading import RLock, Timer
from typing import Any

from tqdm import tqdm

RUNNER = "AFFINITY_LIB_PROGRESS"
"""The environment variable that holds the runner's descriptor and how its line begins."""


class Progress(tqdm):
    """tqdm, shown where somebody looks, after two seconds, and gone when the loop ends.

    Args:
        iterable, desc, total, initial, unit, ...: as for tqdm.

    >>> [2 * number for number in Progress([1, 2], "doubling")]
    [2, 4]
    """

    monitor_interval = 0  # no thread that outlives the loop

    def __init__(self, *args: Any, **how: Any) -> None:
        self._show = screen()
        own = {"unit": "image", "delay": 2, "mininterval": 0.5, "miniters": 1, "leave": False}
        own |= {"disable": self._show is None, "ascii": False, "file": io.StringIO()}
        super().__init__(*args, **own | how)
        self._timer = Timer(self.delay, self._begin) if not self.disable and self.delay else None
        if self._timer:  # the first image may take long
            self._timer.daemon = True
            self._timer.start()

    def _begin(self) -> None:
        self.delay = 0
        self.refresh()

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Show the line; ``msg`` in its place, "" to take it away."""
        if msg is None and self.disable:  # closed meanwhile
            return False
        try:
            self._show(str(self) if msg is None else msg)
        except OSError:  # a full disk, a closed terminal: the work goes on
            self.disable = True
        return False

    def close(self) -> None:
        """Take the line away."""
        if getattr(self, "_timer", None):
            self._timer.cancel()
        super().close()


Progress.set_lock(RLock())  # of threads: no other process shows anything


def print_above(text: str) -> None:
    """Print at once, and in place of the line where both are on one terminal."""
    show = screen()
    if isinstance(show, _Terminal) and not show.head and sys.stdout.isatty():
        show("")
    print(text, flush=True)


@contextmanager
def shown_after(head: str, log: Callable[..., Any] = print) -> Iterator[None]:
    """Let the processes that are started meanwhile show how far they are.

    Args:
        head: how the line begins, which has been printed without its end.
        log: what has printed it; nothing is shown if it is not :func:`print`.
    """
    try:
        descriptor = -1 if log is not print or os.environ.get("CI") else os.dup(sys.stdout.fileno())
    except (OSError, ValueError):  # no file, or a closed one
        descriptor = -1
    if descriptor < 0:
        yield
        return
    os.environ[RUNNER] = f"{descriptor} {os.fstat(descriptor).st_ino} {head}"
    try:
        yield
    except BaseException:
        if os.isatty(descriptor):  # whoever failed may have left a line
            log(f"\r\033[K{head}", end=" ", flush=True)
        raise
    finally:
        del os.environ[RUNNER]
        os.close(descriptor)


def inherited() -> tuple[int, ...]:
    """The descriptors that a kernel needs to show how far it is."""
    value = os.environ.get(RUNNER)
    return (int(value.split()[0]),) if value else ()


def screen() -> Callable[[str], None] | None:
    """What shows a text in place of the one before; none for an empty one. None if nobody looks."""
    if value := os.environ.get(RUNNER):
        return _runners(value)
    shell = _shell()
    if hasattr(shell, "kernel"):
        return _cell(shell) if has_reader() else None
    return _terminal(sys.stderr.fileno(), "") if sys.stderr and sys.stderr.isatty() else None


def has_reader() -> bool:
    """Whether a person runs the cell that asks, in JupyterLab, Notebook 7 or VS Code.

    Papermill, nbconvert and nbval, and with them the runner, cannot answer an ``input()``.

    >>> has_reader()
    False
    """
    shell = _shell()
    message = shell.get_parent() if hasattr(shell, "kernel") else None
    return bool(message and message.get("content", {}).get("allow_stdin"))


def _shell() -> Any:
    return sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None


@cache
def _runners(value: str) -> Callable[[str], None] | None:
    number, node, head = value.split(" ", 2)
    try:
        if os.fstat(int(number)).st_ino != int(node):
            return None  # a process that has not inherited it, and another file of this number
    except OSError:
        return None
    return (_terminal if os.isatty(int(number)) else _Log)(int(number), head)


class _Terminal:
    """Rewrites the line of a terminal that begins with ``head``."""

    def __init__(self, descriptor: int, head: str):
        self.descriptor, self.head = descriptor, head

    def __call__(self, text: str) -> None:
        line = f"{self.head} ".lstrip()
        if text:
            width = (os.get_terminal_size(self.descriptor).columns or 80) - 1
            line = f"{self.head[: max(width - len(text) - 2, 0)]}  {text}".strip()[:width]
        os.write(self.descriptor, f"\r\033[K{line}".encode())


class _Log:
    """Writes a line every 30 s to what is no terminal, and ``head`` again when nothing follows."""

    def __init__(self, descriptor: int, head: str):
        self.descriptor, self.head = descriptor, head
        self.last, self.begun = time.monotonic(), True

    def __call__(self, text: str) -> None:
        if text and time.monotonic() - self.last >= 30:
            begin = "" if self.begun else f"{self.head} "
            os.write(self.descriptor, f"{begin}{text}\n".encode())
            self.last, self.begun = time.monotonic(), False
        elif not text and not self.begun:
            os.write(self.descriptor, f"{self.head} ".encode())
            self.begun = True


class _Cell:
    """A line below the cell that runs: one output, empty when nothing is under way."""

    def __init__(self, shell: Any):
        self.shell, self.cell = shell, ""  # the message that ran the cell which has the line
        shell.events.register("post_run_cell", lambda _: self(""))  # whatever a cell left open

    def __call__(self, text: str) -> None:
        cell = self.shell.get_parent()["header"]["msg_id"]
        begun, self.cell = cell == self.cell, cell if text else self.cell
        if begun or text:
            self.shell.display_pub.publish(
                {"text/plain": text}, transient={"display_id": f"progress of {cell}"}, update=begun
            )


_cell, _terminal = cache(_Cell), cache(_Terminal)

"""How far a long loop is: written by the loop to a small file, shown by whoever runs the notebook.

Without such a file, as in a notebook that is opened by hand, nothing is written or shown.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from threading import Event, Thread
from typing import Any, Self, TypeVar

from affinity_lib.data.files import write_aside

FILE = "AFFINITY_LIB_PROGRESS"
"""The environment variable that names the file."""

T = TypeVar("T")


class Progress:
    """Counts what is done of ``total`` and writes it down now and then; never fails.

    Args:
        what: the work, in one or two words.
        total: how much there is.
        done: how much of it was done before.
        unit: of what is counted.
        clock: seconds, rising.
    """

    def __init__(
        self,
        what: str,
        total: int,
        done: int = 0,
        unit: str = "images",
        clock: Callable[[], float] = time.monotonic,
    ):
        self.what, self.total, self.done, self.unit, self.clock = what, total, done, unit, clock
        self.path = os.environ.get(FILE, "")
        self._first, self._begin = done, clock()
        self._written = self._begin  # so that short work writes nothing

    def advance(self, count: int = 1) -> None:
        """So much more is done."""
        self.done += count
        if not self.path:
            return
        now = self.clock()
        try:
            if self.done >= self.total:
                if self._written > self._begin:
                    Path(self.path).unlink(missing_ok=True)
            elif now - self._written >= 0.5:
                rate = (self.done - self._first) / (now - self._begin)
                state = [self.what, self.done, self.total, self.unit, rate]
                with write_aside(self.path) as aside:
                    aside.write_text(json.dumps(state), encoding="utf-8")
                self._written = now
        except OSError:  # a full disk is told by what needs it
            pass


def track(items: Iterable[T], what: str, unit: str = "images") -> Iterator[T]:
    """The items, while their number is written down.

    >>> [2 * number for number in track([1, 2], "doubling")]
    [2, 4]
    """
    items = list(items)
    progress = Progress(what, len(items), unit=unit)
    for item in items:
        yield item
        progress.advance()


class Display:
    """Shows, while a stage runs, what its loops write down.

    On a terminal the stage's line is rewritten each second; elsewhere a line is printed every 30 s;
    with the environment variable ``CI`` set nothing is shown.

    Args:
        head: how the stage's line begins, which has been printed without its end.
        path: the file, made known to the processes that this one starts.
        say: prints; called like :func:`print`.
        terminal: whether ``say`` writes to one; found out if None.
        clock: seconds, rising.
    """

    def __init__(
        self,
        head: str,
        path: Path,
        say: Callable[..., Any] = print,
        terminal: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.head, self.path, self.say, self.clock = head, path, say, clock
        self.terminal = say is print and sys.stdout.isatty() if terminal is None else terminal
        self.quiet = bool(os.environ.get("CI"))
        self._shown, self._last = False, clock()
        self._over = Event()
        self._thread = Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        os.environ[FILE] = str(self.path)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        os.environ.pop(FILE, None)
        self.path.unlink(missing_ok=True)
        if self._shown:  # so that the stage's line can be ended where it began
            self.say(f"\r\033[K{self.head}" if self.terminal else self.head, end=" ", flush=True)

    def tick(self) -> None:
        """Show how far the stage is, if it is time to."""
        words = "" if self.quiet else line(self.path)
        if not words or (not self.terminal and self.clock() - self._last < 30):
            return
        if self.terminal:
            width = shutil.get_terminal_size().columns - 1
            head = self.head[: max(width - len(words) - 2, 0)]
            self.say(f"\r\033[K{f'{head}  {words}'[:width]}", end="", flush=True)
        else:
            text = f"{self.head}  {words}"
            self.say(text if self._shown else f"\n{text}", flush=True)
        self._shown, self._last = True, self.clock()

    def _run(self) -> None:
        while not self._over.wait(1):
            self.tick()


def line(path: Path) -> str:
    """What a file says, in words; empty if there is none.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "progress.json"
    >>> _ = file.write_text('["training", 1240, 3200, "images", 35.2]')
    >>> line(file)
    'training: 1,240 of 3,200 images, 35.2 images/s, 0:56 left'
    """
    try:
        what, done, total, unit, rate = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    minutes, seconds = divmod(round((total - done) / max(rate, 1e-9)), 60)
    hours, minutes = divmod(minutes, 60)
    left = f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
    pace = f"{rate:.{1 if rate >= 1 else 2}f}"
    return f"{what}: {done:,} of {total:,} {unit}, {pace} {unit}/s, {left} left"

"""What a stage's loops write down, and what the runner shows of it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from affinity_lib.training import progress
from affinity_lib.training.progress import Display, Progress, track


class Clock:
    """A clock that goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def file(tmp_path, monkeypatch) -> Path:
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv(progress.FILE, str(tmp_path / ".progress.json"))
    return tmp_path / ".progress.json"


def shown(file: Path, terminal: bool) -> tuple[Display, list[str], Clock]:
    said: list[str] = []
    clock = Clock()

    def say(text: str, end: str = "\n", flush: bool = False) -> None:
        said.append(text + end)

    return Display("[3/7] 03_affinitynet", file, say, terminal, clock), said, clock


def write(file: Path, done: int = 1240, rate: float = 35.2) -> None:
    file.write_text(json.dumps(["training", done, 3200, "images", rate]))


def test_a_loop_tells_how_many_are_done_how_fast_and_how_many_it_found_done(file):
    clock = Clock()
    counter = Progress("training", 3200, done=1200, clock=clock)
    clock.now += 2
    counter.advance(100)
    assert json.loads(file.read_text()) == ["training", 1300, 3200, "images", 50.0]
    assert progress.line(file) == "training: 1,300 of 3,200 images, 50.0 images/s, 0:38 left"


def test_a_loop_writes_twice_a_second_at_most_and_nothing_when_it_is_short(file):
    clock = Clock()
    counter = Progress("CAMs", 100, clock=clock)
    seen = []
    for _ in range(99):
        clock.now += 0.125
        counter.advance()
        seen.append(file.read_text() if file.exists() else "")
    assert seen[:3] == [""] * 3 and len(set(seen[3:])) == 24
    counter.advance()
    assert not file.exists()


def test_a_short_loop_inside_of_a_long_one_leaves_its_file_alone(file):
    write(file)
    assert list(track("abc", "features")) == ["a", "b", "c"]
    assert progress.line(file).startswith("training: 1,240")


def test_a_notebook_opened_by_hand_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.delenv(progress.FILE, raising=False)
    monkeypatch.chdir(tmp_path)
    clock = Clock()
    counter = Progress("CAMs", 9, clock=clock)
    clock.now += 60
    counter.advance()
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_written_disturbs_nobody(tmp_path, monkeypatch):
    (tmp_path / "not a folder").touch()
    monkeypatch.setenv(progress.FILE, str(tmp_path / "not a folder" / "file"))
    clock = Clock()
    counter = Progress("CAMs", 9, clock=clock)
    clock.now += 60
    counter.advance()
    assert counter.done == 1


def test_time_left_is_told_in_hours_when_it_takes_hours_and_slow_work_in_hundredths(file):
    write(file, done=200, rate=0.25)
    assert progress.line(file) == "training: 200 of 3,200 images, 0.25 images/s, 3:20:00 left"


def test_a_terminal_has_one_line_that_is_rewritten(file, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    display, said, _ = shown(file, terminal=True)
    display.tick()
    assert said == []
    with display:
        assert os.environ[progress.FILE] == str(file)
        for done in (1240, 1300):
            write(file, done)
            display.tick()
    assert [text.count("\n") for text in said] == [0] * len(said)
    assert said[0] == (
        "\r\033[K[3/7] 03_affinitynet  training: 1,240 of 3,200 images, 35.2 images/s, 0:56 left"
    )
    assert said[-1] == "\r\033[K[3/7] 03_affinitynet "
    assert not file.exists() and progress.FILE not in os.environ


def test_a_narrow_terminal_is_not_wrapped(file, monkeypatch):
    display, said, _ = shown(file, terminal=True)
    write(file)
    for width in ("70", "40"):
        monkeypatch.setenv("COLUMNS", width)
        display.tick()
    first, second = (text.removeprefix("\r\033[K") for text in said)
    assert first == "[3/7] 03_a  training: 1,240 of 3,200 images, 35.2 images/s, 0:56 left"
    assert len(second) == 39


def test_elsewhere_a_plain_line_comes_every_thirty_seconds(file):
    display, said, clock = shown(file, terminal=False)
    write(file)
    for _ in range(65):
        clock.now += 1
        display.tick()
    text = "[3/7] 03_affinitynet  training: 1,240 of 3,200 images, 35.2 images/s, 0:56 left\n"
    assert said == [f"\n{text}", text]


def test_continuous_integration_is_left_quiet(file, monkeypatch):
    monkeypatch.setenv("CI", "true")
    write(file)
    for terminal in (True, False):
        display, said, clock = shown(file, terminal)
        clock.now += 60
        display.tick()
        assert said == []

"""Where a loop shows how far it is, and that nothing of it stays."""

from __future__ import annotations

import os
import pty
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from types import SimpleNamespace

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_notebook

from affinity_lib.data import progress
from affinity_lib.data.progress import Progress

HEAD = "[3/7] 03_affinitynet"


class Clock:
    """A clock that goes on when it is told to, and a timer that goes off when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0
        self.timers: list[tuple[float, Callable[[], None]]] = []

    def __call__(self) -> float:
        return self.now

    def timer(self, seconds: float, function: Callable[[], None]) -> SimpleNamespace:
        self.timers.append((self.now + seconds, function))
        return SimpleNamespace(start=lambda: None, cancel=self.timers.clear)

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        for _, function in [due for due in self.timers if due[0] <= self.now]:
            self.timers.clear()
            function()


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("tqdm.std.time", clock)
    monkeypatch.setattr(progress, "Timer", clock.timer)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=clock))
    return clock


class Reader:
    """The other end of what the runner writes to."""

    def __init__(self, reading: int, writing: int):
        self.reading, self.writing = reading, writing
        self.text = ""

    def new(self) -> str:
        """What was written since the last call: up to a mark, because a terminal takes its time."""
        os.write(self.writing, b"\0")
        text = b""
        while not text.endswith(b"\0"):
            text += os.read(self.reading, 100_000)
        self.text += text[:-1].decode()
        return text[:-1].decode()

    @contextmanager
    def stage(self) -> Iterator[None]:
        """A stage that the runner runs, whose output this is."""
        with open(self.writing, "w", buffering=1, closefd=False) as out, redirect_stdout(out):
            print(HEAD, end=" ", flush=True)
            assert self.new() == f"{HEAD} "
            with progress.shown_after(HEAD):
                yield
            print("...")


@pytest.fixture(params=[pty.openpty, os.pipe], ids=["terminal", "log"])
def runner(request, monkeypatch) -> Iterator[Reader]:
    """What the runner writes to: a terminal, or none."""
    monkeypatch.delenv("CI", raising=False)
    ends = Reader(*request.param())
    if os.isatty(ends.writing):
        attributes = termios.tcgetattr(ends.writing)
        attributes[1] &= ~termios.OPOST  # what is read is what was written
        termios.tcsetattr(ends.writing, termios.TCSANOW, attributes)
        termios.tcsetwinsize(ends.writing, (24, 120))
    yield ends
    os.close(ends.reading)
    os.close(ends.writing)


on_a_terminal = pytest.mark.parametrize("runner", [pty.openpty], indirect=True)
in_a_log = pytest.mark.parametrize("runner", [os.pipe], indirect=True)


@on_a_terminal
def test_a_terminal_has_one_line_that_is_rewritten_and_ends_as_it_began(runner, clock):
    with runner.stage(), Progress(desc="training", total=3200, initial=1200) as bar:
        clock.sleep(2)
        bar.update(100)
        assert runner.new().split("\r\033[K")[1:] == [
            f"{HEAD}  training:  38%|███▊      | 1200/3200 [00:02<?, ?image/s]",
            f"{HEAD}  training:  41%|████      | 1300/3200 [00:02<00:37, 50.00image/s]",
        ]
        clock.sleep(0.25)
        bar.update(10)
        assert runner.new() == ""
        clock.sleep(0.25)
        bar.update(10)
        assert runner.new().startswith(f"\r\033[K{HEAD}  training:  41%|████▏     | 1320/3200 [")
    assert runner.new() == f"\r\033[K{HEAD} ...\n"
    assert progress.RUNNER not in os.environ


def test_a_loop_of_less_than_two_seconds_shows_nothing(runner, clock):
    with runner.stage():
        for _ in Progress(range(19), "evaluation"):
            clock.sleep(0.1)
    assert runner.new() == "...\n"


@on_a_terminal
def test_a_slow_first_image_is_waited_for_with_a_line(runner, clock):
    with runner.stage():
        for _ in Progress(range(3), "CAMs"):
            clock.sleep(2)
            assert runner.new().endswith("CAMs:   0%|          | 0/3 [00:02<?, ?image/s]")
            break


@on_a_terminal
def test_a_narrow_terminal_is_not_wrapped(runner, clock):
    shown = []
    with runner.stage(), Progress(desc="CAMs", total=100) as bar:
        for width in (70, 40):
            termios.tcsetwinsize(runner.writing, (24, width))
            clock.sleep(3)
            bar.update()
            shown.append(runner.new().split("\r\033[K")[-1])
    assert shown[0].startswith("[3/7] 03_af  CAMs: ") and shown[0].endswith("s/image]")
    assert [len(line) for line in shown] == [69, 39]


@in_a_log
def test_elsewhere_a_plain_line_comes_every_thirty_seconds(runner, clock):
    with runner.stage():
        for _ in Progress(range(650), "CAMs"):
            clock.sleep(0.1)
        for _ in Progress(range(10), "evaluation"):
            clock.sleep(0.1)
    runner.new()
    assert [line.split("|")[0] for line in runner.text.split("\n")] == [
        f"{HEAD} CAMs:  47%",
        f"{HEAD} CAMs:  94%",
        f"{HEAD} ...",
        "",
    ]


def test_continuous_integration_is_left_quiet(runner, clock, monkeypatch):
    monkeypatch.setenv("CI", "true")
    with runner.stage():
        assert progress.inherited() == ()
        for _ in Progress(range(2), "CAMs"):
            clock.sleep(60)
    assert runner.new() == "...\n"


@on_a_terminal
def test_a_stage_that_dies_in_a_loop_leaves_the_runners_line_clean(runner, clock):
    with pytest.raises(RuntimeError), runner.stage():
        bar = Progress(desc="CAMs", total=9)
        clock.sleep(2)
        raise RuntimeError("its kernel died")
    bar.disable = True
    assert runner.new().endswith(f"\r\033[K{HEAD} ")


@pytest.mark.parametrize("kind", ["full", "closed"])
def test_work_goes_on_where_nothing_can_be_shown_any_more(kind, clock, monkeypatch):
    reading, writing = os.pipe()
    if kind == "full":
        os.dup2(os.open("/dev/full", os.O_WRONLY), writing)
    monkeypatch.setenv(progress.RUNNER, f"{writing} {os.fstat(writing).st_ino} {HEAD}")
    os.close(reading)
    done = []
    for k in Progress(range(3), "CAMs"):
        clock.sleep(40)
        done.append(k)
    os.close(writing)
    assert done == [0, 1, 2]


def test_another_file_under_the_runners_number_is_left_alone(tmp_path, monkeypatch, clock):
    with (tmp_path / "own").open("w") as own, (tmp_path / "runner").open("w") as other:
        node = os.fstat(other.fileno()).st_ino
        monkeypatch.setenv(progress.RUNNER, f"{own.fileno()} {node} {HEAD}")
        for _ in Progress(range(3), "CAMs"):
            clock.sleep(40)
    assert (tmp_path / "own").read_text() == ""


def test_a_script_shows_it_on_a_terminal_alone_and_prints_above_it(clock):
    ends = Reader(*pty.openpty())
    with (
        open(ends.writing, "w", buffering=1) as terminal,
        redirect_stdout(terminal),
        redirect_stderr(terminal),
        Progress(desc="training", total=8) as bar,
    ):
        clock.sleep(2)
        bar.update()
        assert ends.new().startswith("\r\033[Ktraining:")
        progress.print_above("epoch 1")
        assert ends.new() == "\r\033[Kepoch 1\r\n"
    os.close(ends.reading)


def test_without_a_terminal_a_script_shows_nothing(clock, capfd):
    for _ in Progress(range(3), "CAMs"):
        clock.sleep(60)
    assert capfd.readouterr() == ("", "")


# What a front end shows and saves is what nbclient makes of the kernel's messages; it is a person's
# if an input() can be answered.
IMPORTS = "from affinity_lib.data.progress import Progress\nAT_ONCE = dict(delay=0, mininterval=0)"
WITH_OTHERS = """
print("before")
display({"text/plain": "figure"}, raw=True, display_id="mine")
with Progress(desc="training", total=9, **AT_ONCE) as bar:
    for k in range(3):
        bar.update(3)
        print("epoch", k)
        display({"text/plain": f"figure {k}"}, raw=True, display_id="mine", update=True)
print("after")
k
"""
ALONE = "for image in Progress(range(3), 'CAMs', **AT_ONCE): pass"
TWICE = f"{ALONE}\nprint('between')\n{ALONE}"
FAILING = "for image in Progress(range(3), 'CAMs', **AT_ONCE): 1 / (1 - image)"
NESTED = f"for k in Progress(range(2), 'outer', **AT_ONCE):\n    {ALONE}"
CLEARED = f"print('gone')\nfor image in Progress(range(3), 'CAMs', **AT_ONCE): clear()\n{ALONE}"
LOOPS = [WITH_OTHERS, ALONE, TWICE, FAILING, NESTED, CLEARED]


class FrontEnd(NotebookClient):
    """Takes down each line that is shown on the way."""

    def __init__(self, *cells: str, person: bool):
        imports = f"{IMPORTS}\nfrom IPython.display import clear_output as clear"
        cells = [new_code_cell(source) for source in (imports, *cells)]
        super().__init__(new_notebook(cells=cells), allow_errors=True, record_timing=False)
        self.person, self.shown = person, []

    def process_message(self, msg, cell, cell_index):
        if "data" in msg["content"]:
            self.shown.append(msg["content"]["data"]["text/plain"])
        return super().process_message(msg, cell, cell_index)

    def run(self) -> list[list[NotebookNode]]:
        """The outputs that the notebook ends with."""
        with self.setup_kernel():
            self.kc.allow_stdin = self.person
            for index, cell in enumerate(self.nb.cells):
                self.execute_cell(cell, index)
        nbformat.validate(self.nb)
        return [joined(cell.outputs) for cell in self.nb.cells[1:]]


def joined(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """The outputs but for empty ones, with a stream as one, as front ends keep it."""
    whole: list[NotebookNode] = []
    for output in outputs:
        if output.get("data") == {"text/plain": ""}:
            continue
        if whole and output.get("name") == whole[-1].get("name") is not None:
            whole[-1].text += output.text
        else:
            whole.append(output)
    return whole


def test_a_person_sees_each_loop_and_no_word_of_it_stays_among_a_cells_outputs():
    machine = FrontEnd(*LOOPS, person=False)
    expected = machine.run()
    assert not [text for text in machine.shown if "|" in text]

    person = FrontEnd(*LOOPS, person=True)
    outputs = person.run()
    for outputs_of_a_cell in (*outputs, *expected):
        for output in outputs_of_a_cell:
            output.pop("traceback", None)
    assert outputs == expected
    assert [[output["output_type"] for output in cell] for cell in outputs] == [
        ["stream", "display_data", "stream", "execute_result"], [], ["stream"], ["error"], [], [],
    ]  # fmt: skip
    assert "figure 2" in str(outputs[0]) and "figure 1" not in str(outputs[0])
    seen = [text.split("|")[0] for text in person.shown if "|" in text]
    assert seen[:4] == ["training:   0%", "training:  33%", "training:  67%", "training: 100%"]
    assert {text.split(":")[0] for text in seen} == {"training", "CAMs", "outer"}


@pytest.mark.parametrize("person", [True, False])
def test_a_notebook_knows_whether_a_person_runs_it(person):
    asked = "from affinity_lib.data.progress import has_reader\nhas_reader()"
    ((answer,),) = FrontEnd(asked, person=person).run()
    assert answer["data"]["text/plain"] == str(person)


def test_all_loops_of_a_cell_share_one_output():
    front_end = FrontEnd(NESTED, ALONE, person=True)
    front_end.run()
    empty = {"text/plain": ""}
    assert [[o["data"] for o in cell.outputs] for cell in front_end.nb.cells[1:]] == [[empty]] * 2


def test_a_loop_in_the_cell_that_imports_it_takes_nothing_else_away():
    front_end = FrontEnd(f"print('before')\n{IMPORTS}\n{ALONE}", person=True)
    del front_end.nb.cells[0]
    front_end.nb.cells.insert(0, new_code_cell(""))
    (before,) = front_end.run()[0]
    assert before["text"] == "before\n"
    assert front_end.nb.cells[1].outputs[-1]["data"] == {"text/plain": ""}
    assert [text.split("|")[0] for text in front_end.shown][1:3] == ["CAMs:  33%", "CAMs:  67%"]


FIT = """
import torch
from pathlib import Path
from affinity_lib.training.loop import fit
from affinity_lib.training.recipe import Recipe
def loss(net, batch):
    return net.backbone(batch[0]).square().mean()
def train():
    net = torch.nn.Sequential()
    net.backbone = torch.nn.Linear(1, 1)
    samples = [(torch.ones(1), 0)] * 4
    fit(net, samples, loss, Recipe(epochs=150, batch_size=1, lr=0.01), Path("state.pt"), report_every=1)
"""


def test_a_training_that_is_interrupted_in_a_kernel_goes_on_where_it_was(tmp_path):
    class Interrupting(FrontEnd):
        interrupted = False

        def process_message(self, msg, cell, cell_index):
            if "epoch   3 of" in msg["content"].get("text", "") and not self.interrupted:
                self.interrupted = True
                os.kill(self.km.provisioner.pid, 2)
            return super().process_message(msg, cell, cell_index)

    front_end = Interrupting(FIT, "train()", "train()", person=True)
    front_end.resources = {"metadata": {"path": str(tmp_path)}}
    _, first, again = front_end.run()
    assert first[-1]["ename"] == "KeyboardInterrupt"
    last = int(first[0]["text"].splitlines()[-1].split()[1])
    next_one = int(again[0]["text"].splitlines()[0].split()[1])
    assert next_one - last in (1, 2)  # 2: saved when the interrupt came, and not yet said
    assert next_one < 150
    assert "epoch 150 of 150" in again[0]["text"]

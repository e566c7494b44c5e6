"""A lesson opened by hand: a real JupyterLab in a real browser."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import Thread

import nbformat
import papermill
import pytest
from browser import CHROMIUM, FLAGS
from scenes import draw_walk
from tiny import TINY

from affinity_lib.data.paths import find_root
from affinity_lib.running import runner
from affinity_lib.running.plan import make_plan
from affinity_lib.showing.widget import WalkPicture

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed")

STEM = "01_class_activation_maps"
EPOCHS = 200
LINE = re.compile(r"training: +(\d+)%\|.*\d+/\d+ \[.*<.*image")


@pytest.fixture(scope="module")
def lesson(tmp_path_factory) -> Path:
    """The lesson with the parameters of a tiny run, not executed yet."""
    folder = tmp_path_factory.mktemp("lesson")
    values = TINY | {"data_root": str(folder / "data"), "cam_epochs": EPOCHS}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        plan = make_plan("toy").with_settings(values)
        run = runner.execute(plan, folder / "run", only=["00"])
        prepare = partial(papermill.execute_notebook, prepare_only=True)
        patch.setattr("papermill.execute_notebook", prepare)
        runner.execute(plan, run, only=["01"])
    notebook = nbformat.read(run / "notebooks" / f"{STEM}.ipynb", as_version=4)
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    notebook.metadata.pop("papermill", None)
    path = folder / "notebooks" / "lesson.ipynb"
    path.parent.mkdir()
    nbformat.write(notebook, path)
    return path


@pytest.fixture(scope="module")
def lab(lesson: Path) -> Iterator[str]:
    """The address of a JupyterLab that has the lesson, started as ``make lab`` starts it."""
    home = lesson.parents[1] / "home"
    own = ("HOME", "IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")
    environment = os.environ | dict.fromkeys(own, str(home))
    environment |= {"PYTHONPATH": str(find_root()), "OMP_NUM_THREADS": "1"}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    makefile = (find_root() / "Makefile").read_text(encoding="utf-8")
    of_make = re.search(r"/jupyter (lab .*)", makefile)[1].split()
    command = [sys.executable, "-m", "jupyter", *of_make, "--no-browser", f"--port={port}"]
    command += ["--ServerApp.port_retries=0", "--IdentityProvider.token="]
    server = subprocess.Popen(
        command, cwd=lesson.parents[1], env=environment, stderr=subprocess.PIPE, text=True
    )
    try:
        for line in server.stderr:
            if f":{port}/lab" in line:
                break
        else:
            pytest.fail("JupyterLab did not start")
        Thread(target=server.stderr.read, daemon=True).start()
        yield f"http://127.0.0.1:{port}/lab/tree/{lesson.name}"
    finally:
        server.terminate()
        server.wait()


class Page:
    """What a person does with the lesson."""

    def __init__(self, page, lesson: Path):
        self.page, self.lesson = page, lesson

    def run_all(self) -> None:
        self.page.get_by_role("menuitem", name="Run", exact=True).click()
        self.page.get_by_role("menuitem", name="Run All Cells", exact=True).click()

    def interrupt(self) -> None:
        self.page.get_by_role("menuitem", name="Kernel", exact=True).click()
        self.page.get_by_role("menuitem", name="Interrupt Kernel").click()

    def wait_for(self, text: str | re.Pattern) -> str:
        found = self.page.get_by_text(text).last
        found.wait_for(state="attached")
        return found.inner_text()

    def wait_for_the_end(self) -> None:
        """No cell runs or waits."""
        self.page.wait_for_function("() => !document.body.innerText.includes('[*]:')")

    def lines(self) -> list[str]:
        return [line.inner_text() for line in self.page.get_by_text(LINE).all()]

    def saved(self) -> list[dict]:
        """The code cells of the lesson, once they are written to the disk."""
        before = self.lesson.stat().st_mtime_ns
        with self.page.expect_response(
            lambda answer: answer.request.method == "PUT" and self.lesson.name in answer.url
        ):
            self.page.keyboard.press("Control+s")
        assert self.lesson.stat().st_mtime_ns > before
        notebook = json.loads(self.lesson.read_text(encoding="utf-8"))
        assert set(notebook["metadata"]) == {"kernelspec", "language_info"}
        assert not any(cell["metadata"] for cell in notebook["cells"])
        return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


@contextmanager
def opened(address: str, notebook: Path, profile: Path) -> Iterator[Page]:
    """A notebook as a person opens it in a browser."""
    from playwright.sync_api import sync_playwright

    with (
        sync_playwright() as playwright,
        playwright.chromium.launch_persistent_context(
            profile,
            executable_path=CHROMIUM,
            args=FLAGS,
            viewport={"width": 1000, "height": 12_000},  # all cells are drawn
        ) as browser,
    ):
        page = browser.pages[0]
        page.set_default_timeout(120_000)
        page.goto(f"{address}?reset")  # not what another test had open
        page.get_by_text("| Idle").wait_for()
        page.locator(".jp-Notebook .jp-Cell:visible").first.click()
        yield Page(page, notebook)


@pytest.fixture
def page(lab: str, lesson: Path, tmp_path: Path) -> Iterator[Page]:
    with opened(lab, lesson, tmp_path) as page:
        yield page


SHOW = """
import json
from pathlib import Path
from affinity_lib.showing.widget import WalkPicture
WalkPicture(json.loads(Path("walk.json").read_text()), Path("walk.png").read_bytes())
""".strip()


@pytest.fixture
def walk_page(lab: str, lesson: Path, tmp_path: Path) -> Iterator[Page]:
    """A notebook that shows a walk."""
    pytest.importorskip("anywidget", reason="anywidget is not installed")
    picture = WalkPicture.of(*draw_walk(tmp_path / "walk"), beta=8, t=64)
    lesson.with_name("walk.json").write_text(json.dumps(picture.data))
    lesson.with_name("walk.png").write_bytes(picture.png)
    notebook = nbformat.read(lesson, as_version=4)
    notebook.cells = [nbformat.v4.new_code_cell(source) for source in (SHOW, "'below'")]
    path = lesson.with_name("walk.ipynb")
    nbformat.write(notebook, path)
    with opened(lab.replace(lesson.name, path.name), path, tmp_path / "profile") as page:
        yield page


def texts(cells: list[dict]) -> str:
    return "".join("".join(o.get("text", "")) for cell in cells for o in cell["outputs"])


def test_a_lesson_shows_how_far_it_is_goes_on_after_an_interrupt_and_saves_no_word_of_it(
    page: Page,
):
    page.run_all()
    first = page.wait_for(LINE)
    page.wait_for(re.compile(rf"epoch +\d+ of {EPOCHS}"))
    page.wait_for(re.compile(rf"training: +(?!{LINE.match(first)[1]}%)\d+%\|"))  # it moves
    page.interrupt()
    page.wait_for("KeyboardInterrupt")
    page.wait_for_the_end()
    assert page.lines() == []
    cells = page.saved()
    assert "image/s" not in json.dumps(cells)
    reached = int(re.findall(rf"epoch +(\d+) of {EPOCHS}", texts(cells))[-1])

    page.run_all()
    page.wait_for(f"epoch {EPOCHS} of {EPOCHS}")
    page.wait_for_the_end()
    assert page.lines() == []
    cells = page.saved()
    assert "image/s" not in json.dumps(cells) and all(cell["execution_count"] for cell in cells)
    later = [int(epoch) for epoch in re.findall(rf"epoch +(\d+) of {EPOCHS}", texts(cells))]
    assert reached < later[0] and later[-1] == EPOCHS
    kinds = {output["output_type"] for cell in cells for output in cell["outputs"]}
    assert kinds == {"stream", "execute_result", "display_data"}
    drawn = [o["data"] for c in cells for o in c["outputs"] if o["output_type"] == "display_data"]
    assert all(set(data) > {"text/plain"} or not "".join(data["text/plain"]) for data in drawn)


def test_a_walk_can_be_touched_and_what_is_saved_is_a_still_picture(walk_page: Page):
    walk_page.run_all()
    walk_page.wait_for("'below'")
    photograph = walk_page.page.locator('canvas[data-panel="photograph"]')
    photograph.click(position={"x": 2, "y": 2})
    walk_page.wait_for(re.compile(r"Row 1 of 12, column 1 of 12"))
    for key in ("ArrowDown", "ArrowDown", "ArrowRight"):  # which leave the notebook's cell alone
        photograph.press(key)
    walk_page.wait_for(re.compile(r"Row 3 of 12, column 2 of 12"))
    shown, _ = walk_page.saved()  # no state of a widget in the notebook's metadata, either
    (output,) = shown["outputs"]
    assert "image/png" in output["data"] and "state" not in json.dumps(output)

"""The walk that is touched: its arithmetic in node, its page in Chromium, its still picture."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import nbformat
import numpy as np
import playwright
import pytest
import torch
from browser import CHROMIUM
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image
from scenes import draw_walk, released_walk

from affinity_lib.affinity import half_plane_offsets
from affinity_lib.cam import resize, to_labels
from affinity_lib.evaluation import image_miou
from affinity_lib.plots import class_colors
from affinity_lib.random_walk import chebyshev_coefficients, random_walk
from affinity_lib.running.manifest import FORMAT
from affinity_lib.running.results import save_results
from affinity_lib.showing import widget
from affinity_lib.showing.report import write_report
from affinity_lib.showing.widget import WalkPicture, embedded
from affinity_lib.stages.walk import Walk

OFFSETS = half_plane_offsets(5)
NODE = shutil.which("node") or shutil.which(
    "node", path=Path(playwright.__file__).parent / "driver"
)
needs_node = pytest.mark.skipif(not NODE, reason="node is not installed")
needs_chromium = pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed")
CAPTION = "*One cell and where the walk carries it.*"


def in_node(expression: str, given: object) -> object:
    """What an expression over ``given`` is with the functions of ``walk.js``."""
    source = widget.SCRIPT.read_text(encoding="utf-8")
    source += (
        f"\nconst given = {json.dumps(given)};\nconst plain = (maps) => maps.map((m) => [...m]);"
    )
    source += f"\nconsole.log(JSON.stringify({expression}));"
    command = [NODE, "--input-type=module", "-"]
    done = subprocess.run(command, input=source, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


WALKED = """(() => {
  const distances = split(halves(given.distances), given.grid);
  const T = transition({ ...given, distances }, given.beta);
  return given.maps.map((map) => [...walk(T, Float64Array.from(map), given.t)]);
})()"""


def walked_in_node(maps, affinity, offsets, beta: float, t: int) -> np.ndarray:
    """The walk of ``walk.js`` from what the notebook hands to it."""
    given = {
        "grid": list(affinity.shape[1:]),
        "offsets": offsets.tolist(),
        "distances": widget._distances(affinity, offsets),
        "maps": maps.flatten(1).tolist(),
        "beta": beta,
        "t": t,
    }
    return np.array(in_node(WALKED, given)).reshape(maps.shape)


@pytest.fixture(scope="module")
def scene(tmp_path_factory) -> tuple[Walk, str]:
    """A walk, and an image of two things."""
    return draw_walk(tmp_path_factory.mktemp("walk"))


@pytest.fixture(scope="module")
def picture(scene: tuple[Walk, str]) -> WalkPicture:
    return WalkPicture.of(*scene, beta=8, t=64)


@needs_node
def test_its_walk_is_the_released_one():
    kept, affinity = released_walk()
    walked = walked_in_node(kept["cam"], affinity, OFFSETS, int(kept["beta"]), int(kept["t"]))
    np.testing.assert_allclose(walked, kept["random_walk"], atol=1e-4)


@needs_node
@pytest.mark.parametrize("t", [0, 1, 2, 31, 256, 1000])
@pytest.mark.parametrize(("size", "beta"), [((9, 7), 8), ((2, 3), 48)])
def test_its_walk_is_the_librarys(size: tuple[int, int], beta: float, t: int):
    generator = torch.Generator().manual_seed(t)
    affinity = torch.rand(34, *size, generator=generator) ** 0.1
    maps = torch.rand(2, *size, generator=generator)
    walked = walked_in_node(maps, affinity, OFFSETS, beta, t)
    expected = random_walk(maps, affinity, OFFSETS, beta, t)
    np.testing.assert_allclose(walked, expected, atol=1e-4)
    assert t or (walked == maps.double().numpy()).all()


@needs_node
@pytest.mark.parametrize("t", [0, 1, 2, 31, 256, 1000])
def test_its_coefficients_are_the_librarys(t: int):
    found = in_node("coefficients(given)", t)
    np.testing.assert_allclose(found, chebyshev_coefficients(t), atol=1e-9)


@needs_node
@pytest.mark.parametrize("alpha", [1, 16])
@pytest.mark.parametrize("pooling", [False, True])
def test_it_starts_where_the_librarys_walk_starts(scene, pooling: bool, alpha: float):
    walk, image_id = scene
    own = Walk(walk.net, walk.inputs, walk.cams, OFFSETS, alpha, pooling=pooling)
    data = WalkPicture.of(own, image_id, beta=8, t=64).data
    found = np.array(in_node(f"plain(start(decode(given), {alpha}))", data))
    _, expected = own.start(image_id)
    np.testing.assert_allclose(found, expected.flatten(1), atol=1e-5)


@needs_node
def test_its_labels_and_their_iou_are_those_of_the_notebooks(scene, picture: WalkPicture):
    walk, image_id = scene
    expression = """(() => {
      const picture = decode(given);
      const T = transition(picture, given.beta);
      const maps = start(picture, given.alpha).map((map) => walk(T, map, given.t));
      const labels = labelsOf(maps.map((map) => resize(map, given.grid, given.size)), given.tags);
      return { truth: [...picture.truth], labels: [...labels], scores: [...iou(picture.truth, labels)] };
    })()"""
    found = in_node(expression, picture.data)
    mask = walk.inputs.data.mask(image_id)
    tags, walked = walk.walked(image_id, 8, 64)
    labels = to_labels(resize(walked, mask.shape), tags).numpy()
    assert found["truth"] == mask.ravel().tolist()
    assert (np.array(found["labels"]) == labels.ravel()).mean() > 0.995
    own = np.array(found["labels"]).reshape(mask.shape)
    mean = 100 * np.mean([score for _, score in found["scores"]])
    assert mean == pytest.approx(image_miou(mask, own, 4))


@needs_node
def test_void_counts_for_no_label():
    scores = in_node("[...iou(given[0], given[1])]", [[0, 1, 1, 255], [0, 1, 2, 3]])
    assert dict(scores) == {0: 1, 1: 0.5, 2: 0}


def test_without_a_reader_it_is_a_still_picture(picture: WalkPicture):
    bundle = picture._repr_mimebundle_()
    assert set(bundle) == {"text/plain", "image/png", widget.MIME}
    still = Image.open(io.BytesIO(base64.b64decode(bundle["image/png"])))
    assert still.width > 500 and len(bundle["image/png"]) < 60_000


def test_a_reader_with_anywidget_gets_the_widget_and_files_keep_the_picture(monkeypatch, picture):
    pytest.importorskip("anywidget", reason="anywidget is not installed")
    monkeypatch.setattr(widget, "has_reader", lambda: True)
    bundle = picture._repr_mimebundle_()
    view = bundle.pop("application/vnd.jupyter.widget-view+json")
    assert picture._repr_mimebundle_()["application/vnd.jupyter.widget-view+json"] == view
    assert {"image/png", widget.MIME} < set(bundle)


def test_a_reader_without_anywidget_sees_the_picture(monkeypatch, picture: WalkPicture):
    monkeypatch.setattr(widget, "has_reader", lambda: True)
    monkeypatch.setattr(widget, "find_spec", lambda name: None)
    assert "image/png" in picture._repr_mimebundle_()
    assert not any("widget" in kind for kind in picture._repr_mimebundle_())


def test_it_is_small_and_has_colours_that_stay_apart(picture: WalkPicture):
    assert len(json.dumps(picture.data)) < 300_000
    assert picture.data["colors"] == class_colors(3).tolist()


def test_a_class_may_have_any_name(picture: WalkPicture):
    block = embedded(picture.data | {"names": ["</script><b>"]})
    assert block.count("</script>") == 1 and block.endswith("</script>")


@pytest.fixture(scope="module")
def report(tmp_path_factory, picture: WalkPicture) -> Path:
    """The page of a run whose notebook shows the walk."""
    run, stem = tmp_path_factory.mktemp("run"), "04_random_walk"
    (run / "notebooks").mkdir()
    output = new_output("execute_result", picture._repr_mimebundle_())
    cells = [
        new_markdown_cell("# Random walk"),
        new_code_cell("picture", outputs=[output], metadata={"tags": ["figure"]}),
        new_markdown_cell(CAPTION),
    ]
    nbformat.write(new_notebook(cells=cells), run / "notebooks" / f"{stem}.ipynb")
    (run / stem).mkdir()
    (run / stem / "metrics.json").write_text("{}")
    record = {"state": "done", "key": {"settings": {}, "inputs": {}}, "seconds": 1.0}
    record |= {"steps": {}, "ended": "2026-01-02T03:04:05+00:00", "artifacts": {}, "notebook": {}}
    manifest = {"format": FORMAT, "stages": {stem: record}, "settings": {}}
    save_results(run, "tiny", manifest, [])
    return write_report(run)


@pytest.fixture(scope="module")
def browser() -> Iterator:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        with playwright.chromium.launch(executable_path=CHROMIUM, args=flags) as browser:
            yield browser


@pytest.fixture
def page(browser, report: Path) -> Iterator:
    """The page on a telephone, where nothing may go wrong and nothing may be asked of a network."""
    page = browser.new_page(viewport={"width": 390, "height": 800}, has_touch=True)
    faults: list[str] = []
    page.on("console", lambda message: faults.append(message.text))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on(
        "request",
        lambda request: request.url.startswith(("file:", "data:")) or faults.append(request.url),
    )
    page.goto(report.as_uri())
    page.locator("canvas").first.wait_for()
    yield page
    page.close()
    assert faults == []


def pixels(page, panel: str) -> str:
    """What a panel shows, once all that was asked for is painted."""
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => setTimeout(done)))")
    return page.locator(f'canvas[data-panel="{panel}"]').evaluate("canvas => canvas.toDataURL()")


def place(page) -> tuple[int, ...]:
    """Row and column of the chosen cell."""
    pixels(page, "photograph")
    text = page.locator("#said").inner_text()
    return tuple(map(int, re.match(r"Row (\d+) of \d+, column (\d+) of", text).groups()))


def move(page, name: str, value: int) -> None:
    page.get_by_role("slider", name=name).fill(str(value))


@needs_chromium
@pytest.mark.parametrize("panel", ["photograph", "labels after"])
def test_a_click_and_a_tap_choose_a_cell_and_change_what_is_drawn(page, panel: str):
    canvas = page.locator(f'canvas[data-panel="{panel}"]')
    box = canvas.bounding_box()
    canvas.click(position={"x": 2, "y": 2})
    before = [pixels(page, name) for name in ("photograph", "step", "steps")]
    assert place(page) == (1, 1)
    canvas.tap(position={"x": box["width"] - 2, "y": box["height"] / 2})
    assert place(page) == (7, 12)
    after = [pixels(page, name) for name in ("photograph", "step", "steps")]
    assert all(one != two for one, two in zip(before, after, strict=True))


@needs_chromium
def test_the_arrow_keys_move_the_cell_and_stop_at_the_border(page):
    canvas = page.locator('canvas[data-panel="photograph"]')
    canvas.click(position={"x": 2, "y": 2})
    for key in ("ArrowDown", "ArrowDown", "ArrowRight"):
        canvas.press(key)
    assert place(page) == (3, 2)
    for _ in range(4):
        canvas.press("ArrowUp")
    assert place(page) == (1, 2)


@needs_chromium
def test_no_step_shows_the_input_and_steps_something_else(page):
    move(page, "t steps", 0)
    for what in ("map", "labels"):
        assert pixels(page, f"{what} after") == pixels(page, f"{what} before")
    move(page, "t steps", 9)
    for what in ("map", "labels"):
        assert pixels(page, f"{what} after") != pixels(page, f"{what} before")


@needs_chromium
def test_every_setting_changes_the_map_the_labels_and_the_iou_until_they_are_put_back(page):
    def shown() -> list[str]:
        return [pixels(page, "labels after"), *page.locator("table, figcaption").all_inner_texts()]

    first = shown()
    for name in ("α background", "β affinities", "t steps"):
        move(page, name, 1)
        assert shown() != first
        page.get_by_role("button", name="as in this run").click()
        assert shown() == first
    before = pixels(page, "map after")
    page.get_by_role("combobox", name="map of").select_option("background")
    assert pixels(page, "map after") != before


@needs_chromium
def test_the_page_fits_a_telephone_and_speaks_to_screen_readers(page):
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    ends = [page.locator(part).bounding_box() for part in (".walk", ".walk table")]
    assert ends[1]["x"] + ends[1]["width"] <= ends[0]["x"] + ends[0]["width"]
    images = page.get_by_role("img").all()
    assert len(images) == 7 and all(image.get_attribute("aria-label") for image in images)
    chooser = page.get_by_role("application", name="arrow keys")
    assert chooser.get_attribute("tabindex") == "0"
    assert page.locator("#said").get_attribute("aria-live") == "polite"


@needs_chromium
def test_without_scripts_the_page_shows_the_still_picture(browser, report: Path):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(report.as_uri())
    assert page.get_by_role("img", name="One cell").is_visible()
    context.close()

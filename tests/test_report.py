from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from affinity_lib.running.manifest import FORMAT
from affinity_lib.running.results import save_results
from affinity_lib.showing.report import figures, write_report


def picture(folder: Path, size: tuple[int, int]) -> str:
    Image.new("RGB", size, "teal").save(folder / "picture.png")
    return base64.b64encode((folder / "picture.png").read_bytes()).decode()


@pytest.fixture
def run(tmp_path) -> Path:
    """A finished run with one executed notebook of three pictures, two of them figures."""
    stem = "01_walk"
    (tmp_path / "notebooks").mkdir()
    (tmp_path / stem).mkdir()

    def cell(size: tuple[int, int], **metadata: object) -> dict:
        output = new_output("display_data", {"image/png": picture(tmp_path, size)})
        return new_code_cell("show()", outputs=[output], metadata=metadata)

    cells = [
        new_markdown_cell("# The walk & its steps\n\nText."),
        cell((30, 10), tags=["figure"], caption="Where the *walk* goes, p < 1."),
        cell((10, 10)),
        cell((10, 10), tags=["figure"]),
        new_markdown_cell("**Figure 2.** All steps.\n\nNot in the caption."),
    ]
    nbformat.write(new_notebook(cells=cells), tmp_path / "notebooks" / f"{stem}.ipynb")
    (tmp_path / stem / "metrics.json").write_text(
        '{"table1": {"cam": 48.25, "rw_crf": 61.0}, "per_class": {"rw_crf": {"cat": 51.04}}}'
    )
    record = {
        "state": "done",
        "key": {"settings": {"beta": 4.0}, "inputs": {}},
        "seconds": 12.5,
        "steps": {"start": 2.5, "The walk <t>": 10.0},
        "ended": "2026-01-02T03:04:05+00:00",
        "artifacts": {},
        "notebook": {},
    }
    manifest = {"format": FORMAT, "stages": {stem: record}, "settings": {}}
    save_results(tmp_path, "tiny <1>", manifest, [])
    return tmp_path


class Tags(HTMLParser):
    """All tags of a page with their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_figures_are_the_pictures_of_the_cells_tagged_so(run):
    wide, square = figures(run / "notebooks" / "01_walk.ipynb")
    assert wide.is_wide and not square.is_wide
    assert wide.caption == "Where the *walk* goes, p < 1."
    assert square.caption == "**Figure 2.** All steps."


def test_page_holds_everything_that_it_shows(run):
    page = write_report(run).read_text()
    tags = Tags(page).found
    sources = [attributes["src"] for tag, attributes in tags if tag == "img"]
    assert len(sources) == 2 and all(source.startswith("data:image/png") for source in sources)
    assert not [tag for tag, _ in tags if tag in ("script", "link", "iframe")]
    assert not re.search(r"url\(|@import|http", page)


def test_every_picture_has_a_description(run):
    tags = Tags(write_report(run).read_text()).found
    assert [attributes["alt"] for tag, attributes in tags if tag == "img"] == [
        "Where the walk goes, p < 1.",
        "Figure 2. All steps.",
    ]


def test_every_picture_of_a_notebook_s_page_has_a_description(run):
    write_report(run)
    tags = Tags((run / "notebooks" / "01_walk.html").read_text()).found
    assert [attributes["alt"] for tag, attributes in tags if tag == "img"] == [
        "Where the walk goes, p < 1.",
        "No description has been provided for this image",
        "Figure 2. All steps.",
    ]


def test_links_lead_to_files_that_are_there(run):
    tags = Tags(write_report(run).read_text()).found
    links = [attributes["href"] for tag, attributes in tags if tag == "a"]
    assert "notebooks/01_walk.html" in links
    assert all((run / link).is_file() for link in links)


def test_table_shows_the_run_beside_the_paper(run):
    page = write_report(run).read_text()
    rows = [re.sub(r"<[^>]*>", "|", row).strip() for row in page.split("<tr>")]
    assert "|CAM, train|48.2|48.0" in rows
    assert "|CAM + RW + dCRF, train|61.0|59.7" in rows
    assert any(row.startswith("|cat|51.0") for row in rows)
    assert "12.5" in page and "&lt;1&gt;" in page and "<1>" not in page


def test_a_page_is_rendered_again_only_when_its_notebook_is_newer(run):
    write_report(run)
    page = run / "notebooks" / "01_walk.html"
    page.write_text("kept")
    write_report(run)
    assert page.read_text() == "kept"


def test_the_times_of_a_notebook_are_told_by_section(run):
    page = write_report(run).read_text()
    rows = [re.sub(r"<[^>]*>", "|", row).strip("|\n") for row in re.split(r"<tr[^>]*>", page)]
    times = [
        row.split("|")[0]
        for row in rows[rows.index("notebook and its sections|seconds||ended (UTC)") + 1 :]
    ]
    assert times[:4] == ["01_walk", "start", "The walk &lt;t&gt;", "all"]

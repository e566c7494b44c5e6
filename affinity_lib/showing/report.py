"""``index.html`` of a run: one file that opens without a server, with table, figures and times."""

from __future__ import annotations

import base64
import json
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup
from nbconvert import HTMLExporter
from nbconvert.filters import markdown2html
from nbformat import NotebookNode

from affinity_lib.data.files import save_text
from affinity_lib.evaluation import PAPER_TABLE1
from affinity_lib.running.manifest import load_manifest
from affinity_lib.running.results import beside_paper, load_results
from affinity_lib.showing.gallery import gallery
from affinity_lib.showing.widget import MIME, embedded, mounting

CAPTION = re.compile(r"\*(?![*\s])[^*]{20,}\*(?!\*)")
"""The sentence in italics that stands under every figure of the lessons."""

# nbconvert's page of a notebook, which would not say the alternative text of a picture.
_PAGE = """\
{% extends "index.html.j2" %}
{% block data_png scoped %}
{% set alt = output | get_metadata("alt", "image/png") %}
{{ super() | replace("<img ", '<img alt="%s" ' % (alt | escape_html) if alt else "<img ", 1) }}
{% endblock %}
"""


@dataclass(frozen=True)
class Figure:
    """A picture from an executed notebook: PNG bytes, and what it shows as markdown.

    ``touched`` is what a browser needs to put the walk in its place, or None.
    """

    png: bytes
    caption: str
    touched: dict[str, Any] | None = None

    @property
    def is_wide(self) -> bool:
        """Whether it needs the whole width of a page."""
        width, height = struct.unpack(">II", self.png[16:24])
        return width > 1.7 * height

    @property
    def uri(self) -> str:
        """The picture as a data URI."""
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"

    @property
    def html(self) -> Markup:
        """The caption as HTML."""
        return Markup(markdown2html(self.caption) if self.caption else "")

    @property
    def words(self) -> str:
        """The caption for those who cannot see the picture, without markup."""
        return self.html.striptags().replace("$", "").replace("\\", "")

    @property
    def block(self) -> Markup:
        """The data of what takes its place."""
        return embedded(self.touched) if self.touched else Markup()


def write_report(run: Path) -> Path:
    """Render a run's notebooks to HTML, and write its ``index.html``.

    Args:
        run: folder of a run with ``results.json`` and ``manifest.json``.

    Returns:
        Path of ``index.html``.
    """
    results, manifest = load_results(run), load_manifest(run)
    stages = []
    for stem, seconds in results["seconds"].items():
        record = manifest["stages"].get(stem, {})
        notebook = run / "notebooks" / f"{stem}.ipynb"
        if record.get("state") == "done" and notebook.is_file():
            _render(notebook)
            stages.append(
                {
                    "stem": stem,
                    "title": _title(notebook),
                    "figures": figures(notebook),
                    "seconds": seconds,
                    "ended": record["ended"][:16].replace("T", " "),
                    "steps": results["steps"][stem],
                }
            )
    columns = results["per_class"]
    note, cases = gallery(run, manifest)
    files = [*sorted((run / "tables").glob("*")), *sorted(run.glob("*/results_*.tgz"))]
    page = _template().render(
        profile=results["profile"],
        rows=beside_paper(results),
        methods=[PAPER_TABLE1[key][0] if key in PAPER_TABLE1 else key for key in columns],
        classes=[
            (name, *(column.get(name) for column in columns.values()))
            for name in dict.fromkeys(name for column in columns.values() for name in column)
        ],
        files=[path.relative_to(run).as_posix() for path in files],
        note=note,
        cases=cases,
        stages=stages,
        script=mounting(),
        provenance=json.dumps(_provenance(manifest), indent=2, ensure_ascii=False),
    )
    save_text(run / "index.html", page)
    return run / "index.html"


def figures(notebook: str | Path) -> list[Figure]:
    """The PNG outputs of the cells tagged ``figure``.

    Args:
        notebook: path of an executed ``.ipynb``. A caption is the cell's metadata ``caption``, or
            else the sentence in italics with which the markdown cell after it begins, or its first
            paragraph.
    """
    pictures = _pictures(nbformat.read(notebook, as_version=4))
    return [figure for cell, _, figure in pictures if "figure" in cell.metadata.get("tags", [])]


def describe(notebook: NotebookNode) -> None:
    """Give each PNG output its caption as alternative text, as nbconvert and MyST-NB read it."""
    for cell, output, figure in _pictures(notebook):
        if alt := figure.words:
            output.metadata["image/png"] = {"alt": alt}
            cell.metadata["mystnb"] = {"image": {"alt": alt}}


def _pictures(notebook: NotebookNode) -> Iterator[tuple[NotebookNode, NotebookNode, Figure]]:
    """The PNG outputs with their cells and what they show."""
    for cell, after in zip(notebook.cells, [*notebook.cells[1:], None], strict=True):
        caption = cell.metadata.get("caption", "")
        if not caption and after is not None and after.cell_type == "markdown":
            sentence = CAPTION.match(after.source)
            caption = sentence[0] if sentence else after.source.strip().split("\n\n")[0]
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if png := data.get("image/png"):
                yield cell, output, Figure(base64.b64decode(png), caption, data.get(MIME))


def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters["number"] = lambda value: "\u2013" if value is None else f"{value:.1f}"
    return environment.get_template("report.html")


def _render(notebook: Path) -> None:
    page = notebook.with_suffix(".html")
    if page.is_file() and page.stat().st_mtime >= notebook.stat().st_mtime:
        return
    cells = nbformat.read(notebook, as_version=4)
    describe(cells)
    title = {"metadata": {"name": notebook.stem}}
    html, _ = HTMLExporter(raw_template=_PAGE).from_notebook_node(cells, title)
    save_text(page, html)


def _title(notebook: Path) -> str:
    for cell in nbformat.read(notebook, as_version=4).cells:
        heading = re.match(r"#+ (.+)", cell.source)
        if cell.cell_type == "markdown" and heading:
            return heading[1]
    return notebook.stem


def _provenance(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest with the number of files in place of their hashes."""
    kept = ("commit", "dirty", "started", "ended")
    stages = {
        stem: {name: record.get(name) for name in kept}
        | {"settings": record["key"]["settings"], "files": len(record.get("artifacts", {}))}
        for stem, record in manifest["stages"].items()
    }
    return {**manifest, "stages": stages}

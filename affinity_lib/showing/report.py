"""``index.html`` of a run: one file that opens without a server, with table, figures and times."""

from __future__ import annotations

import base64
import json
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup
from nbconvert import HTMLExporter
from nbconvert.filters import markdown2html

from affinity_lib.data.files import save_text
from affinity_lib.evaluation import PAPER_TABLE1
from affinity_lib.running.manifest import load_manifest
from affinity_lib.running.results import beside_paper, load_results
from affinity_lib.showing.gallery import gallery
from affinity_lib.showing.widget import MIME, SCRIPT, embedded


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
        script=Markup(SCRIPT.read_text(encoding="utf-8")),
        provenance=json.dumps(_provenance(manifest), indent=2, ensure_ascii=False),
    )
    save_text(run / "index.html", page)
    return run / "index.html"


def figures(notebook: str | Path) -> list[Figure]:
    """The PNG outputs of the cells tagged ``figure``.

    Args:
        notebook: path of an executed ``.ipynb``. A caption is the cell's metadata ``caption``,
            or else the first paragraph of the markdown cell after it.
    """
    cells = nbformat.read(notebook, as_version=4).cells
    found = []
    for cell, after in zip(cells, [*cells[1:], None], strict=True):
        if cell.cell_type != "code" or "figure" not in cell.metadata.get("tags", []):
            continue
        caption = cell.metadata.get("caption", "")
        if not caption and after is not None and after.cell_type == "markdown":
            caption = after.source.strip().split("\n\n")[0]
        for output in cell.outputs:
            data = output.get("data", {})
            if png := data.get("image/png"):
                found.append(Figure(base64.b64decode(png), caption, data.get(MIME)))
    return found


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
    html, _ = HTMLExporter().from_filename(str(notebook))
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

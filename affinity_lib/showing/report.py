"""``index.html`` of a run: one file that opens without a server, with table, figures and times."""

from __future__ import annotations

import base64
import json
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape, unescape
from pathlib import Path
from typing import Any

import nbformat
from nbconvert import HTMLExporter
from nbconvert.filters import markdown2html

from affinity_lib.data.files import load_json, write_aside
from affinity_lib.running.manifest import load_manifest
from affinity_lib.running.results import PAPER_VAL, TABLE1
from affinity_lib.showing.gallery import gallery


@dataclass(frozen=True)
class Figure:
    """A picture from an executed notebook: PNG bytes, and what it shows as markdown."""

    png: bytes
    caption: str

    @property
    def is_wide(self) -> bool:
        """Whether it needs the whole width of a page."""
        width, height = struct.unpack(">II", self.png[16:24])
        return width > 1.7 * height


def write_report(run: Path) -> Path:
    """Render a run's notebooks to HTML, and write its ``index.html``.

    Args:
        run: folder of a run with ``results.json`` and ``manifest.json``.

    Returns:
        Path of ``index.html``.
    """
    results = load_json(run / "results.json")
    manifest = load_manifest(run)
    seconds = {
        stem: value
        for stem, value in results["seconds"].items()
        if manifest["stages"].get(stem, {}).get("state") == "done"
        and (run / "notebooks" / f"{stem}.ipynb").is_file()
    }
    parts = [_table(results), _classes(results), _files(run), gallery(run, manifest)]
    for stem in seconds:
        notebook = run / "notebooks" / f"{stem}.ipynb"
        _render(notebook)
        parts.append(_stage(notebook))
    parts += [_times(results | {"seconds": seconds}, manifest), _provenance(manifest)]
    with write_aside(run / "index.html") as aside:
        page = _PAGE.format(
            title=f"AffinityNet: {escape(results['profile'])}", style=_STYLE, body="\n".join(parts)
        )
        aside.write_text(page, encoding="utf-8")
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
            png = output.get("data", {}).get("image/png")
            if png:
                found.append(Figure(base64.b64decode(png), caption))
    return found


def _render(notebook: Path) -> None:
    page = notebook.with_suffix(".html")
    if page.is_file() and page.stat().st_mtime >= notebook.stat().st_mtime:
        return
    html, _ = HTMLExporter().from_filename(str(notebook))
    with write_aside(page) as aside:
        aside.write_text(html, encoding="utf-8")


def _title(notebook: Path) -> str:
    for cell in nbformat.read(notebook, as_version=4).cells:
        heading = re.match(r"#+ (.+)", cell.source)
        if cell.cell_type == "markdown" and heading:
            return heading[1]
    return notebook.stem


def _stage(notebook: Path) -> str:
    shown = []
    for figure in figures(notebook):
        caption = markdown2html(figure.caption) if figure.caption else ""
        alt = escape(" ".join(unescape(re.sub(r"<[^>]*>", "", caption)).split()))
        data = base64.b64encode(figure.png).decode()
        shown.append(
            f"<figure{' class=wide' if figure.is_wide else ''}>"
            f'<img src="data:image/png;base64,{data}" alt="{alt}">'
            f"<figcaption>{caption}</figcaption></figure>"
        )
    link = f'<a href="notebooks/{notebook.stem}.html">{escape(_title(notebook))}</a>'
    return f"<section><h2>{link}</h2><div class=figures>{''.join(shown)}</div></section>"


def _table(results: Mapping[str, Any]) -> str:
    table1 = results["table1"]
    rows = [(f"{name}, train", table1.get(key), paper) for key, (name, paper) in TABLE1.items()]
    rows.append(("Segmentation network, val", results["segmentation"].get("val"), PAPER_VAL))
    lines = [
        f"<tr><td>{name}<td class=number>{_number(ours)}<td class=number>{_number(paper)}"
        for name, ours, paper in rows
    ]
    return (
        "<section><h2>mIoU in percent</h2><div class=scroll><table>"
        "<tr><th>method, split<th class=number>this run<th class=number>paper"
        f"{''.join(lines)}</table></div>"
        "<p class=note>The paper's numbers are Table 1 and Table 2 (Ours-ResNet38) of "
        "Ahn and Kwak, CVPR 2018, on PASCAL VOC 2012.</p></section>"
    )


def _classes(results: Mapping[str, Any]) -> str:
    columns = results["per_class"]
    if not columns:
        return ""
    names = list(dict.fromkeys(name for column in columns.values() for name in column))
    heads = "".join(f"<th class=number>{escape(_method(key))}" for key in columns)
    lines = [
        f"<tr><td>{escape(name)}"
        + "".join(f"<td class=number>{_number(column.get(name))}" for column in columns.values())
        for name in names
    ]
    return (
        "<details><summary>IoU of each class</summary><div class=scroll>"
        f"<table><tr><th>class{heads}{''.join(lines)}</table></div></details>"
    )


def _files(run: Path) -> str:
    """Links to the paper's tables, and to what VOC's evaluation server wants."""
    found = [*sorted((run / "tables").glob("*")), *sorted(run.glob("*/results_*.tgz"))]
    links = [f'<a href="{p.relative_to(run).as_posix()}">{escape(p.name)}</a>' for p in found]
    return f"<section><h2>Tables as files</h2><p>{', '.join(links)}</p></section>" if links else ""


def _times(results: Mapping[str, Any], manifest: Mapping[str, Any]) -> str:
    seconds = results["seconds"]
    longest = max([*seconds.values(), 1e-9])

    def row(name: str, value: float, when: str, kind: str) -> str:
        return (
            f"<tr class={kind}><td>{escape(name)}<td class=number>{value:.1f}"
            f"<td class=bar><span style='width:{100 * value / longest:.0f}%'></span>"
            f"<td class=when>{escape(when)}"
        )

    lines = []
    for stem, value in seconds.items():
        ended = manifest["stages"][stem]["ended"][:16].replace("T", " ")
        lines.append(row(stem, value, ended, "notebook"))
        lines += [row(step, took, "", "step") for step, took in results["steps"][stem].items()]
    return (
        "<section><h2>Where the time goes</h2><div class=scroll><table>"
        "<tr><th>notebook and its sections<th class=number>seconds<th class=bar><th class=when>ended (UTC)"
        f"{''.join(lines)}<tr><td>all<td class=number>{sum(seconds.values()):.1f}"
        "<td class=bar><td class=when></table></div></section>"
    )


def _provenance(manifest: Mapping[str, Any]) -> str:
    stages = {
        stem: {
            "commit": record.get("commit"),
            "dirty": record.get("dirty"),
            "started": record.get("started"),
            "ended": record.get("ended"),
            "settings": record["key"]["settings"],
            "files": len(record.get("artifacts", {})),
        }
        for stem, record in manifest["stages"].items()
    }
    text = json.dumps({**manifest, "stages": stages}, indent=2, ensure_ascii=False)
    return (
        "<details><summary>What was run</summary>"
        "<p>The whole of it, with the hash of every file, is in "
        '<a href="manifest.json">manifest.json</a>; the numbers are in '
        f'<a href="results.json">results.json</a>.</p><pre>{escape(text)}</pre></details>'
    )


def _method(key: str) -> str:
    return TABLE1[key][0] if key in TABLE1 else key


def _number(value: float | None) -> str:
    return "&ndash;" if value is None else f"{value:.1f}"


_STYLE = """
:root { font: 16px/1.5 system-ui, sans-serif; color: #1c2430; background: #f5f6f8; }
body { margin: 0 auto; padding: 1rem; max-width: 72rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 1rem 0; }
h2 { font-size: 1.15rem; margin: 0 0 .6rem; }
a { color: #0b5394; }
section, details { background: #fff; border: 1px solid #dde1e7; border-radius: 8px;
  padding: 1rem; margin: 1rem 0; }
summary { cursor: pointer; font-weight: 600; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; }
th, td { text-align: left; padding: .3rem .9rem .3rem 0; border-bottom: 1px solid #e8ebef;
  vertical-align: top; }
th { font-weight: 600; color: #4a5668; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.bar { width: 12rem; min-width: 5rem; }
.bar span { display: block; height: .8rem; margin-top: .35rem; background: #31688e; }
.when { white-space: nowrap; }
.step td { border: 0; padding-top: 0; padding-bottom: 0; color: #4a5668; font-size: .9rem; }
.step td:first-child { padding-left: 1.2rem; }
.step .bar span { background: #9db8cf; height: .5rem; }
@media (max-width: 40rem) { .bar, .when { display: none; } }
.note, figcaption { color: #4a5668; font-size: .9rem; }
.figures { display: grid; gap: 1.2rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); }
.figures:empty { display: none; }
figure { margin: 0; min-width: 0; }
figure.wide { grid-column: 1 / -1; }
figure img { display: block; max-width: 100%; height: auto; }
figcaption p { margin: .3rem 0 0; max-width: 60rem; }
pre { overflow-x: auto; font-size: .8rem; }
.case { border-top: 1px solid #e8ebef; padding: .8rem 0 .4rem; }
.gallery h3 { font-size: 1rem; margin: 1.2rem 0 .6rem; }
.case small { color: #4a5668; margin-left: .4rem; }
.case p { margin: 0 0 .4rem; }
.steps { display: grid; grid-auto-flow: column; grid-auto-columns: minmax(8.5rem, 1fr); gap: .6rem; }
.steps img { width: 100%; image-rendering: auto; }
.steps b { white-space: nowrap; }
.key { white-space: nowrap; font-size: .85rem; color: #4a5668; margin-left: .7rem; }
.key i { display: inline-block; width: .75rem; height: .75rem; margin-right: .25rem;
  border: 1px solid #0003; }
@media (max-width: 40rem) {
  .steps { grid-auto-flow: row; grid-template-columns: repeat(4, 1fr); gap: .4rem; } }
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<h1>{title}</h1>
{body}
</body>
</html>
"""

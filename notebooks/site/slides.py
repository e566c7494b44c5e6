"""Makes a deck of slides of each lesson: ``python notebooks/site/slides.py FOLDER`` (``make slides``).

What stands on a slide is derived from the cells: a heading begins one, a figure with its caption is
one, and so much text and code follows as fits. Parameters, plumbing, trainings and loops over all
images are left out, of long cells all but the outputs. A deck is one file that opens without a
network.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbconvert import SlidesExporter
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell, new_output
from traitlets.config import Config

from affinity_lib.showing.report import CAPTION, describe

HERE = Path(__file__).parent
NODE_MODULES = HERE.parents[1] / ".site" / "node_modules"

LONGEST_CODE = 12
"""Lines of code that fit beside their text and output."""

HEIGHT = 590
"""Pixels of a slide of 720 that are left below its title."""

HIDDEN = "remove-input"
"""Tag of a cell of which only the outputs are shown."""

LEFT_OUT = {"parameters", "train", "per-image"}
PLUMBING = re.compile(r"^stage(\.save\(| = Stage\()", re.MULTILINE)
FENCES = {"```": "```", "$$": "$$", "<details": "</details>"}


@dataclass
class Block:
    """A piece of a slide: a cell, how high it is in pixels, and what it is."""

    cell: NotebookNode
    height: float
    kind: str = "text"  # or heading, figure, caption


def paragraphs(source: str) -> Iterator[str]:
    """The parts of a markdown text between blank lines; code, formulas and folds stay whole."""
    part: list[str] = []
    end = None
    for line in [*source.splitlines(), ""]:
        if end is None and not line.strip():
            if part:
                yield "\n".join(part)
            part = []
            continue
        if end is None and part and (re.match("#+ ", line) or re.match("#+ ", part[0])):
            yield "\n".join(part)
            part = []
        part.append(line)
        rest = line.strip()
        if end is None:
            for opening, closing in FENCES.items():
                if rest.startswith(opening):
                    end, rest = closing, rest.removeprefix(opening)
        if end is not None and end in rest:
            end = None


def pieces_of_table(text: str, rows: int = 11) -> list[str]:
    """A table, or several with the same header where it has more rows than a slide."""
    lines = text.splitlines()
    if not lines[0].startswith("|") or len(lines) <= rows + 2:
        return [text]
    head, body = lines[:2], lines[2:]
    parts = -(-len(body) // rows)
    size = -(-len(body) // parts)
    return ["\n".join(head + body[i : i + size]) for i in range(0, len(body), size)]


def text_height(text: str) -> float:
    """About how high a markdown text is."""
    if text.startswith("|"):
        return 44 * (len(text.splitlines()) - 1) + 20
    if text.startswith("```"):
        return 26 * (len(text.splitlines()) - 2) + 30
    if text.startswith("$$"):
        return 75 * len(text.splitlines()) + 20
    starts = re.split(r"\n(?=\s*(?:[*-]|\d+\.) )", text)
    return 37 * sum(-(-len(line.replace("\n", " ")) // 88) for line in starts) + 20


def output_height(output: NotebookNode) -> float:
    data = output.get("data", {})
    if "text/markdown" in data:
        return text_height(data["text/markdown"])
    return 25 * (output.get("text", "") or data.get("text/plain", "")).count("\n") + 60


def pieces_of_outputs(cell: NotebookNode) -> Iterator[NotebookNode]:
    """A code cell; where a table of its outputs has more rows than a slide, then the rest of it alone."""
    parts: list[list[NotebookNode]] = [[]]
    for output in cell.outputs:
        table = output.get("data", {}).get("text/markdown")
        if table is None:
            parts[-1].append(output)
            continue
        pieces = [{"data": {"text/markdown": piece}} for piece in pieces_of_table(table)]
        first, *others = (NotebookNode(output | piece) for piece in pieces)
        parts[-1].append(first)
        parts += [[other] for other in others]
    for number, outputs in enumerate(parts):
        tags = {"tags": [HIDDEN]} if number else {}
        yield NotebookNode(cell | {"outputs": outputs, "metadata": cell.metadata | tags})


def linked_to_decks(text: str) -> str:
    """Links to other lessons lead to their decks."""
    return re.sub(r"\]\((\d\d_\w+)\.ipynb(#[^)]*)?\)", r"](\1.html)", text)


def blocks(notebook: NotebookNode) -> Iterator[Block]:
    """What is to be shown, in order."""
    after_figure = False
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type == "markdown":
            for text in paragraphs(cell.source):
                if number == 0 and text.startswith("|"):  # what the lesson reads and writes
                    continue
                for part in pieces_of_table(text):
                    kind = "heading" if re.match("#+ ", part) else "text"
                    if after_figure and CAPTION.fullmatch(part):
                        kind = "caption"
                    cell = new_markdown_cell(linked_to_decks(part))
                    yield Block(cell, text_height(part), kind)
                    after_figure = False
        elif cell.cell_type == "code":
            tags = set(cell.metadata.get("tags", []))
            if tags & LEFT_OUT or PLUMBING.search(cell.source):
                continue
            after_figure = "figure" in tags
            lines = cell.source.count("\n") + 1
            if after_figure or lines > LONGEST_CODE:
                cell.metadata["tags"] = [HIDDEN]
                lines = 0
            if not lines and not cell.outputs:
                after_figure = False
                continue
            height = (26 * lines + 40) * (lines > 0)
            for part in pieces_of_outputs(cell):
                height += sum(map(output_height, part.outputs))
                yield Block(part, height, "figure" if after_figure else "text")
                height = 0


def groups(found: Iterable[Block]) -> Iterator[list[Block]]:
    """Blocks that stay together: a figure and its caption, a line that ends in a colon and the next."""
    group: list[Block] = []
    for block in found:
        last = group[-1] if group else None
        leads = last and last.kind == "text" and last.cell.source.rstrip().endswith(":")
        if last and not (block.kind == "caption" or (leads and block.kind == "text")):
            yield group
            group = []
        group.append(block)
    if group:
        yield group


def slides(found: Iterable[Block]) -> list[list[NotebookNode]]:
    """The cells of each slide."""
    deck: list[list[NotebookNode]] = []
    title: list[NotebookNode] = []
    used = 0.0
    for group in groups(found):
        height = sum(block.height for block in group)
        kind = group[0].kind
        bare = bool(deck) and deck[-1] == title  # there is nothing but a heading yet
        if kind == "heading":
            if bare:
                deck.pop()
            title, used = [group[0].cell], 0.0
            deck.append(list(title))
            continue
        if kind == "figure" or used + height > HEIGHT:
            if not bare:
                deck.append([cell for cell in title if not cell.source.startswith("# ")])
            used = 0.0
        deck[-1] += [block.cell for block in group]
        used = HEIGHT if kind == "figure" else used + height
    return deck


def deck(notebook: NotebookNode) -> NotebookNode:
    """The notebook of which nbconvert makes slides."""
    describe(notebook)
    cells = []
    for slide in slides(blocks(notebook)):
        for number, cell in enumerate(slide):
            about = cell.metadata | {"slideshow": {"slide_type": "-" if number else "slide"}}
            cell = NotebookNode(cell | {"id": f"cell-{len(cells)}", "metadata": about})
            if cell.cell_type == "code":
                cell.outputs = list(together(cell.outputs))
            cells.append(cell)
    return NotebookNode(notebook | {"cells": cells})


def together(outputs: list[NotebookNode]) -> Iterator[NotebookNode]:
    """The outputs of a cell, its printed lines as one."""
    printed = "".join(output.text for output in outputs if output.output_type == "stream")
    if printed:
        yield new_output("stream", text=printed)
    yield from (output for output in outputs if output.output_type != "stream")


def export(notebook: NotebookNode, title: str) -> str:
    """The deck as one page, with reveal.js and MathJax in it."""
    exporter = SlidesExporter(
        template_name="slides",
        extra_template_basedirs=[str(HERE)],
        exclude_input_prompt=True,
        exclude_output_prompt=True,
        config=Config(TagRemovePreprocessor={"enabled": True, "remove_input_tags": {HIDDEN}}),
    )
    parts = {
        "reveal_css": "reveal.js/dist/reveal.css",
        "reveal_js": "reveal.js/dist/reveal.js",
        "mathjax": "mathjax/es5/tex-svg.js",
    }
    read = {key: (NODE_MODULES / path).read_text("utf-8") for key, path in parts.items()}
    return exporter.from_notebook_node(deck(notebook), {"metadata": {"name": title}} | read)[0]


def main(folder: str) -> None:
    """Write the decks of all lessons into a folder."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    for path in sorted(HERE.parent.glob("[0-9][0-9]_*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        title = notebook.cells[0].source.splitlines()[0].lstrip("# ")
        page = Path(folder) / f"{path.stem}.html"
        page.write_text(export(notebook, title), encoding="utf-8")
        print(page)


if __name__ == "__main__":
    main(*sys.argv[1:])

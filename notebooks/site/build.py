"""Builds the web site: ``python notebooks/site/build.py FOLDER [--class]`` (``make site``).

Its pages are gathered from what is there: the README, the lessons as they are committed, exercises,
the pages beside them, and the docstrings. Nothing is executed and nothing is downloaded. The class
edition has the exercises as they are handed out, and no page for teachers.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
from pathlib import Path

import nbformat
from markupsafe import Markup
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell

HERE = Path(__file__).parent
NOTEBOOKS = HERE.parent
ROOT = NOTEBOOKS.parent
# The library comes from here, what it needs after the site's own packages.
sys.path.insert(0, str(ROOT))
sys.path.extend(map(str, ROOT.glob(".venv/lib/python*/site-packages")))

from affinity_lib.showing.report import describe
from affinity_lib.showing.widget import MIME, embedded, mounting

LINK = re.compile(r"(!?)\[((?:[^\]`]|`[^`]*`)*)\]\(([^)\s#]*)(#[^)\s]*)?\)")
STILL = Markup('<img src="data:image/png;base64,{}" alt="{}">')
MARKER = re.compile(r"^\s*### (BEGIN|END) .*\n?", re.MULTILINE)

ORDER = (
    *("cam", "affinity_labels", "affinity", "affinitynet", "random_walk", "segmentation_labels"),
    *("segmentation", "crf", "evaluation", "presets", "plots", "errors"),
    *("data", "backbones", "training", "stages", "running", "showing", "teaching"),
)
"""Of the library's modules and rooms, from the paper outwards; others follow."""


def pages(for_class: bool) -> dict[Path, str]:
    """Where each file of the project has its place on the site."""
    found = {ROOT / "README.md": "index.md", ROOT / "CONTRIBUTING.md": "CONTRIBUTING.md"}
    found |= {path: path.name for path in NOTEBOOKS.glob("*.png")}
    for path in (*NOTEBOOKS.glob("[0-9]*.ipynb"), *NOTEBOOKS.glob("*.md")):
        found[path] = path.name
    found |= {path: f"exercises/{path.name}" for path in NOTEBOOKS.glob("exercises/*.ipynb")}
    if for_class:
        found.pop(NOTEBOOKS / "TEACHING.md", None)
    else:
        found |= {path: f"exercises/{path.name}" for path in NOTEBOOKS.glob("solutions/*.ipynb")}
    return {path: name for path, name in found.items() if path.exists()}


def with_links(text: str, source: Path, places: dict[Path, str]) -> str:
    """A page's text with its links as they are on the site; of others only the words stay."""

    def moved(link: re.Match) -> str:
        image, words, target, anchor = link.groups(default="")
        if not target or re.match(r"\w+:", target):
            return link[0]
        place = places.get(Path(os.path.normpath(source.parent / target)))
        if place is None:
            return words
        here = Path(places[source]).parent
        return f"{image}[{words}]({os.path.relpath(place, here)}{anchor})"

    return LINK.sub(moved, text)


def solved(exercise: NotebookNode, solution: NotebookNode) -> list[NotebookNode]:
    """The cells of an exercise notebook, below each to be filled in its solution, folded."""
    cells = []
    for blank, full in zip(exercise.cells, solution.cells, strict=True):
        if blank.source != full.source:
            cells.append(blank)
            full.source = MARKER.sub("", full.source)
            if full.cell_type == "markdown":
                text = f"<details><summary>A solution</summary>\n\n{full.source}\n\n</details>"
                full = new_markdown_cell(text)
            else:
                full.metadata["tags"] = [*full.metadata.get("tags", []), "hide-input"]
                full.id += "-solved"
                full.metadata["mystnb"] = {"code_prompt_show": "Show a solution"}
        cells.append(full)
    return cells


def touched(notebook: NotebookNode) -> None:
    """Let the walk be touched where scripts run; elsewhere it stays the still picture that it is."""
    script = mounting()
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if MIME in data:
                still = STILL.format(data.pop("image/png"), output.metadata["image/png"]["alt"])
                data["text/html"] = str(still + embedded(data.pop(MIME)) + script)
                script = ""  # once a page


def notation() -> str:
    """The table of symbols and names, which the first lesson has."""
    first = nbformat.read(min(NOTEBOOKS.glob("00_*.ipynb")), as_version=4)
    text = "\n".join(cell.source for cell in first.cells if cell.cell_type == "markdown")
    return (
        "# Notation\n"
        + re.search(r"^## Notation$(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)[1]
    )


def reference(for_class: bool) -> dict[str, str]:
    """A page for each module and each room of the library, filled from the docstrings."""
    library = ROOT / "affinity_lib"
    names = {path.stem for path in library.glob("[a-z]*.py")}
    names |= {path.parent.name for path in library.glob("*/__init__.py")}
    if for_class:
        names.discard("teaching")  # it knows the answers
    made = {}
    for name in sorted(names, key=lambda name: (ORDER.index(name) if name in ORDER else 99, name)):
        inside = [f"{name}.{path.stem}" for path in sorted(library.glob(f"{name}/[a-z]*.py"))]
        parts = [f"# {name}", docstrings(name)]
        parts += [f"## {module}\n\n{docstrings(module)}" for module in inside]
        made[f"api/{name}.md"] = "\n\n".join(parts) + "\n"
    return made


def docstrings(module: str) -> str:
    """Sphinx's word for those of a module."""
    return f"```{{eval-rst}}\n.. automodule:: affinity_lib.{module}\n   :members:\n```"


def toctree(caption: str, names: list[str]) -> str:
    entries = "\n".join(re.sub(r"\.(md|ipynb)$", "", name) for name in names)
    return f"\n```{{toctree}}\n:caption: {caption}\n:hidden:\n\n{entries}\n```\n" if names else ""


def gather(folder: Path, for_class: bool) -> None:
    """Write the sources of all pages."""
    places = pages(for_class)
    for source, place in places.items():
        target = folder / place
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.suffix == ".md":
            text = with_links(source.read_text("utf-8"), source, places)
            target.write_text(text.replace("```mermaid", "```text"), "utf-8")  # drawn by code hosts
        elif source.suffix == ".ipynb":
            notebook = nbformat.read(source, as_version=4)
            if source.parent.name == "solutions":
                blank = nbformat.read(NOTEBOOKS / "exercises" / source.name, as_version=4)
                notebook.cells = solved(blank, notebook)
            describe(notebook)
            touched(notebook)
            for cell in notebook.cells:
                if cell.cell_type == "markdown":
                    cell.source = with_links(cell.source, source, places)
            nbformat.write(notebook, target)
        else:
            shutil.copy(source, target)
    made = {"notation.md": notation()} | reference(for_class)
    (folder / "api").mkdir()
    for name, text in made.items():
        (folder / name).write_text(text, "utf-8")
    names = sorted(set(places.values()))
    lessons = [name for name in names if re.match(r"\d\d_", name)]
    exercises = [name for name in names if name.startswith("exercises/")]
    around = [name for name in names if name.endswith(".md") and name != "index.md"]
    with (folder / "index.md").open("a", encoding="utf-8") as index:
        index.write(toctree("Lessons", lessons) + toctree("Exercises", exercises))
        index.write(toctree("Teaching and running", around))
        index.write(toctree("Reference", list(made)))


def main() -> None:
    """Gather the pages and have Sphinx make the site of them; any warning is an error."""
    from sphinx.cmd.build import main as sphinx

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--class", dest="for_class", action="store_true", help="no solutions")
    given = parser.parse_args()
    scratch = given.folder.with_name(given.folder.name + "-pages")
    for old in (scratch, given.folder):
        shutil.rmtree(old, ignore_errors=True)
    sources, made = scratch / "pages", scratch / "site"
    gather(sources, given.for_class)
    words = ["--fresh-env", "--fail-on-warning", "--keep-going", "--quiet"]
    places = ["--conf-dir", HERE, "--doctree-dir", scratch / "doctrees", sources, made]
    failed = sphinx([*words, *map(str, places)])
    if not failed:
        made.rename(given.folder)
    shutil.rmtree(scratch)
    raise SystemExit(failed)


if __name__ == "__main__":
    main()

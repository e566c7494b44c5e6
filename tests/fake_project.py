"""A project of three tiny notebooks, for the tests of what runs notebooks."""

from __future__ import annotations

import shutil
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from affinity_lib.data.paths import find_root

START = """
from affinity_lib.running.stage import Stage
stage = Stage("{stem}")
config = stage.config
"""
DRAW = """
from affinity_lib.data.paths import data_path
data = data_path(config.data_root)
data.mkdir(exist_ok=True)
(data / "a.txt").write_text("a" * config.image_size)
stage.save({"dataset": {"train": config.image_size}})
"""
WALK = """
from affinity_lib.errors import InputError
out = stage.output("walked")
with (out / "visits.txt").open("a") as file:
    file.write("v")
(out / "walk.txt").write_text(f"{config.beta} {config.alphas}")
rw = 50 + config.beta / 4 + config.seed
numbers = {"table1": {"cam": 48.25, "rw": rw}, "per_class": {"rw": {"cat": 51.0}}}
stage.save(numbers | {"note": config.beta})
"""
LEARN = """
_ = stage.input("01_walk/walked")
stage.save({"segmentation": {"val": 40.0 + config.beta}, "per_class": {"cam": {"dog": 60.0}}})
"""
FIGURE = """
import base64, struct, zlib
from IPython.display import Image, display
def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
png = b"\\x89PNG\\r\\n\\x1a\\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 4, 8, 0, 0, 0, 0))
png += chunk(b"IDAT", zlib.compress(bytes(4 * 9))) + chunk(b"IEND", b"")
display(Image(png))
"""
COMMON = 'profile: str = "tiny"\nrun_dir: str = ""\nseed: int = None\n'


def make_project(root: Path) -> Path:
    """Write the project into a folder; returns the folder of its notebooks."""
    folder = root / "notebooks"
    (folder / "profiles").mkdir(parents=True)
    (root / "pyproject.toml").touch()
    shutil.copytree(find_root() / "data" / "literature", root / "data" / "literature")
    settings = (
        "profile: tiny\ndataset: toy\nbeta: 8\nalphas: [1, 4]\nimage_size: 4\ndata_root: drawn\n"
    )
    (folder / "profiles" / "tiny.yaml").write_text(settings)
    write_notebook(folder / "00_draw.ipynb", "image_size: int = None\n", [DRAW])
    beta = "beta: float = None  # Eq. 11, exponent\n"
    write_notebook(folder / "01_walk.ipynb", beta, [WALK, FIGURE], figure=1)
    write_notebook(folder / "02_learn.ipynb", beta, [LEARN])
    return folder


def write_notebook(
    path: Path,
    parameters: str,
    sources: list[str],
    figure: int = -1,
    tags: list[list[str]] | None = None,
) -> None:
    """Write a notebook with a parameters cell; the code cell number ``figure`` gets that tag.

    ``tags`` gives all tags of each code cell instead.
    """
    cells = [new_markdown_cell(f"# The chapter {path.stem}")]
    cells.append(new_code_cell(COMMON + parameters, metadata={"tags": ["parameters"]}))
    cells.append(new_code_cell(START.strip().format(stem=path.stem)))
    for number, source in enumerate(sources):
        own = tags[number] if tags else ["figure"] * (number == figure)
        cells.append(new_code_cell(source.strip(), metadata={"tags": own}))
        cells.append(new_markdown_cell(f"*What cell {number} shows.*\n\nAnd more about it."))
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)

"""A stage of one's own after the walk: one notebook, one line, one folder of scores."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell
from tiny import TINY

from affinity_lib.data.paths import find_root
from affinity_lib.stages import STEPS

LINE = '    Step("04b_refinement/refined", "refinement", "scores", row="refined"),\n'
REFINE = """
from affinity_lib.data.files import load_scores, missing, save_scores

ids = data.with_tags(data.ids(config.train_split))
walked = stage.input("04_random_walk/walked")
refined = stage.output("refined")
for image_id in missing(stage.share(ids), refined, "npz"):
    tags, maps = load_scores(walked / f"{image_id}.npz")
    save_scores(refined / f"{image_id}.npz", tags, maps**2)
stage.save({"table1": {"refined": 12.5}})
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """The project with the stage."""
    root = tmp_path_factory.mktemp("project")
    shutil.copy(find_root() / "pyproject.toml", root)
    for folder in ("affinity_lib", "notebooks", "data/literature"):
        shutil.copytree(find_root() / folder, root / folder)
    steps = root / "affinity_lib" / "stages" / "__init__.py"
    walk = f'    Step("{STEPS[2].result}"'
    lines = steps.read_text().splitlines(keepends=True)
    (place,) = (k for k, line in enumerate(lines) if line.startswith(walk))
    steps.write_text("".join([*lines[: place + 1], LINE, *lines[place + 1 :]]))
    notebook = nbformat.read(root / "notebooks" / "04_random_walk.ipynb", as_version=4)
    parameters, start = [cell for cell in notebook.cells if cell.cell_type == "code"][:2]
    start.source = start.source.replace("04_random_walk", "04b_refinement")
    notebook.cells = [parameters, start, new_code_cell(REFINE, metadata={"tags": ["per-image"]})]
    nbformat.write(notebook, root / "notebooks" / "04b_refinement.ipynb")
    return root


def test_a_stage_after_the_walk_is_one_notebook_one_line_and_one_folder(project):
    command = [sys.executable, "-m", "affinity_lib", "run", "toy"]
    for name, value in (TINY | {"supervised": False}).items():
        command += ["--set", f"{name}={json.dumps(value)}"]
    done = subprocess.run(
        command,
        check=False,
        cwd=project,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(project)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[6/8] 04b_refinement (new)" in done.stdout
    assert "refinement, train" in done.stdout and "12.5" in done.stdout
    run = project / "runs" / "toy"
    stages = json.loads((run / "manifest.json").read_text())["stages"]
    read = stages["05_segmentation_labels"]["key"]["inputs"]
    assert "04b_refinement/refined" in read and "04_random_walk/walked" not in read
    page = (run / "index.html").read_text()
    assert "refinement" in page

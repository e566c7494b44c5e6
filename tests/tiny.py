"""The smallest size at which the chain of all notebooks still does everything.

``python tests/tiny.py FOLDER`` leaves the lessons there, to run at that size.
"""

from __future__ import annotations

import logging
import shutil
import sys
from pathlib import Path

import papermill

from affinity_lib.data.paths import find_root
from affinity_lib.running.plan import make_plan

TINY = {
    "train_images": 12,
    "val_images": 4,
    "image_size": 48,
    "cam_width": 16,
    "cam_crop": 48,
    "cam_epochs": 2,
    "affinity_width": 0.125,
    "affinity_crop": 48,
    "affinity_epochs": 1,
    "segmentation_width": 16,
    "segmentation_crop": 48,
    "segmentation_epochs": 1,
    "crf_iterations": 2,
}


def main(folder: Path) -> None:
    """Write the lessons into a folder as papermill prepares them for such a run, for nbval."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    plan = make_plan("toy").with_settings(TINY | {"data_root": str(folder.resolve() / "data")})
    values = {"profile": plan.profile, "run_dir": str(folder.resolve() / "run")} | plan.given
    logging.getLogger("papermill").setLevel(logging.ERROR)  # it knows a notebook's own names only
    for path in sorted((find_root() / "notebooks").glob("[0-9]*.ipynb")):
        given = values if path.stem in plan.notebooks else {}
        papermill.execute_notebook(path, folder / path.name, given, prepare_only=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

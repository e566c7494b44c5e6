"""The paper's profiles pass through all notebooks, cut down by their parameters alone.

ResNet38 at the paper's settings and VGG16 at the released code's: 4 images, 2 steps a network, crops
of 64 pixels, random weights. What comes out is no segmentation, but every file is there.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from affinity_lib.data import voc12
from affinity_lib.data.layout import write_tags
from affinity_lib.data.paths import find_root
from affinity_lib.data.submission import SUBMISSION
from affinity_lib.data.voc import VOC_CLASSES, VOCData, read_labels, write_labels
from affinity_lib.running.preflight import GIB, NETWORKS

CUT = {
    "device": "cpu",
    "weights": "",
    "workers": 0,
    "mixed_precision": False,
    "cam_crop": 64,
    "affinity_crop": 64,
    "segmentation_crop": 64,
    "cam_batch": 1,
    "affinity_batch": 1,
    "segmentation_batch": 1,
    "accumulate": 2,
    "cam_epochs": 1,
    "affinity_epochs": 1,
    "segmentation_epochs": 1,
    "cam_scales": [0.5, 1.0],
    "crf_iterations": 2,
}
RUNS = {
    # most of ResNet38's 105 million weights stay as they are, or Adam and checkpoints take the time
    "paper-resnet38": (
        "voc12",
        {"supervised": False, "frozen_stages": 6, "cam_width": 64, "segmentation_width": 64},
    ),
    "released-vgg16": (
        "voc12-released",
        {"backbone": "vgg16", "segmentation_width": 0, "test_crf": True},
    ),
}
LISTS = {"train": ["2007_000001", "2007_000002"], "val": ["2007_000003", "2007_000004"]}
SBD = {"train": ["2008_000001", "2007_000003"], "val": ["2008_000002"]}
TEST = ["2008_000003", "2008_000004"]
SIZE = (70, 61)
ROOM = sum(NETWORKS.values()) + GIB
"""Bytes that must be free for both runs."""


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """VOC 2012, SBD and a test list, put together as ``dataset: voc12`` does: 4 + 2 + 2 images."""
    folder = tmp_path_factory.mktemp("voc12")
    voc, sbd = folder / "VOC2012", folder / "dataset"
    for part in ("JPEGImages", "SegmentationClass", "Annotations", "ImageSets/Segmentation"):
        (voc / part).mkdir(parents=True)
    (sbd / "cls").mkdir(parents=True)
    random = np.random.default_rng(0)
    everything = sorted({*LISTS["train"], *LISTS["val"], *SBD["train"], *SBD["val"], *TEST})
    for k, image_id in enumerate(everything):
        label = (8, 15)[k % 2]  # cat, person
        pixels = random.integers(0, 256, (*SIZE[::-1], 3), dtype=np.uint8)
        mask = np.zeros(SIZE[::-1], np.uint8)
        mask[15:45, 10 + 2 * k : 40 + 2 * k] = label
        pixels[mask > 0] = (200, 40, 20 * k)
        Image.fromarray(pixels).save(voc / "JPEGImages" / f"{image_id}.jpg")
        write_tags(voc / "Annotations" / f"{image_id}.xml", [VOC_CLASSES[label - 1]], SIZE)
        write_labels(voc / "SegmentationClass" / f"{image_id}.png", mask)
        savemat(sbd / "cls" / f"{image_id}.mat", {"GTcls": {"Segmentation": mask}})
    for place, lists in ((voc / "ImageSets/Segmentation", LISTS | {"test": TEST}), (sbd, SBD)):
        for name, ids in lists.items():
            (place / f"{name}.txt").write_text("".join(f"{image_id}\n" for image_id in ids))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(voc12, "SIZES", {"train": 2, "val": 2, "train_aug": 4})
        return voc12.prepare_voc12(folder / "data", voc, sbd)


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory) -> Iterator[Path]:
    """Both runs by one command each, side by side, as most of their time one core is enough."""
    folder, started = tmp_path_factory.mktemp("runs"), {}
    if (free := shutil.disk_usage(folder).free) < ROOM:
        pytest.skip(f"needs {ROOM / GIB:.0f} GiB on {folder}, which has {free / GIB:.1f} GiB left")
    for name, (profile, changes) in RUNS.items():
        command = [sys.executable, "-m", "affinity_lib", "run", profile]
        command += ["--run-dir", str(folder / name)]
        for key, value in (CUT | changes | {"data_root": str(data)}).items():
            text = value if isinstance(value, str) else json.dumps(value)
            command += ["--set", f"{key}={text}"]
        started[name] = subprocess.Popen(
            command,
            cwd=find_root(),
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    said = {name: process.communicate()[0] for name, process in started.items()}
    for name, process in started.items():
        assert process.returncode == 0, said[name]
    yield folder
    shutil.rmtree(folder)  # networks and checkpoints of gigabytes


@pytest.mark.parametrize("name", RUNS)
def test_one_command_runs_every_notebook_and_fills_the_tables(runs, name):
    folder, (_, changes) = runs / name, RUNS[name]
    results = json.loads((folder / "results.json").read_text())
    assert len(results["seconds"]) == 7
    assert set(results["table1"]) == {"cam", "cam_crf", "rw", "rw_crf"}
    assert all(0 <= value <= 100 for value in results["table1"].values())
    assert ("supervised" in results["segmentation"]) == changes.get("supervised", True)
    with (folder / "tables" / "table2.csv").open() as file:
        rows = list(csv.reader(file))
    named = [row[0] for row in rows[1:]]  # those that a mask or a prediction has
    assert {"background", "cat", "person", "mean"} <= set(named)
    assert named == [name for name in ("background", *VOC_CLASSES, "mean") if name in named]
    note = f"{'with' if 'test_crf' in changes else 'no'} dCRF"
    assert note in (folder / "tables" / "table2.md").read_text()
    page = (folder / "index.html").read_text()
    assert 'href="tables/table1.csv"' in page and "results_test.tgz" in page


@pytest.mark.parametrize("name", RUNS)
def test_labels_of_all_augmented_images_and_the_servers_archive_are_there(runs, data, name):
    voc = VOCData(data)
    for image_id in voc.ids("train_aug"):
        labels = read_labels(runs / name / "05_segmentation_labels" / "labels" / f"{image_id}.png")
        assert labels.shape == SIZE[::-1]
        assert set(np.unique(labels)) <= {0, *voc.tags(image_id)}
    with tarfile.open(runs / name / "06_segmentation_network" / "results_test.tgz") as archive:
        assert archive.getnames() == [f"{SUBMISSION}/{image_id}.png" for image_id in TEST]

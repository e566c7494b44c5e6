"""The chain of all notebooks under papermill, at a tiny size."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from tiny import TINY

from affinity_lib.data.convert import convert
from affinity_lib.data.files import load_tensors
from affinity_lib.data.toy import make_toy
from affinity_lib.data.voc import VOCData, read_labels
from affinity_lib.running import runner
from affinity_lib.running.manifest import artifacts, load_manifest, save_manifest
from affinity_lib.running.plan import make_plan
from affinity_lib.running.shards import execute_part
from affinity_lib.showing import report

PER_IMAGE = {
    "01_class_activation_maps": "cams",
    "02_affinity_labels": "labels",
    "04_random_walk": "walked",
    "05_segmentation_labels": "cam_crf",
    "06_segmentation_network": "predictions",
}
"""Stages whose images are shared, and a folder with a file for each."""


@pytest.fixture
def run(tiny_run):
    return tiny_run


def test_every_notebook_runs_and_leaves_its_metrics(run):
    folder, plan = run
    results = json.loads((folder / "results.json").read_text())
    assert set(results["table1"]) == {"cam", "cam_crf", "rw", "rw_crf"}
    assert set(results["seconds"]) == set(plan.notebooks)
    assert 0 <= results["segmentation"]["val"] <= 100
    for stem in plan.notebooks:
        assert (folder / "notebooks" / f"{stem}.ipynb").is_file()


def test_the_labels_name_the_tags_of_each_image_and_nothing_else(run):
    folder, plan = run
    data = VOCData(plan.values["data_root"])
    for image_id in data.ids("train"):
        labels = read_labels(folder / "05_segmentation_labels" / "labels" / f"{image_id}.png")
        width, height = data.image(image_id).size
        assert labels.shape == (height, width)
        assert set(np.unique(labels)) <= {0, *data.tags(image_id)}


def test_another_network_learns_from_the_labels_of_a_run(run, tmp_path):
    """As the paper's Ours-DeepLab, VGG16, from the labels of ResNet38."""
    folder, plan = run
    copy = shutil.copytree(folder, tmp_path / "run")
    before = load_manifest(copy)["stages"]
    vgg16 = {"backbone": "vgg16", "segmentation_width": 0, "start_from": "weights", "weights": ""}
    vgg16 |= {"supervised": False}
    runner.execute(plan.with_settings(vgg16), copy, only=["06"])
    after = load_manifest(copy)["stages"]
    assert [stem for stem in after if after[stem] != before[stem]] == ["06_segmentation_network"]
    network, _ = load_tensors(copy / "06_segmentation_network" / "network" / "network.safetensors")
    classes = len(VOCData(plan.values["data_root"]).classes) + 1
    assert network["head.1.weight"].shape == (classes, 1024, 1, 1)


def test_a_second_run_has_nothing_left_to_do(run):
    folder, plan = run
    said = []
    runner.execute(plan, folder, log=lambda *words, **_: said.append(" ".join(map(str, words))))
    results = json.loads((folder / "results.json").read_text())
    assert set(results["skipped"]) == set(plan.notebooks), said


def test_the_page_of_the_run_stands_alone(run):
    folder, _ = run
    text = report.write_report(folder).read_text(encoding="utf-8")
    assert "data:image/png;base64," in text
    assert 'src="http' not in text


@pytest.mark.parametrize(
    "stem",
    [pytest.param(stem, marks=() if stem[:2] == "05" else pytest.mark.long) for stem in PER_IMAGE],
)
def test_two_shards_of_a_stage_make_the_files_that_the_whole_makes(run, tmp_path, stem):
    whole, plan = run
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    for images in (p for p in (folder / stem).iterdir() if p.is_dir() and "network" not in p.name):
        shutil.rmtree(images)
    manifest = load_manifest(folder)
    manifest["stages"][stem] |= {"state": "running", "trained": True}
    save_manifest(folder, manifest)
    for shard in ("0/2", "1/2"):
        execute_part(plan, folder, only=stem, shard=shard)
    made, expected = artifacts(folder, stem), artifacts(whole, stem)
    assert {name: value for name, value in made.items() if expected[name] != value} == {}
    mine = [name for name in expected if f"/{PER_IMAGE[stem]}/" in name]
    assert len(mine) > 2 and set(mine) <= set(made)


@pytest.mark.long
def test_own_photographs_of_any_size_run_without_a_mask(tmp_path):
    make_toy(tmp_path / "toy", train=6, val=2, size=48)
    drawn = VOCData(tmp_path / "toy")
    (tmp_path / "images").mkdir()
    rows = ["file,tags"]
    for k, image_id in enumerate(drawn.ids("trainval")):
        image = drawn.image(image_id).resize((48 + 3 * k, 50 + k))
        image.save(tmp_path / "images" / f"{image_id}.png")
        tags = ";".join(drawn.classes[tag - 1] for tag in drawn.tags(image_id))
        rows.append(f"{image_id}.png,{tags}")
    (tmp_path / "labels.csv").write_text("\n".join(rows) + "\n")
    convert(tmp_path / "images", tmp_path / "labels.csv", tmp_path / "own", val_fraction=0.25)
    values = TINY | {"dataset": "voc", "data_root": str(tmp_path / "own"), "t": 4}
    folder = runner.execute(make_plan("toy").with_settings(values), tmp_path / "run")
    results = json.loads((folder / "results.json").read_text())
    assert results["table1"]["rw_crf"] is None
    own = VOCData(tmp_path / "own")
    for image_id in own.ids("train"):
        labels = read_labels(folder / "05_segmentation_labels" / "labels" / f"{image_id}.png")
        assert labels.shape == own.image(image_id).size[::-1]

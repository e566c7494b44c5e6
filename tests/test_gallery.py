"""The gallery of a run's page."""

from __future__ import annotations

import base64
import io
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scenes import draw_scenes

from affinity_lib.data.files import save_scores
from affinity_lib.data.voc import VOCData
from affinity_lib.showing import gallery as g

STEPS = ["image", "CAM", "trusted areas", "random walk", "walk + dCRF", "network", "truth"]


@pytest.fixture
def run(tmp_path) -> tuple[Path, VOCData, dict]:
    """A run on twelve scenes; the labels of scene k are its mask, moved by k pixels."""
    data = draw_scenes(tmp_path / "data", 12)
    for k, image_id in enumerate(data.ids("train")):
        tags, mask = data.tags(image_id), data.mask(image_id)
        maps = np.random.default_rng(k).random((len(tags) + 1, 6, 6))
        save_scores(tmp_path / g.CAMS / f"{image_id}.npz", tags, maps[1:])
        save_scores(tmp_path / g.WALKED / f"{image_id}.npz", [0, *tags], maps)
        for folder in (g.TRUSTED, g.LABELS, g.PREDICTIONS):
            data.write_labels(tmp_path / folder / f"{image_id}.png", np.roll(mask, k, axis=0))
    parameters = {"data_root": str(tmp_path / "data"), "classes": ""}
    record = {"state": "done", "key": {"parameters": parameters}}
    return tmp_path, data, {"stages": {"01_class_activation_maps": record}}


def steps(page: str) -> list[list[str]]:
    """The names of the pictures in each row of the page."""
    return [re.findall(r"<figcaption>(.*?) <b>", row) for row in page.split("class=case")[1:]]


def test_the_best_come_first_and_the_worst_last(run):
    folder, data, _ = run
    chosen = g.extremes(data, data.ids("train"), folder / g.LABELS, count=2)
    scores = [g._miou(data, i, data.read_labels(folder / g.LABELS / f"{i}.png")) for i in chosen]
    assert chosen[0] == "scene_000" and scores[0] == 100
    assert scores == sorted(scores, reverse=True) and len(set(chosen)) == 4


def test_few_images_are_shown_once_each(run):
    folder, data, _ = run
    ids = data.ids("train")[:3]
    assert sorted(g.extremes(data, ids, folder / g.LABELS)) == ids


def test_a_row_has_every_step_with_its_iou_and_the_names_of_its_classes(run):
    folder, data, manifest = run
    page = g.gallery(folder, manifest)
    assert steps(page) == [STEPS] * 8
    first = page.split("class=case")[1]
    assert "walk + dCRF <b>100 %</b>" in first and "IoU 100 %" in first
    for tag in data.tags("scene_000"):
        assert f"</i>{data.classes[tag - 1]}</span>" in first


def test_pictures_are_small_and_labels_keep_the_colours_of_their_classes(run):
    folder, data, manifest = run
    page = g.gallery(folder, manifest)
    assert not re.search(r'src="(?!data:image/)', page) and len(page) < 1_000_000
    last = re.findall(r'src="data:image/png;base64,([^"]*)', page.split("class=case")[1])[-1]
    pixels = np.array(Image.open(io.BytesIO(base64.b64decode(last))).convert("RGB"))
    assert (pixels == data.colors[data.mask("scene_000")]).all()


def test_without_masks_it_says_so_and_shows_neither_truth_nor_iou(run):
    folder, _, manifest = run
    shutil.rmtree(folder / "data" / "SegmentationClass")
    page = g.gallery(folder, manifest)
    assert "has no masks" in page and "%" not in page and "IoU " not in page.split("</p>", 1)[1]
    assert steps(page) == [STEPS[:-1]] * 8


def test_steps_that_have_not_run_are_left_out(run):
    folder, _, manifest = run
    for name in (g.WALKED, g.LABELS, g.PREDICTIONS):
        shutil.rmtree(folder / name)
    page = g.gallery(folder, manifest)
    assert (
        "no labels yet" in page and steps(page) == [["image", "CAM", "trusted areas", "truth"]] * 8
    )


def test_a_run_without_cams_has_no_gallery_and_a_data_set_that_is_gone_is_told(run):
    folder, _, manifest = run
    shutil.rmtree(folder / "data" / "JPEGImages")
    assert "cannot be shown" in g.gallery(folder, manifest)
    assert g.gallery(folder, {"stages": {}}) == ""

"""The gallery of a run's page."""

from __future__ import annotations

import base64
import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scenes import draw_scenes

from affinity_lib.data.files import save_scores
from affinity_lib.data.voc import VOCData
from affinity_lib.running.manifest import FORMAT, save_manifest
from affinity_lib.running.results import save_results
from affinity_lib.showing import gallery as g
from affinity_lib.showing.report import write_report
from affinity_lib.stages.evaluation import extremes, image_mious

STEPS = ["image", "CAM", "trusted areas", "random walk", "walk + dCRF", "network", "truth"]


@pytest.fixture
def run(tmp_path) -> tuple[Path, VOCData, dict]:
    """A run on twelve scenes; the labels of scene k are its mask, moved by k pixels."""
    data = draw_scenes(tmp_path / "data", 12)
    for k, image_id in enumerate(data.ids("train")):
        tags, mask = data.tags(image_id), data.mask(image_id)
        maps = np.random.default_rng(k).random((len(tags) + 1, 6, 6))
        save_scores(tmp_path / "01_class_activation_maps/cams" / f"{image_id}.npz", tags, maps[1:])
        save_scores(tmp_path / "04_random_walk/walked" / f"{image_id}.npz", [0, *tags], maps)
        for folder in (
            "02_affinity_labels/labels",
            "05_segmentation_labels/labels",
            "06_segmentation_network/predictions",
        ):
            data.write_labels(tmp_path / folder / f"{image_id}.png", np.roll(mask, k, axis=0))
    parameters = {"data_root": str(tmp_path / "data"), "classes": ""}
    record = {"state": "done", "key": {"settings": parameters}}
    return (
        tmp_path,
        data,
        {"stages": {"01_class_activation_maps": record}, "settings": record["key"]["settings"]},
    )


def steps(cases: list[g.Case]) -> list[list[str]]:
    """The names of the pictures in each row of the page."""
    return [[name for name, _, _ in case.pictures] for case in cases]


def test_the_best_come_first_and_the_worst_last(run):
    folder, data, manifest = run
    chosen = extremes(data, data.ids("train"), folder / "05_segmentation_labels/labels", count=2)
    scores = [*image_mious(data, chosen, folder / "05_segmentation_labels/labels").values()]
    _, cases = g.gallery(folder, manifest)
    assert [case.heading for case in cases] == ["Best", "", "", "", "Worst", "", "", ""]
    assert chosen[0] == "scene_000" and scores[0] == 100
    assert scores == sorted(scores, reverse=True) and len(set(chosen)) == 4


def test_few_images_are_shown_once_each(run):
    folder, data, _ = run
    ids = data.ids("train")[:3]
    assert sorted(extremes(data, ids, folder / "05_segmentation_labels/labels")) == ids


def test_one_image_is_the_best_alone(run):
    folder, _, manifest = run
    (folder / "data/ImageSets/Segmentation/train.txt").write_text("scene_003\n")
    _, (case,) = g.gallery(folder, manifest)
    assert case.heading == "Best"


def test_a_row_has_every_step_with_its_iou_and_the_names_of_its_classes(run):
    folder, data, manifest = run
    note, cases = g.gallery(folder, manifest)
    assert steps(cases) == [STEPS] * 8 and "best and worst" in note
    assert cases[0].miou == 100 and cases[0].pictures[4][2] == 100
    assert [name for name, _, miou in cases[0].pictures if miou is not None] == STEPS[3:6]
    names = {name for name, _ in cases[0].legend}
    assert {data.classes[tag - 1] for tag in data.tags("scene_000")} < names


def test_pictures_are_small_and_labels_keep_the_colours_of_their_classes(run):
    folder, data, manifest = run
    _, cases = g.gallery(folder, manifest)
    uris = [uri for case in cases for _, uri, _ in case.pictures]
    assert all(uri.startswith("data:image/") for uri in uris) and sum(map(len, uris)) < 1_000_000
    last = cases[0].pictures[-1][1].removeprefix("data:image/png;base64,")
    pixels = np.array(Image.open(io.BytesIO(base64.b64decode(last))).convert("RGB"))
    assert (pixels == data.colors[data.mask("scene_000")]).all()


def test_without_masks_it_says_so_and_shows_neither_truth_nor_iou(run):
    folder, _, manifest = run
    shutil.rmtree(folder / "data" / "SegmentationClass")
    note, cases = g.gallery(folder, manifest)
    assert "has no masks" in note and steps(cases) == [STEPS[:-1]] * 8
    assert {case.miou for case in cases} == {None} and {case.heading for case in cases} == {""}


def test_with_some_masks_the_best_and_the_worst_are_of_those_that_have_one(run):
    folder, data, manifest = run
    ids = data.ids("train")
    for image_id in ids[:8]:
        (folder / "data" / "SegmentationClass" / f"{image_id}.png").unlink()
    assert sorted(g.extremes(data, ids, folder / "05_segmentation_labels/labels")) == ids[8:]
    assert steps(g.gallery(folder, manifest)[1]) == [STEPS] * 4


def test_steps_that_have_not_run_are_left_out(run):
    folder, _, manifest = run
    for name in (
        "04_random_walk/walked",
        "05_segmentation_labels/labels",
        "06_segmentation_network/predictions",
    ):
        shutil.rmtree(folder / name)
    note, cases = g.gallery(folder, manifest)
    assert "no labels yet" in note
    assert steps(cases) == [["image", "CAM", "trusted areas", "truth"]] * 8


def test_a_run_without_cams_has_no_gallery_and_a_data_set_that_is_gone_is_told(run):
    folder, _, manifest = run
    shutil.rmtree(folder / "data" / "JPEGImages")
    note, cases = g.gallery(folder, manifest)
    assert "cannot be shown" in note and cases == []
    assert g.gallery(folder, {"stages": {}}) == ("", [])


def test_the_page_names_what_it_shows_and_trusts_no_text(run):
    folder, data, manifest = run
    manifest["settings"]["classes"] = ""
    (folder / "data/classes.txt").write_text("\n".join(["<b>", *data.classes[1:]]))
    for xml in (folder / "data/Annotations").glob("*.xml"):
        xml.write_text(xml.read_text().replace(f">{data.classes[0]}<", ">&lt;b&gt;<"))
    save_results(folder, "tiny", manifest | {"stages": {}}, [])
    save_manifest(folder, manifest | {"format": FORMAT})
    page = write_report(folder).read_text()
    assert page.count("<figcaption>") == 8 * len(STEPS) and page.count("<h3>") == 2
    assert "walk + dCRF <b>100 %</b>" in page and "IoU 100 %" in page
    assert "&lt;b&gt;" in page and "<b><b>" not in page and "</i><b>" not in page

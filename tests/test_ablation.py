"""The ablation at the smallest size: its rows, that it goes on, and its tables."""

from __future__ import annotations

import csv
import json
import shutil
import sys

import numpy as np
import papermill
import pytest
import torch
from safetensors.torch import load_file

from affinity_lib.cam import resize, to_labels
from affinity_lib.data.paths import find_root
from affinity_lib.errors import InputError
from affinity_lib.evaluation import VOID, image_miou
from affinity_lib.running.plan import make_plan
from affinity_lib.stages.cams import cam_labels
from affinity_lib.stages.evaluation import evaluate
from affinity_lib.stages.segmentation_labels import crf_settings, write_segmentation_labels

NOTEBOOKS = find_root() / "notebooks"
sys.path.append(str(NOTEBOOKS))
import ablation

SPLIT = {"split": "train", "uses_tags": True}
UNDONE = {"AffinityNet, two rounds"}  # toy trains once


def silent(*words, **how) -> None: ...


@pytest.fixture(scope="module")
def found(tiny_run, tmp_path_factory):
    """All that is measured at one seed, and the folder of all runs."""
    run, plan = tiny_run
    home = tmp_path_factory.mktemp("ablation")
    shutil.copytree(run, home / "toy" / "seed=0")  # its notebooks need not run again
    return ablation.ablate([(plan, 1, 1)], home, 1, silent), home


@pytest.fixture
def case(found, tiny_run):
    def of(row: ablation.Row | str) -> ablation.Case:
        if isinstance(row, str):
            (row,) = (one for one in ablation.ROWS if one.name == row)
        return ablation.Case(tiny_run[1], found[1] / "toy" / "seed=0", row)

    return of


def results(home) -> dict:
    """When each row and table was written; the notebooks' file counts all that they ever took."""
    files = (path for path in home.rglob("result.json") if path.parent.name != "notebooks")
    return {path: path.stat().st_mtime_ns for path in sorted(files)}


def test_images_without_masks_are_refused_and_cells_that_a_backbone_lacks_left_out(
    case, monkeypatch
):
    monkeypatch.setattr(ablation.VOCData, "with_masks", lambda data, ids: list(ids)[:2])
    with pytest.raises(InputError, match="compared by masks: give at least three"):
        case("AffinityNet")
    toy, voc12 = (ablation.tasks(make_plan(name), 0, 1) for name in ("toy", "voc12"))
    assert set(toy) - set(voc12) == {"cells twice as wide"}  # ResNet38 has cells of 8 pixels alone


def test_every_row_and_table_is_made(found):
    toy = found[0]["toy"]
    names = {row.name for row in ablation.ROWS} - UNDONE
    assert {task for _, task in toy} == names | {"notebooks", *ablation.TABLES}
    for name in names:
        assert 0 < toy[0, name]["walk"] <= 100 and 0 < toy[0, name]["walk_crf"] <= 100


def test_rows_that_train_have_fewer_seeds_and_one_seed_is_looked_at_image_by_image(tiny_run):
    plan = tiny_run[1]
    due = [set(ablation.tasks(plan, seed, trained=3)) for seed in range(5)]
    trains = {row.name for row in ablation.ROWS if row.trains}
    assert due[0] - due[2] == {"images"} and due[2] - due[3] == trains | {"walk", "labels"}
    two = plan.with_settings({"affinity_rounds": 2})
    assert set(ablation.tasks(two, 0, 3)) - due[0] == UNDONE


def test_what_is_missing_is_made_and_nothing_else(found, tiny_run):
    made, home = found
    before = results(home)
    folder = ablation.folder_of(home / "toy" / "seed=0", "gamma 3")
    (folder / "result.json").unlink()  # as after a kill: its network is trained already
    again = ablation.ablate([(tiny_run[1], 1, 1)], home, 1, silent)
    after = results(home)
    assert {path.parent for path in before if before[path] != after[path]} == {folder}
    old, new = (one["toy"][0, "gamma 3"] for one in (made, again))
    assert old | {"seconds": 0} == new | {"seconds": 0}


def test_a_setting_that_has_changed_makes_a_row_anew(found, tiny_run, tmp_path):
    plan = tiny_run[1]
    shutil.copytree(found[1] / "toy" / "seed=0", tmp_path / "run")
    row = next(row for row in ablation.ROWS if row.name == "no walk")
    first, other = (
        ablation.known(ablation.Case(one, tmp_path / "run", row), row.name)
        for one in (plan, plan.with_settings({"cam_crf_compat": 0.5}))
    )
    assert first == found[0]["toy"][0, "no walk"]  # seconds and all: it was not made again
    assert other["walk"] == first["walk"] and other["walk_crf"] != first["walk_crf"]


def test_training_a_row_without_a_change_gives_the_network_of_notebook_3(case):
    same, other = case(ablation.Row("as it is", trains=True)), case("one mean over all pairs")
    learned = load_file(same.run / ablation.last_network(same.config) / "network.safetensors")
    for row, alike in ((same, True), (other, False)):
        assert row.walk  # which trains
        net = load_file(row.folder / "network.safetensors")
        assert all(torch.equal(value, learned[name]) for name, value in net.items()) == alike


def halves(one: ablation.Case, alphas: list[float]) -> list[tuple[list[str], list[str], float]]:
    """Images that chose an alpha, those that it is used for, and the alpha."""
    first, second = one.rest[::2], one.rest[1::2]
    return [(first, second, alphas[0]), (second, first, alphas[1])]


def test_no_image_is_measured_with_what_was_chosen_on_it(case):
    ours = case(ablation.OURS)
    assert not set(ours.few) & set(ours.rest) and len(ours.few) + len(ours.rest) == 12
    for own, other, _ in halves(ours, [1, 1]):
        assert own and not set(own) & set(other) and set(own) | set(other) == set(ours.rest)


def test_the_numbers_of_a_row_are_those_of_the_stages(found, case, tmp_path):
    ours, result = case(ablation.OURS), found[0]["toy"][0, "AffinityNet"]
    walk, data, settings = ours.walk, ours.data, (result["beta"], ours.config.t)

    def labels_at(alpha: float, ids: list[str]) -> dict[str, np.ndarray]:
        walk.alpha = alpha
        walked = {image_id: walk.walked(image_id, *settings) for image_id in ids}
        return {
            image_id: to_labels(resize(maps, data.mask(image_id).shape), tags).numpy()
            for image_id, (tags, maps) in walked.items()
        }

    chosen = {}
    for own, other, alpha in halves(ours, result["alpha"]):
        tried = {each: labels_at(each, own) for each in ablation.ALPHAS}
        mious = {each: evaluate(data, own, of.get, **SPLIT).miou for each, of in tried.items()}
        assert mious[alpha] == pytest.approx(max(mious.values()))
        chosen |= labels_at(alpha, other)
    assert result["walk"] == pytest.approx(evaluate(data, ours.rest, chosen.get, **SPLIT).miou)

    for _, other, alpha in halves(ours, result["alpha_crf"]):
        walk.alpha = alpha
        walk.write(other, tmp_path / "walked", *settings)
    crf, folder = crf_settings(ours.config), tmp_path / "walked"
    write_segmentation_labels(data, ours.rest, folder, tmp_path / "labels", crf=crf)
    refined = evaluate(
        data, ours.rest, lambda i: data.read_labels(tmp_path / "labels" / f"{i}.png"), **SPLIT
    )
    assert result["walk_crf"] == pytest.approx(refined.miou, abs=0.5)  # in half precision


def test_without_a_walk_the_labels_are_those_of_the_cams(found, case):
    bare, result = case("no walk"), found[0]["toy"][0, "no walk"]
    for _, other, alpha in halves(bare, result["alpha"]):
        for image_id in other:
            (labels,) = cam_labels(bare.data, image_id, bare.run / ablation.CAMS, [alpha])
            expected = image_miou(bare.data.mask(image_id), labels, len(bare.data.classes) + 1)
            assert result["images"][image_id][0] == pytest.approx(expected, abs=0.5)


def test_affinities_of_colour_are_differences_of_mean_colours(case):
    walk = case("colour").walk
    image_id = case("colour").few[0]
    affinity = walk.affinity(image_id)  # (P, h, w)
    stride = walk.net.backbone.output_stride
    image = np.array(walk.inputs.photograph(image_id)) / 255
    first, second = image[:stride, :stride], image[:stride, stride : 2 * stride]
    distance = np.abs(first.mean((0, 1)) - second.mean((0, 1))).sum()
    assert walk.offsets[0].tolist() == [0, 1]
    assert float(affinity[0, 0, 0]) == pytest.approx(np.exp(-distance), rel=1e-5)


def test_true_affinities_join_cells_of_one_class_and_no_others(case):
    walk = case("true affinities").walk
    for image_id in case("true affinities").few:
        classes, affinity = walk.classes(image_id)[0], walk.affinity(image_id)
        assert VOID not in classes and set(classes.tolist()[0]) <= {0, *range(1, 7)}
        for k, (dy, dx) in enumerate(walk.offsets.tolist()):
            for y, x in ((0, 5), (3, 4), (7, 6)):
                if y + dy < classes.shape[0] and 0 <= x + dx < classes.shape[1]:
                    joined = classes[y, x] == classes[y + dy, x + dx]
                    assert affinity[k, y, x] == float(joined)


def test_wider_cells_are_a_quarter_as_many(case):
    image_id = case(ablation.OURS).few[0]
    grids = [
        case(row).walk.affinity(image_id).shape[1:]
        for row in ("AffinityNet", "cells twice as wide")
    ]
    assert grids[0].numel() == 4 * grids[1].numel()


@pytest.fixture(scope="module")
def tables(found, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables")
    for _ in range(2):  # what was found stays as it is
        ablation.write_tables(found[0], folder)
    return folder


def test_the_tables_say_what_was_found(found, tables):
    with (tables / "toy.csv").open() as file:
        lines = {line["row"]: line for line in csv.DictReader(file)}
    toy = found[0]["toy"]
    assert set(lines) == {row.name for row in ablation.ROWS} - UNDONE
    for name, line in lines.items():
        assert float(line["walk"]) == pytest.approx(toy[0, name]["walk"], rel=1e-3)
    assert lines["no walk"]["negative"] == "" and float(lines["true affinities"]["negative"]) == 0
    counts = {
        name: len((tables / f"toy_{name}.csv").read_text().splitlines()) for name in ablation.TABLES
    }
    assert counts == {"walk": 1 + 5 * 6 * 7, "labels": 1 + 2 * 21, "images": 1 + 10}
    assert json.loads((tables / "made_with.json").read_text())["toy"]["packages"]["torch"]


def test_the_lesson_runs_on_these_tables(tables, tmp_path):
    lesson = NOTEBOOKS / "07_what_matters.ipynb"
    how = {"kernel_name": "python3", "cwd": tmp_path, "progress_bar": False}
    done = papermill.execute_notebook(
        lesson, tmp_path / "out.ipynb", {"folder": str(tables)}, **how
    )
    outputs = [o for cell in done.cells if cell.cell_type == "code" for o in cell.outputs]
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]
    assert "toy: 16 rows of 1 to 1 seeds" in "".join(o.get("text", "") for o in outputs)

"""A run's numbers become the paper's tables, and its label maps the server's archive."""

from __future__ import annotations

import csv
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from affinity_lib.data.files import save_json
from affinity_lib.data.submission import SUBMISSION, submitted_ids, write_submission
from affinity_lib.data.voc import VOC_CLASSES, VOCData, open_image, write_labels
from affinity_lib.errors import InputError
from affinity_lib.running.manifest import FORMAT, save_manifest
from affinity_lib.showing.tables import Table, paper_tables, write_tables

LABELS = ("background", *VOC_CLASSES)


def results(**changes: object) -> dict:
    """The results of a whole run of the paper's recipe."""
    return {
        "profile": "voc12",
        "dataset": {"classes": list(VOC_CLASSES)},
        "settings": {"backbone": "resnet38", "preset": "paper"},
        "table1": {"cam": 47.25, "cam_crf": 50.0, "rw": 57.0, "rw_crf": 59.0},
        "segmentation": {"val": 60.0, "supervised": 75.0},
        "seconds": {},
        "per_class": {"segmentation": {label: 50.0 + n for n, label in enumerate(LABELS)}},
        "details": {"05_segmentation_labels": {"statements": {"rw_crf": "train split, dCRF"}}},
    } | changes


def by_name(found: list[Table]) -> dict[str, Table]:
    return {table.name: table for table in found}


def rows_of(table: Table) -> dict[str, list]:
    return {str(row[0]): list(row[1:]) for row in table.rows}


def test_table_1_has_the_run_the_paper_and_the_released_code_side_by_side():
    table = by_name(paper_tables(results(), {}))["table1"]
    assert rows_of(table) == {
        "CAM": [47.25, 48.0, 47.7],
        "CAM + dCRF": [50.0, None, None],
        "CAM + RW": [57.0, 58.1, 61.0],
        "CAM + RW + dCRF": [59.0, 59.7, None],
    }
    assert "Last row: train split, dCRF." in table.notes


def test_table_2_has_every_label_in_order_and_the_means_of_both():
    table = by_name(paper_tables(results(), {}))["table2"]
    assert [row[0] for row in table.rows] == [*LABELS, "mean"]
    assert rows_of(table)["tvmonitor"] == [70.0, 51.6]
    assert rows_of(table)["mean"] == [60.0, 61.7]


def test_table_2_has_a_column_for_the_bound_where_its_classes_are_known():
    per_class = {"segmentation": {"cat": 50.0}, "supervised": {"cat": 80.0}}
    table = by_name(paper_tables(results(per_class=per_class), {}))["table2"]
    assert table.header == ["IoU", "this run", "true masks", "paper"]
    assert rows_of(table) == {"cat": [50.0, 80.0, 75.1], "mean": [60.0, 75.0, 61.7]}


@pytest.mark.parametrize(
    ("backbone", "row", "other"),
    [
        ("resnet38", "Ours-ResNet38", "Ours-DeepLab"),
        ("vgg16", "Ours-DeepLab", "Ours-ResNet38"),
    ],
)
def test_table_4_puts_the_run_in_the_row_of_its_network(backbone: str, row: str, other: str):
    table = by_name(paper_tables(results(), {"backbone": backbone}))["table4"]
    rows = rows_of(table)
    assert rows[row][1] == 60.0 and rows[other][1] is None
    assert rows["Ours-ResNet38"][2:] == [61.7, 63.7]
    assert rows["Ours-DeepLab"][2:] == [58.4, 60.5]
    assert rows[f"{row}, fully supervised"][1] == 75.0
    assert rows["recovered, percent"][1] == 80.0


def test_a_network_that_the_paper_has_not_gets_a_row_of_its_own():
    rows = rows_of(by_name(paper_tables(results(), {"backbone": "small"}))["table4"])
    assert rows["this run's network (small)"] == ["image tags", 60.0, None, None]


def test_without_a_bound_nothing_is_recovered():
    table = by_name(paper_tables(results(segmentation={"val": 60.0}), {}))["table4"]
    assert [row[0] for row in table.rows] == ["Ours-ResNet38", "Ours-DeepLab"]


def test_a_run_that_stopped_early_has_the_tables_it_came_to():
    assert [t.name for t in paper_tables(results(segmentation={}), {})] == ["table1"]
    assert paper_tables(results(segmentation={}, table1={}), {}) == []


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"test_scales": [1.0], "test_flip": False}, "Tested at scale 1, no flip, no dCRF."),
        (
            {"test_scales": [0.5, 1.0, 1.5], "test_flip": True, "test_crf": True},
            "Tested at scale 0.5, 1, 1.5, with flip, with dCRF.",
        ),
    ],
)
def test_the_way_of_testing_stands_below_table_2(parameters: dict, said: str):
    assert said in by_name(paper_tables(results(), parameters))["table2"].notes


def test_other_data_than_voc_is_named_as_such():
    toy = results(dataset={"classes": ["disk", "ring"]})
    note = "The paper's numbers are of PASCAL VOC 2012, this run's of other data."
    assert all(note in table.notes for table in paper_tables(toy, {}))
    assert not any(note in table.notes for table in paper_tables(results(), {}))


def test_markdown_and_csv_hold_the_same_numbers(tmp_path: Path):
    save_json(tmp_path / "results.json", results())
    settings = {"backbone": "vgg16"}
    save_manifest(tmp_path, {"format": FORMAT, "stages": {}, "settings": settings})
    files = write_tables(tmp_path)
    assert sorted(p.name for p in files) == sorted(
        f"table{n}{suffix}" for n in (1, 2, 4) for suffix in (".md", ".csv")
    )
    for path in files[::2]:
        lines = [line for line in path.read_text().splitlines() if line.startswith("| ")]
        marked = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
        listed = list(csv.reader(io.StringIO(path.with_suffix(".csv").read_text())))
        assert marked[0] == listed[0]
        for left, right in zip(marked[1:], listed[1:], strict=True):
            assert left[0] == right[0]
            for a, b in zip(left[1:], right[1:], strict=True):
                assert a == b or abs(float(a) - float(b)) <= 0.051


def test_tables_need_results(tmp_path: Path):
    with pytest.raises(InputError, match=r"results\.json is missing"):
        write_tables(tmp_path)


@pytest.fixture
def voc(tmp_path: Path) -> VOCData:
    """Three test images without tags or masks."""
    root = tmp_path / "voc"
    for folder in ("JPEGImages", "Annotations", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    for n, image_id in enumerate(("2008_9", "2008_10", "2009_1")):
        Image.new("RGB", (10 + n, 7)).save(root / "JPEGImages" / f"{image_id}.jpg")
    (root / "ImageSets/Segmentation/test.txt").write_text("2008_9\n2008_10\n2009_1\n")
    return VOCData(root)


@pytest.fixture
def predictions(voc: VOCData, tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    for image_id in voc.ids("test"):
        size = voc.image(image_id).size[::-1]
        labels = generator.integers(0, 21, size)
        write_labels(tmp_path / "predictions" / f"{image_id}.png", labels)
    return tmp_path / "predictions"


def test_without_their_list_no_image_is_predicted_for_the_server(voc, capsys):
    assert submitted_ids(voc, "test") == voc.ids("test")
    assert submitted_ids(voc, "") == []
    assert capsys.readouterr().out == ""
    assert submitted_ids(voc, "tests") == []
    assert "has no list tests: nothing is predicted" in capsys.readouterr().out


def test_the_list_of_another_task_is_not_submitted(voc, capsys):
    (voc.root / "ImageSets" / "Segmentation").rename(voc.root / "ImageSets" / "Main")
    assert voc.ids("test") and submitted_ids(voc, "test") == []
    assert "has no list test: nothing is predicted" in capsys.readouterr().out


def test_a_part_of_the_classes_is_refused_before_anything_is_predicted(voc, predictions, tmp_path):
    some = VOCData(voc.root, ["cat", "dog"])
    with pytest.raises(InputError, match="wants all 20 classes .* got cat, dog: leave classes"):
        submitted_ids(some, "test")
    with pytest.raises(InputError, match="wants all 20 classes"):
        write_submission(some, "test", predictions, tmp_path / "results.tgz")


def test_the_archive_holds_each_label_map_where_the_server_looks(voc, predictions, tmp_path):
    path = write_submission(voc, "test", predictions, tmp_path / "results.tgz")
    with tarfile.open(path, "r:gz") as archive:
        content = {member.name: archive.extractfile(member).read() for member in archive}
    assert content == {f"{SUBMISSION}/{p.name}": p.read_bytes() for p in predictions.iterdir()}
    first = tmp_path / "first.png"
    first.write_bytes(content["results/VOC2012/Segmentation/comp6_test_cls/2008_9.png"])
    assert open_image(first).mode == "P"


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, r"2008_10\.png is missing"),
        (np.zeros((8, 11)), "is 11 x 8 with labels up to 0, but the server wants 11 x 7"),
        (np.full((7, 11), 21), "labels up to 21, but the server wants 11 x 7 and labels up to 20"),
        (np.full((7, 11), 255), "labels up to 255"),
    ],
)
def test_maps_that_the_server_would_refuse_are_refused(voc, predictions, tmp_path, labels, message):
    path = predictions / "2008_10.png"
    if labels is None:
        path.unlink()
    else:
        write_labels(path, labels)
    with pytest.raises(InputError, match=message):
        write_submission(voc, "test", predictions, tmp_path / "results.tgz")
    assert not (tmp_path / "results.tgz").exists()

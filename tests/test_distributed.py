"""Several processes that train one network together: the same batches, and the same outcome."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from scenes import draw_scenes, loss
from torch import nn
from torch.utils.data import Dataset

from affinity_lib.backbones import build_backbone
from affinity_lib.errors import InputError
from affinity_lib.segmentation import SegmentationNet, segmentation_loss
from affinity_lib.training import loop
from affinity_lib.training.inputs import Inputs, forward
from affinity_lib.training.loop import Recipe, fit
from affinity_lib.training.processes import launch

RECIPE = Recipe(epochs=3, batch_size=4, lr=0.02, accumulate=2)  # of nine images: 4, 4 and 1


class Noisy(Dataset):
    """Nine inputs that are different each time, as augmented images are."""

    def __len__(self) -> int:
        return 9

    def __getitem__(self, k: int):
        return torch.randn(3, 4, 4), torch.tensor(k % 2)


class Net(nn.Module):
    """A network without batch norm and dropout, and with weights that nothing uses."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.backbone = nn.Conv2d(3, 4, 3)
        self.head, self.unused = nn.Linear(16, 2), nn.Linear(2, 2)

    def forward(self, x):
        return self.head(self.backbone(x).relu().flatten(1))


def noting(folder: Path):
    """The loss, which notes the images that each process sees."""
    folder.mkdir()

    def noted(model, batch):  # travels by value, like what a cell of a notebook defines
        file = folder / str(dist.get_rank() if dist.is_initialized() else 0)
        with file.open("a") as notes:
            print(*(f"{x.sum():.4f}" for x in batch[0]), file=notes)
        return loss(model, batch)

    return noted


def noted(folder: Path, rank: int) -> list[list[str]]:
    return [line.split() for line in (folder / str(rank)).read_text().splitlines()]


def test_two_processes_go_on_with_the_batches_losses_and_weights_of_one(tmp_path, capfd):
    alone, two, calls = Net(), Net(), []

    def stopping(model, batch):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return loss(model, batch)

    whole = fit(alone, Noisy(), noting(tmp_path / "one"), RECIPE, tmp_path / "whole.pt")
    with pytest.raises(KeyboardInterrupt):
        fit(Net(), Noisy(), stopping, RECIPE, tmp_path / "checkpoint.pt")
    capfd.readouterr()
    together = (Noisy(), noting(tmp_path / "two"), RECIPE, tmp_path / "checkpoint.pt")
    history = fit(two, *together, nproc=2)

    batches = noted(tmp_path / "one", 0)[3:]  # of the second and third epoch
    first, second = (noted(tmp_path / "two", rank) for rank in (0, 1))
    assert [len(batch) for batch in batches] == [4, 4, 1] * 2
    assert first == [batch[::2] for batch in batches]
    assert second == [batch[1::2] or batch for batch in batches]  # the first again, with weight 0
    assert history == pytest.approx(whole, abs=1e-5)
    for name, value in alone.state_dict().items():
        torch.testing.assert_close(two.state_dict()[name], value, atol=1e-5, rtol=0)
    assert not two.training
    assert [line[:14] for line in capfd.readouterr().out.splitlines()] == [
        "epoch   2 of 3",
        "epoch   3 of 3",
    ]
    assert fit(Net(), *together, nproc=2) == history  # nothing is left, and no process starts
    assert noted(tmp_path / "two", 0) == first


@pytest.mark.long
def test_with_batch_norm_and_dropout_the_losses_are_within_the_spread_of_seeds(tmp_path):
    data = draw_scenes(tmp_path / "data", 24)

    def labels_of(image_id):  # workers of each process call what a notebook's cell defines, too
        return data.mask(image_id)

    def pixel_loss(model, batch):
        images, labels = batch
        assert labels.shape[1:] == (48, 48) and len(data.classes) == 3
        return segmentation_loss(forward(model, images), labels)

    def train(seed: int, nproc: int = 1) -> float:
        torch.manual_seed(0)
        net = SegmentationNet(build_backbone("small"), len(data.classes), width=8, dilation=2)
        samples = Inputs(data, net.backbone).samples(data.ids("train"), 48, labels=labels_of)
        recipe = Recipe(epochs=6, batch_size=6, lr=0.003, seed=seed, workers=nproc - 1)
        where = tmp_path / f"{seed}-{nproc}.pt"
        return fit(net, samples, pixel_loss, recipe, where, report_every=9, nproc=nproc)[-1]

    losses = torch.tensor([train(seed) for seed in range(4)])
    together = train(0, nproc=2)
    assert losses.mean() - 3 * losses.std() < together < losses.mean() + 3 * losses.std()


def refuse(report) -> None:
    if dist.get_rank() == 1:
        raise InputError("beta must be >= 0, got -1")
    dist.barrier()


def mistake(report) -> None:
    if dist.get_rank() == 1:
        raise KeyError("neck")
    dist.barrier()


def die(report) -> None:
    if dist.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    dist.barrier()


@pytest.mark.parametrize(
    ("function", "kind", "words"),
    [
        (refuse, InputError, "^beta must be >= 0, got -1$"),
        (mistake, RuntimeError, "^KeyError: 'neck'"),
        (die, RuntimeError, "that train together was ended by SIGKILL, as happens when memory"),
    ],
)
def test_the_failure_of_one_process_ends_all_and_is_told_in_a_sentence(function, kind, words):
    with pytest.raises(kind, match=words):
        launch(2, "cpu", function, (), print)


WAITING = """
import signal, sys
from threading import Event
from affinity_lib.training.processes import launch

def wait(path, report):
    with open(path, "w") as up:
        print("up", file=up, flush=True)
        Event().wait()

signal.signal(signal.SIGINT, signal.default_int_handler)  # it may have been started ignoring it
launch(2, "cpu", wait, sys.argv[1:], print)
"""


@pytest.mark.parametrize("how", ["interrupted", "killed"])
def test_all_processes_end_with_the_one_that_started_them(tmp_path, how):
    script, pipe = tmp_path / "script.py", tmp_path / "pipe"
    script.write_text(WAITING)  # without a guard, as in a notebook
    os.mkfifo(pipe)
    command = [sys.executable, str(script), str(pipe)]
    with (
        subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL) as child,
        pipe.open("rb", buffering=0) as lines,
    ):
        up = b""
        while up.count(b"up") < 2:
            up += lines.read(8)
        if how == "interrupted":
            os.killpg(child.pid, signal.SIGINT)  # as Jupyter does
        else:
            child.kill()
        assert select.select([lines], [], [], 60)[0] and lines.read(8) == b""  # no writer is left
        assert child.wait(timeout=60) != 0


def test_the_gpu_is_left_to_the_processes_that_train(tmp_path, monkeypatch):
    class Placed(Net):
        def to(self, device, **_):
            self.places = [*getattr(self, "places", []), str(device)]

        def cpu(self):
            self.to("cpu")

    places = []
    monkeypatch.setattr(loop, "launch", lambda n, d, f, job, report: places.extend(job[0].places))
    net = Placed()
    fit(net, Noisy(), loss, RECIPE, tmp_path / "checkpoint.pt", "cuda", nproc=2)
    assert places == ["cuda", "cpu"] and net.places[-1] == "cuda"


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
            fit(nn.Linear(1, 1), [], loss, RECIPE, tmp_path / "a.pt", nproc=nproc)
        else:
            launch(nproc, device, print, (), print)
    assert not list(tmp_path.iterdir())

"""Several processes that train together do what one process does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from scenes import CLASSES, draw_scenes
from torch import nn
from torch.utils.data import Dataset

from affinity_lib import distributed
from affinity_lib.affinity import affinities, affinity_loss, half_plane_offsets, pair_labels
from affinity_lib.affinity_labels import to_grid
from affinity_lib.affinitynet import AffinityNet
from affinity_lib.backbones import build_backbone, freeze
from affinity_lib.cam import CAMNet, classification_loss
from affinity_lib.errors import InputError
from affinity_lib.inputs import Inputs, forward
from affinity_lib.segmentation import SegmentationNet, segmentation_loss
from affinity_lib.training import Recipe, fit
from affinity_lib.voc import VOCData

RECIPE = Recipe(epochs=2, batch_size=4, lr=0.002)  # of nine images: the last batch has one
CASES = {
    "cam": RECIPE,
    "cam with dropout": replace(RECIPE, optimizer="sgd", lr=0.05, lr_factors=(1, 2, 10, 20)),
    "cam, frozen norm": replace(RECIPE, workers=2),
    "affinity": replace(RECIPE, batch_size=3, accumulate=2),
    "affinity of stored levels": replace(RECIPE, warmup=0.2),
    "segmentation": replace(RECIPE, weight_decay=1e-4),
    "segmentation, mixed precision": replace(RECIPE, epochs=1, mixed_precision=True),
}


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


OFFSETS = half_plane_offsets(3)


def build(case: str, data, folder: Path):
    """Model, samples and loss of a case, the same in every process."""
    torch.manual_seed(0)
    backbone = build_backbone("small")
    if "frozen" in case:
        freeze(backbone, 1)
    finetune = "head" if "stored" in case else "all"
    inputs = Inputs(data, backbone, finetune, folder=folder / "levels")
    ids = data.ids("train")
    augment = {"scale": (0.8, 1.2), "jitter": True}
    if case.startswith("cam"):
        net = CAMNet(backbone, len(CLASSES), "linear" if "dropout" in case else "conv", width=8)
        return net, inputs.samples(ids, 48, tags=True, **augment), cam_loss
    samples = inputs.samples(ids, 48, labels=data.mask, **augment)
    if case.startswith("affinity"):
        return AffinityNet(backbone, (8, 8, 16), norm=True), samples, balanced_loss
    return SegmentationNet(backbone, len(CLASSES), width=8, dilation=2), samples, label_loss


def train_all(root: Path, folder: Path) -> None:
    """Train every case in one go; what comes out lies in the checkpoints."""
    data = VOCData(root)
    for case, recipe in CASES.items():
        fit(*build(case, data, folder), recipe, folder / f"{case}.pt")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distributed")
    draw_scenes(folder / "data", 9)
    for name in ("one", "two"):
        (folder / name).mkdir()
    train_all(folder / "data", folder / "one")
    distributed.launch(2, "cpu", folder, train_all, folder / "data", folder / "two")
    return folder


@pytest.mark.parametrize("case", CASES)
def test_two_processes_have_the_losses_and_weights_of_one(trained, case):
    one, two = (torch.load(trained / n / f"{case}.pt", weights_only=True) for n in ("one", "two"))
    print(case, one["history"], two["history"], max((one["model"][n].double()-two["model"][n].double()).abs().max().item() for n in one["model"]))
    assert one["history"] == pytest.approx(two["history"], abs=1e-4)
    for name, value in one["model"].items():
        torch.testing.assert_close(two["model"][name], value, atol=1e-3, rtol=1e-3)

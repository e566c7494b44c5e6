"""The paper's column and the released code's column."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, asdict

import numpy as np
import pytest
import torch
from scenes import PARITY

from affinity_lib.affinity import (
    affinities,
    affinity_loss,
    half_plane_offsets,
    pair_labels,
    pairs_inside,
)
from affinity_lib.affinitynet import AffinityNet
from affinity_lib.backbones import build_backbone
from affinity_lib.cam import CAMNet
from affinity_lib.errors import InputError
from affinity_lib.presets import PRESETS, preset
from affinity_lib.random_walk import random_walk
from affinity_lib.training.loop import Recipe


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_found_by_the_name_it_bears(name):
    assert preset(name).name == name


@pytest.mark.parametrize("name", ["", "Paper", "irn"])
def test_an_unknown_name_is_refused_with_those_there_are(name):
    with pytest.raises(InputError, match=f"one of paper, released, got '{name}'"):
        preset(name)


def test_a_preset_cannot_be_changed_by_accident():
    with pytest.raises(FrozenInstanceError):
        PRESETS["paper"].distance = "mean"


def test_the_columns_are_those_of_the_table():
    papers, released = (asdict(PRESETS[name]) for name in ("paper", "released"))
    alike = {"affinity_norm": False, "cam_sqrt": False, "cam_backbone": {}, "affinity_backbone": {}}
    assert papers == alike | {
        "name": "paper",
        "distance": "sum",
        "affinity_channels": (128, 256, 512),
        "affinity_activation": "relu",
        "affinity_gain": 0,
        "cam_head": "conv",
        "cam_eps": 0,
        "optimizer": "adam",
        "weight_decay": 0,
        "momentum": 0.9,
        "loss_weights": (1, 1, 2),
        "loss_eps": 0,
        "alpha_weak": 24,
        "label_pooling": "area",
        "pair_border": 0,
        "walk_pooling": False,
    }
    assert released == alike | {
        "name": "released",
        "distance": "mean",
        "affinity_channels": (64, 128, 256),
        "affinity_activation": "elu",
        "affinity_gain": 4,
        "cam_head": "linear",
        "cam_eps": 1e-5,
        "optimizer": "sgd",
        "weight_decay": 5e-4,
        "momentum": 5e-4,
        "loss_weights": (1 / 4, 1 / 4, 1 / 2),
        "loss_eps": 1e-5,
        "alpha_weak": 32,
        "label_pooling": "mean",
        "pair_border": 4,
        "walk_pooling": True,
    }


def test_the_papers_widths_join_to_896_channels_and_the_released_ones_to_448():
    assert sum(PRESETS["paper"].affinity_channels) == 896
    assert sum(PRESETS["released"].affinity_channels) == 448


def test_the_released_loss_is_a_quarter_of_the_papers():
    released = [4 * weight for weight in PRESETS["released"].loss_weights]
    assert released == list(PRESETS["paper"].loss_weights)


@pytest.mark.parametrize("choice", PRESETS.values(), ids=PRESETS)
def test_every_choice_is_one_that_the_library_knows(choice):
    backbone = build_backbone("small")
    CAMNet(backbone, 3, choice.cam_head, sqrt=choice.cam_sqrt)
    AffinityNet(
        backbone,
        choice.affinity_channels,
        choice.affinity_norm,
        choice.affinity_activation,
        choice.affinity_gain,
    )
    Recipe(1, 1, 0.1, choice.optimizer, weight_decay=choice.weight_decay, momentum=choice.momentum)
    features = torch.rand(1, 4, 9, 12)
    offsets = half_plane_offsets(5)
    pairs = pair_labels(torch.zeros(1, 9, 12, dtype=torch.long), offsets, choice.pair_border)
    W = affinities(features, offsets, choice.distance)
    loss = affinity_loss(W, pairs, weights=choice.loss_weights, eps=choice.loss_eps)
    assert loss.total > 0


def test_released_alone_chooses_what_its_two_networks_have():
    resnet38, vgg16 = (preset("released", name) for name in ("resnet38", "vgg16"))
    assert (resnet38.cam_sqrt, resnet38.affinity_norm) == (False, False)
    assert (vgg16.cam_sqrt, vgg16.affinity_norm) == (True, (8, 16, 32, 0))
    assert resnet38.cam_backbone == resnet38.affinity_backbone == {}
    with torch.device("meta"):
        cam, affinity = (
            build_backbone("vgg16", **options)
            for options in (vgg16.cam_backbone, vgg16.affinity_backbone)
        )
        segmentation = build_backbone("vgg16")
        net = AffinityNet(affinity, vgg16.affinity_channels, vgg16.affinity_norm, "elu", 4)
    assert [b.fc6.dilation[0] for b in (cam, affinity, segmentation)] == [1, 4, 12]
    assert [len(list(b.pool5.children())) for b in (cam, affinity, segmentation)] == [0, 0, 2]
    assert [getattr(norm, "num_groups", 0) for norm in net.norms] == [8, 16, 32, 0]
    assert all(conv.bias is None for conv in net.convs)


@pytest.mark.parametrize("backbone", ["resnet38", "vgg16", "small", ""])
def test_the_papers_choices_are_the_same_for_every_network(backbone):
    assert preset("paper", backbone) == PRESETS["paper"]


def test_the_released_momentum_is_its_weight_decay_by_mistake():
    assert PRESETS["released"].momentum == PRESETS["released"].weight_decay == 5e-4


def test_released_reproduces_the_released_affinities_and_loss():
    kept = np.load(PARITY / "affinity_loss_20x20.npz")
    choice, offsets = PRESETS["released"], half_plane_offsets(5)
    W = affinities(torch.from_numpy(kept["features"])[None], offsets, choice.distance)
    pairs = pair_labels(
        torch.from_numpy(kept["label"])[None].long(), offsets, border=choice.pair_border
    )
    loss = affinity_loss(W, pairs, weights=choice.loss_weights, eps=choice.loss_eps)
    for part in ("total", "background", "foreground", "negative"):
        name = {"background": "bg", "foreground": "fg", "negative": "neg"}.get(part, part)
        assert getattr(loss, part).item() == pytest.approx(float(kept[f"loss_{name}"]), abs=1e-5)

    first = torch.from_numpy(kept["pair_from"])  # (192,) pixels that start pairs, row by row
    second = torch.from_numpy(kept["pair_to"]).view(34, -1)  # their partners, offset by offset
    shift = (offsets[:, 0] * 20 + offsets[:, 1]).tolist()
    order = [shift.index(int(step)) for step in second[:, 0] - first[0]]
    ours = {"affinity": W, "bg_positive": pairs.background, "fg_positive": pairs.foreground}
    for name, values in {**ours, "negative": pairs.negative}.items():
        values = values[0].flatten(1)[order][:, first].float()
        torch.testing.assert_close(values, torch.from_numpy(kept[name]), atol=1e-5, rtol=0)


def test_released_reproduces_the_released_random_walk():
    kept = np.load(PARITY / "random_walk_13x17.npz")
    choice, offsets = PRESETS["released"], half_plane_offsets(5)
    W = affinities(torch.from_numpy(kept["features"])[None], offsets, choice.distance)[0]
    W = W * pairs_inside(offsets, 13, 17, choice.pair_border)
    cams = torch.from_numpy(kept["cam"])
    walked = random_walk(cams, W, offsets, float(kept["beta"]), int(kept["t"]))
    torch.testing.assert_close(walked, torch.from_numpy(kept["random_walk"]), atol=1e-5, rtol=0)

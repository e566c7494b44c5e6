"""AffinityNet."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scenes import Mean, write_data

from affinity_lib.affinity import affinities, affinity_loss, half_plane_offsets, pair_labels
from affinity_lib.affinity_labels import to_grid
from affinity_lib.affinitynet import AffinityNet
from affinity_lib.backbones import build_backbone
from affinity_lib.errors import InputError
from affinity_lib.evaluation import VOID
from affinity_lib.training.inputs import Inputs, forward
from affinity_lib.training.loop import Recipe, fit

OFFSETS = half_plane_offsets(5)


def loss(net, batch):
    seen, labels = batch
    features = forward(net, seen)
    pairs = pair_labels(to_grid(labels, features.shape[-2:], num_labels=3), OFFSETS)
    return affinity_loss(affinities(features, OFFSETS, "mean"), pairs).total


@pytest.fixture
def split(tmp_path):
    """One image, its left half brown and its right half olive, each a little noisy."""
    random = np.random.default_rng(0)
    image = np.full((32, 32, 3), (130, 105, 80)) + random.integers(-9, 10, (32, 32, 3))
    image[:, 16:, :2] = image[:, 16:, 1::-1]
    labels = np.repeat(np.array([[0, 2]], np.uint8), 16, axis=1).repeat(32, axis=0)
    return write_data(tmp_path / "data", {"a": image.astype(np.uint8)}, {"a": ("box",)}), labels


@pytest.mark.parametrize("channels", [(128, 256, 512), (64, 128, 256), (8, 16, 32), (3, 5, 7)])
@pytest.mark.parametrize("norm", [False, True])
def test_the_features_have_the_sum_of_the_channels_on_the_backbones_grid(channels, norm):
    net = AffinityNet(Mean(), channels, norm)
    assert net(torch.rand(2, 3, 18, 27)).shape == (2, sum(channels), 5, 7)


def test_levels_give_the_features_that_the_image_gives():
    net = AffinityNet(build_backbone("small"), (4, 8, 16)).eval()
    image = torch.randn(1, 3, 32, 40)
    torch.testing.assert_close(net.from_levels(net.backbone.levels(image)), net(image))


def test_every_level_is_seen():
    net = AffinityNet(Mean(), (4, 8, 16))
    levels = [torch.rand(1, 3, 4, 4, requires_grad=True) for _ in range(3)]
    net.from_levels(levels).sum().backward()
    assert all(level.grad.abs().sum() > 0 for level in levels)


@pytest.mark.parametrize(("activation", "least"), [("relu", 0), ("elu", -1)])
def test_the_activation_bounds_the_features_from_below(activation, least):
    net = AffinityNet(Mean(), (16, 16, 16), activation=activation)
    features = net(torch.randn(1, 3, 32, 32) * 10)
    assert features.min() >= least
    assert (features.min() < 0) == (activation == "elu")


def test_a_uniform_image_has_affinity_1_everywhere():
    net = AffinityNet(Mean(), (4, 8, 16), norm=True)
    W = affinities(net(torch.full((1, 3, 32, 32), 0.3)), OFFSETS)
    inside = affinities(torch.zeros(1, 1, 8, 8), OFFSETS)
    torch.testing.assert_close(W, inside)


def test_the_mirror_image_has_the_mirrored_features():
    net = AffinityNet(Mean(), (4, 8, 16), norm=True)
    image = torch.randn(1, 3, 16, 24)
    torch.testing.assert_close(net(image.flip(-1)), net(image).flip(-1))


@pytest.mark.parametrize("finetune", ["all", "head"])
def test_trained_it_tells_pairs_of_one_class_from_pairs_of_two(split, tmp_path, finetune):
    data, labels = split
    torch.manual_seed(0)
    net = AffinityNet(Mean(), (8, 16, 32), norm=True)
    inputs = Inputs(data, net.backbone, finetune, folder=tmp_path / "levels")
    samples = inputs.samples(["a"], crop=32, labels=lambda image_id: labels)
    recipe = Recipe(epochs=40, batch_size=1, lr=0.02)
    history = fit(net, samples, loss, recipe, tmp_path / "checkpoint.pt", report_every=40)
    assert history[-1] < 0.6 * history[0]
    W = affinities(net.from_levels(inputs.levels("a", net.backbone)), OFFSETS, "mean")
    pairs = pair_labels(to_grid(torch.from_numpy(labels)[None], (8, 8), 3), OFFSETS)
    negative, *positive = (W[mask].mean() for mask in reversed(pairs))
    assert negative + 0.3 < min(positive)


def test_a_batch_without_confident_pixels_teaches_nothing_and_breaks_nothing(split, tmp_path):
    data, labels = split
    net = AffinityNet(Mean(), (8, 16, 32))
    samples = Inputs(data, net.backbone).samples(["a"], 32, labels=lambda i: labels * 0 + VOID)
    before = [p.detach().clone() for p in net.parameters()]
    assert fit(net, samples, loss, Recipe(1, 1, 0.1), tmp_path / "checkpoint.pt") == [0]
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


@pytest.mark.parametrize("size", [(1, 1), (1, 13), (6, 9)])
def test_an_image_smaller_than_the_neighbourhood_can_be_trained_on(tmp_path, size):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    data = write_data(tmp_path / "data", {"a": image}, {"a": ("ball",)})
    net = AffinityNet(Mean(), (4, 8, 16))
    for finetune in ("all", "head"):
        inputs = Inputs(data, net.backbone, finetune, folder=tmp_path / "levels")
        samples = inputs.samples(["a"], 32, labels=lambda i: np.ones(size, np.uint8))
        history = fit(net, samples, loss, Recipe(1, 1, 0.1), tmp_path / f"{finetune}.pt")
        assert np.isfinite(history).all()


@pytest.mark.parametrize("channels", [(), (8, 16), (8, 16, 32, 64), (0, 8, 16)])
def test_channels_that_are_not_three_widths_are_refused(channels):
    with pytest.raises(InputError, match="channels must be three widths >= 1, got"):
        AffinityNet(Mean(), channels)


@pytest.mark.parametrize("norm", [(8, 16), (8, 16, 32, 0, 0), (3, 16, 32, 0), (8, 16, 32, 5)])
def test_groups_that_do_not_divide_the_widths_are_refused(norm):
    with pytest.raises(InputError, match="norm must be four numbers of groups that divide"):
        AffinityNet(Mean(), (64, 128, 256), norm)


def test_the_widths_are_the_papers_and_groups_have_16_channels_or_more():
    with torch.device("meta"):
        net = AffinityNet(Mean(), norm=True)
        narrow = AffinityNet(Mean(), (1, 1, 30), norm=True)
    assert [conv.out_channels for conv in net.convs] == [128, 256, 512, 896]
    assert [norm.num_groups for norm in net.norms] == [8, 16, 32, 56]
    assert [norm.num_groups for norm in narrow.norms] == [1, 1, 1, 2]


def test_the_gain_is_the_bound_of_the_fourth_convolution():
    weights = AffinityNet(Mean(), (4, 8, 16), gain=4).convs[3].weight
    bound = 4 * (6 / (28 + 28)) ** 0.5
    assert 0.9 * bound < weights.abs().max() <= bound


def test_an_unknown_activation_is_refused():
    with pytest.raises(InputError, match="activation must be relu or elu, got 'gelu'"):
        AffinityNet(Mean(), activation="gelu")


@pytest.mark.parametrize("gamma", [1.99, 0, -5, float("nan"), float("inf")])
def test_a_neighbourhood_without_neighbours_is_refused(gamma):
    with pytest.raises(InputError, match="gamma must be a finite number >= 2"):
        half_plane_offsets(gamma)

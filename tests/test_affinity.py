"""Pairs, affinities and their loss (Eq. 3-10)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scenes import PARITY
from torch import Tensor

from affinity_lib import affinity
from affinity_lib.affinity import (
    PairLabels,
    affinities,
    affinity_loss,
    half_plane_offsets,
    pair_labels,
    pairs_inside,
)
from affinity_lib.errors import InputError

OFFSETS = half_plane_offsets(5)


def random_features(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pair_by_pair(features: Tensor, offsets: Tensor) -> Tensor:
    """Eq. 3 written as it stands."""
    batch, _, height, width = features.shape
    result = features.new_zeros(batch, len(offsets), height, width)
    for b, k, y, x in np.ndindex(*result.shape):
        other_y, other_x = y + int(offsets[k, 0]), x + int(offsets[k, 1])
        if other_y < height and 0 <= other_x < width:
            difference = features[b, :, y, x] - features[b, :, other_y, other_x]
            result[b, k, y, x] = torch.exp(-difference.abs().sum())
    return result


@given(st.floats(2, 9))
@settings(max_examples=30, deadline=None)
def test_the_offsets_and_their_mirror_images_fill_the_open_disc(gamma: float):
    half = {tuple(offset) for offset in half_plane_offsets(gamma).tolist()}
    mirrored = {(-dy, -dx) for dy, dx in half}
    disc = {
        (dy, dx)
        for dy in range(-9, 10)
        for dx in range(-9, 10)
        if 0 < dy * dy + dx * dx < gamma * gamma
    }
    assert not half & mirrored
    assert half | mirrored == disc


def test_the_radius_of_the_paper_has_34_offsets():
    assert len(half_plane_offsets(5)) == 34


@pytest.mark.parametrize("size", [(6, 7), (1, 1), (2, 9), (9, 2), (3, 3)])
def test_affinities_equal_the_equation_written_pair_by_pair(size: tuple[int, int]):
    features = random_features(2, 3, *size)
    torch.testing.assert_close(affinities(features, OFFSETS), pair_by_pair(features, OFFSETS))


def test_affinities_do_not_depend_on_the_size_of_the_blocks(monkeypatch: pytest.MonkeyPatch):
    features = random_features(3, 5, 6, 7).requires_grad_()
    values = affinities(features, OFFSETS)
    (gradient,) = torch.autograd.grad(values.square().sum(), features)
    monkeypatch.setattr(affinity, "_BLOCK", 6 * 7 * 2)
    blocked = affinities(features, OFFSETS)
    torch.testing.assert_close(blocked, values)
    torch.testing.assert_close(torch.autograd.grad(blocked.square().sum(), features)[0], gradient)


def test_affinities_lie_between_zero_and_one_and_equal_features_have_one():
    values = affinities(random_features(1, 4, 6, 7), OFFSETS)
    assert values.min() >= 0
    assert values.max() <= 1
    inside = pairs_inside(OFFSETS, 6, 7)
    same = affinities(torch.ones(1, 4, 6, 7), OFFSETS)[0]
    assert torch.equal(same, inside.float())


def test_the_mean_distance_is_the_sum_over_the_number_of_channels():
    features = random_features(1, 8, 6, 7)
    mean = affinities(features, OFFSETS, reduction="mean")
    torch.testing.assert_close(mean, affinities(features / 8, OFFSETS))


def test_mirrored_features_have_mirrored_affinities():
    features = random_features(1, 3, 6, 7)
    across = torch.tensor([[0, 2]])
    plain, mirrored = affinities(features, across), affinities(features.flip(-1), across)
    torch.testing.assert_close(plain[..., :-2], mirrored[..., :-2].flip(-1))


def test_gradients_of_affinities_are_right():
    features = random_features(2, 3, 4, 5).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: affinities(x, half_plane_offsets(3)), features)
    assert torch.autograd.gradcheck(
        lambda x: affinities(x, half_plane_offsets(3), "mean"), features
    )


def test_values_and_gradients_agree_with_gather_then_subtract():
    features = torch.rand(2, 64, 9, 8).requires_grad_()
    padded = torch.nn.functional.pad(features, (4, 4, 0, 4))
    others = torch.stack(
        [padded[..., dy : dy + 9, 4 + dx : 12 + dx] for dy, dx in OFFSETS.tolist()], dim=2
    )
    gathered = torch.exp(-(others - features.unsqueeze(2)).abs().sum(1))
    gathered = gathered * pairs_inside(OFFSETS, 9, 8)
    values = affinities(features, OFFSETS)
    torch.testing.assert_close(values, gathered, atol=1e-5, rtol=1e-5)
    weights = torch.rand_like(values)
    expected = torch.autograd.grad((gathered * weights).sum(), features)[0]
    torch.testing.assert_close(
        torch.autograd.grad((values * weights).sum(), features)[0], expected, atol=1e-5, rtol=1e-5
    )


def test_half_precision_features_are_compared_in_single_precision():
    features = torch.rand(1, 512, 4, 4).half()
    assert affinities(features, OFFSETS).dtype == torch.float32


def test_each_pair_of_confident_pixels_is_in_one_set_and_the_others_in_none():
    labels = torch.tensor([[[0, 0, 1, 255], [2, 2, 1, 0], [255, 2, 0, 0]]])
    pairs = pair_labels(labels, OFFSETS)
    for k, (dy, dx) in enumerate(OFFSETS.tolist()):
        for y, x in np.ndindex(3, 4):
            got = tuple(bool(mask[0, k, y, x]) for mask in pairs)
            first = labels[0, y, x]
            inside = y + dy < 3 and 0 <= x + dx < 4
            second = labels[0, y + dy, x + dx] if inside else torch.tensor(255)
            if 255 in (first, second):
                assert got == (False, False, False)
            else:
                same = bool(first == second)
                assert got == (same and first == 0, same and first != 0, not same)


def test_pairs_do_not_change_when_the_classes_are_permuted():
    labels = torch.randint(0, 4, (2, 8, 9), generator=torch.Generator().manual_seed(0))
    permuted = torch.tensor([0, 3, 1, 2])[labels]
    for mask, other in zip(
        pair_labels(labels, OFFSETS), pair_labels(permuted, OFFSETS), strict=True
    ):
        assert torch.equal(mask, other)


def test_a_border_leaves_out_first_pixels_at_three_sides():
    inside = pairs_inside(half_plane_offsets(2), 5, 7, border=1)
    kept = torch.zeros(5, 7, dtype=torch.bool)
    kept[:4, 1:6] = True
    assert torch.equal(inside, kept.expand_as(inside))


def test_the_loss_is_the_sum_of_three_means_of_cross_entropy():
    features, labels = random_features(2, 4, 6, 7) / 8, torch.randint(0, 3, (2, 6, 7))
    values, pairs = affinities(features, OFFSETS), pair_labels(labels, OFFSETS)
    loss = affinity_loss(values, pairs)
    background = -values[pairs.background].log().mean()
    foreground = -values[pairs.foreground].log().mean()
    negative = -(1 - values[pairs.negative]).log().mean()
    torch.testing.assert_close(
        torch.stack(loss[1:]), torch.stack([background, foreground, negative])
    )
    torch.testing.assert_close(loss.total, background + foreground + 2 * negative)


def test_repeating_the_pairs_of_one_set_leaves_the_loss_alone():
    labels = torch.tensor([[[0, 0, 1, 1]]])
    features = random_features(1, 2, 1, 4)
    once = affinity_loss(affinities(features, OFFSETS), pair_labels(labels, OFFSETS))
    twice = affinity_loss(
        affinities(features.repeat(2, 1, 1, 1), OFFSETS),
        pair_labels(labels.repeat(2, 1, 1), OFFSETS),
    )
    torch.testing.assert_close(once.total, twice.total)


def test_an_empty_set_of_pairs_contributes_nothing():
    features = random_features(1, 2, 3, 3).requires_grad_()
    pairs = pair_labels(torch.full((1, 3, 3), 255), OFFSETS)
    loss = affinity_loss(affinities(features, OFFSETS), pairs)
    assert loss.total == 0
    assert torch.autograd.grad(loss.total, features)[0].abs().max() == 0


def test_very_different_pixels_of_one_class_still_pull_together():
    features = torch.zeros(1, 896, 1, 2)
    features[..., 1] = 3.0
    features.requires_grad_()
    pairs = pair_labels(torch.tensor([[[1, 1]]]), OFFSETS)
    loss = affinity_loss(affinities(features, OFFSETS), pairs)
    (gradient,) = torch.autograd.grad(loss.foreground, features)
    assert torch.equal(gradient[..., 1], torch.ones(1, 896, 1))
    assert torch.equal(gradient[..., 0], -torch.ones(1, 896, 1))


def test_equal_pixels_of_two_classes_have_a_finite_loss():
    features = torch.ones(1, 4, 1, 2, requires_grad=True)
    pairs = pair_labels(torch.tensor([[[0, 1]]]), OFFSETS)
    loss = affinity_loss(affinities(features, OFFSETS), pairs)
    assert loss.total.isfinite()
    assert torch.autograd.grad(loss.total, features)[0].isfinite().all()


def test_descending_the_loss_separates_the_classes():
    features = (random_features(1, 4, 4, 6) * 0.1).requires_grad_()
    labels = torch.zeros(1, 4, 6, dtype=torch.long)
    labels[..., 3:] = 1
    pairs = pair_labels(labels, OFFSETS)
    optimizer = torch.optim.Adam([features], lr=0.05)
    for _ in range(60):
        loss = affinity_loss(affinities(features, OFFSETS), pairs).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    values = affinities(features, OFFSETS).detach()
    same = pairs.background | pairs.foreground
    assert values[same].mean() > 0.5
    assert values[pairs.negative].mean() < 0.2


def test_the_released_choices_reproduce_the_released_code():
    expected = np.load(PARITY / "affinity_loss_20x20.npz")
    features, labels = (torch.from_numpy(expected[name])[None] for name in ("features", "label"))
    values = affinities(features, OFFSETS, reduction="mean")
    pairs = pair_labels(labels, OFFSETS, border=4)

    def at_sources(tensor: Tensor) -> np.ndarray:
        return tensor[0].flatten(1)[:, expected["pair_from"]].numpy()

    np.testing.assert_allclose(at_sources(values), expected["affinity"], atol=1e-5)
    names = ("bg_positive", "fg_positive", "negative")
    for mask, name in zip(pairs, names, strict=True):
        np.testing.assert_array_equal(at_sources(mask), expected[name])
        assert mask.sum() == expected[name].sum()
    loss = affinity_loss(values, pairs, weights=(1 / 4, 1 / 4, 1 / 2), eps=1e-5)
    names = ("loss_total", "loss_bg", "loss_fg", "loss_neg")
    for value, name in zip(loss, names, strict=True):
        assert float(value) == pytest.approx(float(expected[name]), abs=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: half_plane_offsets(1), "gamma must be"),
        (lambda: affinities(torch.zeros(3, 4, 4), OFFSETS), "features must be"),
        (lambda: affinities(torch.zeros(1, 3, 4, 4), OFFSETS.flatten()), "offsets must be"),
        (lambda: affinities(torch.zeros(1, 3, 4, 4), -OFFSETS), "offsets must have dy > 0"),
        (lambda: affinities(torch.zeros(1, 3, 4, 4), OFFSETS, "max"), "reduction must be"),
        (lambda: pair_labels(torch.zeros(1, 4, 4), OFFSETS), "labels must be"),
        (lambda: pairs_inside(OFFSETS, 4, 4, border=-1), "border must be"),
        (
            lambda: affinity_loss(
                torch.zeros(1, 34, 5, 5),
                PairLabels(*pair_labels(torch.zeros(1, 4, 4).long(), OFFSETS)),
            ),
            "must have one shape",
        ),
    ],
)
def test_bad_input_is_named(call, message: str):
    with pytest.raises(InputError, match=message):
        call()

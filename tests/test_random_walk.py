"""The transition matrix and the walk (Eq. 11-12), against dense linear algebra."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scenes import released_walk
from torch import Tensor

from affinity_lib import random_walk as module
from affinity_lib.affinity import affinities, half_plane_offsets, pairs_inside
from affinity_lib.errors import InputError
from affinity_lib.random_walk import chebyshev_coefficients, random_walk, transition_matrix

OFFSETS = half_plane_offsets(5)
METHODS = ("dense", "sparse", "chebyshev")


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def hard_affinities(height: int, width: int) -> dict[str, Tensor]:
    """Affinities that are unlike each other: blurs, islands, a chessboard, a hub."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(34, height, width, generator=generator)
    coarse = torch.randn(1, 16, height // 5, width // 5, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    board = (torch.arange(height)[:, None] + torch.arange(width)) % 2
    hub = torch.zeros(34, height, width)
    hub[:, height // 2, width // 2] = 1
    return {
        "ones": torch.ones(34, height, width),
        "noise": noise,
        "islands": (noise < 0.02).float(),
        "regions": affinities(2 * smooth, OFFSETS, "mean")[0],
        "chessboard": affinities(9.0 * board[None, None], OFFSETS)[0],
        "hub": hub,
    }


def test_rows_of_the_transition_matrix_sum_to_one():
    matrix = transition_matrix(draw(2, 34, 5, 6), OFFSETS)
    torch.testing.assert_close(matrix.sum(-1), torch.ones(2, 30))
    assert matrix.min() >= 0


def test_the_transition_matrix_holds_the_powers_of_the_affinities():
    affinity = draw(34, 6, 5, dtype=torch.float64)
    matrix = transition_matrix(affinity, OFFSETS, beta=3)
    power = matrix / matrix.diagonal()[:, None]  # W^beta, ones on its diagonal
    torch.testing.assert_close(power, power.T)
    k = OFFSETS.tolist().index([2, -1])
    torch.testing.assert_close(power[1 * 5 + 3, 3 * 5 + 2], affinity[k, 1, 3] ** 3)
    distance = (torch.arange(6)[:, None] - torch.arange(6)) ** 2
    across = (torch.arange(5)[:, None] - torch.arange(5)) ** 2
    far = (distance[:, None, :, None] + across[None, :, None, :]).reshape(30, 30) >= 25
    assert power[far].max() == 0


@pytest.mark.parametrize("method", ["sparse", "chebyshev"])
@pytest.mark.parametrize("name", hard_affinities(10, 10))
def test_the_fast_walks_equal_the_dense_walk_in_double_precision(name: str, method: str):
    affinity = hard_affinities(20, 17)[name]
    cams = torch.cat([draw(2, 20, 17), torch.ones(1, 20, 17), torch.zeros(1, 20, 17)])
    cams[3, 10, 8] = 1
    exact = random_walk(cams.double(), affinity.double(), OFFSETS, method="dense")
    walked = random_walk(cams, affinity, OFFSETS, method=method)
    assert walked.dtype == cams.dtype
    assert (walked - exact).abs().max() < 1e-5


@given(t=st.integers(0, 300), beta=st.floats(0.5, 16), seed=st.integers(0, 9))
@settings(max_examples=25, deadline=None)
def test_any_number_of_steps_and_any_beta_give_the_dense_walk(t: int, beta: float, seed: int):
    affinity, cams = draw(34, 6, 7, seed=seed), draw(2, 6, 7, seed=seed + 10)
    exact = random_walk(cams.double(), affinity.double(), OFFSETS, beta, t, "dense")
    for method in ("sparse", "chebyshev"):
        walked = random_walk(cams, affinity, OFFSETS, beta, t, method)
        assert (walked - exact).abs().max() < 1e-5


@pytest.mark.parametrize("size", [(1, 1), (1, 6), (2, 3), (6, 2), (3, 3)])
def test_maps_smaller_than_the_neighbourhood_are_walked(size: tuple[int, int]):
    affinity, cams = draw(34, *size), draw(2, *size)
    exact = random_walk(cams.double(), affinity.double(), OFFSETS, t=40, method="dense")
    for method in ("sparse", "chebyshev"):
        walked = random_walk(cams, affinity, OFFSETS, t=40, method=method)
        assert (walked - exact).abs().max() < 1e-5


@pytest.mark.parametrize("method", METHODS)
def test_no_step_leaves_the_maps_alone(method: str):
    cams = draw(2, 6, 7)
    assert torch.equal(random_walk(cams, draw(34, 6, 7), OFFSETS, t=0, method=method), cams)


@pytest.mark.parametrize("method", METHODS)
def test_without_affinity_nothing_moves(method: str):
    cams = draw(2, 6, 7)
    walked = random_walk(cams, torch.zeros(34, 6, 7), OFFSETS, method=method)
    torch.testing.assert_close(walked, cams)


@pytest.mark.parametrize("method", METHODS)
def test_a_constant_map_stays_constant(method: str):
    cams = torch.full((1, 6, 7), 0.3)
    walked = random_walk(cams, draw(34, 6, 7), OFFSETS, method=method)
    torch.testing.assert_close(walked, cams, atol=1e-5, rtol=0)


def test_one_step_with_equal_affinities_is_the_mean_over_the_neighbourhood():
    cams = torch.zeros(1, 11, 11)
    cams[0, 5, 5] = 1
    walked = random_walk(cams, torch.ones(34, 11, 11), OFFSETS, t=1)[0]
    rows, columns = torch.meshgrid(torch.arange(11), torch.arange(11), indexing="ij")
    disc = (rows - 5) ** 2 + (columns - 5) ** 2 < 25
    assert torch.equal(walked > 0, disc)
    assert walked[5, 5] == pytest.approx(1 / 69)


def test_scores_do_not_cross_a_wall_of_zero_affinity():
    features = torch.zeros(1, 1, 6, 8)
    features[..., 4:] = 1000
    cams = torch.zeros(1, 6, 8)
    cams[..., :4] = draw(1, 6, 4)
    walked = random_walk(cams, affinities(features, OFFSETS)[0], OFFSETS)
    assert walked[..., 4:].abs().max() < 1e-5
    assert walked[..., :4].std() < 1e-3


def test_the_walk_commutes_with_mirroring():
    features, cams = draw(1, 3, 7, 9), draw(2, 7, 9)
    plain = random_walk(cams, affinities(features, OFFSETS)[0], OFFSETS)
    mirrored = random_walk(cams.flip(-1), affinities(features.flip(-1), OFFSETS)[0], OFFSETS)
    torch.testing.assert_close(mirrored.flip(-1), plain, atol=1e-5, rtol=0)


def test_each_map_and_each_image_is_walked_on_its_own():
    affinity, cams = draw(3, 34, 6, 7), draw(3, 2, 6, 7)
    batch = random_walk(cams, affinity, OFFSETS)
    for image in range(3):
        for one in range(2):
            alone = random_walk(cams[image, one : one + 1], affinity[image], OFFSETS)
            torch.testing.assert_close(batch[image, one], alone[0], atol=1e-6, rtol=0)


@pytest.mark.parametrize("product", ["_by_rows", "_by_shifts", "_by_bags"])
@pytest.mark.parametrize(
    ("size", "method", "t"),
    [((3, 4), "sparse", 2), ((2, 4), "chebyshev", 1), ((4, 2), "chebyshev", 33)],
)
def test_gradients_through_the_walk_are_right(
    monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], method: str, t: int, product: str
):
    if product == "_by_rows" and not torch.backends.mkl.is_available():
        pytest.skip("products by rows need MKL on a CPU")
    monkeypatch.setattr(module, "_multiplier", getattr(module, product))
    offsets = half_plane_offsets(3)
    affinity = draw(2, len(offsets), *size, dtype=torch.float64).requires_grad_()
    cams = draw(2, 2, *size, dtype=torch.float64).requires_grad_()

    def walk(cams: Tensor, affinity: Tensor) -> Tensor:
        return random_walk(cams, affinity, offsets, beta=2, t=t, method=method, eps=1e-12)

    assert torch.autograd.gradcheck(walk, (cams, affinity))
    assert torch.autograd.gradcheck(lambda cams: walk(cams, affinity.detach()), cams)


@pytest.mark.parametrize("product", ["_by_shifts", "_by_bags"])
@pytest.mark.parametrize("size", [(9, 8), (2, 3)])
def test_every_product_gives_the_same_walk(
    monkeypatch: pytest.MonkeyPatch, product: str, size: tuple[int, int]
):
    affinity, cams = draw(2, 34, *size), draw(2, 3, *size)
    here = random_walk(cams, affinity, OFFSETS)
    monkeypatch.setattr(module, "_multiplier", getattr(module, product))
    torch.testing.assert_close(random_walk(cams, affinity, OFFSETS), here, atol=1e-6, rtol=0)


def test_affinities_outside_of_the_map_are_ignored():
    affinity, cams = draw(34, 6, 7), draw(2, 6, 7)
    outside = ~pairs_inside(OFFSETS, 6, 7)
    spoiled = affinity.masked_fill(outside, 123.0)
    for method in METHODS:
        torch.testing.assert_close(
            random_walk(cams, spoiled, OFFSETS, method=method),
            random_walk(cams, affinity, OFFSETS, method=method),
        )


@pytest.mark.parametrize("t", [0, 1, 2, 31, 256, 1000])
def test_the_chebyshev_series_is_the_power(t: int):
    x = np.linspace(-1, 1, 201)
    series = np.polynomial.chebyshev.chebval(x, chebyshev_coefficients(t, eps=1e-9))
    np.testing.assert_allclose(series, x**t, atol=1e-8)


def test_256_steps_need_about_80_products():
    assert len(chebyshev_coefficients(256, eps=1e-5)) < np.sqrt(2 * 256 * np.log(2 / 1e-5)) + 1
    assert len(chebyshev_coefficients(256, eps=1e-6)) == 79


def test_the_released_random_walk_is_reproduced():
    kept, affinity = released_walk()
    dense = kept["affinity_dense"]
    matrix = transition_matrix(affinity, OFFSETS, beta=1)
    torch.testing.assert_close(matrix, dense / dense.sum(1, keepdim=True), atol=1e-5, rtol=0)
    for method in METHODS:
        walked = random_walk(
            kept["cam"], affinity, OFFSETS, int(kept["beta"]), int(kept["t"]), method
        )
        np.testing.assert_allclose(walked, kept["random_walk"], atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"t": -1}, "t must be"),
        ({"t": 2.5}, "t must be"),
        ({"beta": 0}, "beta must be"),
        ({"eps": 0}, "eps must be"),
        ({"method": "fast"}, "method must be"),
        ({"cams": torch.zeros(2, 6, 6)}, "cams must be"),
        ({"cams": torch.zeros(2, 5, 7)}, "cams must be"),
        ({"cams": torch.zeros(6, 7)}, "cams must be"),
        ({"cams": torch.zeros(2, 6, 7, dtype=torch.int64)}, "cams must be"),
        ({"affinity": torch.zeros(33, 6, 7)}, "affinity must be"),
        ({"affinity": torch.full((34, 6, 7), -1.0)}, "affinity must be >= 0"),
        ({"affinity": torch.full((34, 6, 7), float("nan"))}, "affinity must be >= 0"),
        ({"offsets": OFFSETS.float()}, "offsets must be"),
    ],
)
def test_bad_input_is_named(change: dict, message: str):
    good = {"cams": draw(2, 6, 7), "affinity": draw(34, 6, 7), "offsets": OFFSETS}
    with pytest.raises(InputError, match=message):
        random_walk(**good | change)

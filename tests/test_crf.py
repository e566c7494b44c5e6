"""The fully connected CRF."""

from __future__ import annotations

import numpy as np
import pytest

from affinity_lib.crf import CRFSettings, dense_crf
from affinity_lib.errors import InputError


def test_the_defaults_are_those_of_the_released_code():
    assert CRFSettings() == CRFSettings(
        gaussian_sxy=3,
        gaussian_compat=3,
        bilateral_sxy=80,
        bilateral_srgb=13,
        bilateral_compat=10,
        iterations=10,
        clip=1e-5,
    )


@pytest.fixture
def image() -> np.ndarray:
    """Left half dark, right half bright."""
    image = np.full((24, 30, 3), 40, np.uint8)
    image[:, 15:] = 200
    return image


def noisy_halves(seed: int = 0) -> np.ndarray:
    """Two labels, each likelier in its half, with noise and an edge that is 3 pixels off."""
    first = np.full((24, 30), 0.35)
    first[:, :12] = 0.65
    first += np.random.default_rng(seed).normal(0, 0.1, first.shape)
    return np.stack([first, 1 - first]).clip(0.01, 0.99)


def test_probabilities_sum_to_one(image: np.ndarray):
    refined = dense_crf(image, noisy_halves())
    assert refined.dtype == np.float32
    np.testing.assert_allclose(refined.sum(0), 1, atol=1e-5)


def test_labels_move_to_the_edge_of_the_image(image: np.ndarray):
    labels = dense_crf(image, noisy_halves()).argmax(0)
    expected = np.zeros((24, 30), int)
    expected[:, 15:] = 1
    assert (noisy_halves().argmax(0) == expected).mean() < 0.95
    assert (labels == expected).mean() > 0.99


def test_without_iterations_the_result_is_the_normalised_input(image: np.ndarray):
    probabilities = noisy_halves() * 0.5
    refined = dense_crf(image, probabilities, CRFSettings(iterations=0))
    np.testing.assert_allclose(refined, probabilities / probabilities.sum(0), atol=1e-5)


def test_values_outside_of_the_clip_count_as_its_ends(image: np.ndarray):
    probabilities = np.stack([np.zeros((24, 30)), np.full((24, 30), 7.0)])
    refined = dense_crf(image, probabilities, CRFSettings(iterations=0))
    np.testing.assert_allclose(refined[0], 1e-5 / (1 + 1e-5), rtol=1e-3)


def test_the_order_of_the_labels_does_not_matter(image: np.ndarray):
    plain = dense_crf(image, noisy_halves())
    np.testing.assert_allclose(dense_crf(image, noisy_halves()[::-1])[::-1], plain, atol=1e-5)


def test_a_shared_set_up_gives_what_two_set_ups_give(image: np.ndarray):
    unaries = np.stack([noisy_halves(seed) for seed in (0, 1, 0)])
    for one, shared in zip(unaries, dense_crf(image, unaries), strict=True):
        np.testing.assert_array_equal(shared, dense_crf(image, one))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dense_crf(np.zeros((4, 6), np.uint8), np.ones((1, 4, 6))), "needs an RGB image"),
        (lambda: dense_crf(np.zeros((4, 6, 3)), np.ones((1, 4, 6))), "needs an RGB image"),
        (lambda: dense_crf(np.zeros((4, 6, 3), np.uint8), np.ones((2, 6, 4))), "must be"),
        (lambda: dense_crf(np.zeros((4, 6, 3), np.uint8), np.ones((0, 4, 6))), "must be finite"),
        (
            lambda: dense_crf(np.zeros((4, 6, 3), np.uint8), np.full((2, 4, 6), np.nan)),
            "must be finite",
        ),
        (lambda: CRFSettings(bilateral_srgb=0), "bilateral_srgb"),
        (lambda: CRFSettings(iterations=-1), "iterations"),
    ],
)
def test_bad_input_is_named(call, message: str):
    with pytest.raises(InputError, match=message):
        call()

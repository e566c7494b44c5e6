"""The fully connected CRF and the pool of processes that it runs on."""

from __future__ import annotations

import os
from functools import partial

import numpy as np
import pytest
import torch

from affinity_lib import crf
from affinity_lib.crf import CRFSettings, PairwiseCRF, dense_crf, map_images
from affinity_lib.errors import InputError


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
    shared = PairwiseCRF(image)
    for seed in (0, 1, 0):
        probabilities = noisy_halves(seed)
        np.testing.assert_array_equal(shared(probabilities), dense_crf(image, probabilities))
    three = np.stack([*noisy_halves(), np.full((24, 30), 0.1)])
    np.testing.assert_array_equal(shared(three), dense_crf(image, three))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: PairwiseCRF(np.zeros((4, 6), np.uint8)), "needs an RGB image"),
        (lambda: PairwiseCRF(np.zeros((4, 6, 3))), "needs an RGB image"),
        (lambda: dense_crf(np.zeros((4, 6, 3), np.uint8), np.ones((2, 6, 4))), "must be"),
        (lambda: dense_crf(np.zeros((4, 6, 3), np.uint8), np.ones((0, 4, 6))), "must be finite"),
        (
            lambda: dense_crf(np.zeros((4, 6, 3), np.uint8), np.full((2, 4, 6), np.nan)),
            "must be finite",
        ),
        (lambda: CRFSettings(bilateral_srgb=0), "bilateral_srgb"),
        (lambda: CRFSettings(iterations=-1), "iterations"),
        (lambda: map_images(abs, [1], workers=0), "workers must be"),
    ],
)
def test_bad_input_is_named(call, message: str):
    with pytest.raises(InputError, match=message):
        call()


@pytest.mark.parametrize("method", sorted({crf._METHOD, "spawn"}))
def test_results_do_not_depend_on_the_number_of_processes(
    monkeypatch: pytest.MonkeyPatch, method: str
):
    monkeypatch.setattr(crf, "_START_UP", 0)
    monkeypatch.setattr(crf, "_METHOD", method)
    jobs = list(range(-40, 40))
    expected = [abs(job) for job in jobs]
    assert map_images(abs, jobs, workers=1) == expected
    assert map_images(abs, iter(jobs), workers=2) == expected


def test_workers_run_one_thread_each(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(crf, "_START_UP", 0)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    threads = map_images(os.getenv, ["OMP_NUM_THREADS"] * 3, workers=2)
    assert threads == [None, "1", "1"]


def test_torch_has_one_thread_in_a_worker_and_works_there(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(crf, "_START_UP", 0)
    torch.rand(200, 200) @ torch.rand(200, 200)  # this process has its threads already
    here, *there = map_images(_threads_of_torch, range(4), workers=2)
    assert here == torch.get_num_threads()
    assert there == [1, 1, 1]


def test_work_that_is_done_sooner_than_a_pool_starts_stays_in_this_process():
    assert set(map_images(_process, range(20), workers=2)) == {os.getpid()}


def test_an_error_in_a_worker_reaches_the_caller(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(crf, "_START_UP", 0)
    with pytest.raises(ZeroDivisionError):
        map_images(partial(divmod, 1), [1, 2, 0, 4], workers=2)


def test_progress_is_a_plain_line(capsys: pytest.CaptureFixture[str]):
    map_images(abs, [1, 2, 3], workers=1, progress="dCRF")
    assert "dCRF: 100%" in capsys.readouterr().err


def _threads_of_torch(_: int) -> int:
    assert torch.isfinite(torch.rand(200, 200) @ torch.rand(200, 200)).all()
    return torch.get_num_threads()


def _process(_: int) -> int:
    return os.getpid()

"""Confident areas, and label maps on the grid of the features."""

from __future__ import annotations

import inspect
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from affinity_lib.affinity_labels import confident_labels, to_grid
from affinity_lib.crf import CRFSettings
from affinity_lib.data.files import load_scores
from affinity_lib.data.layout import write_tags
from affinity_lib.data.voc import VOCData
from affinity_lib.errors import InputError
from affinity_lib.evaluation import VOID
from affinity_lib.stages.affinity_labels import SoftLabels, write_confident_labels
from affinity_lib.stages.segmentation_labels import write_segmentation_labels

CAMS = arrays(np.float32, (2, 3, 4), elements=st.floats(0, 1, width=32))
ALPHAS = st.lists(st.floats(1, 64), min_size=3, max_size=3).map(sorted)
LABELS = arrays(np.int64, (2, 6, 8), elements=st.sampled_from([0, 1, 2, 3, VOID]))
BLACK = np.zeros((6, 8, 3), np.uint8)


def labels_of(cams, alphas, tags=(1, 2), crf=None):
    return confident_labels(BLACK, torch.from_numpy(cams), tags, alphas[0], alphas[-1], crf)


@given(cams=CAMS, alphas=ALPHAS, tags=st.permutations([1, 2, 9, 254]))
def test_labels_are_tags_background_or_neutral_and_follow_a_permutation_of_classes(
    cams, alphas, tags
):
    labels, renamed = (labels_of(cams, alphas, pair) for pair in (tags[:2], tags[2:]))
    assert labels.shape == BLACK.shape[:2]
    assert labels.dtype == np.uint8
    assert set(np.unique(labels)) <= {0, *tags[:2], VOID}
    old, new = [0, *tags[:2], VOID], [0, *tags[2:], VOID]
    for one, two in zip(old, new, strict=True):
        np.testing.assert_array_equal(labels == one, renamed == two)


@given(cams=CAMS, alphas=ALPHAS)
def test_a_weaker_background_gives_up_background_and_nothing_else(cams, alphas):
    strong, middle, weak = alphas
    some, more = labels_of(cams, (strong, middle)), labels_of(cams, (strong, weak))
    changed = some != more
    assert (some[changed] == 0).all() and (more[changed] == VOID).all()


@given(cams=CAMS, alphas=ALPHAS)
def test_a_stronger_background_gives_up_objects_and_nothing_else(cams, alphas):
    strong, middle, weak = alphas
    some, more = labels_of(cams, (middle, weak)), labels_of(cams, (strong, weak))
    changed = some != more
    assert (~np.isin(some[changed], [0, VOID])).all() and (more[changed] == VOID).all()


@given(cams=CAMS, alpha=st.floats(1, 64))
def test_with_one_alpha_for_both_nothing_is_neutral(cams, alpha):
    assert VOID not in labels_of(cams, (alpha, alpha))


@given(cams=CAMS, alphas=ALPHAS)
def test_after_dcrf_labels_are_still_tags_background_or_neutral(cams, alphas):
    labels = labels_of(cams, alphas, (3, 7), CRFSettings(iterations=2))
    assert set(np.unique(labels)) <= {0, 3, 7, VOID}


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (3, 2)])
def test_an_image_of_a_few_pixels_has_labels_too(size):
    image = np.zeros((*size, 3), np.uint8)
    labels = confident_labels(image, torch.ones(1, 1, 1), [4], crf=CRFSettings())
    assert labels.shape == size and (labels == 4).all()


def test_the_exponents_are_the_papers_unless_others_are_given(data, cams, tmp_path):
    every = torch.linspace(0, 1, 4001)[None, None]
    image = np.zeros((1, 4001, 3), np.uint8)
    papers = confident_labels(image, every, [1], alpha_strong=4, alpha_weak=24)
    assert (confident_labels(image, every, [1]) == papers).all()
    ids = data.ids("train")[:1]
    write_confident_labels(data, ids, cams, tmp_path / "default")
    write_confident_labels(data, ids, cams, tmp_path / "papers", 4, 24)
    one, other = (data.read_labels(tmp_path / n / f"{ids[0]}.png") for n in ("default", "papers"))
    assert (one == other).all()
    given = inspect.signature(write_confident_labels).parameters
    assert (given["alpha_strong"].default, given["alpha_weak"].default) == (4, 24)


def test_alpha_weak_below_alpha_strong_is_refused():
    with pytest.raises(InputError, match="alpha_weak .* must be >= alpha_strong: got 4 < 24"):
        labels_of(np.zeros((1, 2, 2), np.float32), (24, 4), [1])


@pytest.mark.parametrize("alphas", [(0.5, 24), (float("nan"), 24), (4, float("nan"))])
def test_exponents_that_cannot_be_are_refused(alphas):
    with pytest.raises(InputError, match="alpha"):
        labels_of(np.zeros((1, 2, 2), np.float32), alphas, [1])


def test_an_image_without_a_cam_is_refused():
    with pytest.raises(InputError, match="without a tag has no confident areas"):
        labels_of(np.zeros((0, 2, 2), np.float32), (4, 24), [])


@pytest.mark.parametrize("scale", [1.0, 0.5, 0.33])
def test_every_image_gets_labels_of_its_own_size(data, cams, tmp_path, scale):
    ids = data.ids("train")
    crf = CRFSettings(iterations=1, scale=scale)
    write_confident_labels(data, ids, cams, tmp_path / "out", 2, 8, crf)
    assert len(list((tmp_path / "out").iterdir())) == len(ids)
    for image_id in ids:
        labels = data.read_labels(tmp_path / "out" / f"{image_id}.png")
        assert labels.shape == data.image(image_id).size[::-1]
        assert set(np.unique(labels)) <= {0, *data.tags(image_id), VOID}


def test_images_without_a_tag_get_no_labels(data, cams, tmp_path):
    ids, none = data.ids("train"), data.ids("train")[0]
    write_tags(data.root / "Annotations" / f"{none}.xml", [], (48, 48))
    data = VOCData(data.root)
    write_confident_labels(data, ids, cams, tmp_path / "out")
    write_segmentation_labels(data, ids, cams, tmp_path / "final", 8)
    for folder in ("out", "final"):
        assert {path.stem for path in (tmp_path / folder).iterdir()} == {*ids} - {none}


def test_labels_that_are_there_are_not_made_again(data, cams, tmp_path):
    ids, out = data.ids("train"), tmp_path / "out"
    write_confident_labels(data, ids[:1], cams, out)
    (out / f"{ids[0]}.png").write_bytes(b"kept")
    write_confident_labels(data, ids, cams, out)
    assert (out / f"{ids[0]}.png").read_bytes() == b"kept"
    assert len(list(out.iterdir())) == len(ids)


def test_the_scores_of_both_dcrfs_are_kept_beside_the_labels_that_follow_from_them(
    data, cams, tmp_path
):
    ids, out = data.ids("train"), tmp_path / "out"
    crf = CRFSettings(iterations=2)
    write_confident_labels(data, ids, cams, out, 2, 8, crf, soft=out / "soft")
    soft = SoftLabels(data, out / "soft", stride=1)
    for image_id in ids:
        maps = torch.from_numpy(soft.maps(image_id))
        stored, _ = load_scores(out / "soft" / f"{image_id}.npz")
        assert stored.tolist() == [0, *data.tags(image_id)] * 2 and len(maps) == len(stored)
        labels = soft.pool(image_id, maps).numpy()
        assert (
            labels == data.read_labels(out / f"{image_id}.png")
        ).mean() > 0.999  # half precision


@given(seed=st.integers(0, 99), side=st.sampled_from([16, 20]))
def test_soft_labels_decide_by_the_means_of_a_cell_as_the_released_loader_does(data, seed, side):
    image_id = data.ids("train")[0]
    tags = data.tags(image_id)
    maps = np.random.default_rng(seed).random((2, 1 + len(tags), side, side)).astype(np.float32)
    maps[..., :4, :] = 0  # outside of the image
    means = maps.reshape(2, 1 + len(tags), side // 4, 4, side // 4, 4).mean(axis=(3, 5))
    strong, weak = np.array([0, *tags])[means.argmax(axis=1)]
    expected = np.where(strong == 0, VOID, strong)
    expected[weak == 0] = 0
    expected[0] = VOID
    labels = SoftLabels(data, Path(), 4).pool(image_id, torch.from_numpy(maps).flatten(0, 1))
    assert labels.tolist() == expected.tolist()


def test_an_empty_list_of_images_writes_nothing(data, cams, tmp_path):
    write_confident_labels(data, [], cams, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_cams_that_are_not_there_are_named(data, tmp_path):
    image_id = data.ids("train")[0]
    with pytest.raises(InputError, match=rf"{image_id}\.npz is missing"):
        write_confident_labels(data, [image_id], tmp_path, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


@given(labels=LABELS)
def test_a_cell_has_one_of_its_pixels_labels_and_the_most_frequent_one(labels):
    grid = to_grid(torch.from_numpy(labels), (3, 2), num_labels=4)
    assert grid.shape == (2, 3, 2)
    blocks = labels.reshape(2, 3, 2, 2, 4).transpose(0, 1, 3, 2, 4).reshape(-1, 8)
    for winner, block in zip(grid.flatten().tolist(), blocks, strict=True):
        counts = np.bincount(block, minlength=256)
        assert counts[winner] == counts.max()


@given(labels=LABELS)
def test_on_the_grid_mirrored_labels_are_mirrored(labels):
    labels = torch.from_numpy(labels)
    grid, mirrored = (to_grid(x, (2, 4), num_labels=4) for x in (labels, labels.flip(-1)))
    assert torch.equal(mirrored, grid.flip(-1))


def test_labels_of_the_grids_size_stay_as_they_are():
    labels = torch.randint(0, 4, (1, 3, 5))
    assert torch.equal(to_grid(labels, (3, 5), num_labels=4), labels)


@pytest.mark.parametrize("size", [(1, 1), (7, 9), (5, 3), (12, 16)])
def test_uniform_labels_are_uniform_on_every_grid(size):
    for label in (0, 3, VOID):
        labels = torch.full((1, 6, 8), label, dtype=torch.uint8)
        assert to_grid(labels, size, num_labels=4).unique().tolist() == [label]


def test_254_classes_leave_room_for_neutral_cells():
    labels = torch.tensor([[[254, 254, VOID, VOID]]], dtype=torch.uint8)
    assert to_grid(labels, (1, 2), num_labels=255).tolist() == [[[254, VOID]]]

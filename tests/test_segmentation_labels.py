"""From scores to the labels that the segmentation network learns from."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scenes import write_data

from affinity_lib.crf import CRFSettings
from affinity_lib.data.files import save_scores
from affinity_lib.data.voc import VOCData, read_labels
from affinity_lib.errors import InputError
from affinity_lib.segmentation_labels import enlarge, synthesize_labels
from affinity_lib.stages.segmentation_labels import pixels, write_segmentation_labels

SCORES = arrays(np.float32, (3, 3, 4), elements=st.floats(0, 1, width=32))
BLACK = np.zeros((6, 8, 3), np.uint8)


@pytest.fixture
def scores(data, tmp_path):
    """Walked scores of each image: the upper half is its first tag, the rest background."""
    for image_id in data.ids("train"):
        tags = data.tags(image_id)
        maps = torch.zeros(1 + len(tags), 10, 10)
        maps[1, :5], maps[0, 5:] = 1, 1
        save_scores(tmp_path / "scores" / f"{image_id}.npz", [0, *tags], maps)
    return tmp_path / "scores"


@given(scores=SCORES, tags=st.permutations([1, 2, 9, 254]), crf=st.booleans())
def test_labels_are_tags_or_background_and_follow_a_permutation_of_classes(scores, tags, crf):
    settings = CRFSettings(iterations=1) if crf else None
    labels, renamed = (
        synthesize_labels(BLACK, torch.from_numpy(scores), pair, settings)
        for pair in (tags[:2], tags[2:])
    )
    assert labels.shape == BLACK.shape[:2]
    assert labels.dtype == np.uint8
    assert set(np.unique(labels)) <= {0, *tags[:2]}
    for old, new in zip([0, *tags[:2]], [0, *tags[2:]], strict=True):
        np.testing.assert_array_equal(labels == old, renamed == new)


@given(scores=SCORES)
def test_at_the_size_of_the_scores_the_highest_one_wins(scores):
    labels = synthesize_labels(BLACK[:3, :4], torch.from_numpy(scores), [1, 2])
    np.testing.assert_array_equal(labels, scores.argmax(0))


def test_dcrf_follows_the_edges_of_the_image():
    image = np.zeros((20, 30, 3), np.uint8)
    image[:, 18:] = (250, 240, 20)
    ramp = torch.linspace(0, 1, 30).expand(20, 30)
    labels = synthesize_labels(image, torch.stack([1 - ramp, ramp]), [5], CRFSettings())
    np.testing.assert_array_equal(labels == 5, image[..., 0] > 0)
    without = synthesize_labels(image, torch.stack([1 - ramp, ramp]), [5])
    np.testing.assert_array_equal(without[0] == 5, np.arange(30) >= 15)


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (3, 2)])
def test_an_image_of_a_few_pixels_has_labels_too(size):
    image = np.zeros((*size, 3), np.uint8)
    labels = synthesize_labels(image, torch.tensor([[[0.1]], [[0.9]]]), [4], CRFSettings())
    assert labels.shape == size and (labels == 4).all()


@pytest.mark.parametrize("scale", [1.0, 0.5, 0.33])
def test_every_image_gets_labels_of_its_own_size(data, scores, tmp_path, scale):
    ids = data.ids("train")
    crf = CRFSettings(iterations=0, scale=scale)
    write_segmentation_labels(data, ids, scores, tmp_path / "out", crf=crf)
    assert len(list((tmp_path / "out").iterdir())) == len(ids)
    for image_id in ids:
        labels = data.read_labels(tmp_path / "out" / f"{image_id}.png")
        assert labels.shape == data.image(image_id).size[::-1]
        assert (labels[:18] == data.tags(image_id)[0]).all() and not labels[22:].any()


def test_cams_get_their_background_by_alpha(data, tmp_path):
    image_id = data.ids("train")[0]
    tags = data.tags(image_id)
    save_scores(tmp_path / f"{image_id}.npz", tags, torch.full((len(tags), 2, 2), 0.3))
    for alpha, label in ((1, 0), (8, tags[0])):  # 0.7^1 > 0.3 > 0.7^8
        write_segmentation_labels(data, [image_id], tmp_path, tmp_path / f"{alpha}", alpha)
        labels = data.read_labels(tmp_path / f"{alpha}" / f"{image_id}.png")
        assert (labels == label).all()


def test_labels_are_written_in_the_data_sets_numbers(tmp_path):
    image = np.zeros((8, 8, 3), np.uint8)
    write_data(tmp_path / "data", {"a": image}, {"a": ("cross", "ball")})
    data = VOCData(tmp_path / "data", classes=["cross"])
    save_scores(tmp_path / "a.npz", [0, 1], torch.tensor([[[0.0]], [[1.0]]]))
    write_segmentation_labels(data, ["a"], tmp_path, tmp_path / "out")
    assert (read_labels(tmp_path / "out" / "a.png") == 3).all()
    assert (data.read_labels(tmp_path / "out" / "a.png") == 1).all()


def test_labels_that_are_there_are_not_made_again(data, scores, tmp_path):
    ids, out = data.ids("train"), tmp_path / "out"
    write_segmentation_labels(data, ids[:1], scores, out)
    (out / f"{ids[0]}.png").write_bytes(b"kept")
    write_segmentation_labels(data, ids, scores, out)
    assert (out / f"{ids[0]}.png").read_bytes() == b"kept"
    assert len(list(out.iterdir())) == len(ids)


def test_an_empty_list_of_images_writes_nothing(data, scores, tmp_path):
    write_segmentation_labels(data, [], scores, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("tags", "alpha", "words"),
    [((1,), None, "no background map: give alpha"), ((0, 1), 16, "has one: leave alpha out")],
)
def test_scores_with_one_background_too_few_or_too_many_are_refused(
    data, tmp_path, tags, alpha, words
):
    image_id = data.ids("train")[0]
    save_scores(tmp_path / f"{image_id}.npz", tags, torch.ones(len(tags), 2, 2))
    with pytest.raises(InputError, match=rf"{image_id}\.npz has .*{words.split()[-1]}"):
        write_segmentation_labels(data, [image_id], tmp_path, tmp_path / "out", alpha)
    assert list((tmp_path / "out").iterdir()) == []


@given(labels=arrays(np.uint8, (3, 4), elements=st.integers(0, 255)), factor=st.integers(1, 4))
def test_enlarged_labels_are_repeated(labels, factor):
    expected = labels.repeat(factor, 0).repeat(factor, 1)
    np.testing.assert_array_equal(enlarge(labels, expected.shape), expected)


@pytest.mark.parametrize(("scale", "side"), [(1.0, 40), (0.5, 20), (0.33, 13), (0.001, 1)])
def test_pixels_are_scaled_on_both_sides(data, scale, side):
    image = pixels(data.image(data.ids("train")[0]), CRFSettings(scale=scale))
    assert image.shape == (side, side, 3)
    assert image.dtype == np.uint8

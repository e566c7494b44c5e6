"""Image and labels stay together, and chance is the global generator's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from affinity_lib.errors import InputError
from affinity_lib.evaluation import VOID
from affinity_lib.training.transforms import TrainTransform, resize_long_side, to_tensor

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RAW = {"mean": (0, 0, 0), "std": (1, 1, 1)}


def scene(height: int, width: int) -> tuple[Image.Image, np.ndarray]:
    """Labels in blocks, and an image whose red is the label: they must move together."""
    rows, columns = np.indices((height, width))
    labels = (rows * 4 // height + 5 * (columns * 5 // width)).astype(np.uint8)
    pixels = np.stack([labels * 10, rows % 256, columns % 256], axis=-1).astype(np.uint8)
    return Image.fromarray(pixels), labels


@pytest.mark.parametrize("size", [(90, 120), (40, 30), (20, 200), (1, 1)])
@pytest.mark.parametrize("scale", [None, (0.5, 1.5)])
def test_any_image_becomes_a_crop_of_the_asked_size(size, scale):
    transform = TrainTransform(48, MEAN, STD, scale=scale)
    image, labels = transform(*scene(*size))
    assert image.shape == (3, 48, 48)
    assert image.dtype == torch.float32
    assert type(image) is torch.Tensor
    assert labels.shape == (48, 48)
    assert labels.dtype == torch.int64
    assert type(labels) is torch.Tensor
    assert torch.isfinite(image).all()
    assert set(labels.unique().tolist()) <= {*range(24), VOID}


def test_training_on_tags_needs_no_labels():
    image, labels = TrainTransform(48, MEAN, STD)(scene(60, 80)[0])
    assert image.shape == (3, 48, 48)
    assert labels is None


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("scale", [None, (0.5, 1.5)])
def test_image_and_labels_move_together(seed, scale):
    torch.manual_seed(seed)
    image, labels = TrainTransform(48, **RAW, scale=scale, jitter=False)(*scene(60, 80))
    inside = labels != VOID
    difference = (image[0] * 255 / 10 - labels).abs()[inside]
    # Scaling smooths the image at the borders of the blocks, never the labels.
    assert (difference < 0.1).float().mean() > (0.6 if scale else 0.999)


@pytest.mark.parametrize("seed", range(5))
def test_a_small_image_is_framed_by_mean_colour_and_void(seed):
    torch.manual_seed(seed)
    transform = TrainTransform(64, MEAN, STD, scale=None)
    image, labels = transform(*scene(20, 30))
    frame = labels == VOID
    assert (~frame).sum() == 20 * 30
    assert (image[:, frame] == 0).all()


def test_a_small_image_lands_at_different_places():
    places = set()
    for seed in range(10):
        torch.manual_seed(seed)
        _, labels = TrainTransform(64, MEAN, STD, scale=None)(*scene(20, 30))
        places.add(tuple((labels != VOID).nonzero()[0].tolist()))
    assert len(places) > 5


def test_without_chance_the_transform_is_a_normalisation():
    image, labels = scene(48, 48)
    transform = TrainTransform(48, MEAN, STD, scale=None, flip=False, jitter=False)
    out, out_labels = transform(image, labels)
    torch.testing.assert_close(out, to_tensor(image, MEAN, STD))
    np.testing.assert_array_equal(out_labels, labels)


def test_the_global_seed_fixes_the_result():
    transform = TrainTransform(48, MEAN, STD)
    outs = []
    for seed in (1, 2, 1):
        torch.manual_seed(seed)
        np.random.seed(len(outs))
        outs.append(transform(*scene(60, 80)))
    torch.testing.assert_close(outs[0], outs[2], rtol=0, atol=0)
    assert not torch.equal(outs[0][0], outs[1][0])


def test_colours_change_in_the_image_alone_and_the_labels_take_the_same_crop():
    results = []
    for jitter in (False, True):
        transform = TrainTransform(60, **RAW, scale=None, flip=False, jitter=jitter)
        results.append(transform(*scene(60, 60)))
    (plain, labels), (coloured, same_labels) = results
    assert torch.equal(labels, same_labels)
    assert not torch.allclose(plain, coloured, atol=0.01)


def test_every_second_image_is_mirrored():
    transform = TrainTransform(20, **RAW, scale=None, jitter=False)
    image, labels = scene(20, 20)
    torch.manual_seed(0)
    mirrored = 0
    for _ in range(200):
        _, out = transform(image, labels)
        mirrored += np.array_equal(out, labels[:, ::-1])
    assert 70 < mirrored < 130


def test_the_scale_stays_in_its_range_and_keeps_the_shape():
    torch.manual_seed(0)
    transform = TrainTransform(200, **RAW, scale=(0.5, 1.5), jitter=False)
    image, labels = scene(60, 120)
    widths = []
    for _ in range(100):
        inside = transform(image, labels)[1] != VOID
        height, width = inside.any(1).sum().item(), inside.any(0).sum().item()
        assert abs(width - 2 * height) <= 1
        widths.append(width)
    assert 60 <= min(widths) < 75
    assert 165 < max(widths) <= 180


def test_a_normalised_batch_of_noise_has_mean_0_and_std_1():
    rng = np.random.default_rng(0)
    noise = np.clip(rng.normal(MEAN, STD, (200, 200, 3)) * 255, 0, 255).astype(np.uint8)
    out = to_tensor(Image.fromarray(noise), MEAN, STD)
    torch.testing.assert_close(out.mean((1, 2)), torch.zeros(3), atol=0.05, rtol=0)
    torch.testing.assert_close(out.std((1, 2)), torch.ones(3), atol=0.05, rtol=0)


@pytest.mark.parametrize(("size", "expected"), [((50, 100), (32, 64)), ((30, 7), (64, 15))])
def test_the_long_side_gets_its_length_and_the_shape_stays(size, expected):
    image, labels = scene(*size)
    assert resize_long_side(image, 64).size == expected[::-1]
    small = resize_long_side(labels, 64)
    assert small.shape == expected
    assert set(np.unique(small)) <= set(np.unique(labels))


def test_a_thin_image_keeps_at_least_one_pixel():
    assert resize_long_side(Image.new("RGB", (1000, 1)), 10).size == (10, 1)


@pytest.mark.parametrize("n", [0, 80])
def test_an_image_that_has_the_size_is_left_alone(n):
    image, labels = scene(60, 80)
    assert resize_long_side(image, n) is image
    np.testing.assert_array_equal(resize_long_side(labels, n), labels)


def test_labels_of_another_size_are_refused():
    with pytest.raises(InputError, match=r"labels of shape \(80, 60\) do not fit .* 60 x 80"):
        TrainTransform(48, MEAN, STD)(scene(60, 80)[0], scene(80, 60)[1])


def test_settings_without_sense_are_refused():
    with pytest.raises(InputError, match="crop must be >= 1 pixel, got 0"):
        TrainTransform(0, MEAN, STD)
    with pytest.raises(InputError, match=r"scale must be .* got \(1.5, 0.5\)"):
        TrainTransform(48, MEAN, STD, scale=(1.5, 0.5))
    with pytest.raises(InputError, match="long side must be >= 1 pixel, or 0"):
        resize_long_side(scene(5, 5)[0], -1)

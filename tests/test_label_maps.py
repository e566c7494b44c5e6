"""Masks that programs have saved again are read as what they are, or refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from affinity_lib.data.label_maps import palette, read_labels, write_labels
from affinity_lib.errors import InputError
from affinity_lib.evaluation import VOID

LABELS = np.array([[0, 1, 8], [15, 20, VOID]], np.uint8)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "a.png"


def in_palette(labels: np.ndarray, colors: np.ndarray) -> Image.Image:
    image = Image.fromarray(labels)
    image.putpalette(colors.astype(np.uint8).tobytes())
    return image


def refused(file: Path, match: str) -> None:
    with pytest.raises(InputError, match=match) as caught:
        read_labels(file)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)


@given(labels=arrays(np.uint8, (4, 5), elements=st.integers(0, 255)))
def test_label_maps_come_back_as_they_were(tmp_path_factory: pytest.TempPathFactory, labels):
    path = tmp_path_factory.mktemp("labels") / "a.png"
    write_labels(path, labels)
    np.testing.assert_array_equal(read_labels(path), labels)
    with Image.open(path) as image:
        assert image.mode == "P"
        np.testing.assert_array_equal(np.array(image.convert("RGB")), palette()[labels])


@given(labels=arrays(np.uint8, (4, 5), elements=st.integers(0, 255)))
def test_a_mask_in_vocs_colours_is_read_by_its_colours(tmp_path_factory, labels):
    path = tmp_path_factory.mktemp("labels") / "a.png"
    Image.fromarray(palette()[labels]).save(path)
    np.testing.assert_array_equal(read_labels(path), labels)


def test_colours_may_come_with_an_opaque_alpha_and_no_other(file):
    image = Image.fromarray(palette()[LABELS]).convert("RGBA")
    image.save(file)
    np.testing.assert_array_equal(read_labels(file), LABELS)
    image.putalpha(128)
    image.save(file)
    refused(file, "is a RGBA image without label numbers")


def test_a_colour_that_is_none_of_vocs_is_refused(file):
    pixels = palette()[LABELS]
    pixels[0, 1] = (127, 1, 0)  # smoothed
    Image.fromarray(pixels).save(file)
    refused(file, r"has the colour \(127, 1, 0\), which VOC's palette gives to no label")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_grey_numbers_are_labels(file, dtype):
    Image.fromarray(LABELS.astype(dtype)).save(file)
    np.testing.assert_array_equal(read_labels(file), LABELS)


def test_numbers_that_are_no_bytes_are_refused(file):
    Image.fromarray(np.array([[0, 1000]], np.uint16)).save(file)
    refused(file, "has labels up to 1000")


@pytest.mark.parametrize("labels", [[[0, VOID]], [[VOID, VOID]]])
def test_black_and_white_is_refused_because_255_is_void(file, labels):
    labels = np.array(labels, np.uint8)
    Image.fromarray(labels).save(file)
    refused(file, "255 may be an object or void: write the number of the object's class")
    in_palette(labels, np.full((256, 3), 255) * (np.arange(256) > 0)[:, None]).save(file)
    refused(file, "255 may be an object or void")
    write_labels(file, labels)  # in VOC's colours it is void
    np.testing.assert_array_equal(read_labels(file), labels)


def test_a_bitmap_and_floats_hold_no_labels(file, tmp_path):
    Image.fromarray(LABELS > 0).save(file)
    refused(file, "is a 1 image without label numbers")
    Image.fromarray(LABELS.astype(np.float32)).save(tmp_path / "b.tif")
    refused(tmp_path / "b.tif", "is a F image")


def test_a_palette_of_other_colours_is_read_by_its_numbers(file):
    in_palette(LABELS, np.random.default_rng(0).integers(1, 60, (256, 3))).save(file)
    np.testing.assert_array_equal(read_labels(file), LABELS)


def test_a_palette_that_was_sorted_anew_is_refused(file):
    used, places = np.unique(LABELS, return_inverse=True)  # as GIMP leaves it
    in_palette(places.reshape(LABELS.shape).astype(np.uint8), palette()[used]).save(file)
    refused(file, "has the number 2 in VOC's colour of 8")


def test_a_jpeg_under_the_name_of_a_mask_is_refused(file):
    Image.fromarray(LABELS).save(file, format="JPEG")
    refused(file, "is a JPEG, which blurs labels")


@pytest.mark.parametrize(
    "labels", [np.zeros((2, 2, 3)), np.zeros((0, 3)), np.full((2, 2), 256), np.full((2, 2), -1)]
)
def test_labels_that_do_not_fit_a_file_are_refused_and_leave_nothing(tmp_path: Path, labels):
    with pytest.raises(InputError, match="a label map is"):
        write_labels(tmp_path / "a.png", labels)
    assert list(tmp_path.iterdir()) == []

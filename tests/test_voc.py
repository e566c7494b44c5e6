"""The data layout: what is read, what is written, what is refused."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from affinity_lib.data.layout import write_tags
from affinity_lib.data.voc import VOC_CLASSES, VOCData, palette, read_labels, write_labels
from affinity_lib.errors import InputError
from affinity_lib.evaluation import VOID

MASK = np.array([[0, 8, 8, 255], [0, 12, 15, 255], [0, 0, 15, 15]], dtype=np.uint8)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two images of 4 x 3 pixels: a cat and a dog with a person, in VOC's own numbers."""
    root = tmp_path / "VOC2012"
    (root / "ImageSets" / "Segmentation").mkdir(parents=True)
    (root / "ImageSets" / "Segmentation" / "train.txt").write_text("a\nb\n\n")
    (root / "ImageSets" / "Segmentation" / "val.txt").write_text("b\n")
    (root / "JPEGImages").mkdir()
    for image_id, names in {"a": ["cat", "cat"], "b": ["person", "dog"]}.items():
        Image.new("RGB", (4, 3), "teal").save(root / "JPEGImages" / f"{image_id}.jpg")
        write_tags(root / "Annotations" / f"{image_id}.xml", names, (4, 3))
        write_labels(root / "SegmentationClass" / f"{image_id}.png", MASK)
    return root


def test_the_palette_is_vocs():
    colors = palette()
    assert colors.shape == (256, 3)
    assert colors.dtype == np.uint8
    assert len(np.unique(colors, axis=0)) == 256
    # background, aeroplane, cat, person, tvmonitor and void, as the development kit has them
    assert colors[[0, 1, 8, 15, 20, 255]].tolist() == [
        [0, 0, 0], [128, 0, 0], [64, 0, 0], [192, 128, 128], [0, 64, 128], [224, 224, 192],
    ]  # fmt: skip


@given(labels=arrays(np.uint8, (4, 5), elements=st.integers(0, 255)))
def test_label_maps_come_back_as_they_were(tmp_path_factory: pytest.TempPathFactory, labels):
    path = tmp_path_factory.mktemp("labels") / "a.png"
    write_labels(path, labels)
    np.testing.assert_array_equal(read_labels(path), labels)
    with Image.open(path) as image:
        assert image.mode == "P"
        np.testing.assert_array_equal(np.array(image.convert("RGB")), palette()[labels])


def test_ids_are_those_of_the_list_in_its_order(root: Path):
    assert VOCData(root).ids("train") == ["a", "b"]


def test_images_are_rgb_whatever_the_file_has(root: Path):
    Image.new("L", (4, 3), 77).save(root / "JPEGImages" / "a.jpg")
    image = VOCData(root).image("a")
    assert (image.mode, image.size) == ("RGB", (4, 3))


def test_tags_are_class_numbers_once_each_and_ascending(root: Path):
    data = VOCData(root)
    assert data.classes == VOC_CLASSES
    assert data.tags("a") == (8,)
    assert data.tags("b") == (12, 15)
    target = data.multi_hot(["b", "a"])
    assert target.shape == (2, 20)
    assert [row.nonzero().flatten().add(1).tolist() for row in target] == [[12, 15], [8]]


def test_parts_of_an_object_are_not_tags(root: Path):
    (root / "Annotations" / "a.xml").write_text(
        "<annotation><object><name>person</name><part><name>head</name></part></object>"
        "</annotation>"
    )
    assert VOCData(root).tags("a") == (15,)


def test_the_mask_of_all_classes_is_the_file(root: Path):
    np.testing.assert_array_equal(VOCData(root).mask("a"), MASK)


def test_chosen_classes_are_numbered_as_asked_and_the_rest_is_background(root: Path):
    data = VOCData(root, classes=["dog", "cat"])
    assert data.classes == ("dog", "cat")
    assert data.tags("b") == (1,)
    assert data.multi_hot(["a", "b"]).tolist() == [[0, 1], [1, 0]]
    assert data.mask("a").tolist() == [[0, 2, 2, 255], [0, 1, 0, 255], [0, 0, 0, 0]]
    assert data.colors.tolist() == palette()[[0, 12, 8]].tolist()


def test_written_labels_keep_the_data_sets_numbers(root: Path, tmp_path: Path):
    data = VOCData(root, classes=["dog", "cat"])
    data.write_labels(tmp_path / "a.png", np.array([[0, 1, 2, VOID]], dtype=np.int64))
    assert read_labels(tmp_path / "a.png").tolist() == [[0, 12, 8, 255]]


def test_what_is_written_reads_back_as_the_same_labels(root: Path):
    data = VOCData(root, classes=["dog", "cat"])
    labels = np.array([[0, 1, 2, VOID], [2, 2, 1, 0]])
    data.write_labels(root / "SegmentationClass" / "a.png", labels)
    np.testing.assert_array_equal(data.mask("a"), labels)


def test_the_data_sets_own_names_come_from_classes_txt(root: Path):
    (root / "classes.txt").write_text("dog\n\ncat\nperson\n")
    data = VOCData(root)
    assert data.classes == ("dog", "cat", "person")
    assert data.tags("b") == (1, 3)
    assert len(data.colors) == 4


def test_there_may_be_254_classes(root: Path):
    (root / "classes.txt").write_text("".join(f"c{n}\n" for n in range(1, 255)))
    write_tags(root / "Annotations" / "a.xml", ["c254"], (4, 3))
    write_labels(root / "SegmentationClass" / "a.png", np.array([[0, 254, 255]]))
    data = VOCData(root)
    assert data.tags("a") == (254,)
    assert data.mask("a").tolist() == [[0, 254, 255]]
    assert VOCData(root, classes=["c254"]).mask("a").tolist() == [[0, 1, 255]]


def test_training_never_needs_masks(root: Path):
    shutil.rmtree(root / "SegmentationClass")
    data = VOCData(root)
    data.check("train")
    assert not data.has_masks(["a"])
    with pytest.raises(InputError, match="SegmentationClass misses 2 of the 2 files"):
        data.check("train", masks=True)
    assert (data.mask("a") == VOID).all()


def test_a_mask_missing_among_others_is_refused(root: Path):
    (root / "SegmentationClass" / "a.png").unlink()
    with pytest.raises(InputError, match="only images with masks can be evaluated"):
        VOCData(root).mask("a")


def test_a_whole_data_set_passes_the_check(root: Path):
    data = VOCData(root)
    data.check("train", masks=True)
    data.check("val", masks=True)
    assert data.has_masks(data.ids("train"))


def refused(root: Path, match: str, classes: list[str] | None = None) -> None:
    with pytest.raises(InputError, match=match) as caught:
        VOCData(root, classes).check("train", masks=True)
    assert "\n" not in str(caught.value)


def test_a_missing_folder_is_refused(tmp_path: Path):
    refused(tmp_path / "VOC2012", "VOC2012 has no folder JPEGImages: unpack")


def test_a_folder_above_the_layout_is_told_where_the_layout_is(root: Path):
    refused(root.parent, f"no folder JPEGImages: .* here {root}")


@pytest.mark.parametrize("folder", ["JPEGImages", "Annotations", "ImageSets"])
def test_a_half_unpacked_data_set_is_refused(root: Path, folder: str):
    shutil.rmtree(root / folder)
    refused(root, f"no folder {folder}")


@pytest.mark.parametrize(
    "file", ["JPEGImages/b.jpg", "Annotations/b.xml", "SegmentationClass/b.png"]
)
def test_missing_files_are_counted_and_the_first_is_named(root: Path, file: str):
    (root / file).unlink()
    folder, name = file.split("/")
    refused(root, f"{folder} misses 1 of the 2 files of the train split, first {name}")


def test_a_missing_list_names_those_that_are_there(root: Path):
    with pytest.raises(InputError, match=r"test\.txt is missing: .*\(train, val\)"):
        VOCData(root).ids("test")


def test_an_empty_list_is_refused(root: Path):
    (root / "ImageSets" / "Segmentation" / "train.txt").write_text("\n")
    refused(root, "train.txt lists no image")


@pytest.mark.parametrize("content", [b"", b"no image", "cut"])
def test_an_image_that_does_not_decode_is_refused(root: Path, content):
    path = root / "JPEGImages" / "b.jpg"
    if content == "cut":
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
        content = path.read_bytes()[:2000]
    path.write_bytes(content)
    refused(root, r"b\.jpg does not decode")


def test_an_xml_without_objects_is_refused(root: Path):
    (root / "Annotations" / "b.xml").write_text("<annotation></annotation>")
    refused(root, r"b\.xml has no object: add")


def test_a_broken_xml_is_refused(root: Path):
    (root / "Annotations" / "b.xml").write_text("<annotation><object>")
    refused(root, r"b\.xml is not XML")


def test_a_tag_that_no_class_has_is_refused(root: Path):
    write_tags(root / "Annotations" / "b.xml", ["dog", "unicorn"], (4, 3))
    refused(root, r"b\.xml has the tag 'unicorn' that no class has")


def test_an_image_without_a_tag_of_the_chosen_classes_is_refused(root: Path):
    refused(root, "image a of the train split has no tag of the classes dog", classes=["dog"])


def test_a_mask_of_another_size_is_refused(root: Path):
    write_labels(root / "SegmentationClass" / "b.png", MASK[:2])
    refused(root, r"b\.png is 4 x 2 pixels but its image is 4 x 3")


def test_a_mask_with_a_label_of_no_class_is_refused(root: Path):
    write_labels(root / "SegmentationClass" / "b.png", np.full((3, 4), 21))
    refused(root, r"b\.png has the label 21 that no class has")


def test_a_mask_of_colours_is_refused(root: Path):
    Image.new("RGB", (4, 3)).save(root / "SegmentationClass" / "b.png")
    refused(root, r"b\.png is a RGB image without label numbers")


@pytest.mark.parametrize("text", ["", "cat\ncat\n", "background\ncat\n", "x\n" * 255])
def test_class_names_that_cannot_be_are_refused(root: Path, text: str):
    (root / "classes.txt").write_text(text)
    refused(root, r"classes\.txt must name 1 to 254 different classes")


@pytest.mark.parametrize("classes", [["cat", "cat"], []])
def test_chosen_classes_must_be_different_names(root: Path, classes: list[str]):
    refused(root, "one or more different names", classes=classes)


def test_a_chosen_class_that_is_not_in_the_data_set_is_refused(root: Path):
    refused(root, "class 'unicorn' is not in the data set .* aeroplane", classes=["unicorn"])


@pytest.mark.parametrize(
    "labels", [np.zeros((2, 2, 3)), np.zeros((0, 3)), np.full((2, 2), 256), np.full((2, 2), -1)]
)
def test_labels_that_do_not_fit_a_file_are_refused_and_leave_nothing(tmp_path: Path, labels):
    with pytest.raises(InputError, match="a label map is"):
        write_labels(tmp_path / "a.png", labels)
    assert list(tmp_path.iterdir()) == []


def test_labels_of_no_class_are_not_written(root: Path, tmp_path: Path):
    with pytest.raises(InputError, match=r"labels must be 0\.\.2 or 255, got 3"):
        VOCData(root, classes=["dog", "cat"]).write_labels(tmp_path / "x.png", np.array([[3]]))


def test_label_files_are_read_through_the_classes_whatever_folder_they_are_in(root: Path):
    write_labels(root / "made" / "x.png", MASK)
    data = VOCData(root, classes=["dog", "cat"])
    np.testing.assert_array_equal(data.read_labels(root / "made" / "x.png"), data.mask("a"))
    np.testing.assert_array_equal(VOCData(root).read_labels(str(root / "made" / "x.png")), MASK)


@given(labels=arrays(np.uint8, (3, 4), elements=st.sampled_from([0, 1, 2, VOID])))
def test_labels_come_back_through_the_same_classes(tmp_path_factory, labels):
    folder = tmp_path_factory.mktemp("layout")
    for name in ("JPEGImages", "Annotations", "ImageSets/Segmentation"):
        (folder / name).mkdir(parents=True)
    data = VOCData(folder, classes=["dog", "cat"])
    data.write_labels(folder / "a.png", labels)
    np.testing.assert_array_equal(data.read_labels(folder / "a.png"), labels)


def test_a_label_file_that_is_missing_or_of_other_classes_is_refused_by_name(root: Path):
    with pytest.raises(InputError, match=r"gone\.png is missing"):
        VOCData(root).read_labels(root / "gone.png")
    write_labels(root / "x.png", np.array([[0, 77]]))
    with pytest.raises(InputError, match=r"x\.png has the label 77 that no class has"):
        VOCData(root).read_labels(root / "x.png")


@pytest.mark.skipif("VOC_ROOT" not in os.environ, reason="VOC_ROOT is not set")
def test_real_photographs_have_tags_for_the_classes_of_their_masks():
    data = VOCData(os.environ["VOC_ROOT"])
    data.check("val", masks=True)
    ids = data.ids("val")[:50]
    for image_id in ids:
        labels = set(np.unique(data.mask(image_id)).tolist()) - {0, VOID}
        assert data.mask(image_id).shape == data.image(image_id).size[::-1]
        assert labels <= set(data.tags(image_id))

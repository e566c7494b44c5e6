"""The data layout: what is read, what is written, what is refused."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from scenes import draw_scenes

from affinity_lib.data import voc
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
    assert data.multi_hot(data.ids("train")).any() and data.image("a")
    assert data.with_masks(["a", "b"]) == [] and not data.has_masks(["a"])
    assert (data.mask("a") == VOID).all()


def test_images_without_a_mask_among_others_are_void_and_not_among_those_with_masks(root: Path):
    (root / "SegmentationClass" / "a.png").unlink()
    data = VOCData(root)
    assert data.with_masks(["a", "b"]) == ["b"] and data.has_masks(["b"])
    assert not data.has_masks(["a", "b"]) and not data.has_masks([])
    assert data.mask("a").shape == (3, 4) and (data.mask("a") == VOID).all()


def test_the_ending_of_a_mask_may_be_in_capitals(root: Path):
    path = VOCData(root).mask_path("a")
    before = VOCData(root).mask("a")
    path.rename(path.with_suffix(".PNG"))
    assert VOCData(root).with_masks(["a"]) == ["a"]
    np.testing.assert_array_equal(VOCData(root).mask("a"), before)


def test_masks_of_the_augmented_list_count_where_vocs_own_are_missing(root: Path):
    write_labels(root / "SegmentationClassAug" / "a.png", np.zeros((3, 4)))
    write_labels(root / "SegmentationClassAug" / "c.png", np.zeros((3, 4)))
    data = VOCData(root)
    np.testing.assert_array_equal(data.mask("a"), MASK)
    assert data.with_masks("abc") == ["a", "b", "c"] and not data.mask("c").any()


@pytest.mark.parametrize("name", ["b.JPG", "b.jpeg", "b.JPEG", "b.png", "b.PNG"])
def test_an_image_may_have_another_suffix(root: Path, name: str):
    (root / "JPEGImages" / "b.jpg").rename(root / "JPEGImages" / name)
    data = VOCData(root)
    assert data.image_path("b").name == name
    assert data.image("b").size == data.image_size("b") == (4, 3)


def test_two_images_of_one_id_are_refused(root: Path):
    Image.new("RGB", (4, 3)).save(root / "JPEGImages" / "b.png")
    with pytest.raises(InputError, match=r"b\.jpg and b\.png are one image: remove one"):
        VOCData(root).image("b")


def test_a_missing_image_is_told_with_the_files_that_are_like_it(root: Path):
    (root / "JPEGImages" / "b.jpg").rename(root / "JPEGImages" / "B.bmp")
    with pytest.raises(InputError, match=r"b\.jpg is missing \(there is B\.bmp\): add the image"):
        VOCData(root).image_size("b")


def test_what_is_transparent_is_white_and_deep_colours_are_refused(root: Path):
    (root / "JPEGImages" / "b.jpg").unlink()
    Image.new("RGBA", (4, 3), (0, 0, 0, 0)).save(root / "JPEGImages" / "b.png")
    assert np.array(VOCData(root).image("b")).min() == 255
    Image.fromarray(np.full((3, 4), 40000, np.uint16)).save(root / "JPEGImages" / "b.png")
    with pytest.raises(InputError, match=r"b\.png has I;16 pixels: save it in RGB, 8 bits"):
        VOCData(root).image("b")


def test_an_image_without_objects_is_a_negative_whatever_classes_are_chosen(root: Path):
    (root / "Annotations" / "b.xml").write_text("<annotation></annotation>")
    for classes in (None, ["cat"]):
        data = VOCData(root, classes)
        assert data.tags("b") == () and data.ids("train") == ["a", "b"]
        assert data.with_tags(data.ids("train")) == ["a"]
        assert data.multi_hot(["b"]).sum() == 0


def test_images_that_carry_none_of_the_chosen_classes_are_left_out(root: Path):
    data = VOCData(root, "cat")
    assert (data.ids("train"), data.left_out("train")) == (["a"], ["b"])
    assert (data.ids("val", missing_ok=True), data.left_out("val")) == ([], ["b"])
    with pytest.raises(InputError, match="no image of the val split has a tag of the classes cat"):
        data.ids("val")
    assert VOCData(root).left_out("train") == []


def test_a_list_that_is_missing_or_empty_gives_no_ids_where_that_is_fine(root: Path):
    (root / "ImageSets" / "Segmentation" / "val.txt").write_text("\n")
    data = VOCData(root)
    assert data.ids("val", missing_ok=True) == data.ids("test", missing_ok=True) == []
    assert data.left_out("test") == []
    with pytest.raises(InputError, match=r"val\.txt lists no image: write one image id a line"):
        data.ids("val")


def test_an_id_that_is_listed_twice_counts_once(root: Path):
    (root / "ImageSets" / "Segmentation" / "train.txt").write_text("b\na\nb\n")
    assert VOCData(root).ids("train") == ["b", "a"]


def test_a_tag_that_no_class_has_is_refused_with_the_one_that_is_meant(root: Path):
    write_tags(root / "Annotations" / "b.xml", ["dog", "unicorn"], (4, 3))
    with pytest.raises(InputError, match=r"b\.xml has the tag 'unicorn' that no class has: corr"):
        VOCData(root).tags("b")
    assert VOCData(root, ["dog"]).tags("b") == (1,)
    write_tags(root / "Annotations" / "b.xml", ["dog", "Cat"], (4, 3))
    for classes in (None, ["cat"]):
        with pytest.raises(InputError, match=r"tag 'Cat' that no class has \(did you mean 'cat'"):
            VOCData(root, classes).tags("b")


def test_an_annotation_is_read_once(root: Path, monkeypatch):
    read = []
    monkeypatch.setattr(voc, "read_tags", lambda path: read.append(path.stem) or ("dog",))
    data = VOCData(root, "dog")
    ids = data.with_tags(data.ids("train"))
    data.multi_hot(ids), data.left_out("train"), data.ids("train")
    assert sorted(read) == ["a", "b"]


def test_what_was_read_does_not_travel_to_other_processes(root: Path):
    data = VOCData(root, "cat dog")
    before = pickle.dumps(data)
    data.ids("train")
    assert pickle.dumps(data) == before
    assert pickle.loads(before).ids("train") == data.ids("train")


@pytest.mark.parametrize("classes", ["dog cat", "dog, cat", "dog;cat", ["dog", "cat"]])
def test_classes_may_be_chosen_by_a_text_or_a_list(root: Path, classes):
    assert VOCData(root, classes).classes == ("dog", "cat")


@pytest.mark.parametrize("classes", ["", " ", [], None])
def test_no_choice_is_all_classes(root: Path, classes):
    assert VOCData(root, classes).classes == VOC_CLASSES


def test_a_class_name_may_have_blanks(root: Path):
    (root / "classes.txt").write_text("traffic light\ncat\n")
    assert VOCData(root, "traffic light").classes == ("traffic light",)
    assert VOCData(root, ["traffic light"]).classes == ("traffic light",)


def refused(root: Path, match: str, classes: list[str] | None = None) -> None:
    with pytest.raises(InputError, match=match) as caught:
        VOCData(root, classes)
    assert "\n" not in str(caught.value)


def test_a_missing_folder_is_refused(tmp_path: Path):
    refused(tmp_path / "VOC2012", "VOC2012 has no folder JPEGImages: unpack")


def test_a_folder_above_the_layout_is_told_where_the_layout_is(root: Path):
    refused(root.parent, f"no folder JPEGImages: .* here {root}")


@pytest.mark.parametrize("folder", ["JPEGImages", "Annotations", "ImageSets"])
def test_a_half_unpacked_data_set_is_refused(root: Path, folder: str):
    shutil.rmtree(root / folder)
    refused(root, f"no folder {folder}")


def test_a_missing_list_names_those_that_are_there(root: Path):
    with pytest.raises(InputError, match=r"test\.txt is missing: .*\(train, val\)"):
        VOCData(root).ids("test")


@pytest.mark.parametrize("text", ["", "cat\ncat\n", "background\ncat\n", "x\n" * 255])
def test_class_names_that_cannot_be_are_refused(root: Path, text: str):
    (root / "classes.txt").write_text(text)
    refused(root, r"classes\.txt must name 1 to 254 different classes")


def test_chosen_classes_must_be_different_names(root: Path):
    refused(root, "classes must be different names, got cat, cat", classes=["cat", "cat"])


def test_chosen_classes_that_are_not_in_the_data_set_are_refused_all_at_once(root: Path):
    refused(
        root,
        r"has no class 'airplane' \(did you mean 'aeroplane'\?\), 'unicorn': choose from aero",
        classes=["airplane", "cat", "unicorn"],
    )


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
    ids = data.ids("val")[:50]
    for image_id in ids:
        labels = set(np.unique(data.mask(image_id)).tolist()) - {0, VOID}
        assert data.mask(image_id).shape == data.image(image_id).size[::-1]
        assert labels <= set(data.tags(image_id))


def test_examples_go_from_few_tags_to_many(tmp_path):
    data = draw_scenes(tmp_path, 9, size=40)
    counts = [len(data.tags(i)) for i in data.examples(data.ids("train"), 4)]
    everything = [len(data.tags(i)) for i in data.ids("train")]
    assert counts == sorted(counts)
    assert (counts[0], counts[-1]) == (min(everything), max(everything))
    assert data.examples([], 4) == []

"""Whole data sets: all that is wrong is listed, what is right is used, and the log says what."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from voc2012 import ONLY_DETECTED, SEGMENTED, SIZE, draw_voc2012

from affinity_lib.__main__ import main
from affinity_lib.data.faults import class_counts, remarks
from affinity_lib.data.label_maps import write_labels
from affinity_lib.data.layout import write_lists, write_tags
from affinity_lib.data.voc import VOCData
from affinity_lib.errors import InputError
from affinity_lib.stages.prepare import check_data, find_faults

ANIMALS = "cat cow dog horse sheep"


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    return draw_voc2012(tmp_path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Fifty photographs of cats and dogs, forty to train on, with masks."""
    ids = [f"img_{k:02d}" for k in range(50)]
    random = np.random.default_rng(0)
    root = tmp_path / "pets"
    (root / "JPEGImages").mkdir(parents=True)
    for k, image_id in enumerate(ids):
        pixels = random.integers(0, 256, (*SIZE[::-1], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "JPEGImages" / f"{image_id}.jpg")
        write_tags(root / "Annotations" / f"{image_id}.xml", [("cat", "dog")[k % 2]], SIZE)
        mask = np.full(SIZE[::-1], 1 + k % 2)
        mask[0] = 0
        write_labels(root / "SegmentationClass" / f"{image_id}.png", mask)
    write_lists(root, ["cat", "dog"], {"train": ids[:40], "val": ids[40:]})
    return root


def faults(root: Path, classes: str = "") -> list[str]:
    return [str(fault) for fault in find_faults(VOCData(root, classes))]


def only_fault(root: Path, classes: str = "", stops: bool = True) -> str:
    (found,) = find_faults(VOCData(root, classes))
    assert found.stops == stops and "\n" not in str(found)
    return str(found)


def lines_of(root: Path, name: str, *lines: str) -> None:
    text = "".join(f"{line}\n" for line in lines)
    (root / "ImageSets" / "Segmentation" / f"{name}.txt").write_text(text)


def test_a_complete_voc_2012_has_no_fault(voc):
    assert faults(voc) == faults(voc, ANIMALS) == []
    data = VOCData(voc)
    assert data.ids("train") == list(SEGMENTED["train"])
    assert data.tags("2007_000032") == (1, 15)
    assert data.has_masks(data.ids("trainval"))


def test_of_a_complete_voc_2012_the_images_of_the_chosen_classes_are_used(voc, capsys):
    data = VOCData(voc, ANIMALS)
    assert data.ids("train") == ["2007_000063", "2007_000332"]
    assert data.left_out("train") == ["2007_000032", "2007_000121", "2007_000243"]
    assert data.ids("val") == ["2007_000123"]
    check_data(data)
    said = capsys.readouterr().out.splitlines()
    assert "train: left out for carrying none of the chosen classes: 3 of 5 images" in said
    assert "val: left out for carrying none of the chosen classes: 4 of 5 images" in said


def test_classes_that_no_image_has_hide_no_other_fault(voc, capsys):
    path = voc / "ImageSets" / "Segmentation" / "train.txt"
    path.write_text(2 * path.read_text())
    assert main(["check", str(voc), "--classes", "sheep"]) == 1
    said = capsys.readouterr().out
    assert "no image of the train split has a tag of the classes sheep" in said
    assert "more than once: take the repeated lines out" in said


def test_without_the_lists_of_segmentation_those_of_main_are_used_and_the_log_says_so(voc, capsys):
    shutil.rmtree(voc / "ImageSets" / "Segmentation")
    data = VOCData(voc)
    assert set(data.ids("train")) == {*SEGMENTED["train"], *ONLY_DETECTED["train"]}
    check_data(data)
    said = capsys.readouterr().out
    assert "so those of ImageSets/Main are used: 7 images in train, 7 images in val" in said
    assert "train: with a mask, so evaluated: 5 of 7 images" in said


def test_a_list_of_one_class_names_all_of_its_images(voc):
    shutil.copy(voc / "ImageSets/Main/horse_train.txt", voc / "ImageSets/Segmentation")
    assert set(VOCData(voc).ids("horse_train")) == {*SEGMENTED["train"], *ONLY_DETECTED["train"]}
    assert VOCData(voc, "horse").ids("horse_train") == ["2007_000332", "2008_000008"]


def test_the_augmented_list_of_other_projects_is_read(voc):
    names = [*SEGMENTED["train"], *ONLY_DETECTED["train"]]
    lines_of(voc, "aug", *(f"/JPEGImages/{i}.jpg /SegmentationClassAug/{i}.png" for i in names))
    assert VOCData(voc).ids("aug") == names


def test_a_whole_data_set_has_no_fault_and_nothing_to_say(root, capsys):
    assert faults(root) == []
    check_data(VOCData(root))
    assert capsys.readouterr().out == ""


def test_three_photographs_cut_off_among_fifty_are_all_listed(root):
    for image_id in ("img_03", "img_17", "img_45"):
        path = root / "JPEGImages" / f"{image_id}.jpg"
        path.write_bytes(path.read_bytes()[:-200])
    found = faults(root)
    assert len(found) == 3
    for fault, image_id in zip(found, ("img_03", "img_17", "img_45"), strict=True):
        assert f"{image_id}.jpg does not decode" in fault and "take it out" in fault


@pytest.mark.parametrize("content", [b"", b"no image", b"<html>404</html>"])
def test_a_file_that_is_no_image_is_a_fault(root, content):
    (root / "JPEGImages" / "img_01.jpg").write_bytes(content)
    assert "img_01.jpg does not decode as an image" in only_fault(root)


def test_an_image_that_is_only_in_a_list_is_a_fault_with_what_is_like_it(root):
    images = root / "JPEGImages"
    (images / "img_01.jpg").rename(images / "IMG_01.JPG")
    fault = only_fault(root)
    assert "img_01.jpg is missing (there is IMG_01.JPG): add the image, or take img_01 out" in fault


def test_an_image_in_two_files_is_a_fault(root):
    Image.new("RGB", SIZE).save(root / "JPEGImages" / "img_01.png")
    assert "img_01.jpg and img_01.png are one image" in only_fault(root)


def test_a_photograph_that_is_turned_by_exif_alone_is_a_fault_that_stops_nothing(root):
    path = root / "JPEGImages" / "img_01.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(path).save(path, exif=exif)
    assert "img_01.jpg stands upright by an EXIF mark" in only_fault(root, stops=False)


@pytest.mark.parametrize("mark", [b"Exif\0\0nonsense", b"Exif\0\0II*\0\xff\xff\xff\xff"])
def test_a_broken_exif_mark_is_no_fault(root, mark):
    path = root / "JPEGImages" / "img_01.jpg"
    Image.open(path).save(path, exif=mark)
    assert faults(root) == []


@pytest.mark.parametrize(
    ("xml", "message"),
    [
        (None, "img_01.xml is missing"),
        ("<annotation><object>", "img_01.xml is not XML"),
        ("<VOC/>", "img_01.xml is no annotation of VOC, it begins with <VOC>"),
        ("<annotation><object/></annotation>", "img_01.xml has an object without a name"),
        (
            "<annotation><object><name>Dog</name></object></annotation>",
            "img_01.xml has the tag 'Dog' that no class has (did you mean 'dog'?)",
        ),
    ],
)
@pytest.mark.parametrize("classes", ["", "dog cat"])
def test_tags_that_cannot_be_read_are_a_fault(root, xml, message, classes):
    path = root / "Annotations" / "img_01.xml"
    path.unlink()
    if xml:
        path.write_text(xml)
    assert message in only_fault(root, classes)


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.zeros((5, 7), np.uint8), "is 7 x 5 pixels but its image is 24 x 18"),
        (np.full(SIZE[::-1], 3, np.uint8), "has the label 3 that no class has"),
        (np.full((*SIZE[::-1], 3), 77, np.uint8), "has the colour (77, 77, 77), which VOC's"),
        (np.full(SIZE[::-1], 255, np.uint8), "holds 255 alone, and 255 may be an object or void"),
    ],
)
def test_masks_that_do_not_fit_are_faults(root, pixels, message):
    Image.fromarray(pixels).save(root / "SegmentationClass" / "img_01.png")
    assert f"img_01.png {message}" in only_fault(root)


def test_a_mask_that_shows_other_classes_than_the_tags_is_a_fault_that_stops_nothing(root):
    write_labels(root / "SegmentationClass" / "img_01.png", np.full(SIZE[::-1], 1))
    fault = only_fault(root, stops=False)
    assert "img_01.png shows cat and no dog, the tags of its image" in fault


def test_a_fault_of_an_image_that_is_left_out_is_none(root):
    (root / "JPEGImages" / "img_00.jpg").write_bytes(b"")  # a cat
    assert faults(root, "dog") == []


def test_repeated_ids_and_ids_of_both_lists_are_faults_that_stop_nothing(root):
    lines_of(root, "train", "img_00", "img_01", "img_00", "img_02")
    lines_of(root, "val", "img_02", "img_03")
    repeated, both = find_faults(VOCData(root))
    assert "train.txt names 1 image (img_00) more than once: take" in str(repeated)
    assert "val.txt names 1 image (img_02) that train.txt names, too: take" in str(both)
    assert not repeated.stops and not both.stops


def test_an_empty_list_is_a_fault_only_where_it_trains(root, capsys):
    lines_of(root, "val")
    assert faults(root) == []
    check_data(VOCData(root))
    assert "val: no images, so nothing is evaluated on them" in capsys.readouterr().out
    lines_of(root, "train")
    assert "train.txt lists no image: write one image id a line" in only_fault(root)


def test_a_missing_list_names_those_that_are_there(root):
    (root / "ImageSets" / "Segmentation" / "train.txt").unlink()
    first = next(find_faults(VOCData(root)))
    assert "train.txt is missing: choose a split that is there (trainval, val)" in str(first)


def test_a_run_refuses_a_data_set_with_the_first_five_faults_and_counts_the_rest(root):
    data = VOCData(root)
    for k in range(8):
        (root / "JPEGImages" / f"img_{k:02d}.jpg").unlink()
    with pytest.raises(InputError) as caught:
        check_data(data)
    first, *lines, last = str(caught.value).splitlines()
    assert first.startswith("the data set has 8 faults, python -m affinity_lib check")
    assert len(lines) == 5 and "img_04.jpg is missing" in lines[-1] and last == "and 3 more"


def test_a_run_tells_a_single_fault_in_one_sentence(root):
    (root / "JPEGImages" / "img_07.jpg").unlink()
    with pytest.raises(InputError, match=r"^\S+img_07.jpg is missing: .*lists$"):
        check_data(VOCData(root))


def test_a_run_goes_on_with_faults_that_stop_nothing_and_prints_them(root, capsys):
    lines_of(root, "train", "img_00", "img_01", "img_00")
    check_data(VOCData(root))
    assert "names 1 image (img_00) more than once" in capsys.readouterr().out


def test_the_log_tells_negatives_and_classes_that_cannot_be_learned(root):
    write_tags(root / "Annotations" / "img_00.xml", [], SIZE)
    (root / "classes.txt").write_text("cat\ndog\nsofa\n")
    negatives, classes = remarks(VOCData(root), "train", "val")
    assert negatives.startswith("train: without a tag, so negatives")
    assert negatives.endswith("neither CAMs nor labels: 1 of 40 images")
    assert classes == "train: no image has sofa, which cannot be learned"


def test_a_class_on_every_image_gets_a_warning_because_nothing_tells_it_from_the_background(root):
    every = "cat is on every image, so nothing tells it from the background"
    assert not [line for line in remarks(VOCData(root), "train", "val") if every in line]
    assert f"train: {every}: add images without it" in remarks(VOCData(root, "cat"), "train", "val")


def test_the_log_tells_what_is_not_evaluated(root):
    shutil.rmtree(root / "SegmentationClass")
    (root / "ImageSets" / "Segmentation" / "val.txt").unlink()
    assert remarks(VOCData(root), "train", "val") == [
        "train: no image has a mask, so nothing is evaluated",
        "val: no images, so nothing is evaluated on them",
    ]


def test_the_command_lists_everything_at_once_and_counts_the_images_of_each_class(root, capsys):
    (root / "JPEGImages" / "img_01.jpg").unlink()
    (root / "Annotations" / "img_02.xml").write_text("")
    lines_of(root, "val", "img_41", "img_41")
    assert main(["check", str(root)]) == 1
    said = capsys.readouterr().out.splitlines()
    assert [line.split() for line in said[:3]] == [
        ["images", "with", "train", "val"],
        ["cat", "19", "0"],
        ["dog", "20", "1"],
    ]
    kinds = ("img_41) more than once", "img_01.jpg is missing", "img_02.xml is not XML")
    for line, kind in zip(said[3:6], kinds, strict=True):
        assert line.startswith("fault: ") and kind in line
    assert said[6:] == ["3 faults"]


def test_the_command_ends_well_on_a_whole_data_set(voc, capsys):
    assert main(["check", str(voc), "--classes", "dog", "horse"]) == 0
    said = capsys.readouterr().out
    assert "note: train: left out for carrying none of the chosen classes: 3 of 5 images" in said
    assert said.endswith("\n0 faults\n")


@pytest.mark.parametrize("classes", [["cat", "airplane"], ["cat, airplane"], ["cat airplane"]])
def test_the_command_goes_on_behind_a_class_that_is_unknown(voc, capsys, classes):
    (voc / "JPEGImages" / "2007_000032.jpg").unlink()
    assert main(["check", str(voc), "--classes", *classes]) == 1
    said = capsys.readouterr().out
    assert "has no class 'airplane' (did you mean 'aeroplane'?): choose from" in said
    assert "2007_000032.jpg is missing" in said and said.endswith("\n2 faults\n")


def test_whoever_has_read_enough_of_the_output_may_close_it(voc, capsys, monkeypatch):
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as closed:
        monkeypatch.setattr("sys.stdout", closed)
        assert main(["check", str(voc)]) == 1
    assert "Stopped, as the output was closed." in capsys.readouterr().err


def test_the_command_tells_where_the_layout_is(voc, capsys):
    assert main(["check", str(voc.parent), "--classes", "cat"]) == 1
    assert f"here {voc}" in capsys.readouterr().out


def test_a_wrong_split_into_classes_is_seen_in_the_counts(root):
    (root / "classes.txt").write_text("cat\ndog\nlight\ntraffic\n")
    write_tags(root / "Annotations" / "img_00.xml", ["traffic", "light"], SIZE)
    assert class_counts(VOCData(root), "train") == {"cat": 19, "dog": 20, "light": 1, "traffic": 1}

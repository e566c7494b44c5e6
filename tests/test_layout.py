"""Lists, annotations and class names as people and programs write them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from affinity_lib.data.layout import (
    did_you_mean,
    read_classes,
    read_ids,
    read_tags,
    same_class,
    split_classes,
)
from affinity_lib.data.voc import VOC_CLASSES
from affinity_lib.errors import InputError

NAMES = ("cat", "dog", "light", "traffic", "traffic light", "traffic cone")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "train.txt"


@pytest.mark.parametrize(
    "line",
    [
        "2007_000032",
        "2007_000032   \t",
        "2007_000032  1",
        "2007_000032 -1",
        "2007_000032  0",
        "2007_000032.jpg",
        "JPEGImages/2007_000032.jpg",
        "/JPEGImages/2007_000032.jpg /SegmentationClassAug/2007_000032.png",
        "JPEGImages/2007_000032.jpg,SegmentationClass/2007_000032.png",
        r"JPEGImages\2007_000032.JPG;SegmentationClass\2007_000032.png",
    ],
)
def test_a_line_of_a_list_names_its_image_however_it_is_written(file, line):
    file.write_text(f"{line}\n")
    assert read_ids(file) == ["2007_000032"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_editors_of_all_systems_may_save_a_list(file, encoding, end):
    file.write_bytes(end.join(["a", "b", "", "c ", ""]).encode(encoding))
    assert read_ids(file) == ["a", "b", "c"]


def test_an_id_with_blanks_is_known_by_its_image(file):
    file.write_text("my cat\nthe 1\nb 1\n")
    images = ["my cat.jpg", "the 1.png", "b.JPG", "my.jpg"]
    assert read_ids(file, images) == ["my cat", "the 1", "b"]


def test_an_id_that_ends_like_an_image_is_known_by_its_image(file):
    file.write_text("a.png\nJPEGImages/b.JPG\nc.jpg\n")
    assert read_ids(file, ["a.png.jpg", "b.JPG.jpg", "c.jpg"]) == ["a.png", "b.JPG", "c"]


@pytest.mark.parametrize(
    ("line", "images", "both"),
    [("b 1", ["b 1.jpg", "b.jpg"], "b or b 1"), ("b.png", ["b.png.jpg", "b.jpg"], "b or b.png")],
)
def test_a_line_that_may_be_two_images_is_refused(file, line, images, both):
    file.write_text(f"{line}\n")
    with pytest.raises(InputError, match=rf"'{line}' may be the image {both}: rename one"):
        read_ids(file, images)


def test_an_image_beside_the_mask_of_another_is_refused(file):
    file.write_text("/JPEGImages/a.jpg /SegmentationClass/b.png\n")
    with pytest.raises(InputError, match="which is no image: write its id alone"):
        read_ids(file)


@pytest.mark.parametrize("content", [b"\xff\xd8\xff\xe0\x00\x10JFIF", b"a\x00b", b"\xff\xfea"])
def test_a_list_that_is_no_text_is_refused(file, content):
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"train\.txt .*: save it as UTF-8"):
        read_ids(file)


@given(st.text(max_size=40))
def test_no_text_makes_an_id_that_leads_elsewhere(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("list") / "a.txt"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        ids = read_ids(path)
    except InputError:
        return
    assert not [image_id for image_id in ids if "/" in image_id or not image_id]


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ("<annotation><object><name>cat</name></object></annotation>", ("cat",)),
        ("<annotation/>", ()),
        (
            "<annotation><object><name> traffic\n light </name></object></annotation>",
            ("traffic light",),
        ),
        (
            "<annotation><object><name>a</name><part><name>b</name></part></object></annotation>",
            ("a",),
        ),
    ],
)
def test_the_tags_of_an_annotation_are_the_names_of_its_objects(tmp_path, content, names):
    (tmp_path / "a.xml").write_text(content)
    assert read_tags(tmp_path / "a.xml") == names


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<annotation><object>", r"a\.xml is not XML"),
        (b"", r"a\.xml is not XML"),
        (b"\x89PNG", r"a\.xml is not XML"),
        (b'<?xml version="1.0" encoding="klingon"?><annotation/>', r"a\.xml is not XML"),
        (b"<html><body>404</body></html>", "is no annotation of VOC, it begins with <html>"),
        (b"<annotation><object/></annotation>", "has an object without a name"),
        (b"<annotation><Object><Name>a</Name></Object></annotation>", "objects where VOC has none"),
        (
            b"<annotation><objects><object><name>a</name></object></objects></annotation>",
            "write each as <object> with a <name>, right below <annotation>",
        ),
        (b"<annotation><object><name> </name></object></annotation>", "an object without a name"),
    ],
)
def test_what_is_no_annotation_is_not_taken_for_an_image_without_tags(tmp_path, content, message):
    (tmp_path / "a.xml").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_tags(tmp_path / "a.xml")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("cat", ["cat"]),
        ("cat dog", ["cat", "dog"]),
        (" cat   dog ", ["cat", "dog"]),
        ("traffic  cone", ["traffic cone"]),
        ("cat, traffic light", ["cat", "traffic light"]),
        ("traffic light;cat;", ["traffic light", "cat"]),
        ("traffic light,", ["traffic light"]),
        ("fire hydrant", ["fire hydrant"]),
        ("cat unicorn", ["cat", "unicorn"]),
    ],
)
def test_classes_are_separated_by_commas_or_else_by_spaces_between_names(text, names):
    assert split_classes(text, NAMES[:2] + NAMES[4:]) == names


def test_a_text_that_is_one_class_and_several_is_refused():
    with pytest.raises(InputError, match="'traffic light' is one class and also 2 classes"):
        split_classes("traffic light", NAMES)
    assert split_classes("traffic light,", NAMES) == ["traffic light"]
    assert split_classes("traffic, light", NAMES) == ["traffic", "light"]


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("airplane", "aeroplane"),
        ("potted plant", "pottedplant"),
        ("Potted-Plant", "pottedplant"),
        ("tv/monitor", "tvmonitor"),
        ("TV", "tvmonitor"),
        ("Cat", "cat"),
        ("dining_table", "diningtable"),
        ("couch", "sofa"),
        ("cart", ""),
        ("?", ""),
    ],
)
def test_a_class_in_another_spelling_is_recognised(written, meant):
    assert same_class(written, VOC_CLASSES) == meant
    if meant:
        assert did_you_mean(written, VOC_CLASSES) == f" (did you mean {meant!r}?)"


def test_a_slip_of_the_pen_gets_a_hint_and_nonsense_gets_none():
    assert did_you_mean("bicicle", VOC_CLASSES) == " (did you mean 'bicycle'?)"
    assert did_you_mean("xylophone123", ("cat", "dog")) == ""


def test_class_names_may_be_of_two_words_and_saved_by_any_editor(tmp_path):
    (tmp_path / "classes.txt").write_bytes("traffic  light\r\n\r\ncat \r\n".encode("utf-8-sig"))
    assert read_classes(tmp_path / "classes.txt") == ("traffic light", "cat")


def test_signs_that_are_part_of_a_name_tell_classes_apart(tmp_path):
    (tmp_path / "classes.txt").write_text("c\nc++\nc#\n")
    assert read_classes(tmp_path / "classes.txt") == ("c", "c++", "c#")


@pytest.mark.parametrize("text", ["Cat\ncat\n", "potted plant\npottedplant\n", "_background_\na\n"])
def test_one_class_in_two_spellings_is_refused(tmp_path, text):
    (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(InputError, match="different classes"):
        read_classes(tmp_path / "classes.txt")

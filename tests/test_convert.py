"""Own images and tags become a data set in VOC layout."""

from __future__ import annotations

import errno
import random
import re
import struct
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import PIL
import pytest
from PIL import Image, ImageOps

from affinity_lib.__main__ import main
from affinity_lib.data.convert import convert
from affinity_lib.data.files import open_photograph
from affinity_lib.data.voc import VOCData
from affinity_lib.errors import InputError
from affinity_lib.stages.prepare import find_faults


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A folder of images of any size and format."""
    folder = tmp_path / "own"
    (folder / "more").mkdir(parents=True)
    Image.new("RGB", (40, 30), "red").save(folder / "tom.jpg")
    Image.new("RGBA", (31, 17), (0, 0, 255, 0)).save(folder / "clear.png")
    Image.new("L", (5, 200), 90).save(folder / "more" / "a photo.bmp")
    Image.new("P", (20, 20)).save(folder / "frame.gif")
    return folder


def table(folder: Path, *rows: str, header: str = "file,tags") -> Path:
    path = folder / "labels.csv"
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


ROWS = (
    "tom.jpg,cat;sofa",
    "clear.png,café",
    "more/a photo.bmp,sofa;cat;cat",
    "frame.gif,cat; dog",
)


def test_images_and_tags_become_a_data_set_that_passes_its_check(own: Path, tmp_path: Path):
    out = convert(own, table(own, *ROWS), tmp_path / "voc", val_fraction=0)
    data = VOCData(out)
    assert not [fault for fault in find_faults(data) if fault.stops]
    assert data.classes == ("café", "cat", "dog", "sofa")
    assert data.ids("train") == ["clear", "frame", "more_a_photo", "tom"]
    assert [data.tags(i) for i in data.ids("train")] == [(1,), (2, 3), (2, 4), (2, 4)]
    assert [data.image(i).size for i in data.ids("train")] == [
        (31, 17),
        (20, 20),
        (5, 200),
        (40, 30),
    ]
    assert not data.has_masks(data.ids("train"))


def test_a_jpeg_is_copied_byte_for_byte(own: Path, tmp_path: Path):
    out = convert(own, table(own, *ROWS), tmp_path / "voc")
    assert (out / "JPEGImages" / "tom.jpg").read_bytes() == (own / "tom.jpg").read_bytes()


def test_transparency_becomes_white(own: Path, tmp_path: Path):
    out = convert(own, table(own, *ROWS), tmp_path / "voc")
    assert np.array(VOCData(out).image("clear")).min() > 250


def test_a_photograph_that_lies_on_its_side_is_turned_upright(own: Path, tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 30), "red").save(own / "tom.jpg", exif=exif)
    out = convert(own, table(own, *ROWS), tmp_path / "voc")
    assert VOCData(out).image("tom").size == (30, 40)
    assert VOCData(out).image("tom").getexif().get(0x0112, 1) == 1


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_every_orientation_is_turned_as_pillow_does(tmp_path: Path, turn: int, kind: str):
    image = Image.fromarray(np.arange(4 * 6, dtype=np.uint8).reshape(4, 6) * 9).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = turn
    image.save(tmp_path / "image", kind, exif=exif)
    with Image.open(tmp_path / "image") as stored:
        expected = np.array(ImageOps.exif_transpose(stored))
    assert (np.array(open_photograph(tmp_path / "image")) == expected).all()


def test_odd_exif_data_beside_the_orientation_cost_no_photograph(own: Path, tmp_path: Path):
    whole = (own / "tom.jpg").read_bytes()
    fields = [(0x112, 3, 1, b"\6\0\0\0"), (0x11A, 2, 3, b"72\0\0")]  # a resolution in letters
    tiff = b"II*\0\x08\0\0\0" + struct.pack("<H", len(fields))
    tiff += b"".join(struct.pack("<HHI", *field[:3]) + field[3] for field in fields) + bytes(4)
    segment = b"Exif\0\0" + tiff
    head = b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment
    (own / "tom.jpg").write_bytes(whole[:2] + head + whole[2:])
    with Image.open(own / "tom.jpg") as stored:
        size = stored.size
    out = convert(own, table(own, *ROWS), tmp_path / "voc")
    assert VOCData(out).image("tom").size == size[::-1]


def test_the_empty_folder_that_one_stands_in_is_taken(own: Path, tmp_path: Path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    convert(own, table(own, *ROWS), Path("."))
    assert VOCData(tmp_path / "here").ids("train")


@pytest.mark.parametrize("seed", range(5))
def test_val_is_a_part_that_leaves_each_class_a_training_image(tmp_path: Path, seed: int):
    own = tmp_path / "own"
    own.mkdir()
    draw = random.Random(seed)
    rows = []
    for n in range(30):
        Image.new("RGB", (4, 4)).save(own / f"{n}.png")
        rows.append(f"{n}.png,{draw.choice('abcde')};{'rare' if n == 7 else 'common'}")
    out = convert(own, table(own, *rows), tmp_path / "voc", val_fraction=0.5, seed=seed)
    data = VOCData(out)
    train, val = data.ids("train"), data.ids("val")
    assert sorted(train + val) == data.ids("trainval")
    assert not set(train) & set(val)
    assert len(val) == 15
    assert data.multi_hot(train).sum(0).min() >= 1


def test_the_same_seed_gives_the_same_files(own: Path, tmp_path: Path):
    outs = []
    for name, rows in (("a", ROWS), ("b", ROWS[::-1])):
        out = convert(own, table(own, *rows), tmp_path / name, val_fraction=0.25, seed=3)
        outs.append({p.relative_to(out): p.read_bytes() for p in out.rglob("*") if p.is_file()})
    assert outs[0].keys() == outs[1].keys()
    lists = [p for p in outs[0] if p.suffix in (".txt", ".jpg")]
    assert all(outs[0][p] == outs[1][p] for p in lists)


def test_a_table_from_a_spreadsheet_works(own: Path, tmp_path: Path):
    path = own / "labels.csv"
    path.write_bytes(b"\xef\xbb\xbfid,file,tags\r\n1, tom.jpg ,cat\r\n")
    assert VOCData(convert(own, path, tmp_path / "voc")).classes == ("cat",)


def test_there_may_be_254_classes_and_no_more(own: Path, tmp_path: Path):
    names = [f"c{n:03}" for n in range(1, 256)]
    data = VOCData(convert(own, table(own, f"tom.jpg,{';'.join(names[:254])}"), tmp_path / "voc"))
    assert data.tags("tom") == tuple(range(1, 255))
    with pytest.raises(InputError, match="255 different tags, more than 254"):
        convert(own, table(own, f"tom.jpg,{';'.join(names)}"), tmp_path / "more")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["tom.jpg,cat", "clear.png"], "row 3 of .* has too few cells, 1 instead of 2: leave"),
        (["tom.jpg,cat, dog"], "row 2 of .* has too many cells: put its tags in one cell"),
        (["nobody.jpg,cat"], "row 2 of .* names 'nobody.jpg', which is not a file in"),
        (["../secret.jpg,cat"], "names '../secret.jpg', which is not a file in"),
        ([",cat"], "names '', which is not a file"),
        (["more,cat"], "names 'more', which is not a file"),
        (["tom.jpg,cat", "broken.jpg,cat"], r"broken\.jpg does not decode"),
        (["deep.tif,cat"], r"deep\.tif has .* pixels: save it in RGB, 8 bits"),
        (["films.gif,cat"], r"films\.gif holds 2 images: save the one that is meant"),
        (["phone.jpg,cat"], r"phone\.jpg is a HEIC photograph: save it as JPEG"),
        (["camera.nef,cat"], r"camera\.nef is the raw file of a camera: develop it"),
        (["page.jpg,cat"], r"page\.jpg does not decode"),
        (["wide.png,cat"], r"wide\.png is 65600 x 1 pixels, too long for a JPEG: cut it"),
        ([f"{'n' * 240}.jpg,cat"], r"row 2 of .*: nn.*\.jpg is too long a name: shorten it to 200"),
        (
            ["tom.jpg,cat;dog", "tom.jpg,dog"],
            r"row 2, row 3 of .* give tom\.jpg different tags: write",
        ),
        (["tom.jpg,cat", "tom.png,dog"], r"tom\.png and tom\.jpg would both be tom\.jpg"),
        (["tom,cat"], r"names 'tom', which may be tom\.jpg or tom\.png: write all of its name"),
        (
            ["a/clear.png,cat", "b/clear.png,cat"],
            r"row 2, row 3 of .* name a/clear\.png and b/clear",
        ),
        ([], "names no image"),
    ],
)
def test_rows_that_cannot_be_used_are_refused_and_leave_nothing(
    own: Path, tmp_path: Path, rows: list[str], message: str
):
    Image.new("RGB", (4, 4)).save(tmp_path / "secret.jpg")
    Image.new("RGB", (4, 4)).save(own / "tom.png")
    Image.new("I;16", (4, 4)).save(own / "deep.tif")
    films = [Image.new("L", (4, 4), value) for value in (0, 255)]
    films[0].save(own / "films.gif", save_all=True, append_images=films[1:])
    (own / "phone.jpg").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    Image.new("RGB", (4, 4)).save(own / "camera.nef", format="TIFF")
    (own / "page.jpg").write_text("<html>not found</html>")
    Image.new("L", (65_600, 1)).save(own / "wide.png")
    Image.new("RGB", (4, 4)).save(own / f"{'n' * 240}.jpg")
    (own / "broken.jpg").write_bytes((own / "tom.jpg").read_bytes()[:300])
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match=message):
        convert(own, table(own, *rows), tmp_path / "voc")
    assert sorted(tmp_path.iterdir()) == before


def test_all_that_is_wrong_is_told_at_once_the_first_hundred_in_words(own: Path, tmp_path: Path):
    for n in range(50):
        Image.effect_noise((40, 40), 50).save(own / f"{n}.jpg")
    whole = (own / "0.jpg").read_bytes()
    for n in (7, 20, 33):
        (own / f"{n}.jpg").write_bytes(whole[:500])
    rows = [f"{n}.jpg,cat" for n in range(50)]
    with pytest.raises(InputError) as error:
        convert(own, table(own, *rows, "nobody.jpg,cat", "tom.jpg,nan"), tmp_path / "voc")
    first, *faults = str(error.value).splitlines()
    assert first == "5 faults:"
    assert all(word in str(faults) for word in ("nobody", "nan", "20.jpg", "33.jpg", "/7.jpg"))
    with pytest.raises(InputError, match="and 3 more$"):
        convert(own, table(own, *rows, *["nobody.jpg,cat"] * 100), tmp_path / "voc")
    assert not (tmp_path / "voc").exists()


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Folders of images, one a class, as many classification data sets come."""
    images = (
        "train/cat/1.jpg",
        "train/Sofa/1.png",
        "val/cat/2.jpg",
        "val/sofa/1.jpg",
        "Background/a.jpg",
    )
    for name in images:
        path = tmp_path / "folders" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 5)).save(path)
    (tmp_path / "folders" / "train" / "cat" / "notes.txt").write_text("not an image")
    return tmp_path / "folders"


def test_without_a_table_the_folder_of_an_image_is_its_tag(folders: Path, capsys):
    out = folders.parent / "voc"
    assert main(["convert", str(folders), "--val-fraction", "0", "folders", str(out)]) == 0
    data = VOCData(out)
    assert not [fault for fault in find_faults(data) if fault.stops]
    assert {i: [data.classes[tag - 1] for tag in data.tags(i)] for i in data.ids("train")} == {
        "Background_a": [],
        "train_Sofa_1": ["sofa"],
        "train_cat_1": ["cat"],
        "val_cat_2": ["cat"],
        "val_sofa_1": ["sofa"],
    }
    printed = capsys.readouterr().out
    assert "the tag of an image is the name of its folder\nSofa and sofa are one class" in printed


def test_folders_that_are_no_classes_are_refused(own: Path, folders: Path):
    out = folders.parent / "voc"
    Image.new("RGB", (6, 5)).save(folders / "stray.jpg")
    (folders / "val" / "sofa" / "1.jpg").write_text("damaged")
    with pytest.raises(InputError) as error:
        convert(folders, None, out)
    first, *faults = str(error.value).splitlines()
    assert first == "2 faults:"
    assert f"{folders}/stray.jpg is in no folder of a class: put it into one" in faults[0]
    assert "1.jpg" in faults[1] and "does not decode" in faults[1]
    (folders / "train").rename(folders / "12")
    for path in [*folders.rglob("cat"), *folders.rglob("[sS]ofa")]:
        path.rename(path.with_name(str(len(path.name))))
    with pytest.raises(InputError, match=r"folders has numbers for tags \(3, 4\): write the names"):
        convert(folders, None, out)
    (folders / "Background").rename(folders / "none")
    with pytest.raises(
        InputError, match="has the folder 'none', which is no name .* name it backgr"
    ):
        convert(folders, None, out)
    with pytest.raises(InputError, match="own/more has no folders of images, one a class: give a"):
        convert(own / "more", None, out)
    assert not out.exists()


def test_the_first_line_names_the_columns(own: Path, tmp_path: Path):
    with pytest.raises(InputError, match=r"nowhere\.csv cannot be read"):
        convert(own, own / "nowhere.csv", tmp_path / "voc")
    with pytest.raises(InputError, match="is no folder"):
        convert(own / "nowhere", table(own, *ROWS), tmp_path / "voc")


def test_an_image_without_a_tag_has_an_annotation_without_objects(own: Path, tmp_path: Path):
    out = convert(own, table(own, "tom.jpg,cat", "clear.png,"), tmp_path / "voc", val_fraction=0)
    assert ElementTree.parse(out / "Annotations" / "clear.xml").findall("object") == []
    assert (out / "ImageSets/Segmentation/train.txt").read_text().split() == ["clear", "tom"]
    assert (out / "classes.txt").read_text().split() == ["cat"]


def test_what_was_understood_is_printed_with_the_number_of_images_of_each_class(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    rows = ("1;tom.jpg;Cat", "2;TOM.JPG;airplane", "3;clear;cat", "4;a photo.bmp;")
    convert(own, table(own, *rows, header="id;Image;label"), tmp_path / "voc", 0)
    assert capsys.readouterr().out.splitlines() == [
        "images: 3, of them 3 for train and 0 for val",
        "column Image names the images and column label holds their tags, one a row",
        "column id is ignored",
        "Cat and cat are one class, cat",
        "images with several rows, each with the tags of all its rows: 1",
        "airplane is none of VOC's classes: did you mean aeroplane?",
        "     1  airplane",
        "     2  cat",
        "     1  (without a tag: nothing but background)",
    ]


@pytest.mark.parametrize(
    ("tags", "meant"),
    [
        ("cat;potted plant;tv/monitor", ["pottedplant", "tvmonitor"]),
        ("person;dining table;airplane", ["aeroplane", "diningtable"]),
        ("cat;motorcycle;couch;tv", ["sofa", "motorbike", "tvmonitor"]),
        ("cat;airplane;zebra", []),  # another set of classes, in which airplane is right
        ("airplane;couch", []),
    ],
)
def test_a_name_that_is_nearly_one_of_vocs_is_asked_about_among_vocs(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture, tags: str, meant: list[str]
):
    out = convert(own, table(own, f"tom.jpg,{tags}"), tmp_path / "voc", 0)
    assert re.findall(r"did you mean (\w+)", capsys.readouterr().out) == meant
    assert (out / "classes.txt").read_text().splitlines() == sorted(tags.split(";"))


@pytest.mark.parametrize(
    "name",
    ["tom.jpg", "TOM.JPG", "Tom", "./tom.jpg", r"C:\\photos\\own\\tom.jpg", "../own/tom.jpg"],
)
def test_a_name_that_fits_one_file_is_that_file(own: Path, tmp_path: Path, name: str):
    out = convert(own, table(own, f"{name},cat"), tmp_path / "voc")
    assert [path.name for path in (out / "JPEGImages").iterdir()] == ["tom.jpg"]


@pytest.mark.parametrize(
    "name", ["more/a photo.bmp", r"more\a photo", "a photo", "own/more/A Photo"]
)
def test_a_file_of_a_subfolder_is_found_by_any_part_of_its_path(
    own: Path, tmp_path: Path, name: str
):
    out = convert(own, table(own, f"{name},cat"), tmp_path / "voc")
    assert [path.name for path in (out / "JPEGImages").iterdir()] == ["more_a_photo.jpg"]


def test_the_same_name_in_two_folders_is_told_apart_by_the_folder(own: Path, tmp_path: Path):
    Image.new("RGB", (9, 9)).save(own / "more" / "tom.jpg")
    out = convert(own, table(own, "more/tom.jpg,cat", "tom.jpg,dog"), tmp_path / "voc", 0)
    data = VOCData(out)
    assert [data.image(i).size for i in data.ids("train")] == [(9, 9), (40, 30)]


def test_a_name_with_two_endings_stays_apart_from_that_with_one(own: Path, tmp_path: Path):
    Image.new("RGB", (9, 9)).save(own / "tom.PNG.jpg")
    out = convert(own, table(own, "tom.PNG.jpg,cat", "tom.jpg,dog"), tmp_path / "voc", 0)
    data = VOCData(out)
    assert [data.image(i).size for i in data.ids("train")] == [(40, 30), (9, 9)]
    assert [data.tags(i) for i in data.ids("train")] == [(2,), (1,)]


def test_a_letter_with_an_accent_may_be_one_character_or_two(own: Path, tmp_path: Path):
    Image.new("RGB", (4, 4)).save(own / "cafe\u0301.jpg")
    rows = ("caf\u00e9.jpg,the\u0301", "tom.jpg,th\u00e9")
    out = convert(own, table(own, *rows), tmp_path / "voc")
    assert VOCData(out).classes == ("th\u00e9",)
    assert (out / "JPEGImages" / "caf\u00e9.jpg").is_file()


@pytest.mark.parametrize(
    ("suffix", "modes"),
    {
        "jpg": "1 L RGB CMYK YCbCr",
        "JPEG": "RGB",
        "png": "1 L LA P RGB RGBA",
        "webp": "RGB RGBA",
        "tif": "1 L LA P RGB RGBA CMYK YCbCr LAB",
        "bmp": "1 L P RGB RGBA",
        "gif": "L P RGB",
        "avif": "L RGB RGBA",
        "jp2": "L LA RGB RGBA YCbCr",
    }.items(),
)
def test_every_usual_kind_of_image_becomes_an_rgb_or_grey_jpeg(
    own: Path, tmp_path: Path, suffix: str, modes: str
):
    if suffix == "tif" and int(PIL.__version__.split(".")[0]) < 13:  # reads no such file of its own
        modes = modes.replace("YCbCr ", "")
    for mode in modes.split():
        Image.new("RGB", (16, 16), "teal").convert(mode).save(own / f"{mode}.{suffix}")
    rows = (f"{mode}.{suffix},cat" for mode in modes.split())
    out = convert(own, table(own, *rows), tmp_path / "voc")
    for mode in modes.split():
        with Image.open(out / "JPEGImages" / f"{mode}.jpg") as image:
            assert image.format == "JPEG"
            assert image.mode in ("RGB", "L")
            if mode not in ("1", "L", "LA"):
                colour = np.array(image).mean((0, 1))
                np.testing.assert_allclose(colour, [0, 128, 128], atol=20)


def test_the_command_line_takes_the_part_for_validation(own: Path, tmp_path: Path, capsys):
    words = ["convert", str(own), str(table(own, *ROWS)), str(tmp_path / "voc")]
    assert main([*words, "--val-fraction", "0.5"]) == 0
    assert "images: 4, of them 3 for train and 1 for val" in capsys.readouterr().out
    assert main([*words[:-1], str(tmp_path / "more"), "--val-fraction", "2"]) == 2


def test_a_full_disk_is_told_in_a_sentence_and_leaves_nothing(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")  # as Pillow has it, without a file

    words = ["convert", str(own), str(table(own, *ROWS)), str(tmp_path / "voc")]
    monkeypatch.setattr(Image.Image, "save", full)
    before = sorted(tmp_path.iterdir())
    assert main(words) == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        "error: No space left on device; free some space and give the same command"
    )
    assert sorted(tmp_path.iterdir()) == before


def test_a_folder_in_use_is_never_overwritten(own: Path, tmp_path: Path):
    with pytest.raises(InputError, match="own is in use"):
        convert(own, table(own, *ROWS), own)
    assert (own / "tom.jpg").is_file()


def test_a_tag_may_hold_any_letters(own: Path, tmp_path: Path):
    out = convert(own, table(own, "tom.jpg,<b>&c;Γάτα"), tmp_path / "voc")
    data = VOCData(out)
    assert data.classes == ("<b>&c", "Γάτα")
    assert data.tags("tom") == (1, 2)


@pytest.mark.parametrize("fraction", [-0.1, 1, 1.5])
def test_a_fraction_for_val_is_at_least_0_and_below_1(own: Path, tmp_path: Path, fraction: float):
    with pytest.raises(InputError, match="val_fraction must be in"):
        convert(own, table(own, *ROWS), tmp_path / "voc", val_fraction=fraction)

"""Own images and tags become a data set in VOC layout."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from affinity_lib.data.convert import convert
from affinity_lib.data.voc import VOCData
from affinity_lib.errors import InputError


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
    "more/a photo.bmp,sofa cat cat",
    'frame.gif,"cat, dog"',
)


def test_images_and_tags_become_a_data_set_that_passes_its_check(own: Path, tmp_path: Path):
    out = convert(own, table(own, *ROWS), tmp_path / "voc", val_fraction=0)
    data = VOCData(out)
    data.check("train")
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
        (["tom.jpg,"], "row 2 of .*: tom.jpg has no tag"),
        (["tom.jpg"], "row 2 of .*: tom.jpg has no tag"),
        (["tom.jpg, ; "], "tom.jpg has no tag"),
        (["tom.jpg,cat, dog"], "row 2 of .* has too many cells: separate its tags by semicolons"),
        (["nobody.jpg,cat"], "names 'nobody.jpg', which is not a file"),
        (["../secret.jpg,cat"], "names '../secret.jpg', which is not a file in"),
        ([",cat"], "names '', which is not a file"),
        (["tom.jpg,cat", "broken.jpg,cat"], r"broken\.jpg does not decode"),
        (["deep.tif,cat"], r"deep\.tif has .* pixels: save it with 8 bits"),
        (["tom.jpg,cat", "tom.jpg,dog"], r"tom\.jpg and tom\.jpg would both be tom\.jpg"),
        (["tom.jpg,cat", "tom.png,dog"], r"tom\.png and tom\.jpg would both be tom\.jpg"),
        (["tom.jpg,background"], "background is no tag"),
        ([], "names no image"),
    ],
)
def test_rows_that_cannot_be_used_are_refused_and_leave_nothing(
    own: Path, tmp_path: Path, rows: list[str], message: str
):
    Image.new("RGB", (4, 4)).save(tmp_path / "secret.jpg")
    Image.new("RGB", (4, 4)).save(own / "tom.png")
    Image.new("I;16", (4, 4)).save(own / "deep.tif")
    (own / "broken.jpg").write_bytes((own / "tom.jpg").read_bytes()[:300])
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match=message):
        convert(own, table(own, *rows), tmp_path / "voc")
    assert sorted(tmp_path.iterdir()) == before


def test_a_table_that_is_none_is_refused(own: Path, tmp_path: Path):
    with pytest.raises(InputError, match=r"nowhere\.csv is missing"):
        convert(own, own / "nowhere.csv", tmp_path / "voc")
    with pytest.raises(InputError, match="columns file and tags, .* got name, label"):
        convert(own, table(own, "tom.jpg,cat", header="name,label"), tmp_path / "voc")
    (own / "labels.csv").write_bytes(b"file,tags\ntom.jpg,caf\xe9\n")
    with pytest.raises(InputError, match="no UTF-8 CSV table"):
        convert(own, own / "labels.csv", tmp_path / "voc")


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

"""The paper's data set is put together from VOC 2012 and SBD."""

from __future__ import annotations

import hashlib
import random
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.io import savemat

from affinity_lib.data import voc12
from affinity_lib.data.archives import Archive
from affinity_lib.data.layout import write_tags
from affinity_lib.data.voc import VOC_CLASSES, VOCData, open_image, read_labels, write_labels
from affinity_lib.errors import InputError
from affinity_lib.stages.prepare import find_faults

VOC_LISTS = {"train": ["2007_2", "2007_1"], "val": ["2008_1", "2007_9"], "test": ["2012_1"]}
SBD_LISTS = {"train": ["2008_3", "2007_1", "2008_1"], "val": ["2010_4", "2007_9", "2008_2"]}
TRAIN_AUG = ["2007_1", "2007_2", "2008_2", "2008_3", "2010_4"]
SIZE = (12, 9)
ids = st.lists(st.text("abcdef", min_size=1, max_size=2), max_size=20)


def mask_of(image_id: str) -> np.ndarray:
    generator = np.random.default_rng([ord(letter) for letter in image_id])
    return generator.integers(0, 21, SIZE[::-1], dtype=np.uint8)


@pytest.fixture
def voc(tmp_path: Path, monkeypatch) -> Path:
    """A complete VOC 2012 of small images: more of them than have masks, and boxes in the XML."""
    monkeypatch.setattr(voc12, "SIZES", {"train": 2, "val": 2, "train_aug": len(TRAIN_AUG)})
    root = tmp_path / "devkit" / "VOCdevkit" / "VOC2012"
    lists = root / "ImageSets" / "Segmentation"
    for folder in ("JPEGImages", "ImageSets/Main", "SegmentationObject"):
        (root / folder).mkdir(parents=True)
    lists.mkdir()
    for name in ("train", "val"):
        (lists / f"{name}.txt").write_text("\n".join(VOC_LISTS[name]) + "\n")
        for image_id in VOC_LISTS[name]:
            write_labels(root / "SegmentationClass" / f"{image_id}.png", mask_of(image_id))
            (root / "SegmentationObject" / f"{image_id}.png").touch()
    lists_of_both = [VOC_LISTS["train"], VOC_LISTS["val"], *SBD_LISTS.values(), ["2011_7"]]
    everything = {image_id for listed in lists_of_both for image_id in listed}
    for image_id in everything:
        Image.new("RGB", SIZE, "teal").save(root / "JPEGImages" / f"{image_id}.jpg")
        tags = {VOC_CLASSES[int(image_id[-1])], "person"}
        write_tags(root / "Annotations" / f"{image_id}.xml", sorted(tags), SIZE)
    return root


@pytest.fixture
def sbd(tmp_path: Path) -> Path:
    """A complete SBD of small masks, which differ from VOC's where both have one."""
    root = tmp_path / "release" / "benchmark_RELEASE" / "dataset"
    for folder in ("cls", "inst", "img"):
        (root / folder).mkdir(parents=True)
    for name, listed in SBD_LISTS.items():
        (root / f"{name}.txt").write_text("".join(f"{image_id}\n" for image_id in listed))
        for image_id in listed:
            present = np.array([[1], [15]], dtype=np.uint8)
            content = {"Segmentation": mask_of(f"sbd {image_id}"), "CategoriesPresent": present}
            savemat(root / "cls" / f"{image_id}.mat", {"GTcls": content}, do_compression=True)
            Image.new("RGB", SIZE, "teal").save(root / "img" / f"{image_id}.jpg")
    return root


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def packed(source: Path, name: str, path: Path, mode: str) -> Archive:
    """An archive of a folder as it would be published."""
    with tarfile.open(path, mode) as archive:
        archive.add(source, name)
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    about = voc12.VOC if mode == "w" else voc12.SBD
    return replace(about, url=f"http://127.0.0.1:9/{path.name}", md5=md5)


@given(ids, ids, ids, ids)
def test_the_list_is_voc_train_and_all_of_sbd_without_what_voc_validates_on(a, b, c, d):
    found = voc12.train_aug(a, b, c, d)
    assert not set(found) & set(b)
    assert set(found) | set(b) == {*a, *b, *c, *d}
    assert len(found) == len(set(found))


@given(st.lists(ids, min_size=4, max_size=4), st.randoms(use_true_random=False))
def test_the_list_has_one_order_whatever_the_order_of_the_sources(lists, draw: random.Random):
    shuffled = [draw.sample(part, len(part)) for part in lists]
    assert voc12.train_aug(*lists) == voc12.train_aug(*shuffled)


def test_lists_of_the_published_sizes_add_up_to_10582():
    """VOC's 1,464 and 1,449 and SBD's 8,498 and 2,857 are 12,031 different images."""
    names = [f"{n:05}" for n in range(12_031)]
    train, val, of_sbd = names[:1464], names[1464 : 1464 + 1449], names[12_031 - 11_355 :]
    assert len(voc12.train_aug(train, val, of_sbd[:8498], of_sbd[8498:])) == 10_582


def test_the_parts_become_one_data_set_that_passes_its_check(voc, sbd, tmp_path):
    root = voc12.prepare_voc12(tmp_path / "voc12", voc, sbd)
    data = VOCData(root)
    assert data.ids("train") == VOC_LISTS["train"]
    assert data.ids("val") == VOC_LISTS["val"]
    assert data.ids("train_aug") == TRAIN_AUG
    assert not list(find_faults(data)) and not list(find_faults(data, "train_aug"))
    assert data.has_masks(data.ids("train_aug"))
    assert not (root / "JPEGImages" / "2011_7.jpg").exists()


def test_tags_come_from_the_xml_of_voc(voc, sbd, tmp_path):
    data = VOCData(voc12.prepare_voc12(tmp_path / "voc12", voc, sbd))
    assert data.tags("2010_4") == (VOC_CLASSES.index("bottle") + 1, VOC_CLASSES.index("person") + 1)


def test_a_mask_of_voc_wins_over_that_of_sbd(voc, sbd, tmp_path):
    masks = voc12.prepare_voc12(tmp_path / "voc12", voc, sbd) / "SegmentationClass"
    for image_id in TRAIN_AUG:
        own = image_id in VOC_LISTS["train"]
        expected = mask_of(image_id if own else f"sbd {image_id}")
        assert (read_labels(masks / f"{image_id}.png") == expected).all()
        assert open_image(masks / f"{image_id}.png").mode == "P"


@pytest.mark.parametrize("above", [0, 1, 2])
def test_a_folder_above_the_data_set_will_do(voc, sbd, tmp_path, above):
    givens = [[folder, *folder.parents][above] for folder in (voc, sbd)]
    root = voc12.prepare_voc12(tmp_path / "voc12", *givens)
    assert VOCData(root).ids("train_aug") == TRAIN_AUG


def test_the_folders_that_were_given_stay_as_they_are(voc, sbd, tmp_path):
    before = contents(voc), contents(sbd)
    voc12.prepare_voc12(tmp_path / "voc12", voc, sbd)
    assert (contents(voc), contents(sbd)) == before


def test_files_are_copied_where_the_disk_cannot_link(voc, sbd, tmp_path, monkeypatch):
    linked = voc12.prepare_voc12(tmp_path / "linked", voc, sbd)
    monkeypatch.setattr("os.link", lambda *_: (_ for _ in ()).throw(OSError("no links")))
    assert contents(voc12.prepare_voc12(tmp_path / "copied", voc, sbd)) == contents(linked)


def test_a_data_set_that_is_there_is_left_alone(voc, sbd, tmp_path):
    root = voc12.prepare_voc12(tmp_path / "voc12", voc, sbd)
    before = contents(root)
    assert voc12.prepare_voc12(root) == root
    assert contents(root) == before


def test_the_test_list_comes_along_with_its_images(voc, sbd, tmp_path):
    (voc / "ImageSets/Segmentation/test.txt").write_text("2012_1\n")
    Image.new("RGB", SIZE).save(voc / "JPEGImages" / "2012_1.jpg")
    data = VOCData(voc12.prepare_voc12(tmp_path / "voc12", voc, sbd))
    assert data.ids("test") == ["2012_1"]
    assert data.image("2012_1").size == SIZE


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("voc/JPEGImages/2008_2.jpg", r"2008_2\.jpg is missing: unpack the whole of VOC 2012"),
        ("voc/Annotations/2010_4.xml", r"2010_4\.xml is missing"),
        ("voc/SegmentationClass/2007_9.png", r"2007_9\.png is missing"),
        ("voc/ImageSets/Segmentation/val.txt", r"val\.txt is missing: unpack"),
        ("sbd/cls/2008_3.mat", r"2008_3\.mat is missing: unpack the whole of SBD"),
        ("sbd/val.txt", "has no SBD: give the folder that holds cls, train.txt, val.txt"),
    ],
)
def test_a_data_set_with_a_hole_is_refused_and_leaves_nothing(
    voc, sbd, tmp_path, broken: str, message: str
):
    which, _, name = broken.partition("/")
    ({"voc": voc, "sbd": sbd}[which] / name).unlink()
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match=message):
        voc12.prepare_voc12(tmp_path / "voc12", voc, sbd)
    assert sorted(tmp_path.iterdir()) == before


def test_a_shortened_list_is_refused_with_both_numbers(voc, sbd, tmp_path):
    (sbd / "val.txt").write_text("2010_4\n")
    with pytest.raises(InputError, match="give 4 images for train_aug instead of 5: unpack"):
        voc12.prepare_voc12(tmp_path / "voc12", voc, sbd)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"MATLAB 5.0 MAT-file" + bytes(200),
        {"GTcls": {"Segmentation": np.full((2, 2), 21, np.uint8)}},
        {"GTcls": {"Segmentation": np.full((2, 2), 0.5)}},
        {"GTcls": {"Boundaries": 1}},
        {"GTcls": 3},
        {"other": 3},
    ],
)
def test_a_file_that_holds_no_mask_is_refused(tmp_path, content):
    path = tmp_path / "a.mat"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        savemat(path, content)
    with pytest.raises(InputError, match=r"a\.mat is not a mask of SBD"):
        voc12.read_sbd_mask(path)


def test_a_folder_in_use_is_never_overwritten(voc, sbd):
    with pytest.raises(InputError, match="is in use"):
        voc12.prepare_voc12(voc.parent, voc, sbd)


def test_archives_that_lie_there_are_unpacked_and_give_the_same_data_set(
    voc, sbd, tmp_path, monkeypatch
):
    downloads = tmp_path / "data" / "downloads"
    downloads.mkdir(parents=True)
    devkit, release = voc.parent, sbd.parent
    archives = [
        packed(devkit, "VOCdevkit", downloads / "trainval.tar", "w"),
        packed(release, "benchmark_RELEASE", downloads / "benchmark.tgz", "w:gz"),
    ]
    monkeypatch.setattr(voc12, "VOC", archives[0])
    monkeypatch.setattr(voc12, "SBD", archives[1])
    fetched = voc12.prepare_voc12(tmp_path / "data" / "voc12")
    assert contents(fetched) == contents(voc12.prepare_voc12(tmp_path / "given", voc, sbd))
    assert not list(downloads.rglob("SegmentationObject")) and not list(downloads.rglob("img"))


def test_offline_one_sentence_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(voc12, "VOC", replace(voc12.VOC, url="http://127.0.0.1:9/a.tar"))
    with pytest.raises(InputError, match=r"VOC 2012 could not be fetched .*or give voc=FOLDER$"):
        voc12.prepare_voc12(tmp_path / "voc12")

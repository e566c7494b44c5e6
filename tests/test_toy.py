"""The embedded data set is what the loader expects, always the same, and shows the problem."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from affinity_lib.data.toy import MARKER, draw_scene, make_toy
from affinity_lib.data.toy_objects import CLASSES, draw_object
from affinity_lib.data.toy_shapes import Dice, Frame, stripes, wave
from affinity_lib.data.voc import VOCData, palette, read_labels
from affinity_lib.errors import InputError
from affinity_lib.evaluation import VOID
from affinity_lib.stages.prepare import find_faults

PIXELS = "833992d093439db6"
FILES = "37ae75423f3d8069"


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Path:
    return make_toy(tmp_path_factory.mktemp("data") / "toy", train=6, val=3, size=64)


@pytest.fixture(scope="module")
def scenes():
    return [draw_scene(80, 0, 0, k) for k in range(60)]


def digest(root: Path) -> str:
    total = hashlib.sha256()
    for path in sorted(p for p in root.rglob("*") if p.is_file() and p.name != MARKER):
        # builds of zlib pack the same pixels into other bytes
        content = read_labels(path).tobytes() if path.suffix == ".png" else path.read_bytes()
        total.update(path.relative_to(root).as_posix().encode() + content)
    return total.hexdigest()[:16]


def test_drawn_pixels_are_those_of_every_other_machine(scenes):
    total = hashlib.sha256()
    for scene in scenes:
        total.update(scene.image.tobytes() + scene.labels.tobytes())
    assert total.hexdigest()[:16] == PIXELS


def test_files_are_those_of_every_other_machine(toy):
    assert digest(toy) == FILES


def test_the_loader_finds_nothing_wrong(toy):
    data = VOCData(toy)
    assert data.classes == CLASSES
    assert len(data.ids("train")) == 6 and len(data.ids("val")) == 3
    assert sorted(data.ids("trainval")) == sorted(data.ids("train") + data.ids("val"))
    assert not list(find_faults(data)) and data.has_masks(data.ids("trainval"))


def test_tags_name_exactly_the_classes_in_the_mask(toy):
    data = VOCData(toy)
    for image_id in data.ids("trainval"):
        assert set(data.tags(image_id)) == set(np.unique(data.mask(image_id)).tolist()) - {0, VOID}


def test_masks_are_palette_files_that_any_tool_reads(toy):
    for split, index in (("train", 0), ("val", 1)):
        with Image.open(toy / "SegmentationClass" / f"{split}_0001.png") as mask:
            assert mask.mode == "P" and mask.getpalette() == palette().ravel().tolist()
            assert np.array_equal(np.asarray(mask), draw_scene(64, 0, index, 1).labels)


def test_photographs_stay_close_to_what_was_drawn(toy):
    image = VOCData(toy).image("train_0003")
    drawn = draw_scene(64, 0, 0, 3).image
    assert np.abs(np.asarray(image, float) - drawn).mean() < 3


def test_a_smaller_set_is_the_beginning_of_a_larger_one(toy, tmp_path):
    few = make_toy(tmp_path / "few", train=2, val=1, size=64)
    for name in ("JPEGImages/train_0001.jpg", "SegmentationClass/val_0000.png"):
        assert (few / name).read_bytes() == (toy / name).read_bytes()


def test_another_seed_draws_other_scenes():
    assert not np.array_equal(draw_scene(64, 0, 0, 0).image, draw_scene(64, 1, 0, 0).image)


def test_a_drawing_that_is_there_is_left_alone_and_another_one_is_replaced(tmp_path):
    root = make_toy(tmp_path / "toy", train=2, val=0, size=32)
    times = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    make_toy(root, train=2, val=0, size=32)
    assert times == {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    make_toy(root, train=1, val=0, size=32)
    assert [path.name for path in (root / "JPEGImages").iterdir()] == ["train_0000.jpg"]
    assert list(tmp_path.iterdir()) == [root]


def test_a_drawing_that_is_stopped_leaves_nothing(tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("affinity_lib.data.toy.write_lists", stop)
    with pytest.raises(KeyboardInterrupt):
        make_toy(tmp_path / "toy", train=1, val=0, size=32)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_other_things_is_refused_and_kept(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="something else than toy data: give a new folder"):
        make_toy(tmp_path, train=1, val=0, size=32)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize(
    "wrong", [{"train": 0}, {"val": -1}, {"size": 31}, {"seed": -1}], ids=lambda w: next(iter(w))
)
def test_numbers_out_of_range_are_refused_and_leave_nothing(wrong, tmp_path):
    (name, value) = next(iter(wrong.items()))
    with pytest.raises(InputError, match=f"{name} of the toy data must be >= .*, got {value}"):
        make_toy(tmp_path / "toy", **{"train": 1, "val": 0, "size": 32, **wrong})
    assert list(tmp_path.iterdir()) == []


def test_scenes_hold_one_to_three_objects_of_all_classes(scenes):
    assert {len(scene.names) for scene in scenes} == {1, 2, 3}
    assert {name for scene in scenes for name in scene.names} == set(CLASSES)


def test_objects_cover_a_third_of_the_picture_and_borders_a_little(scenes):
    labels = np.stack([scene.labels for scene in scenes])
    assert 0.2 < ((labels > 0) & (labels < VOID)).mean() < 0.45
    assert 0.02 < (labels == VOID).mean() < 0.2


def test_labels_of_two_kinds_never_touch_without_a_border(scenes):
    for scene in scenes:
        for a, b in (
            (scene.labels[1:], scene.labels[:-1]),
            (scene.labels.T[1:], scene.labels.T[:-1]),
        ):
            assert np.all((a == b) | (a == VOID) | (b == VOID))


def test_colour_alone_does_not_tell_objects_from_the_ground(scenes):
    """The best colour histogram of 6 x 6 x 6 bins, fitted on half of the scenes, on the others."""
    bins = [
        ((scene.image.astype(int) * 6 // 256) @ (36, 6, 1))[scene.labels != VOID]
        for scene in scenes
    ]
    truth = [scene.labels[scene.labels != VOID] > 0 for scene in scenes]
    half = len(scenes) // 2
    known, objects = np.concatenate(bins[:half]), np.concatenate(truth[:half])
    share = np.bincount(known[objects], minlength=216) / np.maximum(
        np.bincount(known, minlength=216), 1
    )
    guess = share[np.concatenate(bins[half:])] > 0.5
    objects = np.concatenate(truth[half:])
    iou = (guess & objects).sum() / (guess | objects).sum()
    assert iou < 0.4


@pytest.mark.parametrize("name", CLASSES)
def test_every_class_comes_in_many_shapes_with_and_without_its_part(name):
    frame = Frame(64, (32.0, 32.0), 22.0)
    layers = [draw_object(name, frame, Dice(k), (0.5, 0.5, 0.5)) for k in range(12)]
    shapes = {(layer.alpha > 0.5).tobytes() for layer in layers}
    assert len(shapes) > 9
    assert all(0.1 < (layer.alpha > 0.5).mean() < 0.6 for layer in layers)


def test_distances_are_exact_where_geometry_gives_them():
    frame = Frame(40, (20.0, 20.0), 10.0, reach=3.0)
    radius = np.sqrt(frame.x**2 + frame.y**2)
    np.testing.assert_allclose(frame.ellipse(0, 0, 0.5, 0.5), radius - 0.5, atol=1e-5)
    np.testing.assert_allclose(
        frame.limb(-1, 0, 1, 0, 0.2, 0.2)[:, 20], np.abs(frame.y[:, 0]) - 0.2, atol=1e-6
    )
    square = frame.polygon((-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5))
    inside = np.maximum(np.abs(frame.x), np.abs(frame.y)) < 0.5
    assert np.array_equal(square < 0, inside)


def test_turning_a_frame_by_a_quarter_turns_the_picture():
    upright = Frame(41, (20.5, 20.5), 10.0, reach=3.0)
    turned = Frame(41, (20.5, 20.5), 10.0, 90, reach=3.0)
    shape = [(-0.2, -1.0), (0.9, -0.3), (0.1, 0.8)]
    expected = np.rot90(upright.polygon(*shape), -1)
    np.testing.assert_allclose(turned.polygon(*shape), expected, atol=1e-5)


def test_waves_have_period_one_and_stay_between_minus_one_and_one():
    t = np.linspace(-2, 2, 401, dtype=np.float32)
    for pattern in (wave, stripes):
        assert np.abs(pattern(t)).max() <= 1
        np.testing.assert_allclose(pattern(t), pattern(t + 1), atol=1e-4)

"""Masks of new photographs from a trained network."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scenes import same_state, state_of

from affinity_lib.__main__ import main
from affinity_lib.backbones import build_backbone
from affinity_lib.crf import CRFSettings
from affinity_lib.data.files import save_tensors
from affinity_lib.data.toy import draw_scene
from affinity_lib.data.voc import VOCData, read_labels
from affinity_lib.errors import InputError
from affinity_lib.plots import class_colors
from affinity_lib.running.manifest import FORMAT, save_manifest
from affinity_lib.running.settings import resolve
from affinity_lib.running.stage import Config
from affinity_lib.segmentation import SegmentationCAM, SegmentationNet
from affinity_lib.showing.predict import (
    Predictor,
    find_photographs,
    named_photograph,
    predict_photographs,
)
from affinity_lib.training.networks import (
    NetworkSettings,
    cam_network,
    load_segmentation_network,
    save_network,
)

STAGE = "06_segmentation_network"
SETTINGS = NetworkSettings(
    classes=("cat", "dog"),
    numbers=(0, 8, 12),
    backbone="small",
    stride=8,
    width=8,
    dilation=2,
    long_side=0,
    largest_side=64,
    scales=(1.0,),
    flip=True,
    mixed_precision=False,
    crf=CRFSettings(iterations=2),
)


def new_net(settings: NetworkSettings = SETTINGS) -> SegmentationNet:
    torch.manual_seed(0)
    backbone = build_backbone("small", settings.stride)
    return SegmentationNet(
        backbone, len(settings.classes), settings.width, settings.dilation
    ).eval()


@pytest.fixture
def network(tmp_path) -> Path:
    """A network that answers with all of its labels."""
    net = new_net()
    with torch.no_grad():  # scores that differ from place to place
        net.head[-1].weight.mul_(300)
    save_network(tmp_path / "network.safetensors", net, SETTINGS)
    return tmp_path / "network.safetensors"


@pytest.fixture(scope="module")
def run(tiny_run) -> tuple[Path, VOCData]:
    """The tiny run, whose network tells how it is built, and its data set."""
    folder, plan = tiny_run
    return folder, VOCData(plan.values["data_root"])


def photograph(path: Path, size=(60, 44), mode="RGB", **how) -> Path:
    noise = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise).resize(size).convert(mode).save(path, **how)
    return path


def test_the_command_finds_what_the_run_found_in_its_test_images(run, tmp_path, capsys):
    folder, data = run
    ids = data.ids("val")
    images = [str(data.root / "JPEGImages" / f"{image_id}.jpg") for image_id in ids]
    assert main(["predict", str(folder), *images, "--out", str(tmp_path / "out")]) == 0
    assert "4 of 4 photographs" in capsys.readouterr().out
    for image_id in ids:
        found = read_labels(tmp_path / "out" / "masks" / f"{image_id}.png")
        before = read_labels(folder / STAGE / "predictions" / f"{image_id}.png")
        assert found.shape == before.shape and (found == before).mean() > 0.9


def test_a_network_comes_back_from_its_file_alone(network):
    net, settings = load_segmentation_network(network)
    assert settings == SETTINGS and not net.training
    image = torch.rand(1, 3, 40, 40)
    assert net(image).shape == (1, 3, 5, 5)
    assert torch.equal(net.state_dict()["head.0.weight"], new_net().state_dict()["head.0.weight"])


def test_the_same_network_makes_the_same_file(tmp_path):
    files = [tmp_path / f"{k}.safetensors" for k in range(8)]
    for file in files:
        save_network(file, new_net(), SETTINGS)
    assert len({file.read_bytes() for file in files}) == 1


def test_a_network_on_another_backbone_is_refused_by_its_name(tmp_path):
    other = dataclasses.replace(SETTINGS, backbone="vgg16")
    save_network(tmp_path / "n.safetensors", new_net(), other)
    with pytest.raises(InputError, match="said to stand on the backbone vgg16, and does not"):
        load_segmentation_network(tmp_path / "n.safetensors")


@pytest.mark.parametrize("metadata", [{}, {"network": "{}"}, {"network": '{"classes": 3}'}])
def test_a_network_of_another_version_is_refused(tmp_path, metadata):
    save_tensors(tmp_path / "n.safetensors", new_net().state_dict(), metadata)
    with pytest.raises(InputError, match="does not tell how its network is built"):
        load_segmentation_network(tmp_path / "n.safetensors")


def test_masks_have_the_photographs_size_and_the_data_sets_numbers(network, tmp_path):
    out = tmp_path / "out"
    found = {"a": photograph(tmp_path / "a.jpg", (60, 44)), "b": photograph(tmp_path / "b.png")}
    assert predict_photographs(Predictor(network), found, out) == []
    mask = read_labels(out / "masks" / "a.png")
    assert mask.shape == (44, 60)
    assert {8, 12} & set(np.unique(mask)) <= set(np.unique(mask)) <= {0, 8, 12}
    assert len(np.unique(mask)) > 1


@pytest.mark.parametrize("size", [(640, 400), (400, 640), (60, 44)])
def test_an_overlay_is_the_photograph_in_the_classes_colours_above_a_legend(
    network, tmp_path, size
):
    path = photograph(tmp_path / "a.png", size)
    predict_photographs(Predictor(network), {"a": path}, tmp_path)
    labels = np.array(read_labels(tmp_path / "masks" / "a.png"))
    picture = np.array(Image.open(tmp_path / "overlays" / "a.jpg"))
    factor = max(-(-320 // max(size)), 1)
    height = size[1] * factor
    assert picture.shape[1] == size[0] * factor and 20 < picture.shape[0] - height < 80
    colors = class_colors(2).astype(int)
    for number, color in zip((8, 12), colors[1:], strict=True):
        near = (abs(picture[height:].astype(int) - color).max(axis=-1) < 16).sum()
        assert (near > 50) == (number in labels)  # its swatch


def test_overlays_show_each_class_in_its_colour(network):
    predictor = Predictor(network)
    labels = np.zeros((400, 600), np.uint8)
    labels[50:350, 50:250], labels[50:350, 350:550] = 1, 2
    picture = predictor.overlay(Image.new("RGB", (600, 400), "gray"), labels).astype(int)
    background, cat, dog = picture[20, 300], picture[60, 60], picture[340, 540]
    colors = class_colors(2).astype(int)
    assert np.ptp(background) == 0
    for shown, own, other in ((cat, colors[1], colors[2]), (dog, colors[2], colors[1])):
        assert abs(shown - own).sum() < abs(shown - other).sum()


ODD = {
    "cmyk.jpg": {"mode": "CMYK"},
    "gray.png": {"mode": "L"},
    "bits.png": {"mode": "1"},
    "palette.gif": {"mode": "P"},
    "clear.png": {"mode": "RGBA"},
    "page.tiff": {},
    "web.webp": {},
    "old.bmp": {},
    "line.png": {"size": (700, 1)},
    "dot.png": {"size": (1, 1)},
}


def test_formats_colours_and_shapes_of_all_kinds_are_predicted(network, tmp_path):
    for name, how in ODD.items():
        photograph(tmp_path / "in" / name, **how)
    found = find_photographs([tmp_path / "in"], tmp_path / "out")
    assert predict_photographs(Predictor(network), found, tmp_path / "out") == []
    for name, how in ODD.items():
        mask = read_labels(tmp_path / "out" / "masks" / f"{Path(name).stem}.png")
        assert mask.shape == how.get("size", (60, 44))[::-1]
    assert len(list((tmp_path / "out" / "overlays").iterdir())) == len(ODD)


def test_a_photograph_that_lies_on_its_side_has_an_upright_mask(network, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = photograph(tmp_path / "side.jpg", (60, 44), exif=exif)
    predict_photographs(Predictor(network), {"side": path}, tmp_path)
    assert read_labels(tmp_path / "masks" / "side.png").shape == (60, 44)


def test_a_photograph_larger_than_all_training_images_is_looked_at_in_their_size(network):
    predictor, sizes = Predictor(network), []
    predictor.net.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape[-2:]))
    scene = Image.fromarray(draw_scene(64, 0, 2, 1).image)
    labels = predictor(scene)
    large = predictor(scene.resize((1600, 1600), Image.Resampling.BICUBIC))
    assert set(sizes) == {(64, 64)} and large.shape == (1600, 1600)
    assert (large[12::25, 12::25] == labels).mean() > 0.9


def test_a_broken_photograph_among_good_ones_is_named_and_does_not_end_them(
    network, tmp_path, capsys
):
    good, more = photograph(tmp_path / "a.png"), photograph(tmp_path / "z.png")
    cut = photograph(tmp_path / "cut.jpg")
    cut.write_bytes(cut.read_bytes()[:700])
    deep = tmp_path / "deep.png"
    Image.fromarray(np.zeros((9, 9), np.uint16)).save(deep)
    images = [str(path) for path in (good, cut, deep, tmp_path / "gone.jpg", more)]
    assert main(["predict", str(network), *images, "--out", str(tmp_path / "out")]) == 1
    shown = capsys.readouterr()
    assert "2 of 5 photographs" in shown.out
    errors = [line for line in shown.err.splitlines() if line.startswith("error: ")]
    assert [name in line for name, line in zip(("cut", "deep", "gone"), errors, strict=True)] == [
        True
    ] * 3
    assert {p.name for p in (tmp_path / "out" / "masks").iterdir()} == {"a.png", "z.png"}


def test_a_result_that_cannot_be_written_is_named(network, tmp_path, capsys):
    (tmp_path / "out" / "masks" / "a.png").mkdir(parents=True)
    path = photograph(tmp_path / "a.jpg")
    assert main(["predict", str(network), str(path), "--out", str(tmp_path / "out")]) == 2
    assert f"error: {tmp_path}/out/masks/a.png: " in capsys.readouterr().err


def test_the_dcrf_of_the_run_changes_the_masks(network, tmp_path, capsys):
    path = str(photograph(tmp_path / "a.png", (64, 64)))
    for words, out in (([], "plain"), (["--crf"], "refined")):
        assert main(["predict", str(network), path, "--out", str(tmp_path / out), *words]) == 0
    plain, refined = (read_labels(tmp_path / o / "masks" / "a.png") for o in ("plain", "refined"))
    assert plain.shape == refined.shape and (plain != refined).any()


def test_a_folder_is_taken_with_its_subfolders_but_for_what_is_hidden_or_made_here(tmp_path):
    for name in ("a.JPG", "in/b.jpeg", "masks/c.png", ".hidden/d.png", "masks/masks/e.png"):
        photograph(tmp_path / name, format="PNG")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "phone.heic").write_bytes(b"ftypheic")
    found = find_photographs([tmp_path], out=tmp_path)
    assert set(found) == {"a", "in/b", "phone"}
    found = find_photographs([tmp_path], out=tmp_path / "masks")
    assert set(found) == {"a", "in/b", "phone", "masks/c"}
    (tmp_path / "overlays").mkdir()  # beside masks: the results of another call
    assert set(find_photographs([tmp_path], tmp_path / "new")) == {"a", "in/b", "phone"}
    found = find_photographs([tmp_path, tmp_path / "masks"], tmp_path / "new")  # asked for by name
    assert set(found) == {"a", "in/b", "phone", "c", "masks/e"}


def test_results_of_photographs_with_one_name_are_kept_apart(tmp_path):
    paths = [tmp_path / name for name in ("a/x.jpg", "b/x.jpg", "b/y.jpg", "b/y.png", "b/z.png")]
    found = find_photographs([*paths, tmp_path / "b" / "z.png"], tmp_path / "out")
    assert set(found) == {"a/x.jpg", "b/x.jpg", "b/y.jpg", "b/y.png", "z"}
    assert [found[name] for name in ("a/x.jpg", "b/x.jpg", "z")] == [paths[0], paths[1], paths[4]]


def test_names_that_differ_in_case_alone_are_kept_apart(tmp_path):
    found = find_photographs([tmp_path / "a" / "X.jpg", tmp_path / "b" / "x.png"], tmp_path)
    assert set(found) == {"a/X.jpg", "b/x.png"}


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["no-such-run", "a.jpg"], "no-such-run is not a run"),
        (["RUN", "EMPTY"], "has no photographs in it"),
        (["UNFINISHED", "a.jpg"], "let the run end with notebook 6 first"),
        (["RUN", "a.jpg", "--device", "warp"], "device 'warp' is not available"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence_before_anything_is(
    network, tmp_path, capsys, words, sentence
):
    (tmp_path / "empty").mkdir()
    (tmp_path / "run").mkdir()
    save_manifest(tmp_path / "run", {"format": FORMAT, "stages": {}})
    places = {"RUN": network, "EMPTY": tmp_path / "empty", "UNFINISHED": tmp_path / "run"}
    words = [str(places.get(word, word)) for word in words]
    assert main(["predict", *words, "--out", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and sentence in line
    assert not (tmp_path / "out").exists()


def test_without_a_name_a_reader_gets_a_scene_that_is_in_no_split(run):
    _, data = run
    scene = np.array(named_photograph("", data))
    assert scene.shape == (48, 48, 3)
    for image_id in data.ids("trainval"):
        assert abs(scene.astype(int) - np.array(data.image(image_id))).mean() > 5


def test_a_reader_can_name_a_photograph(run, tmp_path):
    path = photograph(tmp_path / "mine.png")
    assert named_photograph(str(path), run[1]).size == (60, 44)


def test_a_segmentation_network_takes_the_cams_place_for_as_many_classes(tmp_path):
    file = tmp_path / "network.safetensors"
    config = Config(resolve("toy", {"cam_network": str(file)}))
    save_network(file, new_net(), SETTINGS)
    net = cam_network(config, 2, "")
    assert type(net) is SegmentationCAM and same_state(state_of(net), state_of(new_net()))
    with pytest.raises(InputError, match="knows cat, dog, and the data set has 3 classes: give"):
        cam_network(config, 3, "")


def test_photographs_without_a_run_before_them_are_told_what_is_missing(tmp_path, capsys):
    photograph = tmp_path / "photo.jpg"
    Image.new("RGB", (40, 30)).save(photograph)
    words = ["predict", str(photograph), str(photograph), "--out", str(tmp_path / "out")]
    assert main(words) == 2
    assert f"{photograph} is no network: give a run, such as toy, or" in capsys.readouterr().err

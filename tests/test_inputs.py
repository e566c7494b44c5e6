"""What the networks look at: images, and stored features of a frozen backbone."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from scenes import (
    CLASSES,
    Mean,
    draw_scenes,
    same_state,
    state_of,
    stopped_at_the_third,
    write_data,
)

from affinity_lib.backbones import build_backbone
from affinity_lib.cam import CAMNet
from affinity_lib.data.files import load_tensors
from affinity_lib.data.voc import VOCData
from affinity_lib.errors import InputError
from affinity_lib.evaluation import VOID
from affinity_lib.training import inputs as inputs_module
from affinity_lib.training.inputs import Inputs, forward

STRIDE = Mean().output_stride
STEP = 12  # intensity levels between neighbouring cells


def cells(height: int, width: int, pixels: int = STRIDE) -> tuple[np.ndarray, np.ndarray]:
    """An image whose red tells the row of a cell and whose green its column, and labels likewise.

    Cells are counted from 1, so that 0 is no cell.
    """
    down, across = np.mgrid[:height, :width] // pixels + 1
    image = np.stack([down * STEP, across * STEP, np.full_like(down, 128)], axis=-1)
    return image.astype(np.uint8), (down * 16 + across).astype(np.uint8)


def cell_world(root, height: int, width: int, pixels: int = STRIDE) -> tuple[VOCData, np.ndarray]:
    image, labels = cells(height, width, pixels)
    return write_data(root, {"a": image}, {"a": ("ball",)}), labels


@pytest.mark.parametrize("crop", [4, 16, 22, 24, 32, 60])
@pytest.mark.parametrize(("height", "width"), [(24, 36), (36, 24), (8, 52)])
def test_stored_levels_and_labels_are_cropped_and_flipped_together(tmp_path, height, width, crop):
    data, labels = cell_world(tmp_path / "data", height, width)
    inputs = Inputs(data, Mean(), "head", folder=tmp_path / "levels")
    samples = inputs.samples(["a"], crop, labels=lambda image_id: labels)
    flips, places = set(), set()
    for seed in range(30):
        torch.manual_seed(seed)
        (level, *others), cropped = samples[0]
        side = crop // STRIDE
        assert level.shape == (3, side, side)
        assert all(torch.equal(level, other) for other in others)
        assert cropped.shape == (side * STRIDE, side * STRIDE)
        assert cropped.dtype == torch.int64
        down, across = (level[:2] * 255 / STEP).round().long()
        expected = torch.where(down > 0, down * 16 + across, VOID)
        assert torch.equal(cropped, expected.repeat_interleave(4, 0).repeat_interleave(4, 1))
        flips |= set(across.diff(dim=1)[down[:, 1:] * down[:, :-1] > 0].tolist())
        places.add((int(down[0, 0]), int(across[0, 0])))
        inside = (min(side, height // STRIDE), min(side, width // STRIDE))
        assert int((down > 0).sum()) == inside[0] * inside[1]
    assert flips == ({-1, 1} if crop >= 2 * STRIDE else set())
    assert len(places) > 1


def test_labels_follow_images_that_were_resized(tmp_path):
    data, labels = cell_world(tmp_path / "data", 48, 72, pixels=8)
    inputs = Inputs(data, Mean(), "head", long_side=36, folder=tmp_path / "levels")
    samples = inputs.samples(["a"], crop=16, labels=lambda image_id: labels)
    for seed in range(10):
        torch.manual_seed(seed)
        (level, *_), cropped = samples[0]
        down, across = (level[:2] * 255 / STEP).round().long()
        expected = (down * 16 + across).repeat_interleave(4, 0).repeat_interleave(4, 1)
        assert torch.equal(cropped, expected)


@pytest.mark.parametrize(("height", "width"), [(22, 35), (41, 29), (5, 3)])
def test_labels_of_any_size_stay_within_a_cell_of_the_stored_levels(tmp_path, height, width):
    data, labels = cell_world(tmp_path / "data", height, width)
    inputs = Inputs(data, Mean(), "head", folder=tmp_path / "levels")
    samples = inputs.samples(["a"], crop=16, labels=lambda image_id: labels)
    for seed in range(10):
        torch.manual_seed(seed)
        (level, *_), cropped = samples[0]
        down, across = (level[:2] * 255 / STEP).round().long()
        middle = cropped[2::4, 2::4]
        inside = down > 0
        assert torch.equal(middle == VOID, ~inside)
        assert ((middle // 16 - down)[inside].abs() <= 1).all()
        assert ((middle % 16 - across)[inside].abs() <= 1).all()


@pytest.mark.parametrize("crop", [16, 60])
def test_images_and_labels_are_augmented_together_and_padded_with_void(tmp_path, crop):
    data, labels = cell_world(tmp_path / "data", 24, 36)
    inputs = Inputs(data, Mean(), "all")
    samples = inputs.samples(["a"], crop, labels=lambda image_id: np.minimum(labels, 254))
    for seed in range(5):
        torch.manual_seed(seed)
        image, cropped = samples[0]
        assert image.shape == (3, crop, crop)
        assert cropped.shape == (crop, crop)
        outside = (image == 0).all(0)
        assert torch.equal(cropped == VOID, outside)
        assert int((~outside).sum()) == min(crop, 24) * min(crop, 36)


@pytest.mark.parametrize(("finetune", "long_side"), [("all", 0), ("head", 0), ("all", 18)])
def test_score_maps_move_with_the_image_and_are_zero_around_it(tmp_path, finetune, long_side):
    data, _ = cell_world(tmp_path / "data", 24, 36, pixels=STRIDE if not long_side else 2 * STRIDE)
    maps = np.moveaxis(np.array(data.image("a")), -1, 0).astype(np.float32)  # the image's colours
    inputs = Inputs(data, Mean(), finetune, long_side, tmp_path / "levels")
    kind = {"labels": lambda image_id: maps, "pool": lambda image_id, x: (image_id, x)}
    samples = inputs.samples(["a"], 32, jitter=False, **kind)
    for seed in range(5):
        torch.manual_seed(seed)
        seen, (image_id, cropped) = samples[0]
        assert image_id == "a" and cropped.shape == (3, 32, 32)
        if finetune == "head":
            seen = seen[0].repeat_interleave(STRIDE, 1).repeat_interleave(STRIDE, 2)
        inside = cropped.sum(dim=0) > 0
        assert torch.equal(inside, seen.sum(dim=0) > 0)
        close = (seen[:2] * 255 - cropped[:2]).abs() < STEP
        assert close.all() if not long_side else close.float().mean() > 0.95


def test_images_are_padded_with_the_mean_colour_to_multiples_for_inference_alone(tmp_path):
    data, labels = cell_world(tmp_path / "data", 21, 30)
    plain, padded = Inputs(data, Mean()), Inputs(data, Mean(), pad_to=8)
    assert padded.size("a") == plain.size("a") == (21, 30)
    image = padded.image("a")
    assert image.shape == (3, 24, 32)
    assert torch.equal(image[:, :21, :30], plain.image("a"))
    assert not image[:, 21:].any() and not image[..., 30:].any()
    assert padded.samples(["a"], 60, labels=lambda i: labels)[0][1].ne(VOID).sum() == 21 * 30


def test_labels_follow_images_that_were_resized_for_a_backbone_that_learns(tmp_path):
    data, labels = cell_world(tmp_path / "data", 48, 72, pixels=8)
    inputs = Inputs(data, Mean(), "all", long_side=36)
    _, cropped = inputs.samples(["a"], crop=40, labels=lambda image_id: labels)[0]
    assert int((cropped != VOID).sum()) == 24 * 36
    assert set(cropped.unique().tolist()) == {*np.unique(labels).tolist(), VOID}


@pytest.mark.parametrize("finetune", ["all", "head"])
def test_targets_are_the_tags_when_asked_for(data, tmp_path, finetune):
    inputs = Inputs(data, Mean(), finetune, folder=tmp_path)
    ids = data.ids("train")
    samples = inputs.samples(ids, crop=16, tags=True)
    assert len(samples) == len(ids)
    for k, image_id in enumerate(ids):
        assert torch.equal(samples[k][1], data.multi_hot([image_id])[0])


@pytest.mark.parametrize("finetune", ["all", "head"])
def test_a_network_takes_a_batch_of_either_kind(data, tmp_path, finetune):
    net = CAMNet(Mean(), len(CLASSES), width=4)
    inputs = Inputs(data, net.backbone, finetune, folder=tmp_path)
    samples = inputs.samples(data.ids("train"), crop=16, tags=True)
    seen, tags = torch.utils.data.default_collate([samples[k] for k in range(4)])
    assert forward(net, seen).shape == tags.shape == (4, len(CLASSES))


def test_stored_levels_are_the_backbones_in_half_precision(data, tmp_path):
    backbone = build_backbone("small").eval()
    image_id = data.ids("train")[0]
    seen = Inputs(data, backbone).levels(image_id, backbone)
    stored = Inputs(data, backbone, "head", folder=tmp_path).levels(image_id, backbone)
    for one, two in zip(seen, stored, strict=True):
        assert two.dtype == torch.float32
        torch.testing.assert_close(two, one.detach(), atol=1e-3, rtol=1e-3)


def test_the_backbone_looks_at_each_image_once(data, tmp_path, monkeypatch):
    backbone, ids = Mean(), data.ids("train")
    Inputs(data, backbone, "head", folder=tmp_path).store(ids)
    monkeypatch.setattr(backbone, "levels", None)
    again = Inputs(data, backbone, "head", folder=tmp_path)
    again.store(ids)
    assert len(again.levels(ids[0], backbone)) == 3


def test_a_stopped_store_leaves_whole_files_and_goes_on(data, tmp_path, monkeypatch):
    backbone, ids = Mean(), data.ids("train")
    inputs = Inputs(data, backbone, "head", folder=tmp_path)
    seen = stopped_at_the_third(inputs, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        inputs.store(ids)
    files = list(tmp_path.rglob("*.*"))
    assert len(files) == len(seen) - 1  # all that were begun, but the one that was stopped
    assert all(len(load_tensors(path)[0]) == 3 for path in files)
    inputs.store(ids)
    assert len(seen) == len(ids) + 1 and seen.count(seen[2]) == 2


def test_levels_of_another_backbone_or_size_are_not_taken_for_these(data, tmp_path):
    image_id, backbone = data.ids("train")[0], Mean()
    first = Inputs(data, backbone, "head", folder=tmp_path).levels(image_id, backbone)
    with torch.no_grad():
        backbone.gain.weight.mul_(2)
    other = Inputs(data, backbone, "head", folder=tmp_path).levels(image_id, backbone)
    torch.testing.assert_close(other[0], 2 * first[0], atol=1e-3, rtol=1e-3)
    small = Inputs(data, backbone, "head", long_side=20, folder=tmp_path)
    assert small.levels(image_id, backbone)[0].shape == (1, 3, 5, 5)


def test_levels_of_a_photograph_that_another_has_replaced_are_not_taken_for_its_own(tmp_path):
    data, backbone = draw_scenes(tmp_path / "data", 1, size=40), Mean()
    image_id = data.ids("train")[0]
    first = Inputs(data, backbone, "head", folder=tmp_path / "levels").levels(image_id, backbone)
    path = data.image_path(image_id)
    Image.open(path).rotate(180).save(path, format="JPEG")
    other = Inputs(data, backbone, "head", folder=tmp_path / "levels").levels(image_id, backbone)
    torch.testing.assert_close(other[0], first[0].flip(-1, -2), atol=0.2, rtol=0)
    assert (other[0] - first[0]).abs().max() > 0.3


def test_levels_that_inference_has_read_can_be_trained_on(data, tmp_path):
    net = CAMNet(Mean(), len(CLASSES), width=4)
    inputs = Inputs(data, net.backbone, "head", folder=tmp_path)
    image_id = data.ids("train")[0]
    with torch.inference_mode():
        inputs.levels(image_id, net.backbone)
    levels, _ = inputs.samples([image_id], crop=16, tags=True)[0]
    net.from_levels([level[None] for level in levels]).sum().backward()
    assert net.classifier.weight.grad is not None


def test_levels_are_where_the_network_is(data, tmp_path):
    net = CAMNet(Mean(), len(CLASSES), width=4)
    inputs = Inputs(data, net.backbone, "head", folder=tmp_path)
    image_id = data.ids("train")[0]
    samples = inputs.samples([image_id], crop=16, tags=True)
    samples.prepare()
    net.to("meta")
    assert inputs.levels(image_id, net.backbone)[0].device.type == "meta"
    assert samples[0][0][0].device.type == "cpu"  # loaders' processes have no other device


def test_a_frozen_backbone_stays_frozen_in_training_mode(data, tmp_path):
    backbone = build_backbone("small")
    Inputs(data, backbone, "head", folder=tmp_path)
    before = state_of(backbone)
    backbone.train()(torch.randn(2, 3, 32, 32))
    assert same_state(before, state_of(backbone))
    assert not any(p.requires_grad for p in backbone.parameters())


def test_a_backbone_that_learns_stores_nothing(data, tmp_path):
    inputs = Inputs(data, Mean(), "all", folder=tmp_path)
    inputs.store(data.ids("train"))
    assert not inputs.stored
    assert list(tmp_path.iterdir()) == []


def test_settings_that_cannot_be_are_refused(data, tmp_path):
    with pytest.raises(InputError, match="finetune must be all or head, got 'none'"):
        Inputs(data, Mean(), "none")
    with pytest.raises(InputError, match="finetune=head stores .* give their folder"):
        Inputs(data, Mean(), "head")
    for inputs in (Inputs(data, Mean()), Inputs(data, Mean(), "head", folder=tmp_path)):
        with pytest.raises(InputError, match="either tags or labels"):
            inputs.samples(["a"], 16)
        with pytest.raises(InputError, match="either tags or labels"):
            inputs.samples(["a"], 16, tags=True, labels=data.mask)
        with pytest.raises(InputError, match="crop must be >= 1 pixel, got 0"):
            inputs.samples(["a"], 0, tags=True)


def test_an_image_is_decoded_once_while_there_is_room(data, monkeypatch):
    ids, seen = data.ids("train"), []
    decode = data.image
    monkeypatch.setattr(data, "image", lambda image_id: seen.append(image_id) or decode(image_id))
    monkeypatch.setattr(inputs_module, "_CACHE", 2 * 4 * 40 * 40)  # bytes of two images
    inputs = Inputs(data, Mean())
    samples = inputs.samples(ids, crop=16, tags=True)
    for _ in range(2):
        for k in range(len(ids)):
            assert samples[k][0].shape == (3, 16, 16)
            assert inputs.image(ids[k]).shape == (3, 40, 40)
    assert [seen.count(image_id) for image_id in ids] == [1, 1, 4, 4]


def test_levels_stay_in_memory_while_there_is_room_and_are_read_again_elsewhere(
    data, tmp_path, monkeypatch
):
    ids, read = data.ids("train"), []
    load = inputs_module.load_tensors
    monkeypatch.setattr(inputs_module, "load_tensors", lambda path: read.append(path) or load(path))
    monkeypatch.setattr(inputs_module, "_CACHE", 2 * 3 * 3 * 10 * 10 * 2)  # bytes of two images
    inputs = Inputs(data, Mean(), "head", folder=tmp_path)
    first = [inputs.stored_levels(image_id) for image_id in ids]
    again = [inputs.stored_levels(image_id) for image_id in ids]
    assert len(read) == 2 + 2 * (len(ids) - 2)
    for one, two in zip(first, again, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    pickle.loads(pickle.dumps(inputs)).stored_levels(ids[0])
    assert len(read) == 3 + 2 * (len(ids) - 2)

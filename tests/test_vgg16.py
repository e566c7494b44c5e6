"""VGG16 as DeepLab-LargeFOV: shapes, parameters, field of view."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from affinity_lib.backbones import build_backbone
from affinity_lib.backbones.base import freeze
from affinity_lib.backbones.vgg16 import VGG16
from affinity_lib.errors import InputError


@pytest.fixture(scope="module")
def passing() -> VGG16:
    """Weights that let a lit pixel through to every cell whose field holds it."""
    network = VGG16()
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.constant_(module.weight, 1 / module.weight[0].numel())
            nn.init.zeros_(module.bias)
    return network.eval()


def test_its_parameters_are_vgg16s_convolutions_and_the_two_thinned_layers():
    with torch.device("meta"):
        count = sum(p.numel() for p in VGG16().parameters())
    vgg16_convolutions = 14_714_688  # torchvision's vgg16().features
    assert count == vgg16_convolutions + (9 * 512 + 1) * 1024 + (1024 + 1) * 1024 == 20_483_904


@pytest.mark.parametrize("size", [(64, 64), (65, 71), (50, 33), (1, 7)])
def test_all_levels_lie_on_the_grid_of_stride_eight(size):
    with torch.device("meta"):
        levels, top = VGG16()(torch.empty(2, 3, *size))
    grid = tuple(-(-side // 8) for side in size)
    assert [m.shape for m in levels] == [(2, 512, *grid), (2, 512, *grid), (2, 1024, *grid)]
    assert top is levels[2]


@pytest.mark.parametrize(
    ("options", "beyond_conv5"),
    [({}, 8 + 8 + 12 * 8), ({"fc6_dilation": 4, "pool5": False}, 4 * 8)],
    ids=["large field of view", "released AffinityNet"],
)
@torch.inference_mode()
def test_each_level_sees_the_pixels_that_its_layers_add_up_to(passing, options, beyond_conv5):
    network = passing if not options else build_backbone("vgg16", **options).eval()
    network.load_state_dict(passing.state_dict())
    # half the field: kernel 3 adds the distance of its taps in pixels, pooling as well
    to_conv4 = (2 * 1 + 1) + (2 * 2 + 2) + (3 * 4 + 4) + 3 * 8
    to_conv5 = to_conv4 + 8 + 3 * 16
    to_fc7 = to_conv5 + beyond_conv5
    centre = 28
    for edge, level in ((to_conv4, 0), (to_conv5, 1), (to_fc7, 2)):
        images = torch.zeros(2, 3, 1, 449)
        images[0, :, :, 8 * centre + edge] = 1.0
        images[1, :, :, 8 * centre - edge - 1] = 1.0
        seen = network.levels(images)[level][:, :, 0, centre].sum(1) > 0
        assert seen.tolist() == [True, False]


@torch.inference_mode()
def test_dropout_acts_behind_fc6_in_training_alone(passing):
    image = torch.rand(1, 3, 9, 9)
    try:
        passing.train()
        first, second = passing.levels(image), passing.levels(image)
        assert torch.equal(first[1], second[1]) and not torch.equal(first[2], second[2])
    finally:
        passing.eval()
    assert torch.equal(passing.levels(image)[2], passing.levels(image)[2])


def test_its_first_two_stages_can_be_frozen_as_the_authors_do():
    with torch.device("meta"):
        network = freeze(VGG16(), up_to=2)
    frozen = [k for k, p in network.named_parameters() if not p.requires_grad]
    assert frozen == [f"features.{i}.{kind}" for i in (0, 2, 5, 7) for kind in ("weight", "bias")]


def test_another_output_stride_is_refused():
    with pytest.raises(InputError, match="output_stride of vgg16 must be 8, got 32"):
        VGG16(32)

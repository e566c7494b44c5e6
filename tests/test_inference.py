"""The copy for inference computes what the network computes."""

from __future__ import annotations

import pytest
import torch
from scenes import Mean, same_state, state_of
from torch import Tensor, nn

from affinity_lib.backbones import build_backbone
from affinity_lib.cam import CAMNet
from affinity_lib.training.inference import _Divided, for_inference
from affinity_lib.training.precision import has_bfloat16


def with_statistics(net: nn.Module) -> nn.Module:
    """Random batch norm: its mean, variance, scale and shift all count."""
    torch.manual_seed(0)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
    return net.eval()


@pytest.mark.parametrize("name", ["small", "efficientnet_lite0", "resnet18", "vgg16"])
def test_a_copy_for_inference_sees_what_the_network_sees(name: str):
    net = with_statistics(CAMNet(build_backbone(name), num_classes=3, width=8))
    before = state_of(net)
    fast, image = for_inference(net), torch.randn(2, 3, 45, 62)
    with torch.inference_mode():
        expected = net.activation(net.backbone.levels(image))
        found = fast.activation(fast.backbone.levels(image))
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert same_state(before, state_of(net))


@pytest.mark.skipif(not has_bfloat16("cpu"), reason="this CPU does not compute in bfloat16")
@pytest.mark.parametrize("name", ["small", "efficientnet_lite0"])
def test_a_copy_in_bfloat16_sees_nearly_that(name: str):
    net = with_statistics(CAMNet(build_backbone(name), num_classes=3, width=8))
    fast, image = for_inference(net, mixed_precision=True), torch.randn(2, 3, 45, 62)
    assert {p.dtype for p in fast.parameters()} == {torch.bfloat16}
    with torch.inference_mode():
        expected = net.activation(net.backbone.levels(image))
        found = fast.activation(fast.backbone.levels(image.bfloat16()))
    assert (found - expected).abs().mean() <= 0.02 * expected.abs().max()


def test_a_copy_stays_in_float32_where_the_device_has_no_bfloat16(monkeypatch):
    monkeypatch.setattr("affinity_lib.training.inference.has_bfloat16", lambda device: False)
    fast = for_inference(CAMNet(build_backbone("small"), 3, width=8).eval(), mixed_precision=True)
    assert {p.dtype for p in fast.parameters()} == {torch.float32}


def test_batch_norm_is_gone_from_the_copy():
    for name in ("small", "efficientnet_lite0", "resnet18"):
        fast = for_inference(with_statistics(CAMNet(build_backbone(name), 3, width=8)))
        assert not [module for module in fast.modules() if isinstance(module, nn.BatchNorm2d)]


@pytest.mark.parametrize("size", [(8, 12), (7, 5), (1, 1)])
@pytest.mark.parametrize(("kernel", "dilation"), [(3, 2), (5, 4), ((3, 5), 3)])
def test_a_dilated_convolution_is_a_plain_one_on_every_dth_pixel(size, kernel, dilation):
    kernel = kernel if isinstance(kernel, tuple) else (kernel, kernel)
    padding = [dilation * (side - 1) // 2 for side in kernel]
    conv = nn.Conv2d(6, 6, kernel, padding=padding, dilation=dilation, groups=6)
    x = torch.randn(2, 6, *size)
    torch.testing.assert_close(_Divided(conv)(x), conv(x), atol=1e-6, rtol=1e-5)


class Before(nn.Module):
    """Lists the convolution first and uses it last."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.norm(x).relu())


def test_a_network_that_runs_in_another_order_keeps_its_batch_norm_and_says_so():
    net, image = with_statistics(Before()), torch.randn(1, 3, 9, 9)
    with pytest.warns(UserWarning, match="Before runs as it is, and slower than it could"):
        fast = for_inference(net)
    torch.testing.assert_close(fast(image), net(image))
    assert isinstance(fast.norm, nn.BatchNorm2d)


@pytest.mark.filterwarnings("ignore:Before runs as it is")
def test_batch_norm_that_cannot_be_folded_is_not_rounded(monkeypatch):
    monkeypatch.setattr("affinity_lib.training.inference.has_bfloat16", lambda device: True)
    net = with_statistics(Before())
    fast = for_inference(net, mixed_precision=True)
    assert fast.conv.weight.dtype == torch.bfloat16
    assert same_state(state_of(net.norm), state_of(fast.norm))
    assert fast(torch.randn(1, 3, 9, 9).bfloat16()).dtype == torch.bfloat16


def test_a_copy_of_a_backbone_gives_its_levels_and_its_top():
    backbone, image = Mean().eval(), torch.rand(1, 3, 12, 16)
    fast = for_inference(backbone)
    assert all(map(torch.equal, fast(image).levels, backbone(image).levels))
    assert not any(parameter.requires_grad for parameter in fast.parameters())

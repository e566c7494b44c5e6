"""A copy of a network that gives the same numbers in less time, for looking at many images."""

from __future__ import annotations

import warnings
from copy import copy, deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import fuse_conv_bn_eval

from affinity_lib.backbones.base import Features
from affinity_lib.training.precision import has_bfloat16


def for_inference(net: nn.Module, mixed_precision: bool = False) -> nn.Module:
    """A copy of a network in ``eval`` mode that cannot be trained, and is faster.

    Weights lie in channels_last order and batch norm is folded into the convolution before it. On
    a CPU a dilated depthwise convolution runs as a plain one on every d-th row and column; on a GPU
    torch computes depthwise convolutions, not cuDNN. A network whose modules do not run in the
    order in which they are listed is only laid out anew, with a warning.

    Args:
        net: takes images (B, 3, H, W); stays as it is.
        mixed_precision: keep weights in bfloat16, if the device has it, but those of batch norm;
            the copy then takes images in bfloat16, too.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
    >>> fast, image = for_inference(net), torch.rand(1, 3, 8, 8)
    >>> len(fast), torch.allclose(fast(image), net(image), atol=1e-6)
    (3, True)
    """
    device = next(net.parameters()).device
    # on the CPU, where both are compared in full precision: a GPU rounds to TF32
    plain = deepcopy(net).cpu().eval().requires_grad_(False).to(memory_format=torch.channels_last)
    fast = _changed(plain, device)
    if not _agree(plain, fast):
        warnings.warn(
            f"{type(net).__name__} runs as it is, and slower than it could: its modules are not "
            "called in the order in which they are listed, so none of them can be joined",
            stacklevel=2,
        )
        fast = plain
    if mixed_precision and has_bfloat16(device):
        _round_weights(fast)
    if device.type == "cuda":
        _leave_cudnn(fast)
    return fast.to(device)


def _changed(net: nn.Module, device: torch.device) -> nn.Module:
    """A copy in which what follows each other in a list of modules is one."""
    net = deepcopy(net)
    for module in list(net.modules()):
        _fold_batch_norm(module)
        if device.type == "cpu":
            _divide_dilated(module)
    return net


class _Divided(nn.Module):
    """A convolution with dilation d as one without it on the d x d grids of every d-th pixel.

    oneDNN has no fast kernel for depthwise convolutions with a padding wider than the kernel.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.dilation = conv.dilation[0]
        self.conv = copy(conv)
        self.conv.dilation = (1, 1)
        self.conv.padding = tuple((side - 1) // 2 for side in conv.kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        d = self.dilation
        batch, channels, height, width = x.shape
        if height % d or width % d:
            x = F.pad(x, (0, -width % d, 0, -height % d))
        rows, columns = x.shape[2] // d, x.shape[3] // d
        x = x.permute(0, 2, 3, 1).reshape(batch, rows, d, columns, d, channels)
        x = x.permute(2, 4, 0, 1, 3, 5).reshape(d * d * batch, rows, columns, channels)
        x = self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        x = x.reshape(d, d, batch, rows, columns, -1).permute(2, 3, 0, 4, 1, 5)
        x = x.reshape(batch, rows * d, columns * d, -1)[:, :height, :width]
        return x.permute(0, 3, 1, 2)


class _WithoutCuDNN(nn.Module):
    """A convolution that torch itself computes on a GPU.

    cuDNN compiles a kernel of its own for a depthwise convolution and a size of its input, which
    takes a tenth of a second, for every layer and every size that photographs have.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        with torch.backends.cudnn.flags(enabled=False):
            return self.conv(x)


def _fold_batch_norm(module: nn.Module) -> None:
    conv = None
    for name, child in list(module.named_children()):
        if isinstance(child, nn.BatchNorm2d) and conv is not None:
            fused = fuse_conv_bn_eval(conv, child)
            conv.weight, conv.bias = fused.weight, fused.bias
            # timm's batch norm ends in an activation
            setattr(module, name, getattr(child, "act", nn.Identity()))
        conv = child if isinstance(child, nn.Conv2d) else None


def _divide_dilated(module: nn.Module) -> None:
    for name, child in list(module.named_children()):
        if type(child) is nn.Conv2d and child.groups > 1 and child.dilation[0] > 1:
            d = child.dilation[0]
            same = tuple(d * (side - 1) // 2 for side in child.kernel_size)
            if child.stride == (1, 1) and child.dilation == (d, d) and child.padding == same:
                setattr(module, name, _Divided(child))


def _leave_cudnn(net: nn.Module) -> None:
    for module in list(net.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Conv2d) and child.groups == child.in_channels > 1:
                setattr(module, name, _WithoutCuDNN(child))


def _round_weights(net: nn.Module) -> None:
    """To bfloat16, but for batch norm, whose few numbers scale whole maps."""
    for module in net.modules():
        if not isinstance(module, _BatchNorm):
            for name, own in list(module.named_parameters(recurse=False)):
                setattr(module, name, nn.Parameter(own.bfloat16(), requires_grad=False))
            for name, own in list(module.named_buffers(recurse=False)):
                setattr(module, name, own.bfloat16() if own.is_floating_point() else own)


@torch.inference_mode()
def _agree(one: nn.Module, two: nn.Module) -> bool:
    image = torch.linspace(-2, 2, 3 * 65 * 79)
    results = [net(image.sin().view(1, 3, 65, 79)) for net in (one, two)]
    first, second = (r.top if isinstance(r, Features) else r for r in results)
    return bool((first - second).abs().max() <= 1e-4 * first.abs().max())

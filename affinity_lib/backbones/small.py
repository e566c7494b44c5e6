"""A small backbone that is trained from scratch, for the toy data."""

from __future__ import annotations

from torch import Tensor, nn

from affinity_lib.backbones.base import Backbone, pooled_to


class SmallBackbone(Backbone):
    """Seven 3 x 3 convolutions with batch norm, 0.45 M parameters, to be trained from scratch.

    A cell of its maps sees about 71 x 71 pixels at either output stride, as the second stage's
    stride is exchanged for dilation.

    Args:
        output_stride: 4 or 8.

    >>> SmallBackbone(8).channels
    (64, 96, 128)
    """

    channels = (64, 96, 128)
    top_channels = 128
    mean = (0.5, 0.5, 0.5)
    std = (0.25, 0.25, 0.25)
    stages = (("stem",), ("stage1",), ("stage2",), ("stage3",))

    def __init__(self, output_stride: int = 8) -> None:
        super().__init__("small", output_stride, (4, 8))
        stride, dilation = (2, 1) if output_stride == 8 else (1, 2)
        self.stem = _conv(3, 32, stride=2)
        self.stage1 = nn.Sequential(_conv(32, 64, stride=2), _Residual(64, 1))
        self.stage2 = nn.Sequential(_conv(64, 96, stride=stride), _Residual(96, dilation))
        self.stage3 = nn.Sequential(_conv(96, 128, dilation=dilation), _Residual(128, dilation))

    def levels(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        first = self.stage1(self.stem(x))
        second = self.stage2(first)
        return pooled_to(first, second.shape[-2:]), second, self.stage3(second)


class _Residual(nn.Module):
    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.conv = _conv(channels, channels, dilation=dilation)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x)


def _conv(inputs: int, outputs: int, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, padding=dilation, dilation=dilation, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )

"""ResNet38, the paper's backbone (section 4.1): Model A1 of Wu, Shen and van den Hengel (2016)."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from affinity_lib.backbones.base import Backbone


class ResNet38(Backbone):
    """A wide residual network of 17 blocks in seven stages, atrous in the last three (105 M).

    Output stride 8: the first convolution and three strided blocks; where the classification
    network would go on to stride 32, stages 5 to 7 are dilated instead.  The submodules carry
    the names of the authors' checkpoints.  The levels are the activations of ``b4_5``, ``b5_2`` and
    ``b7``, each after the batch norm and ReLU that follow it; the top map is the third.
    Batch norm is meant to be frozen (``freeze``), as in the released code.

    Args:
        output_stride: 8, the only one that the published weights were adapted to.

    Raises:
        InputError: another output stride.

    >>> import torch
    >>> with torch.device("meta"):
    ...     [tuple(m.shape) for m in ResNet38().levels(torch.empty(1, 3, 65, 80))]
    [(1, 512, 9, 10), (1, 1024, 9, 10), (1, 4096, 9, 10)]
    """

    channels = (512, 1024, 4096)
    top_channels = 4096
    stages = (
        ("conv1a",),
        ("b2", "b2_1", "b2_2"),
        ("b3", "b3_1", "b3_2"),
        ("b4", "b4_1", "b4_2", "b4_3", "b4_4", "b4_5"),
        ("b5", "b5_1", "b5_2"),
        ("b6",),
        ("b7", "bn7"),
    )

    def __init__(self, output_stride: int = 8) -> None:
        super().__init__("resnet38", output_stride, (8,))
        self.conv1a = _conv(3, 64, 3)
        self._add_wide_stage("b2", 3, 64, 128, 128, stride=2)
        self._add_wide_stage("b3", 3, 128, 256, 256, stride=2)
        self._add_wide_stage("b4", 6, 256, 512, 512, stride=2)
        self._add_wide_stage("b5", 3, 512, 512, 1024, first_dilation=1, dilation=2)
        self.b6 = _Bottleneck(1024, 2048, dilation=4, dropout=0.3)
        self.b7 = _Bottleneck(2048, 4096, dilation=4, dropout=0.5)
        self.bn7 = nn.BatchNorm2d(4096)

    def levels(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.conv1a(x)
        for name in (name for names in self.stages[1:4] for name in names):
            x = self.get_submodule(name)(x)
        conv4 = self.b5.activate(x)
        x = self.b5_2(self.b5_1(self.b5.transform(x, conv4)))
        conv5 = self.b6.activate(x)
        x = self.b7(self.b6.transform(x, conv5))
        return conv4, conv5, F.relu(self.bn7(x))

    def translate(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {_from_mxnet(key): value for key, value in tensors.items()}

    def _add_wide_stage(
        self,
        name: str,
        blocks: int,
        inputs: int,
        middle: int,
        outputs: int,
        stride: int = 1,
        first_dilation: int = 1,
        dilation: int = 1,
    ) -> None:
        self.add_module(name, _Wide(inputs, middle, outputs, stride, first_dilation, dilation))
        for i in range(1, blocks):
            block = _Wide(outputs, middle, outputs, 1, dilation, dilation)
            self.add_module(f"{name}_{i}", block)


class _Block(nn.Module):
    """Pre-activation block: where the shape changes, the skip path starts behind the ReLU."""

    conv_branch1: nn.Module | None

    def activate(self, x: Tensor) -> Tensor:
        return F.relu(self.bn_branch2a(x))

    def branch2(self, activated: Tensor) -> Tensor:
        raise NotImplementedError

    def transform(self, x: Tensor, activated: Tensor) -> Tensor:
        skip = x if self.conv_branch1 is None else self.conv_branch1(activated)
        return skip + self.branch2(activated)

    def forward(self, x: Tensor) -> Tensor:
        return self.transform(x, self.activate(x))


class _Wide(_Block):
    """Two 3 x 3 convolutions (stages 2 to 5)."""

    def __init__(
        self,
        inputs: int,
        middle: int,
        outputs: int,
        stride: int,
        first_dilation: int,
        dilation: int,
    ) -> None:
        super().__init__()
        self.bn_branch2a = nn.BatchNorm2d(inputs)
        self.conv_branch2a = _conv(inputs, middle, 3, stride, first_dilation)
        self.bn_branch2b1 = nn.BatchNorm2d(middle)
        self.conv_branch2b1 = _conv(middle, outputs, 3, 1, dilation)
        same = inputs == outputs and stride == 1
        self.conv_branch1 = None if same else _conv(inputs, outputs, 1, stride)

    def branch2(self, activated: Tensor) -> Tensor:
        x = self.conv_branch2a(activated)
        return self.conv_branch2b1(F.relu(self.bn_branch2b1(x)))


class _Bottleneck(_Block):
    """1 x 1, 3 x 3 and 1 x 1 convolutions with dropout (stages 6 and 7)."""

    def __init__(self, inputs: int, outputs: int, dilation: int, dropout: float) -> None:
        super().__init__()
        quarter, half = outputs // 4, outputs // 2
        self.bn_branch2a = nn.BatchNorm2d(inputs)
        self.conv_branch2a = _conv(inputs, quarter, 1)
        self.bn_branch2b1 = nn.BatchNorm2d(quarter)
        self.dropout_2b1 = nn.Dropout2d(dropout)
        self.conv_branch2b1 = _conv(quarter, half, 3, 1, dilation)
        self.bn_branch2b2 = nn.BatchNorm2d(half)
        self.dropout_2b2 = nn.Dropout2d(dropout)
        self.conv_branch2b2 = _conv(half, outputs, 1)
        self.conv_branch1 = _conv(inputs, outputs, 1)

    def branch2(self, activated: Tensor) -> Tensor:
        x = self.conv_branch2a(activated)
        x = self.conv_branch2b1(self.dropout_2b1(F.relu(self.bn_branch2b1(x))))
        return self.conv_branch2b2(self.dropout_2b2(F.relu(self.bn_branch2b2(x))))


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    padding = dilation * (kernel // 2)
    return nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, bias=False)


def _from_mxnet(key: str) -> str:
    """From "arg:bn4b5_branch2a_gamma" to "b4_5.bn_branch2a.weight"; other names stay."""
    match = re.fullmatch(
        r"(?:arg|aux):(?:(conv1a|bn7)|(res|bn)(\d)(?:a|b(\d))_(branch\w+?))"
        r"_(weight|gamma|beta|moving_mean|moving_var)",
        key,
    )
    if match is None:
        return key
    whole, kind, stage, block, branch, value = match.groups()
    if whole is None:
        kind = "conv" if kind == "res" else "bn"
        whole = f"b{stage}{f'_{block}' if block else ''}.{kind}_{branch}"
    values = {"gamma": "weight", "beta": "bias"}
    return f"{whole}.{values.get(value, value.replace('moving', 'running'))}"

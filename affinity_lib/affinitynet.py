"""AffinityNet: features whose L1 distances tell semantic affinities (sections 3.2 and 4.2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from affinity_lib.errors import InputError

ACTIVATIONS = {"relu": F.relu, "elu": F.elu}


class AffinityNet(nn.Module):
    """Multi-level features f^aff (Fig. 3): 1x1 convolutions on the last three levels of a backbone,
    concatenated and mixed by a fourth.

    Args:
        backbone: a network of ``affinity_lib.backbones``.
        channels: widths of the three 1x1 convolutions; the paper's are (128, 256, 512).
        norm: group normalisation (equal groups of 16 channels and more) after each convolution.
        activation: ``"relu"`` or ``"elu"``.

    Raises:
        InputError: not three widths >= 1, or an unknown activation.

    >>> from affinity_lib.backbones import build_backbone
    >>> net = AffinityNet(build_backbone("small", output_stride=8))
    >>> net(torch.zeros(1, 3, 64, 64)).shape
    torch.Size([1, 896, 8, 8])
    """

    def __init__(
        self,
        backbone: nn.Module,
        channels: Sequence[int] = (128, 256, 512),
        norm: bool = False,
        activation: str = "relu",
    ):
        super().__init__()
        if activation not in ACTIVATIONS:
            raise InputError(f"activation must be relu or elu, got {activation!r}")
        if len(channels) != 3 or min(channels) < 1:
            raise InputError(f"channels must be three widths >= 1, got {list(channels)}")
        self.backbone = backbone
        self.activation = ACTIVATIONS[activation]
        widths = [*channels, sum(channels)]
        inputs = [*backbone.channels, sum(channels)]
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 1, bias=norm) for a, b in zip(inputs, widths, strict=True)
        )
        self.norms = nn.ModuleList(
            nn.GroupNorm(_groups(b), b) if norm else nn.Identity() for b in widths
        )
        for conv in self.convs:
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")

    def _layer(self, k: int, x: Tensor) -> Tensor:
        return self.activation(self.norms[k](self.convs[k](x)))

    def from_levels(self, levels: Sequence[Tensor]) -> Tensor:
        """f^aff (B, sum of channels, h, w) from the backbone's three levels."""
        mixed = torch.cat([self._layer(k, level) for k, level in enumerate(levels)], dim=1)
        return self._layer(3, mixed)

    def forward(self, images: Tensor) -> Tensor:
        """f^aff (B, sum of channels, h, w) of normalised images (B, 3, H, W)."""
        return self.from_levels(self.backbone.levels(images))


def _groups(channels: int) -> int:
    """The most groups of equal size with 16 channels or more in each, at least one group."""
    return next(n for n in range(max(channels // 16, 1), 0, -1) if channels % n == 0)

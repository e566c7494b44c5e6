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
        norm: group normalisation after the convolutions: True for equal groups of 16 channels and
            more, or the number of groups of each of the four, 0 for none. The released VGG16
            variant has 8, 16 and 32 groups (of 8 channels each) and none after the fourth.
        activation: ``"relu"`` or ``"elu"``.
        gain: of Xavier's uniform initialisation of the fourth convolution, 4 in the released code;
            0 takes He's there, too.

    Raises:
        InputError: not three widths >= 1, groups that do not divide them, or an unknown activation.

    >>> from affinity_lib.backbones import build_backbone
    >>> net = AffinityNet(build_backbone("small", output_stride=8))
    >>> net(torch.zeros(1, 3, 64, 64)).shape
    torch.Size([1, 896, 8, 8])
    """

    def __init__(
        self,
        backbone: nn.Module,
        channels: Sequence[int] = (128, 256, 512),
        norm: bool | Sequence[int] = False,
        activation: str = "relu",
        gain: float = 0,
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
        groups = [_groups(b) * norm for b in widths] if isinstance(norm, bool) else list(norm)
        if len(groups) != 4 or any(n and b % n for n, b in zip(groups, widths, strict=False)):
            raise InputError(
                f"norm must be four numbers of groups that divide {widths}, got {norm}"
            )
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 1, bias=norm is True) for a, b in zip(inputs, widths, strict=True)
        )
        self.norms = nn.ModuleList(
            nn.GroupNorm(n, b) if n else nn.Identity() for n, b in zip(groups, widths, strict=True)
        )
        for conv in self.convs:
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        if gain:
            nn.init.xavier_uniform_(self.convs[3].weight, gain)

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

"""What every backbone gives and how a part of it is kept from training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from affinity_lib.errors import InputError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Features(NamedTuple):
    """What a backbone sees in a batch of images, on the grid of its output stride.

    ``levels`` are the three maps that AffinityNet joins (section 3.2.2, Fig. 3), coarse meaning
    last; ``top`` is the map that class and segmentation heads stand on.  All four have the size
    h = ceil(H / output_stride), w = ceil(W / output_stride).
    """

    levels: tuple[Tensor, Tensor, Tensor]
    top: Tensor


class Backbone(nn.Module):
    """A feature extractor: image in, ``Features`` out.

    A subclass sets the attributes and defines ``levels``; where the top map is more than the third
    level, ``top``; and where other people's weight files have other names, ``translate``.

    Args:
        name: of the network.
        output_stride: pixels of the image per cell of the maps.
        strides: those that the network can have.

    Raises:
        InputError: another output stride.

    Attributes:
        channels: channels of the three levels.
        top_channels: channels of the top map.
        mean, std: the normalisation its weights expect, RGB in [0, 1].
        stages: names of submodules, in groups from the image upwards; ``freeze`` counts them.
    """

    channels: tuple[int, int, int]
    top_channels: int
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    stages: tuple[tuple[str, ...], ...]

    def __init__(self, name: str, output_stride: int, strides: Sequence[int]) -> None:
        super().__init__()
        if output_stride not in strides:
            known = " or ".join(map(str, strides))
            raise InputError(f"output_stride of {name} must be {known}, got {output_stride}")
        self.name, self.output_stride = name, output_stride
        self.frozen_stages = 0
        self.frozen_norm = False

    def levels(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The three maps that AffinityNet joins.

        Args:
            x: (B, 3, H, W) images, normalised by ``mean`` and ``std``; any H and W.

        Returns:
            Three maps (B, channels[i], ceil(H / output_stride), ceil(W / output_stride)).
        """
        raise NotImplementedError

    def top(self, levels: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """The map under the heads, from the levels, so that only these need to be stored."""
        return levels[2]

    def forward(self, x: Tensor) -> Features:
        """``levels`` and ``top`` of images (B, 3, H, W)."""
        levels = self.levels(x)
        return Features(levels, self.top(levels))

    def translate(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of a weight file under this backbone's names; unknown names stay."""
        return dict(tensors)

    def train(self, mode: bool = True) -> Backbone:
        """Training mode for all but what ``freeze`` has frozen."""
        super().train(mode)
        for names in self.stages[: self.frozen_stages]:
            for name in names:
                self.get_submodule(name).eval()
        if self.frozen_norm:
            for module in _batch_norms(self):
                module.eval()
        return self


def freeze(backbone: Backbone, up_to: int | None = 0) -> Backbone:
    """Freeze the batch norm of a backbone and its first stages, for good.

    Frozen batch norm uses its running statistics, and its scale and shift stay; a frozen stage
    keeps its weights and drops nothing out.  Both survive a later ``.train()`` of the backbone
    or of a network that holds it.  The authors freeze batch norm and the first two stages of
    ResNet38 and of VGG16, in the class network and in AffinityNet.

    Args:
        backbone: the backbone, changed in place.
        up_to: how many of ``backbone.stages`` are frozen besides batch norm, counted from the
            image; None freezes the whole backbone, so that its features can be stored.

    Returns:
        The same backbone.

    Raises:
        InputError: the backbone has no such number of stages.

    >>> from affinity_lib.backbones import build_backbone
    >>> small = freeze(build_backbone("small"), up_to=1).train()
    >>> any(p.requires_grad for p in small.stem.parameters()), small.stem.training
    (False, False)
    """
    if up_to is None:
        up_to = len(backbone.stages)
    if not 0 <= up_to <= len(backbone.stages):
        raise InputError(
            f"up_to must be between 0 and {len(backbone.stages)}, the stages of "
            f"{type(backbone).__name__}, got {up_to}"
        )
    backbone.frozen_stages, backbone.frozen_norm = up_to, True
    frozen = [backbone.get_submodule(name) for names in backbone.stages[:up_to] for name in names]
    for module in frozen + _batch_norms(backbone):
        module.requires_grad_(False)
    return backbone.train(backbone.training)


def pooled_to(x: Tensor, size: Sequence[int]) -> Tensor:
    """A map (B, C, H, W) as means over the cells of a coarser grid, itself where it has that size."""
    return x if tuple(x.shape[-2:]) == tuple(size) else F.adaptive_avg_pool2d(x, tuple(size))


def _batch_norms(module: nn.Module) -> list[nn.Module]:
    return [child for child in module.modules() if isinstance(child, _BatchNorm)]

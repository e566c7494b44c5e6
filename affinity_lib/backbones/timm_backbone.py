"""timm's networks as backbones."""

from __future__ import annotations

from collections.abc import Mapping

import timm
from timm.models.efficientnet import EfficientNet
from torch import Tensor, nn

from affinity_lib.backbones.base import Backbone, pooled_to
from affinity_lib.errors import InputError


class TimmBackbone(Backbone):
    """Any of timm's networks whose output stride can be set; its levels are the last three.

    For the EfficientNets the top map is the 1 x 1 convolution before their pooling
    (``conv_head``, 1,280 channels for Lite0), for the others it is the third level.

    Args:
        name: timm's name, one of ``timm.list_models()``.
        output_stride: 8 or 16 (timm's 32 is too coarse for masks).

    Raises:
        InputError: another stride, or a network whose stride is fixed.

    >>> lite = TimmBackbone("tf_efficientnet_lite0", output_stride=16)
    >>> lite.channels, lite.top_channels
    ((40, 112, 320), 1280)
    """

    def __init__(self, name: str, output_stride: int = 8) -> None:
        super().__init__(name, output_stride, (8, 16))
        self.model = self._create()
        info = self.model.feature_info
        self._indices = list(range(len(info)))[-3:]
        self.channels = tuple(info[i]["num_chs"] for i in self._indices)
        self._has_head = isinstance(self.model, EfficientNet)
        self.top_channels = self.model.num_features if self._has_head else self.channels[2]
        self.mean = tuple(self.model.pretrained_cfg["mean"])
        self.std = tuple(self.model.pretrained_cfg["std"])
        self.stages = _stages(self.model)

    def levels(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        maps = self.model.forward_intermediates(x, indices=self._indices, intermediates_only=True)
        size = [-(-side // self.output_stride) for side in x.shape[-2:]]
        return tuple(pooled_to(m, size) for m in maps)

    def top(self, levels: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        if not self._has_head:
            return levels[2]
        return self.model.bn2(self.model.conv_head(levels[2]))  # its bn2 ends in the activation

    def translate(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """With the ``model.`` that timm's network is an attribute by."""
        return {k if k.startswith("model.") else f"model.{k}": v for k, v in tensors.items()}

    def download(self) -> None:
        """Take timm's ImageNet weights from where timm keeps them."""
        self.model.load_state_dict(self._create(pretrained=True).state_dict())

    def _create(self, pretrained: bool = False) -> nn.Module:
        try:
            return timm.create_model(
                self.name, pretrained, num_classes=0, output_stride=self.output_stride
            )
        except (TypeError, AssertionError, NotImplementedError) as error:
            raise InputError(
                f"the output stride of {self.name} cannot be set; take a convolutional network "
                "such as resnet50 or efficientnet_lite0"
            ) from error


def _stages(model: nn.Module) -> tuple[tuple[str, ...], ...]:
    """Names of the model's submodules, cut after each of timm's feature maps."""
    ends = [info["module"] for info in model.feature_info]
    groups: list[list[str]] = [[]]
    for child, module in model.named_children():
        inner = any(end.startswith(f"{child}.") for end in ends)
        for name in [f"{child}.{n}" for n, _ in module.named_children()] if inner else [child]:
            groups[-1].append(f"model.{name}")
            if name in ends[:-1]:
                groups.append([])
    return tuple(tuple(group) for group in groups)

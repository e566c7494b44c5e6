"""timm's networks as backbones."""

from __future__ import annotations

from difflib import get_close_matches

import timm
from timm.models.efficientnet import EfficientNet
from torch import Tensor, nn

from affinity_lib.backbones.base import Backbone, pooled_to
from affinity_lib.errors import InputError

_NAMES = {"efficientnet_lite0": "tf_efficientnet_lite0", "resnet50_v1": "resnet50"}


class TimmBackbone(Backbone):
    """Any of timm's networks whose output stride can be set; its levels are the last three.

    For the EfficientNets the top map is the 1 x 1 convolution before their pooling
    (``conv_head``, 1,280 channels for Lite0), for the others it is the third level.

    Args:
        name: timm's name; "efficientnet_lite0" stands for "tf_efficientnet_lite0", and
            "resnet50_v1" for "resnet50" as it was first published (He et al., 2016): a block
            strides in its first convolution, where timm and torchvision stride in the second.
        output_stride: 8 or 16 (timm's 32 is too coarse for masks).
        pretrained: download timm's ImageNet weights.

    Raises:
        InputError: timm has no such network, its stride is fixed, or there is no connection.

    >>> lite = TimmBackbone("efficientnet_lite0", output_stride=16)
    >>> lite.channels, lite.top_channels
    ((40, 112, 320), 1280)
    """

    def __init__(self, name: str, output_stride: int = 8, pretrained: bool = False) -> None:
        super().__init__()
        if output_stride not in (8, 16):
            raise InputError(f"output_stride of {name} must be 8 or 16, got {output_stride}")
        self.output_stride = output_stride
        self.model = _create(name, output_stride, pretrained)
        self.stride_first = name == "resnet50_v1"
        if self.stride_first:
            _stride_first(self.model)
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


def _create(name: str, output_stride: int, pretrained: bool) -> nn.Module:
    full = _NAMES.get(name, name)
    if not timm.is_model(full):
        near = get_close_matches(name, ["small", "resnet38", "vgg16", *timm.list_models()])
        raise InputError(
            f'no backbone has the name "{name}"; take small, resnet38, vgg16 or one of '
            f"timm.list_models(), such as {', '.join(near) or 'resnet50'}"
        )
    try:
        return timm.create_model(
            full, pretrained=pretrained, num_classes=0, output_stride=output_stride
        )
    except (TypeError, AssertionError, NotImplementedError) as error:
        raise InputError(
            f"the output stride of {name} cannot be set; take a convolutional network "
            "such as resnet50 or efficientnet_lite0"
        ) from error
    except Exception as error:  # whatever the download's client raises
        raise not_fetched(name, error) from error


def not_fetched(name: str, error: Exception) -> InputError:
    """What to say where ImageNet weights cannot be downloaded."""
    return InputError(
        f'weights="imagenet" of {name} could not be fetched ({type(error).__name__}); '
        "connect, or give the path of a file"
    )


def _stride_first(resnet: nn.Module) -> None:
    """Move the strides of bottleneck blocks, and the dilations they are exchanged for, forwards."""
    for layer in (resnet.layer2, resnet.layer3, resnet.layer4):
        first, second = layer[0].conv1, layer[0].conv2
        first.stride, second.stride = second.stride, (1, 1)
        second.dilation = second.padding = layer[1].conv2.dilation


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

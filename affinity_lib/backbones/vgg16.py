"""VGG16 as DeepLab-LargeFOV, the backbone of the paper's "Ours-DeepLab" (section 5.1)."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from affinity_lib.backbones.base import Backbone

# channels and dilation of each stage's convolutions; torchvision's configuration "D"
_STAGES = ((64, 2, 1), (128, 2, 1), (256, 3, 1), (512, 3, 1), (512, 3, 2))
_MEAN_OF_CAFFE = (122.675, 116.669, 104.008)  # RGB, of 255


class VGG16(Backbone):
    """VGG16 at output stride 8, its fully connected layers turned into ``fc6`` and ``fc7`` (20.5 M).

    All poolings are 3 x 3 and the last two keep the size; conv5 is dilated by 2; an average
    pooling follows the fifth stage's; ``fc6`` (3 x 3, 1,024 channels) is dilated by 12, the large
    field of view; ``fc7`` is 1 x 1, 1,024 channels.  ``features`` has torchvision's numbering.  The
    levels are conv4 and conv5 (512 channels each) before their pooling, and ``fc7``, which is the
    top map as well; the dropout behind it is the head's.

    Args:
        output_stride: 8.
        fc6_dilation: 12 in DeepLab-LargeFOV; the released code has 1 in its class network
            and 4 in its AffinityNet.
        pool5: pool after conv5, as DeepLab-LargeFOV does and the released code does not.

    Raises:
        InputError: another output stride.

    >>> import torch
    >>> with torch.device("meta"):
    ...     VGG16()(torch.empty(1, 3, 65, 80)).top.shape
    torch.Size([1, 1024, 9, 10])
    """

    channels = (512, 512, 1024)
    top_channels = 1024
    stages = (
        ("features.0", "features.2"),
        ("features.5", "features.7"),
        ("features.10", "features.12", "features.14"),
        ("features.17", "features.19", "features.21"),
        ("features.24", "features.26", "features.28"),
        ("fc6", "drop6", "fc7"),
    )

    def __init__(self, output_stride: int = 8, fc6_dilation: int = 12, pool5: bool = True) -> None:
        super().__init__("vgg16", output_stride, (8,))
        layers: list[nn.Module] = []
        inputs = 3
        for stage, (outputs, convs, dilation) in enumerate(_STAGES):
            for _ in range(convs):
                conv = nn.Conv2d(inputs, outputs, 3, padding=dilation, dilation=dilation)
                layers += [conv, nn.ReLU(inplace=True)]
                inputs = outputs
            layers.append(nn.MaxPool2d(3, stride=2 if stage < 3 else 1, padding=1))
        self.features = nn.Sequential(*layers[:-1])
        poolings = (layers[-1], nn.AvgPool2d(3, stride=1, padding=1))
        self.pool5 = nn.Sequential(*poolings) if pool5 else nn.Identity()
        self.fc6 = nn.Conv2d(512, 1024, 3, padding=fc6_dilation, dilation=fc6_dilation)
        self.drop6 = nn.Dropout2d(0.5)
        self.fc7 = nn.Conv2d(1024, 1024, 1)

    def levels(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        conv4 = self.features[:23](x)
        conv5 = self.features[23:](conv4)
        fc6 = self.drop6(F.relu(self.fc6(self.pool5(conv5))))
        return conv4, conv5, F.relu(self.fc7(fc6))

    def translate(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """From torchvision's names, or from those of the authors, whose network is Caffe's."""
        caffe = "conv1_1.weight" in tensors
        return _from_caffe(tensors, self) if caffe else _from_torchvision(tensors)


def _from_caffe(tensors: Mapping[str, Tensor], backbone: VGG16) -> dict[str, Tensor]:
    """conv1_1, conv1_2, ... in features' numbering, for our images instead of Caffe's.

    Caffe's network sees 255 rgb - mean as BGR, ours (rgb - mean) / std: its first convolution is
    rewritten.
    """
    wanted = backbone.state_dict()
    ours = list(dict.fromkeys(key.rpartition(".")[0] for key in wanted))
    convs = [f"conv{i + 1}_{j + 1}" for i, n in enumerate((2, 2, 3, 3, 3)) for j in range(n)]
    names = dict(zip([*convs, "fc6", "fc7"], ours, strict=True))
    renamed = {}
    for key, value in tensors.items():
        module, _, kind = key.rpartition(".")
        renamed[f"{names.get(module, module)}.{kind}"] = value
    keys = ("features.0.weight", "features.0.bias")
    if all(key in renamed and renamed[key].shape == wanted[key].shape for key in keys):
        weight, bias = renamed[keys[0]].flip(1).float(), renamed[keys[1]]
        mean, std, caffe = (
            torch.tensor(v).view(1, 3, 1, 1) for v in (backbone.mean, backbone.std, _MEAN_OF_CAFFE)
        )
        renamed[keys[0]] = weight * 255 * std
        renamed[keys[1]] = bias + (weight * (255 * mean - caffe)).sum((1, 2, 3))
    return renamed


def _from_torchvision(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """fc6 and fc7 by decimation, the way DeepLab thinned them out (Chen et al., 2015).

    Of 4,096 neurons every fourth is taken, of the 7 x 7 cells that fc6 sees every third.
    """
    renamed = dict(tensors)
    for theirs, ours, shape, take in (
        ("classifier.0", "fc6", (4096, 512, 7, 7), 1),
        ("classifier.3", "fc7", (4096, 4096, 1, 1), 4),
    ):
        weight, bias = tensors.get(f"{theirs}.weight"), tensors.get(f"{theirs}.bias")
        if weight is not None and weight.numel() == math.prod(shape):
            renamed[f"{ours}.weight"] = weight.reshape(shape)[::4, ::take, ::3, ::3]
        if bias is not None and bias.shape == (4096,):
            renamed[f"{ours}.bias"] = bias[::4]
    return renamed

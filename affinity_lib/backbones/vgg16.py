"""VGG16 as DeepLab-LargeFOV, the backbone of the paper's "Ours-DeepLab" (section 5.1)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from affinity_lib.backbones.base import Backbone
from affinity_lib.errors import InputError

# channels and dilation of each stage's convolutions; torchvision's configuration "D"
_STAGES = ((64, 2, 1), (128, 2, 1), (256, 3, 1), (512, 3, 1), (512, 3, 2))


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
        super().__init__()
        if output_stride != 8:
            raise InputError(f"output_stride of vgg16 must be 8, got {output_stride}")
        self.output_stride = output_stride
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

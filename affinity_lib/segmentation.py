"""The segmentation network that is trained on the synthesized labels (sections 3.4 and 4.2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from affinity_lib.cam import check_scales
from affinity_lib.evaluation import VOID


class SegmentationNet(nn.Module):
    """A backbone and two atrous convolutions (section 4.2), or one of 1 x 1.

    Args:
        backbone: a network of ``affinity_lib.backbones``.
        num_classes: C, background not counted; the output has C + 1 channels.
        width: channels of the first convolution; 0 for DeepLab-LargeFOV's classifier, dropout and
            one 1 x 1 convolution, which on ``vgg16`` makes the paper's "Ours-DeepLab".
        dilation: of both 3 x 3 convolutions.

    >>> from affinity_lib.backbones import build_backbone
    >>> net = SegmentationNet(build_backbone("small", output_stride=8), num_classes=5)
    >>> net(torch.zeros(1, 3, 64, 64)).shape
    torch.Size([1, 6, 8, 8])
    """

    def __init__(self, backbone: nn.Module, num_classes: int, width: int = 512, dilation: int = 12):
        super().__init__()
        self.backbone = backbone
        if width == 0:
            classifier = nn.Conv2d(backbone.top_channels, num_classes + 1, 1)
            self.head = nn.Sequential(nn.Dropout2d(0.5), classifier)
            return
        atrous = {"kernel_size": 3, "padding": dilation, "dilation": dilation}
        self.head = nn.Sequential(
            nn.Conv2d(backbone.top_channels, width, **atrous),
            nn.ReLU(),
            nn.Dropout2d(0.1),
            nn.Conv2d(width, num_classes + 1, **atrous),
        )

    def from_levels(self, levels: Sequence[Tensor]) -> Tensor:
        """Label logits (B, C + 1, h, w) from the backbone's levels."""
        return self.head(self.backbone.top(levels))

    def forward(self, images: Tensor) -> Tensor:
        """Label logits (B, C + 1, h, w) at the output stride of images (B, 3, H, W)."""
        return self.from_levels(self.backbone.levels(images))


class SegmentationCAM(SegmentationNet):
    """A segmentation network in the place of the classification network, for a second round.

    What lights up of a class is how much likelier it is than the background,
    p_c / (p_bg + p_c), of which Eq. 1 makes a map. (Lesson 8 asks for the share among all tags of
    an image, which is the same where it has one.)

    Args:
        as of SegmentationNet.

    >>> from affinity_lib.backbones import build_backbone
    >>> net = SegmentationCAM(build_backbone("small"), num_classes=5)
    >>> net(torch.zeros(2, 3, 64, 64)).shape
    torch.Size([2, 5])
    """

    def activation(self, levels: Sequence[Tensor]) -> Tensor:
        """Logits of each class against the background, (B, C, h, w)."""
        logits = super().from_levels(levels)
        return logits[:, 1:] - logits[:, :1]

    def evidence(self, levels: Sequence[Tensor]) -> Tensor:
        """p_c / (p_bg + p_c), (B, C, h, w) in [0, 1]."""
        return self.activation(levels).sigmoid()

    def from_levels(self, levels: Sequence[Tensor]) -> Tensor:
        """Class logits (B, C): positive where a class beats the background anywhere."""
        return self.activation(levels).amax(dim=(2, 3))


def segmentation_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of bilinearly upsampled logits, void pixels left out; 0 if all are void.

    Args:
        logits: (B, C + 1, h, w).
        labels: (B, H, W), 0..C or 255.
    """
    logits = F.interpolate(logits, labels.shape[-2:], mode="bilinear", align_corners=False)
    total = F.cross_entropy(logits, labels, ignore_index=VOID, reduction="sum")
    return total / (labels != VOID).sum().clamp(min=1)


@torch.inference_mode()
def label_probabilities(
    net: SegmentationNet,
    image: Tensor,
    size: tuple[int, int],
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
) -> Tensor:
    """Label probabilities of one image, averaged over scales and mirror images.

    Args:
        net: in ``eval`` mode; a copy in bfloat16 gets views in bfloat16.
        image: (1, 3, H, W), normalised, float32, on the network's device.
        size: height and width of the result, those of the original image.
        scales: factors on the image's sides.
        flip: also look at the mirror image.

    Returns:
        (C + 1, height, width), summing to one.

    Raises:
        InputError: no scale, or one that is not above 0.
    """
    check_scales(scales)
    precision, logits = next(net.parameters()).dtype, []
    for scale in scales:
        sides = [max(round(side * scale), 1) for side in image.shape[-2:]]
        view = F.interpolate(image, sides, mode="bilinear", align_corners=False).to(precision)
        logits.append(net(view))
        if flip:
            logits.append(net(view.flip(-1)).flip(-1))
    return probabilities(logits, size)


def probabilities(logits: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """Mean of the label probabilities of some views of one image.

    Args:
        logits: (1, C + 1, h, w) each, of any size.
        size: height and width of the result.

    Returns:
        (C + 1, height, width), summing to one.
    """
    total = 0
    for each in logits:
        each = F.interpolate(each.float(), size, mode="bilinear", align_corners=False)
        total = total + each.softmax(dim=1)[0]
    return total / len(logits)

"""Class activation maps: the classification network and what it lights up (section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from affinity_lib.errors import InputError

_PIXELS = 2**17  # of the views that a CPU looks at together: their maps stay in its cache


class CAMNet(nn.Module):
    """Classification network whose last layer is linear in the pooled features (section 3.1, 4.2).

    Args:
        backbone: a network of ``affinity_lib.backbones``.
        num_classes: C, background not counted.
        head: ``"conv"``, the paper's 3x3 convolution of ``width`` channels before the pooling, or
            ``"linear"``, the released code's dropout and pooling of the backbone's own features.
        width: channels of the 3x3 convolution.
        sqrt: take the square root of the positive class evidence, as the released code does with
            VGG16.

    >>> from affinity_lib.backbones import build_backbone
    >>> net = CAMNet(build_backbone("small"), num_classes=5)
    >>> net(torch.zeros(2, 3, 64, 64)).shape
    torch.Size([2, 5])
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        head: str = "conv",
        width: int = 512,
        sqrt: bool = False,
    ):
        super().__init__()
        self.backbone, self.sqrt = backbone, sqrt
        if head == "conv":
            self.neck = nn.Sequential(
                nn.Conv2d(backbone.top_channels, width, 3, padding=1), nn.ReLU()
            )
        elif head == "linear":
            self.neck, width = nn.Dropout2d(0.5), backbone.top_channels
        else:
            raise InputError(f"cam_head must be conv or linear, got {head!r}")
        self.classifier = nn.Linear(width, num_classes, bias=False)

    def features(self, levels: Sequence[Tensor]) -> Tensor:
        """f^cam of Eq. 1, (B, D, h, w), from the backbone's levels."""
        return self.neck(self.backbone.top(levels))

    def from_levels(self, levels: Sequence[Tensor]) -> Tensor:
        """Class logits (B, C) from the backbone's levels."""
        return self.classifier(self.features(levels).mean(dim=(2, 3)))

    def forward(self, images: Tensor) -> Tensor:
        """Class logits (B, C) of normalised images (B, 3, H, W)."""
        return self.from_levels(self.backbone.levels(images))

    def activation(self, levels: Sequence[Tensor]) -> Tensor:
        """Class evidence w_c^T f(x, y), Eq. 1, (B, C, h, w)."""
        return F.conv2d(self.features(levels), self.classifier.weight[:, :, None, None])

    def evidence(self, levels: Sequence[Tensor]) -> Tensor:
        """What is positive of ``activation``, or its square root, (B, C, h, w)."""
        positive = self.activation(levels).relu()
        return positive.sqrt() if self.sqrt else positive


def classification_loss(logits: Tensor, tags: Tensor) -> Tensor:
    """Multi-label soft margin loss: one sigmoid a class, averaged.

    Args:
        logits: (B, C).
        tags: (B, C), 1 where the image carries the tag.
    """
    return F.multilabel_soft_margin_loss(logits, tags)


@torch.inference_mode()
def multi_scale_activation(
    net: CAMNet, images: Tensor, scales: Sequence[float] = (1.0,), flip: bool = True
) -> Tensor:
    """Sum of the ReLU'd class evidence over scales and mirror images.

    Each view of an image is computed once; small views are looked at together.

    Args:
        net: the classification network, or a ``SegmentationCAM``, in ``eval`` mode.
        images: (B, 3, H, W), normalised, all of one size.
        scales: factors on H and W.
        flip: also look at the mirror image.

    Returns:
        (B, C, h, w) at the grid of scale 1, >= 0, not yet divided by its maximum.

    Raises:
        InputError: no scale, or one that is not above 0.
    """
    check_scales(scales)
    stride = net.backbone.output_stride
    height, width = images.shape[-2:]
    grid = (-(-height // stride), -(-width // stride))
    images = images.contiguous(memory_format=torch.channels_last)
    precision, total = next(net.parameters()).dtype, 0
    for scale in scales:
        size = (max(round(height * scale), 1), max(round(width * scale), 1))
        views = images
        if size != (height, width):
            views = F.interpolate(
                images, size, mode="bilinear", align_corners=False, antialias=True
            )
        if flip:
            views = torch.cat([views, views.flip(-1)])
        maps = [
            net.evidence(net.backbone.levels(some.to(precision))).float()
            for some in views.split(views_together(size, images.device))
        ]
        maps = F.interpolate(torch.cat(maps), grid, mode="bilinear", align_corners=False)
        total = total + maps[: len(images)]
        if flip:
            total = total + maps[len(images) :].flip(-1)
    return total


def views_together(size: tuple[int, int], device: torch.device) -> int:
    """How many images of this size (H, W) make a batch."""
    pixels = _PIXELS if device.type == "cpu" else 32 * _PIXELS
    return max(pixels // (size[0] * size[1]), 1)


def normalize(activation: Tensor, tags: Sequence[int], eps: float = 0) -> Tensor:
    """CAMs of the tags present, each divided by its maximum (after Eq. 1).

    Classes without a tag have M_c = 0 by definition and are left out.

    Args:
        activation: (C, h, w), class evidence; negative values count as none.
        tags: the K labels of the image, 1..C.
        eps: added to the maximum; 1e-5 in the released code.

    Returns:
        (K, h, w) in [0, 1].

    Raises:
        InputError: no tag, or one that has no map.

    >>> normalize(torch.tensor([[[1.0, 4.0]], [[9.0, 9.0]]]), tags=[1])
    tensor([[[0.2500, 1.0000]]])
    """
    if len(tags) == 0:
        raise InputError("an image without a tag has no CAM: give it a tag or leave it out")
    if not 1 <= min(tags) <= max(tags) <= len(activation):
        raise InputError(
            f"tags must be 1..{len(activation)}, the classes of the network, got {list(tags)}: "
            "take a network that was trained on these classes"
        )
    cams = activation[[tag - 1 for tag in tags]].relu()
    return cams / (cams.amax(dim=(1, 2), keepdim=True) + eps).clamp(min=1e-5)


def background(cams: Tensor, alpha: float) -> Tensor:
    """Background activation map (Eq. 2): (1 - max_c M_c)^alpha.

    Args:
        cams: (K, h, w) in [0, 1].
        alpha: exponent >= 1; small values amplify the background, large ones weaken it.

    Returns:
        (h, w) in [0, 1].

    Raises:
        InputError: alpha < 1, or no CAM.

    >>> background(torch.tensor([[[0.5, 1.0]]]), alpha=2)
    tensor([[0.2500, 0.0000]])
    """
    if not alpha >= 1:
        raise InputError(f"alpha must be >= 1 (Eq. 2), got {alpha:g}")
    if len(cams) == 0:
        raise InputError("a background map needs the CAM of at least one tag (Eq. 2), got none")
    return (1 - cams.amax(dim=0)).clamp(0, 1) ** alpha


def with_background(cams: Tensor, alpha: float) -> Tensor:
    """The background map of Eq. 2 on top of the CAMs, (1 + K, h, w)."""
    return torch.cat([background(cams, alpha)[None], cams])


def on_grid(
    cams: Tensor, alpha: float, size: tuple[int, int], stride: int, pooling: bool = False
) -> Tensor:
    """Background and CAMs on the grid of AffinityNet's features, where the walk starts (Eq. 12).

    Args:
        cams: (K, h, w) in [0, 1].
        alpha: exponent of Eq. 2.
        size: height and width of the image that AffinityNet saw.
        stride: pixels a cell of the grid.
        pooling: the released code's way: CAMs and background of the image's size, zero-padded to
            whole cells and averaged over each; otherwise both are interpolated.

    Returns:
        (1 + K, ceil(height / stride), ceil(width / stride)), background first.

    >>> on_grid(torch.ones(1, 1, 1), 2, size=(4, 6), stride=4, pooling=True).tolist()
    [[[0.0, 0.0]], [[1.0, 0.5]]]
    """
    if not pooling:
        grid = (-(-size[0] // stride), -(-size[1] // stride))
        return resize(with_background(cams, alpha), grid)
    maps = with_background(resize(cams, size), alpha)
    return F.avg_pool2d(F.pad(maps, (0, -size[1] % stride, 0, -size[0] % stride)), stride)


def to_labels(scores: Tensor, tags: Sequence[int]) -> Tensor:
    """Label of the highest score at each pixel.

    Args:
        scores: (1 + K, H, W), background first.
        tags: the K labels, 1..C.

    Returns:
        (H, W) uint8: 0 for background, else a tag.

    >>> to_labels(torch.tensor([[[0.2, 0.9]], [[0.8, 0.1]]]), tags=[7])
    tensor([[7, 0]], dtype=torch.uint8)
    """
    names = torch.tensor([0, *tags], dtype=torch.uint8, device=scores.device)
    return names[scores.max(dim=0).indices]  # on a CPU ten times as fast as argmax


def resize(scores: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear resize of score maps (K, h, w) to (K, H, W)."""
    return F.interpolate(scores[None], size, mode="bilinear", align_corners=False)[0]


def check_scales(scales: Sequence[float]) -> None:
    """Refuse to look at an image in no size.

    Raises:
        InputError: there is no scale, or one that is not above 0.
    """
    if not scales or min(scales) <= 0:
        raise InputError(f"scales must be one or more numbers above 0, got {list(scales)}")

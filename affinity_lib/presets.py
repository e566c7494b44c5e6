"""The choices in which the paper and the authors' later released code differ, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from affinity_lib.errors import InputError


@dataclass(frozen=True)
class Preset:
    """One column of the table "paper against released code"; the defaults are the paper's.

    Attributes:
        name: ``"paper"`` or ``"released"``.
        distance: L1 distance of Eq. 3 as ``"sum"`` or ``"mean"`` over the channels.
        affinity_channels: widths of the three 1x1 convolutions on the last three levels
            (section 4.1); their sum is the width of the fourth.
        affinity_norm: group normalisation after the four 1x1 convolutions: none, of equal groups
            (True), or the number of groups of each, where 0 is none.
        affinity_activation: ``"relu"`` or ``"elu"``.
        affinity_gain: of Xavier's initialisation of the fourth convolution; 0 takes He's there,
            as for the other three.
        cam_head: ``"conv"`` (3x3 convolution of 512, GAP, FC) or ``"linear"`` (dropout, GAP, FC).
        cam_sqrt: whether CAMs are square roots of the positive class evidence.
        cam_eps: added to the maximum by which a CAM is divided (Eq. 1).
        cam_backbone, affinity_backbone: options of ``build_backbone`` for these two networks; the
            segmentation network's backbone has none.
        optimizer: ``"adam"`` or ``"sgd"`` (poly schedule, four learning-rate groups).
        weight_decay: of weights; biases have none.
        momentum: of SGD; the released code passes its weight decay here by mistake.
        loss_weights: of L_bg, L_fg and L_neg (Eq. 10); the released code takes a quarter.
        loss_eps: added inside of the logarithms of Eq. 7-9.
        alpha_weak: exponent of Eq. 2 that weakens the background (section 3.2.1).
        label_pooling: how labels come to the grid of the features: ``"area"`` (the label with the
            largest area of a cell; the paper does not say) or ``"mean"`` (the mean of each of the
            two dCRF results over the cell, then argmax).
        pair_border: cells at the left, right and bottom whose pixels start no pair.
        walk_pooling: whether the maps that are walked are means over the cells of a grid on the
            image, zero-padded to whole cells, or (the paper does not say) interpolated.
    """

    name: str
    distance: str = "sum"
    affinity_channels: tuple[int, int, int] = (128, 256, 512)
    affinity_norm: bool | Sequence[int] = False
    affinity_activation: str = "relu"
    affinity_gain: float = 0
    cam_head: str = "conv"
    cam_sqrt: bool = False
    cam_eps: float = 0
    optimizer: str = "adam"
    weight_decay: float = 0
    momentum: float = 0.9
    loss_weights: tuple[float, float, float] = (1, 1, 2)
    loss_eps: float = 0
    alpha_weak: float = 24
    label_pooling: str = "area"
    pair_border: int = 0
    walk_pooling: bool = False
    cam_backbone: Mapping[str, int] = field(default_factory=dict)
    affinity_backbone: Mapping[str, int] = field(default_factory=dict)


PRESETS = {
    "paper": Preset("paper"),
    "released": Preset(
        "released",
        distance="mean",
        affinity_channels=(64, 128, 256),
        affinity_activation="elu",
        affinity_gain=4,
        cam_head="linear",
        cam_eps=1e-5,
        optimizer="sgd",
        weight_decay=5e-4,
        momentum=5e-4,
        loss_weights=(1 / 4, 1 / 4, 1 / 2),
        loss_eps=1e-5,
        alpha_weak=32,
        label_pooling="mean",
        pair_border=4,
        walk_pooling=True,
    ),
}

_OF_A_BACKBONE: dict[tuple[str, str], dict[str, Any]] = {
    ("released", "vgg16"): {
        "cam_sqrt": True,
        "affinity_norm": (8, 16, 32, 0),
        "cam_backbone": {"fc6_dilation": 1, "pool5": False},
        "affinity_backbone": {"fc6_dilation": 4, "pool5": False},
    }
}


def preset(name: str, backbone: str = "") -> Preset:
    """Look a preset up by name.

    Args:
        name: "paper" or "released".
        backbone: its name, as some of the released choices are for VGG16 alone.

    Raises:
        InputError: no preset has that name.

    >>> preset("paper").distance, preset("released").distance
    ('sum', 'mean')
    >>> [preset("released", name).cam_sqrt for name in ("resnet38", "vgg16")]
    [False, True]
    """
    if name not in PRESETS:
        raise InputError(f"preset must be one of {', '.join(PRESETS)}, got {name!r}")
    return replace(PRESETS[name], **_OF_A_BACKBONE.get((name, backbone), {}))

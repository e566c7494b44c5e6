"""The choices in which the paper and the authors' later released code differ, side by side."""

from __future__ import annotations

from dataclasses import dataclass

from affinity_lib.errors import InputError


@dataclass(frozen=True)
class Preset:
    """One column of the table "paper against released code".

    Attributes:
        name: ``"paper"`` or ``"released"``.
        distance: L1 distance of Eq. 3 as ``"sum"`` or ``"mean"`` over the channels.
        affinity_channels: widths of the three 1x1 convolutions on the last three levels
            (section 4.1); their sum is the width of the fourth.
        affinity_norm: group normalisation after the 1x1 convolutions (released, VGG16 only).
        affinity_activation: ``"relu"`` or ``"elu"``.
        cam_head: ``"conv"`` (3x3 convolution of 512, GAP, FC) or ``"linear"`` (dropout, GAP, FC).
        optimizer: ``"adam"`` or ``"sgd"`` (poly schedule, four learning-rate groups).
        weight_decay: of weights; biases have none.
        momentum: of SGD; the released code passes its weight decay here by mistake.
        loss_weights: of L_bg, L_fg and L_neg (Eq. 10); the released code takes a quarter.
        loss_eps: added inside of the logarithms of Eq. 7-9.
        alpha_weak: exponent of Eq. 2 that weakens the background (section 3.2.1).
        pair_border: cells at the left, right and bottom whose pixels start no pair.
    """

    name: str
    distance: str
    affinity_channels: tuple[int, int, int]
    affinity_norm: bool
    affinity_activation: str
    cam_head: str
    optimizer: str
    weight_decay: float
    momentum: float
    loss_weights: tuple[float, float, float]
    loss_eps: float
    alpha_weak: float
    pair_border: int


PRESETS = {
    "paper": Preset(
        name="paper",
        distance="sum",
        affinity_channels=(128, 256, 512),
        affinity_norm=False,
        affinity_activation="relu",
        cam_head="conv",
        optimizer="adam",
        weight_decay=0,
        momentum=0.9,
        loss_weights=(1, 1, 2),
        loss_eps=0,
        alpha_weak=24,
        pair_border=0,
    ),
    "released": Preset(
        name="released",
        distance="mean",
        affinity_channels=(64, 128, 256),
        affinity_norm=False,
        affinity_activation="elu",
        cam_head="linear",
        optimizer="sgd",
        weight_decay=5e-4,
        momentum=5e-4,
        loss_weights=(1 / 4, 1 / 4, 1 / 2),
        loss_eps=1e-5,
        alpha_weak=32,
        pair_border=4,
    ),
}


def preset(name: str) -> Preset:
    """Look a preset up by name.

    Raises:
        InputError: no preset has that name.

    >>> preset("paper").distance
    'sum'
    """
    if name not in PRESETS:
        raise InputError(f"preset must be one of {', '.join(PRESETS)}, got {name!r}")
    return PRESETS[name]

"""What the settings say of the three networks: how each is built, and how it is trained."""

from __future__ import annotations

from typing import Any

from affinity_lib.affinitynet import AffinityNet
from affinity_lib.backbones import Backbone, build_backbone, freeze
from affinity_lib.cam import CAMNet
from affinity_lib.segmentation import SegmentationNet
from affinity_lib.training.recipe import Recipe


def cam_network(config: Any, num_classes: int, weights: str | None = None) -> CAMNet:
    """The classification network (sections 3.1 and 4.2).

    Args:
        config: the settings, as attributes (:class:`affinity_lib.running.settings.Settings`).
        num_classes: C, background not counted.
        weights: of the backbone, in place of ``config.weights``; "" for random ones.
    """
    backbone = _backbone(config, "cam", weights, config.cam_backbone)
    return CAMNet(backbone, num_classes, config.cam_head, config.cam_width, config.cam_sqrt)


def affinity_network(config: Any, weights: str | None = None) -> AffinityNet:
    """AffinityNet (sections 3.2.2 and 4.2, Fig. 3); arguments as for :func:`cam_network`."""
    backbone = _backbone(config, "affinity", weights, config.affinity_backbone)
    channels = [round(width * config.affinity_width) for width in config.affinity_channels]
    norm, activation = config.affinity_norm, config.affinity_activation
    return AffinityNet(backbone, channels, norm, activation, config.affinity_gain)


def segmentation_network(
    config: Any, num_classes: int, weights: str | None = None
) -> SegmentationNet:
    """The segmentation network (sections 3.4 and 4.2); arguments as for :func:`cam_network`."""
    backbone = _backbone(config, "segmentation", weights, {})
    width, dilation = config.segmentation_width, config.segmentation_dilation
    return SegmentationNet(backbone, num_classes, width, dilation)


def recipe(config: Any, network: str) -> Recipe:
    """How a network is trained (section 5.1).

    Args:
        config: the settings, as attributes.
        network: "cam", "affinity" or "segmentation".
    """
    return Recipe(
        epochs=getattr(config, f"{network}_epochs"),
        batch_size=getattr(config, f"{network}_batch"),
        lr=getattr(config, f"{network}_lr"),
        lr_factors=tuple(getattr(config, f"{network}_lr_factors")),
        optimizer=config.optimizer,
        weight_decay=config.weight_decay,
        momentum=config.momentum,
        warmup=config.warmup,
        accumulate=config.accumulate,
        mixed_precision=config.mixed_precision,
        ema_decay=config.segmentation_ema_decay if network == "segmentation" else 0,
        workers=config.workers,
        seed=config.seed,
    )


def _backbone(config: Any, network: str, weights: str | None, options: dict[str, Any]) -> Backbone:
    weights = config.weights if weights is None else weights
    stride = getattr(config, f"{network}_stride")
    backbone = build_backbone(config.backbone, stride, weights, **options)
    return backbone if config.frozen_stages < 0 else freeze(backbone, config.frozen_stages)

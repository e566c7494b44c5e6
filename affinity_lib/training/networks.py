"""What the settings say of the three networks: how each is built, and how it is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from affinity_lib.affinitynet import AffinityNet
from affinity_lib.backbones import Backbone, build_backbone, freeze
from affinity_lib.backbones.weights import fill_backbone, fill_network, read_weights
from affinity_lib.cam import CAMNet
from affinity_lib.errors import InputError
from affinity_lib.segmentation import SegmentationNet
from affinity_lib.training.recipe import Recipe

AUTHORS_LAYERS = {
    "fc8": "classifier",
    **{f"f8_{k + 3}": f"convs.{k}" for k in range(3)},
    **{f"gn8_{k + 3}": f"norms.{k}" for k in range(3)},
    "f9": "convs.3",
}
"""Layers on top of the backbone in the authors' checkpoints of both networks -> in ours."""


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


def load_trained(
    network: CAMNet | AffinityNet, path: str | Path, device: torch.device | str = "cpu"
) -> list[float]:
    """Fill a whole network from the file of one that is trained already, in place of its training.

    Args:
        network: changed in place, brought to ``device``, and in ``eval`` mode afterwards.
        path: a network that an earlier run saved, or a checkpoint of AffinityNet's authors
            (``resnet38_cls``, ``vgg16_cls``, ``resnet38_aff`` or ``vgg16_aff``, in the preset
            "released").
        device: where to compute.

    Returns:
        The losses of its training, as ``fit`` gives them: none.

    Raises:
        InputError: the file cannot be read, or is of a network with other layers or classes.
    """
    tensors, heads = read_weights(path), {}
    for name, value in tensors.items():
        layer, _, kind = name.rpartition(".")
        if layer in AUTHORS_LAYERS:  # their classifier is a convolution of 1 x 1
            value = value.flatten(1) if layer == "fc8" else value
            heads[f"{AUTHORS_LAYERS[layer]}.{kind}"] = value
    if heads:
        if missing := fill_backbone(network.backbone, tensors, str(path)):
            raise InputError(f"{path} has no {missing[0]}: take the backbone that the file is of")
        own = network.backbone.state_dict()
        tensors = {f"backbone.{name}": value for name, value in own.items()} | heads
    fill_network(network, tensors, str(path))
    network.to(device).eval()
    print(f"nothing is trained: the network is that of {path}")
    return []


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

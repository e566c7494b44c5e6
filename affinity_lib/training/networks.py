"""The three networks: how the settings build and train each, and the segmentation network's file.

Its file holds all that is needed to use it on any photograph.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from affinity_lib.affinitynet import AffinityNet
from affinity_lib.backbones import build_backbone
from affinity_lib.backbones.base import Backbone, freeze
from affinity_lib.backbones.weights import fill_backbone, fill_network, read_weights
from affinity_lib.cam import CAMNet
from affinity_lib.crf import CRFSettings
from affinity_lib.data.files import load_tensors, save_tensors
from affinity_lib.data.paths import find_root
from affinity_lib.data.voc import VOCData
from affinity_lib.errors import InputError
from affinity_lib.segmentation import SegmentationCAM, SegmentationNet
from affinity_lib.training.recipe import Recipe

_KEY = "network"  # one key, because safetensors writes several in no certain order

AUTHORS_LAYERS = {
    "fc8": "classifier",
    **{f"f8_{k + 3}": f"convs.{k}" for k in range(3)},
    **{f"gn8_{k + 3}": f"norms.{k}" for k in range(3)},
    "f9": "convs.3",
}
"""Layers on top of the backbone in the authors' checkpoints of both networks -> in ours."""


def cam_network(
    config: Any, num_classes: int, weights: str | None = None
) -> CAMNet | SegmentationCAM:
    """The classification network (sections 3.1 and 4.2).

    With ``config.cam_network`` the file of a segmentation network, that network in its place.

    Args:
        config: the settings, as attributes (:class:`affinity_lib.running.settings.Settings`).
        num_classes: C, background not counted.
        weights: of the backbone, in place of ``config.weights``; "" for random ones.

    Raises:
        InputError: a segmentation network of other classes.
    """
    given = find_root() / config.cam_network
    if given.suffix == ".safetensors" and given.is_file() and _KEY in load_tensors(given)[1]:
        net, settings = load_segmentation_network(given, SegmentationCAM)
        if len(settings.classes) != num_classes:
            raise InputError(
                f"{given} knows {', '.join(settings.classes)}, and the data set has "
                f"{num_classes} classes: give a network of the same classes"
            )
        return net
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
    network: CAMNet | SegmentationCAM | AffinityNet,
    path: str | Path,
    device: torch.device | str = "cpu",
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


@dataclass(frozen=True)
class NetworkSettings:
    """How a segmentation network is built, and how it looks at a photograph.

    Attributes:
        classes: names of the classes 1..C.
        numbers: of background and the classes in the data set's label files, 1 + C.
        backbone, stride, width, dilation: see ``build_backbone`` and ``SegmentationNet``.
        long_side: longer side in pixels that photographs are brought to; 0 leaves them, but for
            those that are larger than ``largest_side``.
        largest_side: longer side in pixels of the largest image that it was trained on.
        scales, flip: see ``label_probabilities``.
        mixed_precision: see ``for_inference``.
        crf: settings of the dCRF that can refine its masks.
    """

    classes: tuple[str, ...]
    numbers: tuple[int, ...]
    backbone: str
    stride: int
    width: int
    dilation: int
    long_side: int
    largest_side: int
    scales: tuple[float, ...]
    flip: bool
    mixed_precision: bool
    crf: CRFSettings

    @classmethod
    def of(
        cls,
        config: Any,
        data: VOCData,
        ids: Iterable[str],
        crf: CRFSettings,
    ) -> NetworkSettings:
        """The settings of a network that notebook 6 has trained.

        Args:
            config: the settings, as attributes.
            data: the data set that it was trained on.
            ids: the training images.
            crf: of the dCRF after the walk.
        """
        return cls(
            classes=data.classes,
            numbers=data.numbers,
            backbone=config.backbone,
            stride=config.segmentation_stride,
            width=config.segmentation_width,
            dilation=config.segmentation_dilation,
            long_side=config.long_side,
            largest_side=max(max(data.image_size(image_id)) for image_id in ids),
            scales=tuple(config.test_scales),
            flip=config.test_flip,
            mixed_precision=config.mixed_precision,
            crf=crf,
        )


def save_network(path: str | Path, net: SegmentationNet, settings: NetworkSettings) -> None:
    """Save a segmentation network and its settings as one safetensors file.

    Args:
        path: the file, ``*.safetensors``.
        net: the network, on any device.
        settings: those that it was built with.
    """
    save_tensors(path, net.state_dict(), {_KEY: json.dumps(asdict(settings))})


def load_segmentation_network(
    path: str | Path, kind: type[SegmentationNet] = SegmentationNet
) -> tuple[SegmentationNet, NetworkSettings]:
    """Build the network that :func:`save_network` saved, from its file alone.

    Args:
        path: the file.
        kind: SegmentationNet, or SegmentationCAM.

    Returns:
        The network in ``eval`` mode on the CPU, and its settings.

    Raises:
        InputError: the file is missing or damaged, has no settings, or has other tensors than
            its settings tell.

    >>> load_segmentation_network("nowhere.safetensors")
    Traceback (most recent call last):
    affinity_lib.errors.InputError: nowhere.safetensors is missing: run the step that writes it
    """
    tensors, metadata = load_tensors(path)
    try:
        values = json.loads(metadata[_KEY])
        values |= {name: tuple(values[name]) for name in ("classes", "numbers", "scales")}
        settings = NetworkSettings(**values | {"crf": CRFSettings(**values["crf"])})
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} does not tell how its network is built, so another version of the project "
            "made it: run notebook 6 again"
        ) from error
    net = kind(
        build_backbone(settings.backbone, settings.stride),
        len(settings.classes),
        settings.width,
        settings.dilation,
    )
    try:
        fill_network(net, tensors, str(path))
    except InputError as error:
        raise InputError(
            f"{path} is said to stand on the backbone {settings.backbone}, and does not: {error}"
        ) from error
    return net.eval(), settings


def _backbone(config: Any, network: str, weights: str | None, options: dict[str, Any]) -> Backbone:
    weights = config.weights if weights is None else weights
    stride = getattr(config, f"{network}_stride")
    backbone = build_backbone(config.backbone, stride, weights, **options)
    return backbone if config.frozen_stages < 0 else freeze(backbone, config.frozen_stages)

"""A segmentation network in one file, with all that is needed to use it on any photograph."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from affinity_lib.backbones import build_backbone
from affinity_lib.backbones.weights import load_network
from affinity_lib.crf import CRFSettings
from affinity_lib.data.files import load_tensors, save_tensors
from affinity_lib.data.voc import VOCData
from affinity_lib.errors import InputError
from affinity_lib.segmentation import SegmentationNet

_KEY = "network"  # one key, because safetensors writes several in no certain order


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


def load_segmentation_network(path: str | Path) -> tuple[SegmentationNet, NetworkSettings]:
    """Build the network that :func:`save_network` saved, from its file alone.

    Returns:
        The network in ``eval`` mode on the CPU, and its settings.

    Raises:
        InputError: the file is missing or damaged, has no settings, or has other tensors than
            its settings tell.

    >>> load_segmentation_network("nowhere.safetensors")
    Traceback (most recent call last):
    affinity_lib.errors.InputError: nowhere.safetensors is missing: run the step that writes it
    """
    _, metadata = load_tensors(path)
    try:
        settings = _settings(metadata[_KEY])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} does not tell how its network is built, so another version of the project "
            "made it: run notebook 6 again"
        ) from error
    net = SegmentationNet(
        build_backbone(settings.backbone, settings.stride),
        len(settings.classes),
        settings.width,
        settings.dilation,
    )
    try:
        load_network(net, path)
    except InputError as error:
        raise InputError(
            f"{path} is said to stand on the backbone {settings.backbone}, and does not: {error}"
        ) from error
    return net.eval(), settings


def _settings(text: str) -> NetworkSettings:
    values = json.loads(text)
    values |= {name: tuple(values[name]) for name in ("classes", "numbers", "scales")}
    return NetworkSettings(**values | {"crf": CRFSettings(**values["crf"])})

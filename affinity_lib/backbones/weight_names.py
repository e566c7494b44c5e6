"""Names: how the tensors of other people's weight files are called in our backbones."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from affinity_lib.backbones.base import Backbone
from affinity_lib.backbones.resnet38 import ResNet38
from affinity_lib.backbones.timm_backbone import TimmBackbone
from affinity_lib.backbones.vgg16 import VGG16
from affinity_lib.errors import InputError

_MEAN_OF_VGG = (122.675, 116.669, 104.008)  # RGB, of 255
_MEAN_OF_KERAS = (123.68, 116.779, 103.939)
_EPS_OF_OLDER_KERAS, _EPS_OF_KERAS = 1e-3, 1.001e-5  # of ResNet-50's batch norm, by its names


def rename(backbone: Backbone, tensors: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """The tensors of a file under the backbone's names.

    Caffe's networks see BGR images in 0 to 255; their first convolution is rewritten for the
    normalised RGB images used here.

    Args:
        backbone: which they are for.
        tensors: by their names in the file; a network's, or a backbone's.
        source: the file, for the message.

    Returns:
        The same tensors, of the backbone's layout; names that mean nothing to it stay.

    Raises:
        InputError: weights of a ResNet-50 whose strides are elsewhere.
    """
    if any(key.startswith("backbone.") for key in tensors):
        tensors = {k[9:]: v for k, v in tensors.items() if k.startswith("backbone.")}
    if isinstance(backbone, ResNet38):
        return {_from_mxnet(key): value for key, value in tensors.items()}
    if isinstance(backbone, VGG16) and "conv1_1.weight" in tensors:
        return _from_caffe(tensors, backbone)
    if isinstance(backbone, VGG16):
        return _from_torchvision(tensors)
    if isinstance(backbone, TimmBackbone):
        return _for_timm(tensors, backbone, source)
    return dict(tensors)


def _from_mxnet(key: str) -> str:
    """From "arg:bn4b5_branch2a_gamma" to "b4_5.bn_branch2a.weight"; other names stay."""
    match = re.fullmatch(
        r"(?:arg|aux):(?:(conv1a|bn7)|(res|bn)(\d)(?:a|b(\d))_(branch\w+?))"
        r"_(weight|gamma|beta|moving_mean|moving_var)",
        key,
    )
    if match is None:
        return key
    whole, kind, stage, block, branch, value = match.groups()
    if whole is None:
        kind = "conv" if kind == "res" else "bn"
        whole = f"b{stage}{f'_{block}' if block else ''}.{kind}_{branch}"
    values = {"gamma": "weight", "beta": "bias"}
    return f"{whole}.{values.get(value, value.replace('moving', 'running'))}"


def _from_caffe(tensors: Mapping[str, Tensor], backbone: VGG16) -> dict[str, Tensor]:
    """conv1_1, conv1_2, ... in features' numbering, for our images instead of Caffe's."""
    wanted = backbone.state_dict()
    ours = list(dict.fromkeys(key.rpartition(".")[0] for key in wanted))
    convs = [f"conv{i + 1}_{j + 1}" for i, n in enumerate((2, 2, 3, 3, 3)) for j in range(n)]
    names = dict(zip([*convs, "fc6", "fc7"], ours, strict=True))
    renamed = {}
    for key, value in tensors.items():
        module, _, kind = key.rpartition(".")
        renamed[f"{names.get(module, module)}.{kind}"] = value
    keys = ("features.0.weight", "features.0.bias")
    if all(key in renamed and renamed[key].shape == wanted[key].shape for key in keys):
        first, bias = (renamed[key] for key in keys)
        renamed[keys[0]], more = _of_our_images(first, _MEAN_OF_VGG, backbone)
        renamed[keys[1]] = bias + more
    return renamed


def _of_our_images(
    first: Tensor, caffe_mean: tuple[float, ...], backbone: Backbone
) -> tuple[Tensor, Tensor]:
    """Weight of the first convolution, and what is added to its bias.

    Theirs sees 255 rgb - caffe_mean as BGR, ours sees (rgb - mean) / std.
    """
    rgb = first.flip(1).float()
    mean, std, caffe = (
        torch.tensor(v).view(1, 3, 1, 1) for v in (backbone.mean, backbone.std, caffe_mean)
    )
    return rgb * 255 * std, (rgb * (255 * mean - caffe)).sum((1, 2, 3))


def _for_timm(tensors: Mapping[str, Tensor], backbone: TimmBackbone, source: str) -> dict:
    """With the ``model.`` that timm's network is an attribute by."""
    of_keras = any(key.endswith("/kernel") for key in tensors)
    plain = not of_keras and not any(key.startswith("model.") for key in tensors)
    if of_keras and not backbone.stride_first or plain and backbone.stride_first:
        whose, remedy = ("Keras's", "resnet50_v1") if of_keras else ("timm's", "resnet50")
        raise InputError(
            f"{source} has {whose} names, whose ResNet-50 strides in another convolution of a "
            f"block: take backbone {remedy}"
        )
    if of_keras:
        tensors = _from_keras(tensors, backbone)
    return {k if k.startswith("model.") else f"model.{k}": v for k, v in tensors.items()}


def _from_keras(tensors: Mapping[str, Tensor], backbone: TimmBackbone) -> dict[str, Tensor]:
    """From "res3b_branch2a/kernel" or "conv3_block2_1_conv/kernel" to "layer2.1.conv1.weight".

    Keras's convolutions have biases, which go into the means of the batch norm after them; what
    its batch norm adds to the variance more than timm's goes into the variance.
    """
    more_variance = (_EPS_OF_OLDER_KERAS if "bn_conv1/gamma" in tensors else _EPS_OF_KERAS) - 1e-5
    layers: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        layer, _, kind = key.rpartition("/")
        layers.setdefault(_place_in_resnet(layer), {})[kind] = value
    renamed, biases = {}, {}
    for place, values in layers.items():
        if "kernel" in values and values["kernel"].ndim == 4:
            weight = values["kernel"].permute(3, 2, 0, 1)
            bias = values.get("bias", weight.new_zeros(len(weight)))
            if place == "conv1" and weight.shape[1] == 3:
                weight, more = _of_our_images(weight, _MEAN_OF_KERAS, backbone)
                bias = bias + more
            renamed[f"{place}.weight"] = weight.contiguous()
            biases[_norm_after(place)] = bias
    kinds = {"gamma": "weight", "beta": "bias"}
    for place, values in layers.items():
        renamed |= {f"{place}.{ours}": values[k] for k, ours in kinds.items() if k in values}
        if "moving_variance" in values:
            renamed[f"{place}.running_var"] = values["moving_variance"] + more_variance
        if "moving_mean" in values:
            mean = values["moving_mean"]
            bias = biases.get(place)
            fits = bias is not None and bias.shape == mean.shape
            renamed[f"{place}.running_mean"] = mean - bias if fits else mean
    return renamed


def _place_in_resnet(layer: str) -> str:
    """timm's module of a layer of Keras's ResNet, by its older name or its newer one."""
    if layer in ("conv1", "conv1_conv"):
        return "conv1"
    if layer in ("bn_conv1", "conv1_bn"):
        return "bn1"
    old = re.fullmatch(r"(res|bn)([2-5])([a-z])_branch(1|2[abc])", layer)
    new = re.fullmatch(r"conv([2-5])_block(\d+)_([0-3])_(conv|bn)", layer)
    if old:
        kind, stage, letter, branch = old.groups()
        block, place = ord(letter) - ord("a"), " abc".index(branch[1:] or " ")
    elif new:
        stage, number, branch, kind = new.groups()
        block, place = int(number) - 1, int(branch)
    else:
        return layer
    norm = kind == "bn"
    module = f"{'bn' if norm else 'conv'}{place}" if place else f"downsample.{int(norm)}"
    return f"layer{int(stage) - 1}.{block}.{module}"


def _norm_after(convolution: str) -> str:
    head, _, last = convolution.rpartition(".")
    last = "1" if last == "0" else last.replace("conv", "bn")
    return f"{head}.{last}" if head else last


def _from_torchvision(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """fc6 and fc7 by decimation, the way DeepLab thinned them out (Chen et al., 2015).

    Of 4,096 neurons every fourth is taken, of the 7 x 7 cells that fc6 sees every third.
    """
    renamed = dict(tensors)
    for theirs, ours, shape, take in (
        ("classifier.0", "fc6", (4096, 512, 7, 7), 1),
        ("classifier.3", "fc7", (4096, 4096, 1, 1), 4),
    ):
        weight, bias = tensors.get(f"{theirs}.weight"), tensors.get(f"{theirs}.bias")
        if weight is not None and weight.numel() == math.prod(shape):
            renamed[f"{ours}.weight"] = weight.reshape(shape)[::4, ::take, ::3, ::3]
        if bias is not None and bias.shape == (4096,):
            renamed[f"{ours}.bias"] = bias[::4]
    return renamed

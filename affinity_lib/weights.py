"""Fills a backbone from the weight files that people have, and a network from our own."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from affinity_lib.errors import InputError
from affinity_lib.features import IMAGENET_MEAN, IMAGENET_STD, Backbone
from affinity_lib.mxnet_params import MAGIC, read_params
from affinity_lib.resnet38 import ResNet38
from affinity_lib.runs import find_root
from affinity_lib.vgg16 import VGG16

LEAST_FILLED = 0.9

_CAFFE_MEAN = (122.675, 116.669, 104.008)  # RGB, of 255


def load_backbone(backbone: Backbone, path: str | Path) -> list[str]:
    """Fill a backbone from a file, whose kind is told from its content.

    - ResNet38: ``ilsvrc-cls_rna-a1_cls1000_ep-0001.params`` (ImageNet, MXNet's format) and the
      checkpoints of AffinityNet's authors (``.pth``).
    - VGG16: torchvision's, and the authors' checkpoints, whose first convolution is rewritten
      from Caffe's BGR images in 0 to 255 to the normalised RGB images used here.
    - timm's networks: timm's own files, and torchvision's where the names agree (ResNet-50).
    - any backbone: its own state dict, ``.pth`` or ``.safetensors``, alone or within a network's.

    What the backbone has no place for (classifiers, heads) is left aside; nothing in a file is
    ever executed.

    Args:
        backbone: changed in place, and only when the file is accepted.
        path: the file.

    Returns:
        Names of the backbone's tensors that the file did not have, empty when it had all; a
        warning names them too.

    Raises:
        InputError: no such file, a damaged one, one with NaN or infinity, or one that fills
            less than 90 % of the backbone's tensors or of their values, with what was missing.

    >>> import tempfile
    >>> from affinity_lib.backbones import build_backbone
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder) / "small.safetensors"
    ...     safetensors.torch.save_file(build_backbone("small").state_dict(), file)
    ...     load_backbone(build_backbone("small"), file)
    []
    """
    return fill_backbone(backbone, read_weights(path), str(path))


def load_network(network: nn.Module, path: str | Path) -> None:
    """Fill a whole network from the file that an earlier notebook saved of the same network.

    Args:
        network: changed in place, and only when every tensor fits.
        path: a file that ``read_weights`` reads, with the network's own names.

    Raises:
        InputError: the file cannot be read, lacks a tensor, has one too many, one of another
            shape (another number of classes or channels) or one with NaN or infinity.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder) / "network.safetensors"
    ...     safetensors.torch.save_file(nn.Linear(8, 5).state_dict(), file)
    ...     load_network(nn.Linear(8, 5), file)
    """
    found, wanted = read_weights(path), network.state_dict()
    kind = type(network).__name__
    remedy = "set classes and widths as they were in its training, or train it again"
    for name in [*wanted, *found]:
        if name not in found:
            raise InputError(f"{path} has no tensor {name} of {kind}: {remedy}")
        if name not in wanted:
            raise InputError(f"{path} has the tensor {name} that {kind} has not: {remedy}")
    for name, value in wanted.items():
        if found[name].shape != value.shape:
            raise InputError(
                f"{path} does not fit {kind}: {name} is {tuple(found[name].shape)} in the file "
                f"and {tuple(value.shape)} in the network; {remedy}"
            )
        if found[name].is_floating_point() and not found[name].isfinite().all():
            raise InputError(f"{path} has NaN or infinity in {name}; train it again")
    network.load_state_dict(found)


def fill_backbone(backbone: Backbone, tensors: Mapping[str, Tensor], source: str) -> list[str]:
    """Fill a backbone from tensors by name, as ``load_backbone`` does from a file.

    Args:
        backbone: changed in place, and only when the tensors are accepted.
        tensors: what ``read_weights`` gives.
        source: where they are from, for the message.

    Returns:
        Names of the backbone's tensors that were not there.

    Raises:
        InputError: see ``load_backbone``.
    """
    wanted = {k: v for k, v in backbone.state_dict().items() if not k.endswith("batches_tracked")}
    found = _rename(backbone, tensors, wanted)
    fitting = {k: v for k, v in found.items() if k in wanted and v.shape == wanted[k].shape}
    missing = [k for k in wanted if k not in fitting]
    values = sum(wanted[k].numel() for k in fitting) / sum(v.numel() for v in wanted.values())
    filled = min(values, len(fitting) / len(wanted))
    if filled < LEAST_FILLED:
        raise _refusal(backbone, source, filled, missing, found, wanted)
    broken = [k for k, v in fitting.items() if v.is_floating_point() and not v.isfinite().all()]
    if broken:
        raise InputError(f"{source} has NaN or infinity in {broken[0]}; fetch it again")
    backbone.load_state_dict(fitting, strict=False)
    if missing:
        warnings.warn(f"{source} had no {', '.join(missing)}: left as they were", stacklevel=3)
    return missing


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """All tensors of a weight file, by the names that they have in it.

    Args:
        path: MXNet's ``.params``, a state dict of PyTorch (also inside a dict, under
            ``"state_dict"`` or ``"model"``), or safetensors. A relative path that is not there
            is looked for from the project's folder.

    Returns:
        Tensors by name, without the ``module.`` that data-parallel training puts before them.

    Raises:
        InputError: no such file, or it cannot be read as one of the three.
    """
    path = Path(path)
    if not path.exists() and not path.is_absolute():
        path = find_root() / path
    try:
        with open(path, "rb") as stream:
            start = stream.read(9)
    except OSError as error:
        raise InputError(f"cannot read weights {path} ({error.strerror}); check the path") from None
    if int.from_bytes(start[:8], "little") == MAGIC:
        return {name: torch.from_numpy(array) for name, array in read_params(path).items()}
    try:
        if start[8:] == b"{":
            content = safetensors.torch.load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes that are no weights can raise anything
        raise InputError(
            f"{path} holds no weights that can be read safely ({type(error).__name__}); "
            "it must be MXNet's .params, a PyTorch state dict or safetensors"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not any(isinstance(v, Tensor) for v in content.values()):
        raise InputError(f"{path} holds no state dict; save network.state_dict() instead")
    return {str(k).removeprefix("module."): v for k, v in content.items() if isinstance(v, Tensor)}


def _rename(
    backbone: Backbone, tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The file's tensors under the backbone's names."""
    if any(key.startswith("backbone.") for key in tensors):
        tensors = {k[9:]: v for k, v in tensors.items() if k.startswith("backbone.")}
    if isinstance(backbone, ResNet38):
        return {_from_mxnet(key): value for key, value in tensors.items()}
    if isinstance(backbone, VGG16) and "conv1_1.weight" in tensors:
        return _from_caffe(tensors, wanted)
    if isinstance(backbone, VGG16):
        return _from_torchvision(tensors)
    if all(key.startswith("model.") for key in wanted):  # timm's network is an attribute
        return {k if k.startswith("model.") else f"model.{k}": v for k, v in tensors.items()}
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


def _from_caffe(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """conv1_1, conv1_2, ... in features' numbering, for our images instead of Caffe's."""
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
        # theirs sees 255 rgb - caffe, ours sees (rgb - mean) / std
        rgb = first.flip(1).float()
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
        caffe = torch.tensor(_CAFFE_MEAN).view(1, 3, 1, 1)
        renamed["features.0.weight"] = rgb * 255 * std
        renamed["features.0.bias"] = bias + (rgb * (255 * mean - caffe)).sum((1, 2, 3))
    return renamed


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


def _refusal(
    backbone: Backbone,
    source: str,
    filled: float,
    missing: list[str],
    found: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
) -> InputError:
    """The error that names what was missing, in full in its note."""
    names = [
        f"{k} ({tuple(found[k].shape)} instead of {tuple(wanted[k].shape)})" if k in found else k
        for k in missing
    ]
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    error = InputError(
        f"{source} fills {filled:.0%} of {type(backbone).__name__}, at least {LEAST_FILLED:.0%} "
        f"are needed; missing: {', '.join(names[:8])}{more}; take weights of this network"
    )
    error.add_note("missing: " + ", ".join(names))
    return error

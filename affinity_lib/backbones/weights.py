"""Fills a backbone from the weight files that people have, and a network from our own."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from affinity_lib.backbones.base import Backbone
from affinity_lib.backbones.mxnet_params import MAGIC, read_params
from affinity_lib.backbones.tfjs import read_tfjs
from affinity_lib.backbones.weight_names import rename
from affinity_lib.data.paths import find_root
from affinity_lib.errors import InputError

LEAST_FILLED = 0.9


def load_backbone(backbone: Backbone, path: str | Path) -> list[str]:
    """Fill a backbone from a file, whose kind is told from its content.

    - ResNet38: ``ilsvrc-cls_rna-a1_cls1000_ep-0001.params`` (ImageNet, MXNet's format) and the
      checkpoints of AffinityNet's authors (``.pth``).
    - VGG16: torchvision's, and the authors' checkpoints.
    - timm's networks: timm's own files, and torchvision's where the names agree (ResNet-50).
    - ResNet-50 of Keras ("resnet50_v1"): the ``model.json`` of its TensorFlow.js files.
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
    found = rename(backbone, tensors, source)
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
            ``"state_dict"`` or ``"model"``), safetensors, or the ``model.json`` of a
            TensorFlow.js model. A relative path that is not there is looked for from the
            project's folder.

    Returns:
        Tensors by name, without the ``module.`` that data-parallel training puts before them.

    Raises:
        InputError: no such file, or it cannot be read as one of the four.
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
    if path.suffix == ".json":
        return {name: torch.from_numpy(array) for name, array in read_tfjs(path).items()}
    try:
        if start[8:] == b"{":
            content = safetensors.torch.load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes that are no weights can raise anything
        raise InputError(
            f"{path} holds no weights that can be read safely ({type(error).__name__}); "
            "it must be MXNet's .params, a PyTorch state dict, safetensors or TensorFlow.js's model.json"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not any(isinstance(v, Tensor) for v in content.values()):
        raise InputError(f"{path} holds no state dict; save network.state_dict() instead")
    return {str(k).removeprefix("module."): v for k, v in content.items() if isinstance(v, Tensor)}


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

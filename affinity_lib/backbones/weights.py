"""Fills a backbone from the weight files that people have, and a network from our own."""

from __future__ import annotations

import argparse
import io
import re
import warnings
from collections.abc import Mapping
from pathlib import Path, PosixPath
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from affinity_lib.backbones.base import Backbone
from affinity_lib.backbones.mxnet_params import MAGIC, read_params
from affinity_lib.data.paths import find_root
from affinity_lib.errors import InputError

LEAST_FILLED = 0.9

WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network", "weight", "params")
"""Names under which checkpoints keep the state dict, the likeliest first."""

_NO_WEIGHTS = {
    b"<": "a page of a website: download the file itself",
    b"version https://git-lfs": "a pointer of Git LFS: fetch the file itself with git lfs pull",
    b"{": "JSON, often a server's message: download the file itself",
    b"\x89HDF": "HDF5, as Keras writes it: take PyTorch's weights of this network",
    b"\x1f\x8b": "packed with gzip: unpack it first",
}
"""What is saved under the name of weights by mistake: the first bytes -> what it is, and the remedy."""

_OF_NUMPY = ("dtype", "ndarray") + tuple(
    f"{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")
)


class _Pickled:
    """Stands for an array, a number or a type of numpy's, whose own unpickling forged bytes crash."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments, self.state = arguments, ()

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def tensor(self) -> Tensor | None:
        """The tensor that it holds, if it is a whole array of numbers."""
        try:
            _, shape, kind, fortran, data = self.state
            dtype = np.dtype(re.fullmatch(r"[biuf]\d", kind.arguments[0])[0])
            array = np.frombuffer(data, dtype.newbyteorder(kind.state[1])).reshape(
                shape, order="F" if fortran else "C"
            )
            return torch.from_numpy(array.astype(dtype))
        except (AttributeError, IndexError, KeyError, MemoryError, TypeError, ValueError):
            return None


def load_backbone(backbone: Backbone, path: str | Path) -> list[str]:
    """Fill a backbone from a file, whose kind is told from its content.

    - ResNet38: ``ilsvrc-cls_rna-a1_cls1000_ep-0001.params`` (ImageNet, MXNet's format) and the
      checkpoints of AffinityNet's authors (``.pth``).
    - VGG16: torchvision's, and the authors' checkpoints.
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
        InputError: no such file, a damaged one, one with NaN or infinity, one that holds the
            network twice (an average beside it), or one that fills less than 90 % of the
            backbone's tensors or of their values, with what was missing.

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
    fill_network(network, read_weights(path), str(path))


def fill_network(network: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Fill a whole network from tensors by name, as ``load_network`` does from a file.

    Args:
        network: changed in place, and only when every tensor fits.
        tensors: by the network's own names.
        source: where they are from, for the message.

    Raises:
        InputError: see ``load_network``.
    """
    wanted = network.state_dict()
    for name in [*wanted, *tensors]:
        theirs, ours = (tuple(t[name].shape) if name in t else "missing" for t in (tensors, wanted))
        if theirs != ours:
            raise InputError(
                f"{source} does not fit {type(network).__name__}: {name} is {theirs} in the file "
                f"and {ours} in the network; set preset, classes and widths as they were in its "
                "training, or train it again"
            )
        if tensors[name].is_floating_point() and not tensors[name].isfinite().all():
            raise InputError(f"{source} has NaN or infinity in {name}; train it again")
    network.load_state_dict(tensors)


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
    found = _translated(backbone, tensors, wanted, source)
    fitting = _fitting(found, wanted)
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
        path: MXNet's ``.params``, a state dict of PyTorch (also within a checkpoint, under any of
            ``WRAPPERS`` or as its only one) or safetensors. A relative path that is not there is
            looked for from the project's folder.

    Returns:
        Tensors by name, without the ``module.`` and ``_orig_mod.`` that data-parallel training and
        ``torch.compile`` put before them; arrays of numpy become tensors.

    Raises:
        InputError: no such file, it cannot be read as one of the three, or it holds several state
            dicts and none of the usual name.
    """
    path = Path(path)
    if not path.exists() and not path.is_absolute():
        path = find_root() / path
    try:
        with open(path, "rb") as stream:
            start = stream.read(32)
    except OSError as error:
        raise InputError(f"cannot read weights {path} ({error.strerror}); check the path") from None
    if int.from_bytes(start[:8], "little") == MAGIC:
        return {name: torch.from_numpy(array) for name, array in read_params(path).items()}
    content = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not content:
        raise InputError(f"{path} is empty; fetch it again")
    for first, what in _NO_WEIGHTS.items():
        if content.startswith(first):
            raise InputError(f"{path} holds no weights, it is {what}")
    tensors = {str(k): _tensor(v) for k, v in _state_dict(_unpickled(path, start), path).items()}
    return {
        re.sub(r"^((module|_orig_mod)\.)+", "", k): v for k, v in tensors.items() if v is not None
    }


def _unpickled(path: Path, start: bytes) -> Any:
    """What is in a file of safetensors or PyTorch, without running any code of it."""
    try:
        if start[8:9] == b"{":
            return safetensors.torch.load_file(path)
        beside = [argparse.Namespace, PosixPath, _Pickled]  # found beside tensors, and harmless
        beside += [(_Pickled, f"numpy.{name}") for name in _OF_NUMPY]
        # Formats other than zip announce lengths: of bytes in memory, no more is taken.
        source = path if start.startswith(b"PK") else io.BytesIO(path.read_bytes())
        with torch.serialization.safe_globals(beside):
            return torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes that are no weights can raise anything
        needed = re.search(r"Unsupported (?:global: GLOBAL|class) (\S+)", str(error))
        if needed:
            raise InputError(
                f"{path} holds no weights that can be read safely: it needs the code of {needed[1]}, "
                "which is not run; load it where it was made and save network.state_dict()"
            ) from error
        if "TorchScript" in str(error):
            raise InputError(
                f"{path} is a TorchScript program, which is not run; load it with torch.jit.load "
                "and save its state_dict()"
            ) from error
        raise InputError(
            f"{path} holds no weights that can be read safely ({type(error).__name__}); "
            "it must be MXNet's .params, a PyTorch state dict or safetensors"
        ) from error


def _state_dict(content: Any, path: Path) -> Mapping:
    """The mapping that holds the tensors, found by its usual name or as the only one."""
    while isinstance(content, Mapping):
        inner = {k: v for k, v in content.items() if isinstance(v, Mapping) and _holds_tensors(v)}
        usual = [key for key in WRAPPERS if key in inner] or list(inner)
        if not usual:
            break
        if len(usual) > 1 and usual[0] not in WRAPPERS:
            raise InputError(
                f"{path} holds several state dicts, {', '.join(map(str, inner))}: save the one "
                "that is meant to a file of its own"
            )
        content = inner[usual[0]]
    if isinstance(content, Mapping) and any(_tensor(v) is not None for v in content.values()):
        return content
    raise InputError(f"{path} holds no state dict; save network.state_dict() instead")


def _holds_tensors(content: Mapping) -> bool:
    """Whether there are named tensors in it, at any depth; an optimizer numbers its own."""
    return any(
        isinstance(key, str)
        and (_holds_tensors(v) if isinstance(v, Mapping) else _tensor(v) is not None)
        for key, v in content.items()
    )


def _tensor(value: Any) -> Tensor | None:
    if isinstance(value, _Pickled):
        return value.tensor()
    return value if isinstance(value, Tensor) else None


def _translated(
    backbone: Backbone, tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], source: str
) -> dict[str, Tensor]:
    """The tensors under the backbone's names, without the prefix of the network that they lie in."""
    dots = {key: [match.end() for match in re.finditer(r"\.", key)][:3] for key in tensors}
    prefixes = ["", *(key[:end] for key, ends in dots.items() for end in ends)]
    prefixes = sorted(dict.fromkeys(prefixes), key=len)
    found, fits = {}, {}
    for prefix in prefixes:
        inner = {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
        found[prefix] = backbone.translate(inner)
        fits[prefix] = len(_fitting(found[prefix], wanted))
    best = [prefix for prefix in prefixes if fits[prefix] == max(fits.values())]
    if fits[best[0]] >= LEAST_FILLED * len(wanted):
        others = [prefix for prefix in best if not prefix.startswith(best[0])]
        if others:
            raise InputError(
                f"{source} holds the network more than once, as {best[0]} and {others[0]}: save "
                "the one that is meant to a file of its own"
            )
    return found[best[0]]


def _fitting(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k: v for k, v in found.items() if k in wanted and v.shape == wanted[k].shape}


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

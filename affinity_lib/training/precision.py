"""Where a notebook computes and in which precision: the device, bfloat16, and what a GPU is."""

from __future__ import annotations

import subprocess
from typing import Any

import torch

from affinity_lib.errors import InputError


def pick_device(name: str = "auto") -> torch.device:
    """The device to compute on, which works.

    Args:
        name: see ``find_device``.

    Raises:
        InputError: the name is unknown or this machine has no such device.

    >>> pick_device("cpu")
    device(type='cpu')
    """
    device = find_device(name)
    try:
        torch.zeros(1, device=device).item()  # which one without memory, "meta", cannot
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise _not_there(name) from error
    return device


def find_device(name: str = "auto") -> torch.device:
    """The device of a name; a GPU is looked for and nothing of its memory taken.

    Args:
        name: "auto" (the GPU if there is one), "cpu", "cuda", "cuda:1", "mps".

    Raises:
        InputError: the name is unknown or this machine has no such GPU.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise _not_there(name) from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise _not_there(name)
    return device


def accelerator(name: str = "auto") -> dict[str, Any]:
    """The device behind a name and all of it that numbers can depend on, for a run's manifest.

    Args:
        name: see ``find_device``.

    Returns:
        Plain values: ``device`` ("cpu", "cuda", ...) and ``bfloat16``, which decide what comes
        out; for a GPU also ``gpu``, ``driver``, ``cuda`` and ``cudnn``, None where unknown.

    Raises:
        InputError: this machine has no such device.

    >>> accelerator("cpu")["device"]
    'cpu'
    """
    device = find_device(name)
    found = {"device": device.type, "bfloat16": has_bfloat16(device)}
    if device.type != "cuda":
        return found
    return found | {
        "gpu": torch.cuda.get_device_name(device),
        "driver": _driver(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def has_bfloat16(device: torch.device | str) -> bool:
    """Whether a device computes in bfloat16: a CPU with AVX-512 or AMX for it, a GPU from Ampere on.

    >>> has_bfloat16("meta")
    False
    """
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    able = torch.cpu.get_capabilities() if kind == "cpu" else {}
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def autocast(device: torch.device | str, mixed_precision: bool) -> torch.autocast:
    """Context in which convolutions compute in bfloat16, if asked and if the device has it.

    Weights and statistics stay in float32.

    >>> with autocast("cpu", mixed_precision=False):
    ...     torch.nn.functional.linear(torch.ones(1, 2), torch.ones(3, 2)).dtype
    torch.float32
    """
    kind = torch.device(device).type
    return torch.autocast(kind, torch.bfloat16, mixed_precision and has_bfloat16(device))


def _not_there(name: str) -> InputError:
    return InputError(f"device {name!r} is not available on this machine: use auto or cpu")


def _driver() -> str | None:
    """The version of NVIDIA's driver, which torch does not tell."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return next(iter(answer.stdout.split()), None)

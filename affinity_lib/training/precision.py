"""Mixed precision: convolutions in bfloat16, on the devices that compute in it."""

from __future__ import annotations

from typing import Any

import torch

from affinity_lib.errors import InputError


def has_bfloat16(device: torch.device | str) -> bool:
    """Whether a device is to compute in bfloat16: a CPU with AVX-512 or AMX for it, and any GPU.

    It saves a GPU memory even where, as before Ampere, it is emulated.

    >>> has_bfloat16("meta")
    False
    """
    kind = torch.device(device).type
    if kind != "cpu":
        return kind == "cuda"
    able = torch.cpu.get_capabilities()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def autocast(device: torch.device | str, mixed_precision: bool) -> torch.autocast:
    """Context in which convolutions compute in bfloat16, if asked and if the device has it.

    Weights, statistics and losses stay in float32.

    >>> with autocast("cpu", mixed_precision=False):
    ...     torch.nn.functional.linear(torch.ones(1, 2), torch.ones(3, 2)).dtype
    torch.float32
    """
    kind = torch.device(device).type
    return torch.autocast(kind, torch.bfloat16, mixed_precision and has_bfloat16(device))


def pick_device(name: str = "auto") -> torch.device:
    """The device to compute on.

    Args:
        name: "auto" (the GPU if there is one), "cpu", "cuda", "cuda:1", "mps".

    Raises:
        InputError: the name is unknown or this machine has no such device.

    >>> pick_device("cpu")
    device(type='cpu')
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(
            f"device {name!r} is not available on this machine: use auto or cpu"
        ) from error
    return device


def machine(device: torch.device) -> dict[str, Any]:
    """What of a device can change a number: its kind, and whether it computes in bfloat16."""
    return {"device": device.type, "bfloat16": has_bfloat16(device)}

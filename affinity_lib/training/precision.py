"""Mixed precision: convolutions in bfloat16, on the devices that compute in it."""

from __future__ import annotations

import torch


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

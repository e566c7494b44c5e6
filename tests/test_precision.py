"""Convolutions in bfloat16: only if asked, and only where a device computes in it."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import linear

from affinity_lib.errors import InputError
from affinity_lib.training.precision import autocast, has_bfloat16, pick_device


def with_capabilities(monkeypatch, **able: bool) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)


@pytest.mark.parametrize("able", ["avx512_bf16", "amx_bf16"])
def test_a_cpu_with_instructions_for_it_has_bfloat16(monkeypatch, able):
    with_capabilities(monkeypatch, **{able: True})
    assert has_bfloat16("cpu")


def test_a_cpu_without_them_has_none_and_a_gpu_has(monkeypatch):
    with_capabilities(monkeypatch, avx2=True, avx512_bf16=False)
    assert not has_bfloat16("cpu")
    assert has_bfloat16("cuda:1")


@pytest.mark.parametrize("asked", [False, True])
@pytest.mark.parametrize("able", [False, True])
def test_it_is_used_where_it_is_asked_for_and_there(monkeypatch, asked, able):
    with_capabilities(monkeypatch, avx512_bf16=able)
    with autocast("cpu", asked):
        found = linear(torch.ones(1, 2), torch.ones(3, 2)).dtype
    assert found == (torch.bfloat16 if asked and able else torch.float32)


def test_auto_takes_the_gpu_if_there_is_one():
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "", "auto:1"])
def test_a_device_that_is_not_there_is_refused(name: str):
    with pytest.raises(InputError, match="use auto or cpu"):
        pick_device(name)

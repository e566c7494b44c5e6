"""Convolutions in bfloat16: only if asked, and only where a device computes in it."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import linear

from affinity_lib.errors import InputError
from affinity_lib.training import precision
from affinity_lib.training.precision import accelerator, autocast, has_bfloat16, pick_device


def with_capabilities(monkeypatch, **able: bool) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)


@pytest.mark.parametrize("able", ["avx512_bf16", "amx_bf16"])
def test_a_cpu_with_instructions_for_it_has_bfloat16(monkeypatch, able):
    with_capabilities(monkeypatch, **{able: True})
    assert has_bfloat16("cpu")


def test_a_cpu_without_them_has_none(monkeypatch):
    with_capabilities(monkeypatch, avx2=True, avx512_bf16=False)
    assert not has_bfloat16("cpu")


@pytest.mark.parametrize("real", [False, True])
def test_a_gpu_has_bfloat16_where_it_is_not_emulated(monkeypatch, real):
    def supported(including_emulation: bool = True) -> bool:
        return real or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert has_bfloat16("cuda:1") == real


def test_a_cpu_is_described_by_its_name_alone():
    assert accelerator("cpu") == {"device": "cpu", "bfloat16": has_bfloat16("cpu")}


def test_a_gpu_is_described_by_all_that_numbers_depend_on(monkeypatch):
    device = torch.device("cuda:1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(precision, "_driver", lambda: "550.54.15")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", {device: "NVIDIA H100"}.get)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91002)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert accelerator("cuda:1") == {
        "device": "cuda",
        "bfloat16": True,
        "gpu": "NVIDIA H100",
        "driver": "550.54.15",
        "cuda": "13.0",
        "cudnn": 91002,
    }


def test_without_nvidias_tool_the_driver_is_unknown(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert precision._driver() is None
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 550.54.15\necho 550.54.15\n")
    tool.chmod(0o755)
    assert precision._driver() == "550.54.15"


def test_auto_takes_the_gpu_if_there_is_one():
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "", "auto:1", "meta"])
def test_a_device_that_is_not_there_is_refused(name: str):
    with pytest.raises(InputError, match="use auto or cpu"):
        pick_device(name)


@pytest.mark.parametrize("asked", [False, True])
@pytest.mark.parametrize("able", [False, True])
def test_it_is_used_where_it_is_asked_for_and_there(monkeypatch, asked, able):
    with_capabilities(monkeypatch, avx512_bf16=able)
    with autocast("cpu", asked):
        found = linear(torch.ones(1, 2), torch.ones(3, 2)).dtype
    assert found == (torch.bfloat16 if asked and able else torch.float32)

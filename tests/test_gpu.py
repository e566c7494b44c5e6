"""``make gpu`` without a GPU: what it compares is the CPU with itself, and what it measures is there."""

from __future__ import annotations

from pathlib import Path

import gpu
import lessons
import pytest
import torch
from estimate import estimate

from affinity_lib.data.files import load_json

CPU = torch.device("cpu")
ONE = dict.fromkeys(("crf_seconds", "walk_seconds", "map_bytes", "soft_bytes", "png_bytes"), 1.0)


def test_without_a_gpu_it_says_so_in_one_sentence_and_all_is_well(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main(["--out", str(tmp_path / "gpu.json")]) == 0
    assert capsys.readouterr().out == f"{gpu.NO_GPU}\n" and not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def rows() -> list[gpu.Row]:
    return gpu.compare(CPU, quick=True)


def test_the_cpu_agrees_with_itself_in_every_step_of_the_chain(rows):
    assert all(row.difference <= row.tolerance / 100 for row in rows if "mixed" not in row.name)
    names = " ".join(row.name for row in rows)
    for part in ("cam, training step: loss", "affinity, training step", "segmentation, two epochs"):
        assert part in names
    for part in ("CAMs of 2 images", "affinities of", "random walk", "segmentation, 3 scales"):
        assert part in names


def test_a_result_that_differs_is_found(monkeypatch):
    devices = []

    def case(device):
        devices.append(device)
        assert torch.backends.cudnn.enabled and not torch.backends.cudnn.allow_tf32
        return {"value": torch.tensor([1.0, len(devices) > 4])}

    monkeypatch.setattr(gpu, "_cases", lambda *given: [("case", case, {"value": 0.5})])
    (row,) = gpu.compare(CPU, quick=True)
    assert row.difference == 1 and not row.agrees
    assert "TOO LARGE" in gpu.tables({}, [row], [], [])


def test_the_steps_that_it_measures_are_those_that_the_estimate_takes():
    plan = gpu.cut_down()
    steps = gpu.training_steps(CPU, [plan])
    assert [step["network"] for step in steps] == list(lessons.STAGES)
    costs = {cost.stage[:2]: cost for cost in estimate(plan, ONE, steps)}
    assert costs["01"].tflops == steps[0]["tflops"] > 0
    assert costs["03"].tflops == costs["04"].tflops == steps[1]["tflops"]
    assert costs["06"].tflops == steps[2]["tflops"]
    assert "images/s" in gpu.tables({"gpu": "none"}, [], [], steps)


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="products by rows need MKL")
def test_every_way_of_walking_is_timed():
    times = gpu.walk_times(CPU, quick=True)
    assert [time["way"] for time in times] == [*gpu.PRODUCTS, gpu.DENSE]
    assert all(time["seconds"] > 0 for time in times)


def test_each_size_is_new_once_and_looked_at_again(monkeypatch):
    look, sizes = gpu.multi_scale_activation, []

    def watched(net, images, *views, **how):
        sizes.append(tuple(images.shape[-2:]))
        return look(net, images, *views, **how)

    monkeypatch.setattr(gpu, "multi_scale_activation", watched)
    (row,) = gpu.size_times(CPU, quick=True)
    assert sizes[::2] == sizes[1::2] and len(set(sizes)) == len(sizes) / 2 > 5
    assert row["first"] > 0 < row["again"]
    assert "of a new size" in gpu.tables({}, [], [], [], [row])


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU with CUDA")
def test_a_gpu_gives_what_the_cpu_gives(tmp_path: Path, capsys):
    assert gpu.main(["--quick", "--out", str(tmp_path / "gpu.json")]) == 0, capsys.readouterr().out
    assert load_json(tmp_path / "gpu.json")["training"]

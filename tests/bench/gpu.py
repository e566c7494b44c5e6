"""``make gpu``: a GPU against the CPU on a cut-down chain, and the paper's training steps on it.

Prints how far the two are from each other, how long each takes and what the GPU holds at its peak.
The training steps are left in ``runs/gpu.json``, from which the estimate of a profile takes hours.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from bench import walk_input
from counting import count_training
from estimate import build_network
from lessons import STAGES, loss_of
from measuring import describe_machine
from torch import Tensor, nn

from affinity_lib import random_walk as walking
from affinity_lib.affinity import half_plane_offsets
from affinity_lib.affinitynet import AffinityNet
from affinity_lib.backbones import build_backbone
from affinity_lib.cam import CAMNet, multi_scale_activation
from affinity_lib.data.files import load_scores, save_json
from affinity_lib.data.paths import find_root
from affinity_lib.data.toy import make_toy
from affinity_lib.data.voc import VOC_CLASSES, VOCData
from affinity_lib.plots import markdown_table
from affinity_lib.presets import preset
from affinity_lib.running.plan import Plan, make_plan
from affinity_lib.segmentation import SegmentationNet
from affinity_lib.stages.cams import infer_cams
from affinity_lib.stages.predictions import predict
from affinity_lib.stages.walk import affinity_of
from affinity_lib.training.inference import for_inference
from affinity_lib.training.inputs import Inputs
from affinity_lib.training.loop import Recipe, fit
from affinity_lib.training.precision import accelerator, autocast
from affinity_lib.training.state import build_optimizer

PROFILES = ("voc12", "voc12-vgg16")
NO_GPU = "There is no GPU with CUDA here: `make gpu` compares one with the CPU where there is."
PRODUCTS = {"bags": "_by_bags", "rows (CSR)": "_by_rows", "shifts": "_by_shifts"}
DENSE = "squarings of the dense matrix"

Results = Mapping[str, Tensor]


@dataclass(frozen=True)
class Row:
    """One result on both devices.

    Attributes:
        name: what was computed.
        difference: the largest, relative to the largest value on the CPU.
        tolerance: what it may be.
        cpu, gpu: seconds of the call.
        memory: bytes that torch held on the GPU at the peak of the call.
    """

    name: str
    difference: float
    tolerance: float
    cpu: float
    gpu: float
    memory: int

    @property
    def agrees(self) -> bool:
        return self.difference <= self.tolerance


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare and measure; returns 1 if the GPU gives something else than the CPU, else 0."""
    parser = argparse.ArgumentParser(prog="python tests/bench/gpu.py", description=__doc__)
    parser.add_argument("--out", type=Path, default=None, help="file, default runs/gpu.json")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print(NO_GPU)
        return 0
    device, out = torch.device("cuda"), options.out or find_root() / "runs" / "gpu.json"
    rows = compare(device, options.quick)
    walks = walk_times(device, options.quick)
    steps = training_steps(
        device, [cut_down() if options.quick else make_plan(n) for n in PROFILES]
    )
    sizes = size_times(device, options.quick)
    result = {"machine": describe_machine() | accelerator("cuda"), "training": steps}
    result |= {"chain": [asdict(row) for row in rows], "walk": walks, "sizes": sizes}
    save_json(out, result)
    print(tables(result["machine"], rows, walks, steps, sizes))
    print(f"\n{out}")
    return 0 if all(row.agrees for row in rows) else 1


def compare(device: torch.device, quick: bool = False) -> list[Row]:
    """The chain of a toy data set on the CPU and on a device, from the same weights.

    In float32 without TF32, but for the steps in mixed precision; without dropout, whose random
    numbers are another device's own.
    """
    rows = []
    # ``flags`` turns off what it is not given
    exact = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
    with tempfile.TemporaryDirectory() as folder, exact:
        data = VOCData(make_toy(Path(folder, "toy"), **_toy_size(quick)))
        for name, call, tolerances in _cases(data, Path(folder)):
            here, seconds, _ = _measured(torch.device("cpu"), call)
            there, gpu_seconds, memory = _measured(device, call)
            for part, tolerance in tolerances.items():
                known, found = here[part], there[part]
                difference = float((known - found).abs().max() / known.abs().max().clamp(min=1e-12))
                label = f"{name}: {part}"
                rows.append(Row(label, difference, tolerance, seconds, gpu_seconds, memory))
    return rows


def walk_times(device: torch.device, quick: bool = False) -> list[dict[str, Any]]:
    """Seconds and memory of 256 steps of the walk with each way of multiplying, and with squarings
    of the dense matrix as in the released code, 3 maps of 500 x 375 pixels."""
    times = []
    for stride in (8, 4) if not quick else (32,):
        affinity, cams, offsets = walk_input(-(-375 // stride), -(-500 // stride))
        for name in (*PRODUCTS, DENSE):
            method = "dense" if name == DENSE else None
            call = partial(_walk, cams, affinity, offsets, method=method)
            way = getattr(walking, PRODUCTS.get(name, "_multiplier"))
            with mock.patch.object(walking, "_multiplier", way):
                _, seconds, memory = _measured(device, call, repeat=10)
            times.append({"stride": stride, "way": name, "seconds": seconds, "memory": memory})
    return times


def _walk(
    cams: Tensor,
    affinity: Tensor,
    offsets: Tensor,
    device: torch.device,
    method: str | None = None,
) -> Results:
    walked = walking.random_walk(cams.to(device), affinity.to(device), offsets, method=method)
    return {"maps": walked.cpu()}


def size_times(device: torch.device, quick: bool = False) -> list[dict[str, Any]]:
    """Seconds of CAMs of an image, three scales and mirrored, of a size that is new, and again.

    cuDNN plans each convolution anew for each size.
    """
    times = []
    for name in ("small",) if quick else ("efficientnet_lite0", "vgg16", "resnet38"):
        net = CAMNet(build_backbone(name), len(VOC_CLASSES)).eval().to(device)
        fast, seconds, side = for_inference(net, mixed_precision=True), [], 32 if quick else 320
        images = [torch.rand(1, 3, side + 3 * k, side + 4 * k) for k in range(9)]

        def look(device: torch.device, image: Tensor, fast: nn.Module = fast) -> Results:
            with torch.inference_mode():
                maps = multi_scale_activation(fast, image.to(device), (1, 1.5, 2), flip=True)
            return {"maps": maps.cpu()}

        for image in images:
            once = partial(look, image=image)
            first, again = (_measured(device, once, 1, warm_up=0)[1] for _ in range(2))
            seconds.append((first, again))
        first, again = np.median(seconds[1:], axis=0).tolist()  # the first loads cuDNN
        times.append({"backbone": name, "first": first, "again": again})
    return times


def training_steps(device: torch.device, plans: Sequence[Plan]) -> list[dict[str, Any]]:
    """Images a second and memory of a step of each network of some plans, forward and backward.

    What does not fit into the GPU's memory is left out.
    """
    steps = []
    for plan in plans:
        for network in STAGES:
            p = plan.values
            step = {"gpu": accelerator(str(device)).get("gpu", "a CPU"), "network": network}
            step |= {"backbone": p["backbone"], "crop": p[f"{network}_crop"]}
            step |= {"batch": p[f"{network}_batch"], "mixed_precision": p["mixed_precision"]}
            with torch.device("meta"):
                net, loss = build_network(network, p)
                flops = count_training(net, loss, step["crop"]).flops
            try:
                seconds, memory = _time_of_steps(device, network, p, step)
            except torch.OutOfMemoryError:
                continue
            step["images_per_second"] = step["batch"] / seconds
            step["tflops"] = flops * step["images_per_second"] / 1e12
            steps.append(step | {"memory": memory})
    return steps


def cut_down() -> Plan:
    """A plan of the paper's recipe with the smallest networks and crops."""
    small = {"backbone": "small", "weights": "", "frozen_stages": -1, "supervised": False}
    small |= {f"{network}_batch": 2 for network in STAGES}
    small |= {f"{network}_crop": 32 for network in STAGES}
    return make_plan("voc12").with_settings(small | {"cam_width": 8, "segmentation_width": 8})


def tables(
    machine: Mapping[str, Any],
    rows: Sequence[Row],
    walks: Sequence[Mapping[str, Any]],
    steps: Sequence[Mapping[str, Any]],
    sizes: Sequence[Mapping[str, Any]] = (),
) -> str:
    """All that was measured, as markdown."""
    head = ["", "difference", "tolerance", "", "CPU, s", "GPU, s", "GPU memory, MiB"]
    chain = [
        [row.name, f"{row.difference:.1e}", f"{row.tolerance:.0e}"]
        + ["" if row.agrees else "TOO LARGE", f"{row.cpu:.3f}", f"{row.gpu:.3f}"]
        + [f"{row.memory / 2**20:.0f}"]
        for row in rows
    ]
    ways = [
        [w["stride"], w["way"], f"{1000 * w['seconds']:.1f}", f"{w['memory'] / 2**20:.0f}"]
        for w in walks
    ]
    trained = [
        [s["backbone"], s["network"], s["crop"], s["batch"], f"{s['images_per_second']:.1f}"]
        + [f"{s['tflops']:.1f}", f"{s['memory'] / 2**30:.1f}"]
        for s in steps
    ]
    looks = [[s["backbone"], f"{s['first']:.3f}", f"{s['again']:.3f}"] for s in sizes]
    known = ("gpu", "driver", "cuda", "cudnn", "torch", "processor")
    return "\n\n".join(
        [
            ", ".join(f"{name} {machine[name]}" for name in known if name in machine),
            markdown_table(head, chain),
            markdown_table(["stride", "the walk's products by", "ms", "GPU memory, MiB"], ways),
            markdown_table(
                ["backbone", "network", "crop", "batch", "images/s", "TFLOP/s", "memory, GiB"],
                trained,
            ),
            markdown_table(["CAMs of an image", "of a new size, s", "again, s"], looks),
        ]
    )


def _toy_size(quick: bool) -> dict[str, int]:
    return {"train": 2, "val": 1, "size": 32} if quick else {"train": 16, "val": 4, "size": 112}


def _cases(
    data: VOCData, folder: Path
) -> Iterator[tuple[str, Callable[[torch.device], Results], dict[str, float]]]:
    """Name, call that takes a device, and the tolerance of each of its results."""
    torch.manual_seed(0)
    ids, offsets, classes = data.ids("train"), half_plane_offsets(5), len(data.classes)
    nets = {
        "cam": CAMNet(build_backbone("small"), classes, width=32),
        "affinity": AffinityNet(build_backbone("small"), (16, 16, 16)),
        "segmentation": SegmentationNet(build_backbone("small"), classes, width=32),
    }
    light = CAMNet(build_backbone("efficientnet_lite0"), classes)
    # its many layers of batch norm, on two small crops, would make much of any rounding
    yield from _steps("cam, efficientnet_lite0", "cam", light, data, training=False)
    for network, net in nets.items():
        yield from _steps(network, network, net, data)
        samples = _samples(network, data, net)

        def train(device, network=network, net=net, samples=samples) -> Results:
            recipe = Recipe(epochs=2, batch_size=2, lr=1e-4)
            place = Path(tempfile.mkdtemp(dir=folder)) / "checkpoint.pt"
            loss = loss_of(network, classes)
            with redirect_stdout(sys.stderr):
                history = fit(deepcopy(net), samples, loss, recipe, place, device)
            return {"losses": torch.tensor(history)}

        yield f"{network}, two epochs", train, {"losses": 2e-2}

    def cams(device) -> Results:
        net, out = deepcopy(nets["cam"]).to(device), Path(tempfile.mkdtemp(dir=folder))
        infer_cams(net, Inputs(data, net.backbone), ids, out, [0.5, 1, 1.5, 2])
        maps = [load_scores(out / f"{image_id}.npz")[1] for image_id in ids]
        return {"maps": torch.from_numpy(np.concatenate(maps))}

    def affinity(device) -> Results:
        net = deepcopy(nets["affinity"]).to(device)
        return {"W": affinity_of(net, Inputs(data, net.backbone), ids[0], offsets, "mean").cpu()}

    def segment(device) -> Results:
        net = deepcopy(nets["segmentation"]).to(device)
        seen = Inputs(data, net.backbone)
        return {"probabilities": predict(net, seen, ids[0], [0.5, 1, 1.5], flip=True)}

    yield f"CAMs of {len(ids)} images, 4 scales and flip", cams, {"maps": 1e-2}
    yield "affinities of an image", affinity, {"W": 1e-3}
    W, scores, _ = walk_input(20, 30)
    yield "random walk, 256 steps", partial(_walk, scores, W, offsets), {"maps": 1e-5}
    yield "segmentation, 3 scales and flip", segment, {"probabilities": 1e-3}


def _steps(
    label: str, network: str, net: nn.Module, data: VOCData, training: bool = True
) -> Iterator[tuple[str, Callable[[torch.device], Results], dict[str, float]]]:
    """Cases of a step of a network, in training mode or not; it has no dropout from now on."""
    for part in net.modules():
        if isinstance(part, nn.Dropout2d):
            part.p = 0.0
    net.eval()
    samples, classes = _samples(network, data, net), len(data.classes)
    for mixed in (False, True):

        def step(device, mixed=mixed) -> Results:
            copied = deepcopy(net).to(device).train(training)
            return _step(network, copied, samples, device, mixed, classes)

        close = {"loss": 3e-2, "gradient": 0.3} if mixed else {"loss": 1e-4, "gradient": 1e-2}
        yield f"{label}, training step{', mixed precision' if mixed else ''}", step, close


def _samples(network: str, data: VOCData, net: nn.Module) -> torch.utils.data.Dataset:
    inputs, ids = Inputs(data, net.backbone), data.ids("train")
    if network == "cam":
        return inputs.samples(ids, 32, tags=True, jitter=False)
    return inputs.samples(ids, 32, labels=data.mask, jitter=False)


def _step(
    network: str,
    net: nn.Module,
    samples: torch.utils.data.Dataset,
    device: torch.device,
    mixed: bool,
    classes: int,
) -> Results:
    """Loss and gradient of two samples."""
    torch.manual_seed(0)
    pairs = zip(samples[0], samples[1], strict=True)
    seen, targets = (torch.stack(pair).to(device) for pair in pairs)
    with autocast(device, mixed):
        value = loss_of(network, classes)(net, (seen, targets))
    value.backward()
    gradients = [p.grad.flatten() for p in net.parameters() if p.grad is not None]
    return {"loss": value.detach().cpu()[None], "gradient": torch.cat(gradients).cpu()}


def _time_of_steps(
    device: torch.device, network: str, p: Mapping[str, Any], step: Mapping[str, Any]
) -> tuple[float, int]:
    """Seconds of a step, the median of ten, and the bytes that torch holds."""
    with device:
        net, _ = build_network(network, p)
        images = torch.randn(step["batch"], 3, step["crop"], step["crop"])
        if network == "cam":
            targets = torch.zeros(step["batch"], len(VOC_CLASSES))
        else:
            labels = torch.randint(0, len(VOC_CLASSES) + 1, (step["batch"], step["crop"] // 16, 1))
            targets = labels.repeat_interleave(16, 1).expand(-1, -1, step["crop"]).contiguous()
    net = net.to(memory_format=torch.channels_last).train()
    batch = images.contiguous(memory_format=torch.channels_last), targets
    optimizer = build_optimizer(net, Recipe(1, 1, 1e-5, optimizer=preset(p["preset"]).optimizer))
    loss = loss_of(network, len(VOC_CLASSES))

    def one() -> None:
        with autocast(device, step["mixed_precision"]):
            value = loss(net, batch)
        value.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    _, seconds, memory = _measured(device, lambda _: one() or {}, repeat=10, warm_up=3)
    return seconds, memory


def _measured(
    device: torch.device,
    call: Callable[[torch.device], Results],
    repeat: int = 3,
    warm_up: int = 1,
) -> tuple[Results, float, int]:
    """The result of a call, the median of its seconds, and torch's peak of memory on a GPU."""
    on_gpu = device.type == "cuda"
    for _ in range(warm_up):
        found = call(device)
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    seconds = []
    for _ in range(repeat):
        if on_gpu:
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        found = call(device)
        if on_gpu:
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    memory = torch.cuda.max_memory_reserved(device) if on_gpu else 0
    return found, float(np.median(seconds)), memory


if __name__ == "__main__":
    sys.exit(main())

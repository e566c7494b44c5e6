"""What a profile costs on all of VOC 2012: ``python tests/bench/estimate.py voc12``.

Operations and the values that training keeps are counted on the profile's own networks, built
without memory for their weights; what a processor does and a file takes is measured on one image.
What a GPU does in a second is taken from ``make gpu`` where it has left its file, else assumed.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from counting import RESERVE, Training, count_forward, count_training
from PIL import Image, ImageDraw
from torch import nn
from torch.utils.benchmark import Timer

from affinity_lib.affinity import half_plane_offsets
from affinity_lib.cam import classification_loss, resize
from affinity_lib.crf import dense_crf
from affinity_lib.data.files import load_json, save_scores
from affinity_lib.data.paths import find_root
from affinity_lib.data.voc import VOC_CLASSES, write_labels
from affinity_lib.data.voc12 import SBD, SIZES, VOC
from affinity_lib.errors import InputError
from affinity_lib.plots import markdown_table
from affinity_lib.random_walk import random_walk
from affinity_lib.running.plan import Plan, make_plan
from affinity_lib.segmentation import segmentation_loss
from affinity_lib.training.networks import affinity_network, cam_network, segmentation_network

HEIGHT, WIDTH = 375, 500
"""The commonest size of VOC's photographs."""

TAGS = 2
"""Classes an image; VOC has fewer on average."""

TFLOPS = 10
"""10^12 operations a second that a GPU is assumed to do; a guess for one of 12 GiB."""

_CLASSES = len(VOC_CLASSES)


@dataclass(frozen=True)
class Cost:
    """What one stage takes.

    Attributes:
        stage: the stem of its notebook.
        flops: floating-point operations on the GPU; a multiplication and an addition are two.
        memory: bytes on the GPU at the peak of training, 0 where nothing is trained.
        seconds: on one core of the processor.
        disk: bytes that stay.
        tflops: 10^12 operations a second of a training step on this machine's GPU, 0 if unknown.
    """

    stage: str
    flops: float = 0
    memory: float = 0
    seconds: float = 0
    disk: float = 0
    tflops: float = 0


def estimate(
    plan: Plan,
    measured: Mapping[str, float] | None = None,
    steps: Sequence[Mapping[str, Any]] = (),
) -> list[Cost]:
    """Count what the notebooks of a plan take on VOC 2012's 10,582 + 1,449 images.

    Args:
        plan: of a profile that trains the backbone too.
        measured: from :func:`measure`, which is called unless this is given.
        steps: training steps that :func:`measured_steps` found; of one that is the profile's own
            the measured memory and speed count.

    Raises:
        InputError: the profile keeps its backbone as it is.
    """
    m = measure() if measured is None else measured
    train, val = SIZES["train_aug"], SIZES["val"]
    stems = {stem[:2]: stem for stem in plan.notebooks}
    cam, labels, affinity, walk, synthesis, segmentation = (stems[f"0{k}"] for k in range(1, 7))
    costs = [Cost("data", disk=2 * (VOC.bytes + SBD.bytes))]

    p = plan.values
    net, cost = _trained("cam", p)
    flops = p["cam_epochs"] * train * cost.flops + val * _forward(net, [1], False)
    flops += train * _forward(net, p["cam_scales"], p["cam_flip"])
    maps = train * m["map_bytes"] * TAGS
    costs.append(_network_cost(cam, "cam", p, cost, steps, flops, maps))

    crf, png = train * m["crf_seconds"], train * m["png_bytes"]
    soft = train * m["soft_bytes"] if p["label_pooling"] == "mean" else 0
    costs.append(Cost(labels, seconds=2 * crf, disk=png + soft))

    net, cost = _trained("affinity", p)
    flops = p["affinity_rounds"] * p["affinity_epochs"] * train * cost.flops
    costs.append(_network_cost(affinity, "affinity", p, cost, steps, flops))
    flops, maps = train * _forward(net, [1], False), train * m["map_bytes"] * (1 + TAGS)
    tflops, seconds = costs[-1].tflops, train * m["walk_seconds"]
    costs.append(Cost(walk, flops, seconds=seconds, disk=maps, tflops=tflops))
    costs.append(Cost(synthesis, seconds=2 * crf, disk=2 * png))

    net, cost = _trained("segmentation", p)
    times = 1 + p["supervised"]
    flops = p["segmentation_epochs"] * train * cost.flops
    flops += val * _forward(net, p["test_scales"], p["test_flip"])
    maps = val * m["png_bytes"]
    one = _network_cost(segmentation, "segmentation", p, cost, steps, flops, maps)
    costs.append(replace(one, flops=times * one.flops, disk=times * one.disk))
    return costs


def measured_steps(path: Path | None = None) -> list[dict[str, Any]]:
    """The training steps that ``make gpu`` measured on this machine; none if it did not run.

    Args:
        path: its file, ``runs/gpu.json`` unless given.

    Returns:
        Of each step the GPU's name, network, backbone, crop, batch, mixed_precision,
        images_per_second, tflops and memory in bytes.
    """
    path = find_root() / "runs" / "gpu.json" if path is None else path
    return load_json(path)["training"] if path.is_file() else []


def build_network(network: str, p: Mapping[str, Any]) -> tuple[nn.Module, Callable]:
    """One of the three networks with random weights, and a loss of its output.

    Args:
        network: "cam", "affinity" or "segmentation".
        p: the settings by name.
    """
    config = SimpleNamespace(**p)
    if network == "cam":
        net = cam_network(config, _CLASSES, weights="")
        return net, lambda logits: classification_loss(logits, torch.empty_like(logits))
    if network == "affinity":
        return affinity_network(config, weights=""), lambda features: features.sum()
    crop = p["segmentation_crop"]
    labels = torch.empty(1, crop, crop, dtype=torch.long)
    net = segmentation_network(config, _CLASSES, weights="")
    return net, lambda logits: segmentation_loss(logits, labels)


def measure() -> dict[str, float]:
    """Seconds and bytes of one image of 375 x 500 pixels on this machine, with one thread."""
    generator = np.random.default_rng(0)
    spots = Image.fromarray(generator.integers(0, 256, (18, 24, 3), dtype=np.uint8))
    photo = np.array(spots.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))
    scores = torch.rand(1 + TAGS, -(-HEIGHT // 8), -(-WIDTH // 8))
    offsets = half_plane_offsets(5)
    affinity = torch.rand(len(offsets), *scores.shape[1:])
    labels = Image.new("L", (WIDTH, HEIGHT))
    for k in range(4):
        ImageDraw.Draw(labels).ellipse((90 * k, 60 * k, 90 * k + 150, 60 * k + 120), fill=k)
    refine = partial(dense_crf, photo, resize(scores, (HEIGHT, WIDTH)).numpy())
    with tempfile.TemporaryDirectory() as folder:
        save_scores(Path(folder, "a.npz"), range(len(scores)), scores)
        save_scores(Path(folder, "soft.npz"), range(1 + TAGS), refine(), compress=True)
        write_labels(Path(folder, "a.png"), np.array(labels))
        names = ("a.npz", "soft.npz", "a.png")
        npz, soft, png = (Path(folder, name).stat().st_size for name in names)
    return {
        "crf_seconds": _seconds(refine),
        "walk_seconds": _seconds(partial(random_walk, scores, affinity, offsets)),
        "map_bytes": npz / len(scores),
        "soft_bytes": 2 * soft,
        "png_bytes": png,
    }


def report(profile: str, costs: Sequence[Cost], tflops: float, gpu: str = "") -> str:
    """The estimate as a markdown table, and how it was made.

    Args:
        profile: its name.
        costs: from :func:`estimate`.
        tflops: 10^12 operations that a GPU does in a second, where that was not measured.
        gpu: the name of the one it was measured on.
    """
    hours = [cost.flops / ((cost.tflops or tflops) * 1e12) / 3600 for cost in costs]
    rows = [
        [
            cost.stage,
            cost.flops / 1e15,
            took,
            cost.memory / 2**30 or "",
            cost.seconds / 3600,
            cost.disk / 2**30,
        ]
        for cost, took in zip(costs, hours, strict=True)
    ]
    totals = [sum(row[column] for row in rows) for column in (1, 2, 4, 5)]
    peak = max(cost.memory for cost in costs) / 2**30
    rows.append(["all", *totals[:2], peak, *totals[2:]])
    header = ["stage", "PFLOP", "GPU hours", "GPU memory, GiB", "core hours", "disk, GiB"]
    assumed = f"at {tflops:g} TFLOP/s, which is assumed: `make gpu` measures it where a GPU is."
    known = f"at least, as training steps on {gpu}, measured by `make gpu`."
    unknown = [cost.stage for cost in costs if cost.flops and not cost.tflops]
    speed = known if not unknown else assumed
    if unknown and any(cost.tflops for cost in costs):
        speed = f"{known} Of {', '.join(unknown)} {assumed}"
    return f"""{markdown_table(header, rows)}

Profile {profile} on {SIZES["train_aug"]:,} training and {SIZES["val"]:,} validation images of
{WIDTH} x {HEIGHT} pixels. PFLOP: 10^15 operations of convolutions and matrix products, counted by
torch.utils.flop_counter on the profile's networks, forward and backward. GPU hours: {speed}
GPU memory that was not measured: weights, gradients, the optimizer's state and what autograd keeps
for the images of one batch, counted, and {RESERVE / 2**30:g} GiB for CUDA. Core hours (dCRF and random
walk; they spread over all cores) and files: measured on this machine with one image of {TAGS} tags.
Disk counts the downloads twice, packed and unpacked."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the estimate for a profile; returns 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python tests/bench/estimate.py", description=__doc__)
    parser.add_argument("profile", nargs="?", default="voc12", help="such as voc12-vgg16")
    parser.add_argument(
        "--tflops",
        type=float,
        help="what the GPU reaches, in 10^12 operations/s; else what `make gpu` measured, or 10",
    )
    options = parser.parse_args(arguments)
    try:
        given = options.tflops is not None
        if given and not 0 < options.tflops < math.inf:
            raise InputError(f"--tflops must be > 0, got {options.tflops:g}")
        steps = [] if given else measured_steps()
        costs = estimate(make_plan(options.profile), steps=steps)
        gpu = steps[0]["gpu"] if steps else ""
        print(report(options.profile, costs, options.tflops if given else TFLOPS, gpu))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _trained(network: str, p: Mapping[str, Any]) -> tuple[nn.Module, Training]:
    name = f"{network}_finetune"
    if p[name] != "all":
        raise InputError(
            f"the estimate is for {name} all, got {p[name]}: with stored features "
            "a run takes minutes, try it"
        )
    with torch.device("meta"):
        net, loss = build_network(network, p)
        return net, count_training(net, loss, p[f"{network}_crop"])


def _network_cost(
    stage: str,
    network: str,
    p: Mapping[str, Any],
    cost: Training,
    steps: Sequence[Mapping[str, Any]],
    flops: float,
    disk: float = 0,
) -> Cost:
    adam = p["optimizer"] == "adam"
    own = {"network": network, "backbone": p["backbone"], "crop": p[f"{network}_crop"]}
    own |= {"batch": p[f"{network}_batch"], "mixed_precision": p["mixed_precision"]}
    known = next((step for step in steps if own.items() <= step.items()), None)
    disk += cost.files(adam)
    if known:
        return Cost(stage, flops, known["memory"], disk=disk, tflops=known["tflops"])
    return Cost(stage, flops, cost.memory(own["batch"], adam, p["mixed_precision"]), disk=disk)


def _forward(net: nn.Module, scales: Sequence[float], flip: bool) -> int:
    """Operations on one photograph, seen at some scales and mirrored."""
    sizes = [(round(HEIGHT * scale), round(WIDTH * scale)) for scale in scales]
    return sum(count_forward(net, *size) for size in sizes) * (1 + flip)


def _seconds(call: Callable[[], Any]) -> float:
    """Of one call, on one thread."""
    return Timer("call()", globals={"call": call}, num_threads=1).timeit(3).mean


if __name__ == "__main__":
    sys.exit(main())

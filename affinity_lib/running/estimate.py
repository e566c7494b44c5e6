"""What a profile costs on all of VOC 2012: ``python -m affinity_lib.running.estimate voc12``.

Operations and the values that training keeps are counted on the profile's own networks, built
without memory for their weights; what a processor does and a file takes is measured on one image.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from affinity_lib.affinity import half_plane_offsets
from affinity_lib.affinitynet import AffinityNet
from affinity_lib.backbones import build_backbone, freeze
from affinity_lib.cam import CAMNet, classification_loss, resize
from affinity_lib.crf import CRFSettings, PairwiseCRF
from affinity_lib.data.files import save_scores
from affinity_lib.data.voc import VOC_CLASSES, write_labels
from affinity_lib.data.voc12 import SIZES
from affinity_lib.errors import InputError
from affinity_lib.plots import markdown_table
from affinity_lib.presets import preset
from affinity_lib.random_walk import random_walk
from affinity_lib.running.counting import RESERVE, Training, count_forward, count_training
from affinity_lib.running.plan import Plan, make_plan
from affinity_lib.segmentation import SegmentationNet, segmentation_loss

HEIGHT, WIDTH = 375, 500
"""The commonest size of VOC's photographs."""

TAGS = 2
"""Classes an image; VOC has fewer on average."""

ARCHIVES = 1_999_639_040 + 1_419_539_633
"""Bytes of the archives of VOC 2012 and SBD; what is unpacked of them takes no more again."""

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
    """

    stage: str
    flops: float = 0
    memory: float = 0
    seconds: float = 0
    disk: float = 0


def estimate(plan: Plan, measured: Mapping[str, float] | None = None) -> list[Cost]:
    """Count what the notebooks of a plan take on VOC 2012's 10,582 + 1,449 images.

    Args:
        plan: of a profile that trains the backbone too.
        measured: from :func:`measure`, which is called unless this is given.

    Raises:
        InputError: the profile keeps its backbone as it is.
    """
    m = measure() if measured is None else measured
    train, val = SIZES["train_aug"], SIZES["val"]
    _, cam, labels, affinity, walk, synthesis, segmentation = plan.notebooks
    costs = [Cost("data", disk=2 * ARCHIVES)]

    p = plan.values
    net, cost = _trained(_cam_net, p, p["cam_crop"])
    flops = p["cam_epochs"] * train * cost.flops + val * _forward(net, [1], False)
    flops += train * _forward(net, p["cam_scales"], p["cam_flip"])
    maps = train * m["map_bytes"] * TAGS
    costs.append(_network_cost(cam, p, cost, p["cam_batch"], flops, maps))

    crf, png = train * m["crf_seconds"], train * m["png_bytes"]
    soft = train * m["soft_bytes"] if preset(p["preset"]).label_pooling == "mean" else 0
    costs.append(Cost(labels, seconds=2 * crf, disk=png + soft))

    p = plan.values
    net, cost = _trained(_affinity_net, p, p["affinity_crop"])
    flops = p["affinity_epochs"] * train * cost.flops
    costs.append(_network_cost(affinity, p, cost, p["affinity_batch"], flops))
    flops, maps = train * _forward(net, [1], False), train * m["map_bytes"] * (1 + TAGS)
    costs.append(Cost(walk, flops, seconds=train * m["walk_seconds"], disk=maps))
    costs.append(Cost(synthesis, seconds=2 * crf, disk=2 * png))

    p = plan.values
    net, cost = _trained(_segmentation_net, p, p["segmentation_crop"])
    times = 1 + p["supervised"]
    flops = p["segmentation_epochs"] * train * cost.flops
    flops += val * _forward(net, p["test_scales"], p["test_flip"])
    maps = val * m["png_bytes"]
    one = _network_cost(segmentation, p, cost, p["segmentation_batch"], flops, maps)
    costs.append(Cost(segmentation, times * one.flops, one.memory, disk=times * one.disk))
    return costs


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
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    crf, walk = PairwiseCRF(photo, CRFSettings()), _seconds(random_walk, scores, affinity, offsets)
    torch.set_num_threads(threads)
    unary = resize(scores, (HEIGHT, WIDTH)).numpy()
    with tempfile.TemporaryDirectory() as folder:
        save_scores(Path(folder, "a.npz"), range(len(scores)), scores)
        save_scores(Path(folder, "soft.npz"), range(1 + TAGS), crf(unary), compress=True)
        write_labels(Path(folder, "a.png"), np.array(labels))
        names = ("a.npz", "soft.npz", "a.png")
        npz, soft, png = (Path(folder, name).stat().st_size for name in names)
    return {
        "crf_seconds": _seconds(crf, unary),
        "walk_seconds": walk,
        "map_bytes": npz / len(scores),
        "soft_bytes": 2 * soft,
        "png_bytes": png,
    }


def report(profile: str, costs: Sequence[Cost], tflops: float) -> str:
    """The estimate as a markdown table, and how it was made.

    Args:
        profile: its name.
        costs: from :func:`estimate`.
        tflops: 10^12 operations that the GPU really does in a second.
    """
    gpu = [cost.flops / (tflops * 1e12) / 3600 for cost in costs]
    rows = [
        [
            cost.stage,
            cost.flops / 1e15,
            hours,
            cost.memory / 2**30 or "",
            cost.seconds / 3600,
            cost.disk / 2**30,
        ]
        for cost, hours in zip(costs, gpu, strict=True)
    ]
    totals = [sum(row[column] for row in rows) for column in (1, 2, 4, 5)]
    peak = max(cost.memory for cost in costs) / 2**30
    rows.append(["all", *totals[:2], peak, *totals[2:]])
    header = ["stage", "PFLOP", "GPU hours", "GPU memory, GiB", "core hours", "disk, GiB"]
    return f"""{markdown_table(header, rows)}

Profile {profile} on {SIZES["train_aug"]:,} training and {SIZES["val"]:,} validation images of
{WIDTH} x {HEIGHT} pixels. PFLOP: 10^15 operations of convolutions and matrix products, counted by
torch.utils.flop_counter on the profile's networks, forward and backward. GPU hours: at
{tflops:g} TFLOP/s that are really reached. GPU memory: weights, gradients, the optimizer's state and
what autograd keeps for the images of one batch, counted, and {RESERVE / 2**30:g} GiB for CUDA. Core
hours (dCRF and random walk; they spread over all cores) and files: measured on this machine with one
image of {TAGS} tags. Disk counts the downloads twice, packed and unpacked."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the estimate for a profile; returns 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m affinity_lib.running.estimate", description=__doc__
    )
    parser.add_argument("profile", nargs="?", default="voc12", help="such as voc12-vgg16")
    parser.add_argument(
        "--tflops", type=float, default=10, help="what the GPU reaches, in 10^12 operations/s"
    )
    options = parser.parse_args(arguments)
    try:
        if not 0 < options.tflops < math.inf:
            raise InputError(f"--tflops must be > 0, got {options.tflops:g}")
        print(report(options.profile, estimate(make_plan(options.profile)), options.tflops))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _trained(
    build: Callable[[Mapping[str, Any]], tuple[nn.Module, Callable]],
    p: Mapping[str, Any],
    crop: int,
) -> tuple[nn.Module, Training]:
    name = "segmentation_finetune" if "segmentation_finetune" in p else "finetune"
    if p[name] != "all":
        raise InputError(
            f"the estimate is for {name} all, got {p[name]}: with stored features "
            "a run takes minutes, try it"
        )
    with torch.device("meta"):
        net, loss = build(p)
        return net, count_training(net, loss, crop)


def _backbone(p: Mapping[str, Any], stage: str, **options: int) -> nn.Module:
    backbone = build_backbone(p["backbone"], p[f"{stage}_stride"], **options)
    return freeze(backbone, p["frozen_stages"]) if p["frozen_stages"] >= 0 else backbone


def _cam_net(p: Mapping[str, Any]) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    choice = preset(p["preset"], p["backbone"], cam_head=p["cam_head"])
    backbone = _backbone(p, "cam", **choice.cam_backbone)
    net = CAMNet(backbone, _CLASSES, choice.cam_head, p["cam_width"], choice.cam_root)
    return net, lambda logits: classification_loss(logits, torch.empty_like(logits))


def _affinity_net(p: Mapping[str, Any]) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    choice = preset(p["preset"], p["backbone"], affinity_norm=p["affinity_norm"] or None)
    channels = [round(c * p["affinity_width"]) for c in choice.affinity_channels]
    backbone = _backbone(p, "affinity", **choice.affinity_backbone)
    net = AffinityNet(backbone, channels, choice.affinity_norm, choice.affinity_activation)
    return net, lambda features: features.sum()


def _segmentation_net(p: Mapping[str, Any]) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    width, dilation = p["segmentation_width"], p["segmentation_dilation"]
    labels = torch.empty(1, p["segmentation_crop"], p["segmentation_crop"], dtype=torch.long)
    net = SegmentationNet(_backbone(p, "segmentation"), _CLASSES, width, dilation)
    return net, lambda logits: segmentation_loss(logits, labels)


def _network_cost(
    stage: str, p: Mapping[str, Any], cost: Training, batch: int, flops: float, disk: float = 0
) -> Cost:
    adam = preset(p["preset"]).optimizer == "adam"
    memory = cost.memory(batch, adam, p["mixed_precision"])
    return Cost(stage, flops, memory, disk=disk + cost.files(adam))


def _forward(net: nn.Module, scales: Sequence[float], flip: bool) -> int:
    """Operations on one photograph, seen at some scales and mirrored."""
    sizes = [(round(HEIGHT * scale), round(WIDTH * scale)) for scale in scales]
    return sum(count_forward(net, *size) for size in sizes) * (1 + flip)


def _seconds(function: Callable, *arguments: object) -> float:
    """Of the fastest of three calls."""
    seconds = []
    for _ in range(3):
        begin = time.perf_counter()
        function(*arguments)
        seconds.append(time.perf_counter() - begin)
    return min(seconds)


if __name__ == "__main__":
    sys.exit(main())

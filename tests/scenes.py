"""Tiny data sets in VOC layout and backbones that can be checked by eye, for the tests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from affinity_lib.affinity import half_plane_offsets
from affinity_lib.affinitynet import AffinityNet
from affinity_lib.backbones.base import Backbone
from affinity_lib.data.files import save_scores
from affinity_lib.data.layout import write_lists, write_tags
from affinity_lib.data.voc import VOCData, write_labels
from affinity_lib.stages.walk import Walk
from affinity_lib.training.inputs import Inputs

CLASSES = ("ball", "box", "cross")
COLORS = np.array([[200, 60, 50], [60, 90, 210], [70, 180, 80]])


def write_data(
    root: Path,
    images: Mapping[str, np.ndarray],
    tags: Mapping[str, tuple[str, ...]],
    classes: tuple[str, ...] = CLASSES,
) -> VOCData:
    """A data set of exactly these images (stored without loss) and tags, all of them to train on."""
    (root / "JPEGImages").mkdir(parents=True)
    write_lists(root, classes, {"train": list(images)})
    for image_id, pixels in images.items():
        path = root / "JPEGImages" / f"{image_id}.jpg"
        Image.fromarray(pixels).save(path, format="PNG")
        write_tags(root / "Annotations" / f"{image_id}.xml", tags[image_id], pixels.shape[1::-1])
    return VOCData(root)


def draw_scenes(root: Path, count: int, size: int = 48, seed: int = 0) -> VOCData:
    """Scenes of one or two things, each class with a shape and a colour of its own, and masks."""
    random = np.random.default_rng(seed)
    images, tags, masks = {}, {}, {}
    for k in range(count):
        pixels = random.normal(128, 25, (size, size, 3)) + random.normal(0, 15, 3)
        mask = np.zeros((size, size), np.uint8)
        chosen = random.permutation(3)[: random.integers(1, 3)]
        for place, kind in enumerate(chosen):
            half = 0.5 if len(chosen) > 1 else 1.0
            x = (random.uniform(0.35, 0.65) * half + 0.5 * place) * size
            y = random.uniform(0.3, 0.7) * size
            shape = _shape(kind, size, y, x, random.uniform(0.16, 0.22) * size)
            pixels[shape] = COLORS[kind] + random.normal(0, 25, (int(shape.sum()), 3))
            mask[shape] = kind + 1
        image_id = f"scene_{k:03d}"
        images[image_id] = np.clip(pixels, 0, 255).astype(np.uint8)
        tags[image_id] = tuple(CLASSES[kind] for kind in np.unique(mask[mask > 0]) - 1)
        masks[image_id] = mask
    data = write_data(root, images, tags)
    for image_id, mask in masks.items():
        write_labels(root / "SegmentationClass" / f"{image_id}.png", mask)
    return data


class Mean(Backbone):
    """A backbone whose three levels are the image's mean over each cell of 4 x 4 pixels."""

    channels = (3, 3, 3)
    top_channels = 3
    mean = (0.0, 0.0, 0.0)
    std = (1.0, 1.0, 1.0)
    stages = (("gain",),)

    def __init__(self) -> None:
        super().__init__("mean", 4, (4,))
        self.gain = nn.Conv2d(3, 3, 1, groups=3, bias=False)
        nn.init.ones_(self.gain.weight)

    def levels(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean = F.avg_pool2d(self.gain(x), 4, ceil_mode=True)
        return mean, mean, mean


def draw_walk(folder: Path) -> tuple[Walk, str]:
    """A walk over scenes, with an untrained AffinityNet and CAMs of noise; and a scene of two."""
    data = draw_scenes(folder / "data", 3)
    for k, image_id in enumerate(data.ids("train")):
        tags = data.tags(image_id)
        maps = np.random.default_rng(k).random((len(tags), 6, 6))
        save_scores(folder / "cams" / f"{image_id}.npz", tags, maps)
    torch.manual_seed(0)
    net = AffinityNet(Mean(), (4, 4, 4)).eval()
    walk = Walk(net, Inputs(data, net.backbone), folder / "cams", half_plane_offsets(5), alpha=4)
    return walk, max(data.ids("train"), key=lambda image_id: len(data.tags(image_id)))


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """A copy of a module's weights."""
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def same_state(one: Mapping[str, Tensor], two: Mapping[str, Tensor]) -> bool:
    """Whether two modules' weights are equal, bit for bit."""
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def _shape(kind: int, size: int, y: float, x: float, radius: float) -> np.ndarray:
    down, across = np.abs(np.mgrid[:size, :size] - np.array([y, x])[:, None, None])
    if kind == 0:
        return down**2 + across**2 < radius**2
    if kind == 1:
        return np.maximum(down, across) < 0.85 * radius
    return (np.minimum(down, across) < 0.4 * radius) & (np.maximum(down, across) < radius)

"""Tiny data sets in VOC layout and backbones that can be checked by eye, for the tests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from affinity_lib.affinity import affinities, half_plane_offsets, pairs_inside
from affinity_lib.affinitynet import AffinityNet
from affinity_lib.backbones import build_backbone
from affinity_lib.backbones.base import Backbone
from affinity_lib.data.files import save_scores
from affinity_lib.data.layout import write_lists, write_tags
from affinity_lib.data.voc import VOCData, write_labels
from affinity_lib.stages.walk import Walk
from affinity_lib.training.inputs import Inputs

CLASSES = ("ball", "box", "cross")
PARITY = Path(__file__).parent / "fixtures" / "parity"
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


def noise_cams(data: VOCData, folder: Path) -> Path:
    """CAMs of 5 x 5 cells of noise for all images to train on, in a folder."""
    torch.manual_seed(0)
    for image_id in data.ids("train"):
        tags = data.tags(image_id)
        save_scores(folder / f"{image_id}.npz", tags, torch.rand(len(tags), 5, 5))
    return folder


def small_affinity_net() -> AffinityNet:
    """An untrained AffinityNet of few channels, at output stride 4."""
    torch.manual_seed(0)
    return AffinityNet(build_backbone("small", output_stride=4), (8, 8, 8)).eval()


def small_walk(data: VOCData, cams: Path) -> Walk:
    """A walk over what that network sees, alpha 8."""
    net = small_affinity_net()
    return Walk(net, Inputs(data, net.backbone), cams, half_plane_offsets(3), 8, "mean")


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


def released_walk() -> tuple[dict[str, Tensor], Tensor]:
    """What the released code's walk was given and gave, and the affinities (P, h, w) in it."""
    kept = {k: torch.from_numpy(v) for k, v in np.load(PARITY / "random_walk_13x17.npz").items()}
    offsets = half_plane_offsets(5)
    affinity = affinities(kept["features"][None], offsets, reduction="mean")[0]
    return kept, affinity * pairs_inside(offsets, 13, 17, border=4)


def loss(model: nn.Module, batch) -> Tensor:
    """The loss of a batch of inputs and their classes."""
    inputs, target = batch
    return F.cross_entropy(model(inputs), target)


def stopped_at_the_third(inputs: Inputs, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Press Ctrl+C when the third image is asked for; the images that were, in a list that grows."""
    seen: list[str] = []

    def image(image_id: str) -> Tensor:
        seen.append(image_id)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return Inputs.image(inputs, image_id)

    monkeypatch.setattr(inputs, "image", image)
    return seen


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

"""Affinities and walked maps of all images (sections 3.2.2 and 3.3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from affinity_lib.affinity import (
    PairLabels,
    affinities,
    half_plane_offsets,
    pair_labels,
    pairs_inside,
)
from affinity_lib.affinity_labels import to_grid
from affinity_lib.affinitynet import AffinityNet
from affinity_lib.cam import on_grid
from affinity_lib.data.files import load_scores, missing, save_scores
from affinity_lib.random_walk import random_walk
from affinity_lib.training.inference import for_inference
from affinity_lib.training.inputs import Inputs, device_of, forward, moved
from affinity_lib.training.parallel import compute_on, each_image


@dataclass
class Walk:
    """The random walk from the CAMs of images, over what AffinityNet sees in them (section 3.3).

    Attributes:
        net: in ``eval`` mode, on the device that walks.
        inputs: of the network's backbone.
        cams: folder of ``ID.npz`` score files.
        offsets: (P, 2) from ``half_plane_offsets``.
        alpha: exponent of the background map (Eq. 2).
        distance: ``reduction`` of ``affinities``.
        border: cells at the borders whose pixels start no pair, see ``pairs_inside``.
        pooling: how the maps come to the grid, see ``on_grid``.
    """

    net: AffinityNet
    inputs: Inputs
    cams: Path
    offsets: Tensor
    alpha: float
    distance: str = "sum"
    border: int = 0
    pooling: bool = False

    @classmethod
    def of(cls, config: Any, net: AffinityNet, inputs: Inputs, cams: Path) -> Walk:
        """The walk that the settings ask for; the other arguments are the class's."""
        net = net if inputs.stored else for_inference(net)
        offsets = half_plane_offsets(config.gamma)
        choices = (config.alpha, config.distance, config.pair_border, config.walk_pooling)
        return cls(net, inputs, cams, offsets, *choices)

    def affinity(self, image_id: str) -> Tensor:
        """W of one image, (P, h, w), on the network's device."""
        settings = (self.offsets, self.distance, self.border)
        return affinity_of(self.net, self.inputs, image_id, *settings)

    def start(self, image_id: str, alpha: float | None = None) -> tuple[np.ndarray, Tensor]:
        """The tags of one image, and the maps that are walked, (1 + K, h, w), background first.

        Args:
            image_id: which image.
            alpha: exponent of its background, if not that of the walk.
        """
        tags, cams = load_scores(self.cams / f"{image_id}.npz")
        seen = (self.inputs.size(image_id), self.net.backbone.output_stride, self.pooling)
        alpha = self.alpha if alpha is None else alpha
        return tags, on_grid(torch.from_numpy(cams), alpha, *seen)

    def walked(
        self, image_id: str, beta: float, t: int, affinity: Tensor | None = None
    ) -> tuple[np.ndarray, Tensor]:
        """The tags of one image, and its maps after ``t`` steps, (1 + K, h, w), on the CPU.

        Args:
            image_id: which image.
            beta, t: see ``random_walk``.
            affinity: of this image, where it is known.
        """
        tags, maps = self.walks(image_id, [self.alpha], beta, t, affinity)
        return tags, maps[0]

    def walks(
        self,
        image_id: str,
        alphas: Sequence[float],
        beta: float,
        t: int,
        affinity: Tensor | None = None,
    ) -> tuple[np.ndarray, Tensor]:
        """``walked`` for each of some backgrounds, (A, 1 + K, h, w); the walk is linear, so all
        backgrounds walk together with the CAMs.

        Args:
            image_id, beta, t, affinity: see ``walked``.
            alphas: A exponents of Eq. 2.
        """
        starts = [self.start(image_id, alpha) for alpha in alphas]
        tags, maps = starts[0][0], torch.cat([*(m[:1] for _, m in starts), starts[0][1][1:]])
        affinity = self.affinity(image_id) if affinity is None else affinity
        device = affinity.device

        def walk() -> Tensor:
            return random_walk(maps.to(device), affinity, self.offsets, beta, t).cpu()

        walked = compute_on(device, walk)
        grounds, cams = walked[: len(alphas)], walked[len(alphas) :]
        return tags, torch.stack([torch.cat([ground[None], cams]) for ground in grounds])

    def write(self, ids: Sequence[str], out: Path, beta: float, t: int) -> None:
        """Write the walked maps of each image that has none yet, as ``ID.npz`` score files."""
        waiting = missing(ids, out, "npz")
        self.inputs.store(waiting)

        def work(image_id: str) -> None:
            tags, walked = self.walked(image_id, beta, t)
            save_scores(out / f"{image_id}.npz", [0, *tags], walked)

        each_image(work, waiting, "random walk")


def last_network(config: Any) -> str:
    """The result of notebook 3 over which the maps are walked: the network of its last round.

    Args:
        config: the settings.
    """
    rounds = config.affinity_rounds
    return "03_affinitynet/network" + (f"_{rounds}" if rounds > 1 else "")


@torch.inference_mode()
def affinity_of(
    net: AffinityNet,
    inputs: Inputs,
    image_id: str,
    offsets: Tensor,
    distance: str = "sum",
    border: int = 0,
) -> Tensor:
    """The affinities W that the network sees in an image (Eq. 3), (P, h, w), on its device.

    Args:
        net: in ``eval`` mode.
        inputs: of the network's backbone.
        image_id: which image.
        offsets: (P, 2) from ``half_plane_offsets``.
        distance: ``reduction`` of ``affinities``.
        border: cells at the borders whose pixels start no pair, see ``pairs_inside``.
    """
    seen, device = inputs.seen(image_id), device_of(net)

    def compute() -> Tensor:
        affinity = affinities(forward(net, moved(seen, device)), offsets, distance)[0]
        return affinity * pairs_inside(offsets, *affinity.shape[1:], border).to(device)

    return compute_on(device, compute)


def mean_affinities(
    net: AffinityNet,
    inputs: Inputs,
    ids: Sequence[str],
    labels: Callable[[str], np.ndarray],
    offsets: Tensor,
    distance: str = "sum",
) -> dict[str, float]:
    """Mean affinity of the background, foreground and negative pairs of some images (Eq. 5-7).

    Args:
        net, inputs, offsets, distance: see ``affinity_of``.
        ids: image ids.
        labels: image id -> trusted labels (H, W), 0..C or 255.

    Returns:
        Kind of pair -> mean affinity, NaN where there is no such pair.
    """
    inputs.store(ids)

    def work(image_id: str) -> Tensor:
        affinity = affinity_of(net, inputs, image_id, offsets, distance)[None].cpu()
        grid = torch.from_numpy(labels(image_id))[None]
        grid = to_grid(grid, affinity.shape[-2:], len(inputs.data.classes) + 1)
        pairs = pair_labels(grid, offsets)
        return torch.stack([torch.stack([affinity[m].sum(), m.sum()]) for m in pairs])

    sums, counts = sum(each_image(work, ids, "affinities")).T
    return dict(zip(PairLabels._fields, (sums / counts).tolist(), strict=True))

"""Affinities and walked maps of all images (sections 3.2.2 and 3.3)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
from affinity_lib.training.inputs import Inputs
from affinity_lib.training.parallel import each_image


def walk_cams(
    net: AffinityNet, inputs: Inputs, ids: Sequence[str], cams: Path, out: Path, config: Any
) -> None:
    """Walk the CAMs of each image that has no walked maps yet.

    Args:
        net: AffinityNet, in ``eval`` mode.
        inputs: of the network's backbone.
        ids: image ids.
        cams: folder of ``ID.npz`` score files.
        out: folder of the walked ones, background first, (1 + K, h, w) in half precision.
        config: the settings.
    """

    def work(image_id: str) -> None:
        W = affinity_of(net, inputs, image_id, config)
        tags, maps = maps_of(inputs, image_id, cams, config)
        save_scores(out / f"{image_id}.npz", [0, *tags], walk_maps(maps, W, config))

    each_image(work, missing(ids, out, "npz"), "random walk", next(net.parameters()).device)


@torch.inference_mode()
def affinity_of(net: AffinityNet, inputs: Inputs, image_id: str, config: Any) -> Tensor:
    """Affinities of one image (Eq. 3), (P, h, w) on the network's device, for the random walk."""
    features = net.from_levels(inputs.levels(image_id, net.backbone))
    offsets = half_plane_offsets(config.gamma)
    W = affinities(features, offsets, config.distance)[0]
    return W * pairs_inside(offsets, *W.shape[1:], config.pair_border).to(W.device)


def maps_of(inputs: Inputs, image_id: str, cams: Path, config: Any) -> tuple[Sequence[int], Tensor]:
    """The tags of an image, and its background and CAMs on the grid where they are walked.

    Returns:
        The K tags; (1 + K, h, w), background first, on the CPU.
    """
    tags, maps = load_scores(cams / f"{image_id}.npz")
    size, stride = inputs.size(image_id), config.affinity_stride
    return tags, on_grid(torch.from_numpy(maps), config.alpha, size, stride, config.walk_pooling)


def walk_maps(
    maps: Tensor, W: Tensor, config: Any, beta: float | None = None, t: int | None = None
) -> Tensor:
    """Walk maps over affinities (Eq. 11-12), wherever these are; the result is on the CPU.

    Args:
        maps: (K, h, w).
        W: (P, h, w), from ``affinity_of``.
        config: the settings.
        beta, t: in place of the settings'.
    """
    beta, t = config.beta if beta is None else beta, config.t if t is None else t
    return random_walk(maps.to(W.device), W, half_plane_offsets(config.gamma), beta, t).cpu()


def mean_affinities(
    net: AffinityNet, inputs: Inputs, ids: Sequence[str], labels: Path, config: Any
) -> dict[str, float]:
    """Mean affinity of the background, foreground and negative pairs of some images.

    Args:
        net: in ``eval`` mode.
        inputs: of the network's backbone.
        ids: image ids.
        labels: folder of the affinity labels.
        config: the settings.
    """
    offsets = half_plane_offsets(config.gamma)
    found: dict[str, Tensor] = {}

    def work(image_id: str) -> None:
        W = affinity_of(net, inputs, image_id, config)[None].cpu()
        trusted_areas = inputs.data.read_labels(labels / f"{image_id}.png")
        grid = to_grid(
            torch.from_numpy(trusted_areas)[None], W.shape[-2:], len(inputs.data.classes) + 1
        )
        pairs = pair_labels(grid, offsets)
        found[image_id] = torch.stack([torch.stack([W[m].sum(), m.sum()]) for m in pairs])

    each_image(work, ids, "affinities", next(net.parameters()).device)
    sums, counts = sum(found[image_id].double() for image_id in ids).T
    return dict(zip(PairLabels._fields, (sums / counts).tolist(), strict=True))

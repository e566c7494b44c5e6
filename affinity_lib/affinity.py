"""Semantic affinities between neighbouring pixels and the loss that teaches them (Sec. 3.2)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from affinity_lib.errors import InputError
from affinity_lib.evaluation import VOID

_LARGEST_DISTANCE = 80.0  # exp(-80) is still a normal float32, so log W keeps its exact gradient
_BLOCK = 2**18  # elements; a block, its difference and its gradient stay in a core's cache


class PairLabels(NamedTuple):
    """The pairs with a known affinity label, as masks over (B, K, H, W) (Eq. 5-7).

    ``background`` and ``foreground`` are the two halves of P+, ``negative`` is P-.
    """

    background: Tensor
    foreground: Tensor
    negative: Tensor


class AffinityLoss(NamedTuple):
    """The balanced loss (Eq. 10) and its unweighted parts (Eq. 7-9), all scalars."""

    total: Tensor
    background: Tensor
    foreground: Tensor
    negative: Tensor


def half_plane_offsets(gamma: float = 5) -> Tensor:
    """Neighbours closer than ``gamma`` in one half of the plane (Eq. 4).

    W is symmetric, so (dy, dx) and (-dy, -dx) are the same pair and one of them is enough.

    Args:
        gamma: search radius in cells of the feature map, at least 2; the distance is strictly
            smaller than ``gamma``.

    Returns:
        Offsets (dy, dx), shape (K, 2), int64; K is 34 for the paper's radius 5.

    Raises:
        InputError: ``gamma`` is below 2.

    >>> half_plane_offsets(2).tolist()
    [[0, 1], [1, -1], [1, 0], [1, 1]]
    >>> len(half_plane_offsets(5))
    34
    """
    if not gamma >= 2 or math.isinf(gamma):
        raise InputError(f"gamma must be a finite number >= 2 (Eq. 4), got {gamma}")
    reach = math.ceil(gamma) - 1
    offsets = [
        (dy, dx)
        for dy in range(reach + 1)
        for dx in range(-reach, reach + 1)
        if (dy > 0 or dx > 0) and dy * dy + dx * dx < gamma * gamma
    ]
    return torch.tensor(offsets, dtype=torch.int64)


def affinities(features: Tensor, offsets: Tensor, reduction: str = "sum") -> Tensor:
    """W = exp(-||F(x_i, y_i) - F(x_j, y_j)||) for every pair of neighbours, the L1 norm (Eq. 3).

    Differentiable; the memory does not grow with the product of channels and offsets.

    Args:
        features: feature map F, shape (B, C, H, W).
        offsets: (K, 2) from `half_plane_offsets`.
        reduction: "sum" over the channels (paper) or "mean" (released code).

    Returns:
        Shape (B, K, H, W): element (k, y, x) belongs to the pair (y, x) and (y + dy, x + dx), and
        is 0 where the second pixel lies outside of the map.

    Raises:
        InputError: a shape or ``reduction`` does not fit.

    >>> features = torch.tensor([[[[0.0, 1.0, 1.0]]]])
    >>> affinities(features, torch.tensor([[0, 1]])).squeeze().tolist()
    [0.3678794503211975, 1.0, 0.0]
    """
    if features.ndim != 4 or not features.is_floating_point():
        raise InputError(
            f"features must be a floating point (B, C, H, W) tensor, got {_describe(features)}"
        )
    check_offsets(offsets)
    if reduction not in ("sum", "mean"):
        raise InputError(f'reduction must be "sum" or "mean" (Eq. 3), got {reduction!r}')
    scale = 1.0 if reduction == "sum" else 1.0 / features.shape[1]
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    size = features.shape[2:]
    inside = pairs_inside(offsets, *size).to(features.device)
    return _Affinities.apply(features, inside, flat_shifts(offsets, *size), scale)


def pairs_inside(offsets: Tensor, height: int, width: int, border: int = 0) -> Tensor:
    """The pairs whose two pixels both lie in the map.

    Args:
        offsets: (K, 2) from `half_plane_offsets`.
        height, width: of the feature map, in cells.
        border: leave out the pairs whose first pixel is closer than this to the left, right or
            bottom border: 0 keeps all (paper), gamma - 1 is the released code's choice, in its loss
            and in its random walk alike.

    Returns:
        Boolean (K, H, W), element (k, y, x) for the pair (y, x) and (y + dy, x + dx).

    Raises:
        InputError: ``border`` is negative.

    >>> pairs_inside(torch.tensor([[0, 1], [1, -1]]), 2, 2).int().tolist()
    [[[1, 0], [1, 0]], [[0, 1], [0, 0]]]
    """
    if border < 0:
        raise InputError(f"border must be >= 0 cells, got {border}")
    inside = torch.zeros(len(offsets), height, width, dtype=torch.bool)
    for k, (dy, dx) in enumerate(offsets.tolist()):
        inside[k][pair_slices(dy, dx, height, width)[0]] = True
    if border:
        inside[:, max(height - border, 0) :] = False
        inside[..., :border] = False
        inside[..., max(width - border, 0) :] = False
    return inside


def pair_labels(labels: Tensor, offsets: Tensor, border: int = 0) -> PairLabels:
    """Affinity labels of all pairs of confident pixels (Eq. 5-7).

    A pair is positive if its two pixels have the same class, negative if they have different
    ones, and left out if one of them is neutral or outside of the map.

    Args:
        labels: (B, H, W) integers, 0 background, 1..C classes, 255 neutral.
        offsets: (K, 2) from `half_plane_offsets`.
        border: see `pairs_inside`; 0 in the paper, gamma - 1 in the released code.

    Returns:
        Three boolean masks of shape (B, K, H, W) that share no pair.

    Raises:
        InputError: a shape, a type or ``border`` does not fit.

    >>> pairs = pair_labels(torch.tensor([[[0, 0, 3, 3, 255]]]), torch.tensor([[0, 1]]))
    >>> [mask.squeeze().int().tolist() for mask in pairs]
    [[1, 0, 0, 0, 0], [0, 0, 1, 0, 0], [0, 1, 0, 0, 0]]
    """
    if labels.ndim != 3 or labels.is_floating_point() or labels.dtype == torch.bool:
        raise InputError(f"labels must be an integer (B, H, W) tensor, got {_describe(labels)}")
    check_offsets(offsets)
    batch, height, width = labels.shape
    inside = pairs_inside(offsets, height, width, border).to(labels.device)
    confident = labels != VOID
    known, same = (torch.zeros_like(inside).repeat(batch, 1, 1, 1) for _ in range(2))
    for k, (dy, dx) in enumerate(offsets.tolist()):
        first, second = pair_slices(dy, dx, height, width)
        known[:, k][first] = inside[k][first] & confident[first] & confident[second]
        same[:, k][first] = labels[first] == labels[second]
    positive = known & same
    is_background = (labels == 0).unsqueeze(1)
    return PairLabels(positive & is_background, positive & ~is_background, known & ~same)


def affinity_loss(
    affinity: Tensor,
    pairs: PairLabels,
    *,
    weights: tuple[float, float, float] = (1.0, 1.0, 2.0),
    eps: float = 0.0,
) -> AffinityLoss:
    """Cross-entropy averaged over each set of pairs on its own (Eq. 7-10).

    L_bg and L_fg are the means of -log W over the background and the foreground half of P+,
    L_neg is the mean of -log(1 - W) over P-; the total is L_bg + L_fg + 2 L_neg. A set
    without pairs contributes 0.

    Args:
        affinity: W, shape (B, K, H, W), from `affinities`.
        pairs: from `pair_labels`, same shape.
        weights: of (L_bg, L_fg, L_neg); (1, 1, 2) in the paper, (1/4, 1/4, 1/2) released.
        eps: added inside of the logarithms; 0 in the paper, 1e-5 in the released code.

    Returns:
        The weighted total and the three parts.

    Raises:
        InputError: the shapes differ.

    >>> affinity = torch.tensor([0.5, 0.25]).view(1, 1, 1, 2)
    >>> mask = torch.tensor([True, False]).view(1, 1, 1, 2)
    >>> loss = affinity_loss(affinity, PairLabels(mask, mask & False, ~mask))
    >>> [round(float(value), 4) for value in loss]
    [1.2685, 0.6931, 0.0, 0.2877]
    """
    if any(mask.shape != affinity.shape for mask in pairs):
        raise InputError(
            f"affinity and pairs must have one shape (B, K, H, W), got {tuple(affinity.shape)} and "
            f"{tuple(pairs.background.shape)}; use the same offsets and map size for both"
        )
    distinct = (1.0 - affinity).clamp(min=torch.finfo(affinity.dtype).eps)
    likelihoods = (affinity, affinity, distinct)
    parts = tuple(_cross_entropy(*one, eps) for one in zip(likelihoods, pairs, strict=True))
    total = sum(weight * part for weight, part in zip(weights, parts, strict=True))
    return AffinityLoss(total, *parts)


def _cross_entropy(likelihood: Tensor, mask: Tensor, eps: float) -> Tensor:
    """Mean of -log over the pairs in a mask, 0 if it has none.

    Selecting the pairs would make a GPU wait until it knows how many there are.
    """
    losses = -(likelihood.where(mask, 1) + eps).log()
    return losses.where(mask, 0).sum() / mask.sum().clamp(min=1)


def pair_slices(dy: int, dx: int, height: int, width: int) -> tuple[tuple, tuple]:
    """Index (..., y, x) of the first and of the second pixels of all pairs with one offset.

    >>> first, second = pair_slices(0, 1, 1, 3)
    >>> row = torch.tensor([[10, 20, 30]])
    >>> row[first].tolist(), row[second].tolist()
    ([[10, 20]], [[20, 30]])
    """

    def spans(step: int, size: int) -> tuple[slice, slice]:
        length = max(size - abs(step), 0)
        low, high = slice(0, length), slice(size - length, size)
        return (low, high) if step >= 0 else (high, low)

    (first_y, second_y), (first_x, second_x) = spans(dy, height), spans(dx, width)
    return (..., first_y, first_x), (..., second_y, second_x)


def flat_shifts(offsets: Tensor, height: int, width: int) -> list[tuple[int, int]]:
    """(k, distance in the flattened map) of every offset that has a pair in a map of this size.

    >>> flat_shifts(torch.tensor([[0, 1], [1, -1], [2, 0]]), height=2, width=5)
    [(0, 1), (1, 4)]
    """
    return [
        (k, dy * width + dx)
        for k, (dy, dx) in enumerate(offsets.tolist())
        if dy < height and abs(dx) < width
    ]


def check_offsets(offsets: Tensor) -> None:
    """Refuse anything but a (K, 2) integer tensor of one half of the plane.

    Raises:
        InputError: the shape or the type does not fit, or an offset points backwards.

    >>> check_offsets(half_plane_offsets(3))
    """
    if offsets.ndim != 2 or offsets.shape[1] != 2 or offsets.is_floating_point():
        raise InputError(
            f"offsets must be a (K, 2) integer tensor from half_plane_offsets, "
            f"got {_describe(offsets)}"
        )
    for dy, dx in offsets.tolist():
        if dy < 0 or (dy == 0 and dx <= 0):
            raise InputError(
                f"offsets must have dy > 0, or dy = 0 and dx > 0 (half_plane_offsets), "
                f"got {(dy, dx)}"
            )


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


class _Affinities(torch.autograd.Function):
    """Eq. 3 one offset and one block of channels at a time.

    A pair with offset (dy, dx) is dy * W + dx apart in a flattened map, so both pixels of all its
    pairs are plain slices. Nothing of size channels x offsets x pixels is ever stored, and a block
    stays in the cache while all offsets pass over it.
    """

    @staticmethod
    def forward(
        ctx, features: Tensor, inside: Tensor, shifts: list[tuple[int, int]], scale: float
    ) -> Tensor:
        maps = features.flatten(2)
        distance = maps.new_zeros(len(maps), len(inside), maps.shape[2])
        for images, channels in _blocks(maps):
            block = maps[images, channels]
            for k, shift in shifts:
                difference = block[..., :-shift] - block[..., shift:]
                distance[images, k, :-shift] += difference.abs_().sum(1)
        distance = distance.mul_(scale).clamp_(max=_LARGEST_DISTANCE).unflatten(2, inside.shape[1:])
        affinity = distance.neg_().exp_().mul_(inside)
        ctx.save_for_backward(features, affinity)
        ctx.shifts, ctx.scale = shifts, scale
        return affinity

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_affinity: Tensor) -> tuple[Tensor, None, None, None]:
        features, affinity = ctx.saved_tensors
        maps = features.flatten(2)
        grad_distance = (grad_affinity * affinity).mul_(-ctx.scale).flatten(2)
        grad = torch.zeros_like(maps)
        for images, channels in _blocks(maps):
            block, grad_block = maps[images, channels], grad[images, channels]
            for k, shift in ctx.shifts:
                step = (block[..., :-shift] - block[..., shift:]).sign_()
                step *= grad_distance[images, k, None, :-shift]
                grad_block[..., :-shift] += step
                grad_block[..., shift:] -= step
        return grad.view_as(features), None, None, None


def _blocks(maps: Tensor) -> Iterator[tuple[slice, slice]]:
    """Slices of images and channels of (B, C, n) that cover it in blocks of bounded size."""
    batch, channels, pixels = maps.shape
    elements = _BLOCK if maps.device.type == "cpu" else 64 * _BLOCK
    few_channels = min(channels, max(elements // pixels, 1))
    few_images = max(elements // (channels * pixels), 1)
    for image in range(0, batch, few_images):
        for channel in range(0, channels, few_channels):
            yield slice(image, image + few_images), slice(channel, channel + few_channels)

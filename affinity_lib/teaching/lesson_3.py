"""Exercises on affinities and the loss that teaches them: Eq. 3 and 7 to 10."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from affinity_lib.affinity import PairLabels, affinities, affinity_loss
from affinity_lib.teaching.exercise import Exercise, Property, close, rand, shape, unlike


def _vectors() -> list[dict[str, Any]]:
    first, second = rand(5, 4), rand(5, 4, seed=1)
    second[0] = first[0]  # one pair of equal pixels
    return [{"first": first, "second": second}]


def _of_pairs(first: Tensor, second: Tensor) -> Tensor:
    features = torch.stack([first.T, second.T], dim=2)[None]  # (1, D, n, 2)
    return affinities(features, torch.tensor([[0, 1]]))[0, 0, :, 0]


AFFINITY = Exercise(
    "3.1",
    _vectors,
    [
        shape("an affinity for each pair, (n,)"),
        unlike(
            "the paper's distance sums over the channels; yours is their mean, the released code's "
            "choice",
            lambda c: torch.exp(-(c.first - c.second).abs().mean(dim=1)),
        ),
        unlike(
            "the distance of Eq. 3 is L1, a sum of absolute differences; yours is L2",
            lambda c: torch.exp(-(c.first - c.second).norm(dim=1)),
        ),
        unlike(
            "differences must not cancel: take their absolute values before the sum",
            lambda c: torch.exp(-(c.first - c.second).sum(dim=1)),
        ),
        Property(
            "an affinity is at most 1; yours goes up to {:.2f}: the distance has a minus before it",
            lambda c: bool((c.got <= 1 + 1e-6).all()),
            lambda c: float(c.got.max()),
        ),
        Property(
            "equal pixels have an affinity of 1; yours have {:.2f}: exp(-0) = 1",
            lambda c: close(c.got[0], 1),
            lambda c: float(c.got[0]),
        ),
    ],
    [
        "From the inside: difference, absolute value, sum over the channels, minus, exp.",
        "The channels are the last dimension, `dim=1`.",
    ],
    "The exponential turns a distance from 0 to infinity into an affinity from 1 to 0.",
    _of_pairs,
)


def _grid() -> list[dict[str, Any]]:
    features = 2 * rand(3, 4, 6)
    return [{"features": features, "dy": dy, "dx": dx} for dy, dx in ((0, 1), (2, 1), (1, -2))]


def _map(features: Tensor, dy: int, dx: int) -> Tensor:
    return affinities(features[None], torch.tensor([[dy, dx]]))[0, 0]


def _rolled(features: Tensor, dy: int, dx: int) -> Tensor:
    return torch.exp(-(features - features.roll((-dy, -dx), (1, 2))).abs().sum(dim=0))


def _inside(c: Any) -> Tensor:
    """Where the second pixel of a pair is on the map."""
    _, height, width = c.features.shape
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    y, x = y + c.dy, x + c.dx
    return (y >= 0) & (y < height) & (x >= 0) & (x < width)


MAP = Exercise(
    "3.2",
    _grid,
    [
        shape("a value for each cell, (h, w)"),
        unlike(
            "the map of (y, x) belongs to the pair with (y + dy, x + dx); yours looks the other way",
            lambda c: _map(c.features, c.dy, c.dx).roll((c.dy, c.dx), (0, 1)),
            lambda c: _rolled(c.features, -c.dy, -c.dx),
        ),
        Property(
            "at the border the second pixel may lie outside: there is no pair, and the value is 0; "
            "yours wraps round to the other side: `torch.roll` does",
            lambda c: not close(c.got, _rolled(c.features, c.dy, c.dx)),
        ),
        Property(
            "inside of the map each value is Eq. 3; yours differs by {:.2g}: mind which of dy and "
            "dx goes down and which to the right",
            lambda c: close(c.got[_inside(c)], c.want[_inside(c)]),
            lambda c: float((c.got - c.want)[_inside(c)].abs().max()),
        ),
        Property(
            "where the second pixel lies outside, the value is 0; yours is {:.2f} there",
            lambda c: close(c.got[~_inside(c)], 0),
            lambda c: float(c.got[~_inside(c)].abs().max()),
        ),
    ],
    [
        "Two loops over y and x are fine. Start from `torch.zeros(h, w)`.",
        "Inside the loops: skip the cell if `not 0 <= y + dy < h or not 0 <= x + dx < w`.",
        "`features[:, y, x]` and `features[:, y + dy, x + dx]` are the two vectors of Eq. 3.",
    ],
    "One map an offset, 34 in all, hold W without ever making a matrix of all pixels by all.",
    _map,
)


def _pairs() -> list[dict[str, Any]]:
    W = 0.1 + 0.8 * rand(40)
    kind = (rand(40, seed=1) * 12).int()  # many background pairs, few negative ones
    masks = {"background": kind > 4, "foreground": (kind > 1) & (kind < 4), "negative": kind < 2}
    none = masks | {"foreground": kind < 0}
    return [{"W": W} | masks, {"W": W} | none]


def _parts(c: Any) -> list[Tensor]:
    """What each kind of pair adds to a sum of cross-entropies, pair by pair."""
    return [
        -c.W[c.background].log(),
        -c.W[c.foreground].log(),
        -(1 - c.W[c.negative]).log(),
    ]


def _mean(values: Tensor) -> Tensor:
    return values.sum() / max(len(values), 1)


def _weighted(parts: list[Tensor], weight: float = 2) -> Tensor:
    background, foreground, negative = map(_mean, parts)
    return background + foreground + weight * negative


def _balanced(W: Tensor, background: Tensor, foreground: Tensor, negative: Tensor) -> Tensor:
    one = [mask.view(1, 1, 1, -1) for mask in (background, foreground, negative)]
    return affinity_loss(W.view(1, 1, 1, -1), PairLabels(*one)).total


LOSS = Exercise(
    "3.3",
    _pairs,
    [
        shape("one number"),
        Property(
            "a kind without any pair adds nothing; yours makes the loss {}: divide by the number "
            "of pairs or by 1, whichever is larger",
            lambda c: bool(c.got.isfinite()),
        ),
        Property(
            "a loss is positive, as no logarithm of an affinity is; yours is {:.2f}: minus",
            lambda c: float(c.got) > 0,
        ),
        unlike(
            "each kind of pair is averaged on its own (Eq. 7-9); yours averages over all pairs "
            "together, where the background drowns the rest",
            lambda c: torch.cat(_parts(c)).mean(),
        ),
        unlike(
            "each kind of pair is averaged (Eq. 7-9); yours is a sum, which grows with the image",
            lambda c: _parts(c)[0].sum() + _parts(c)[1].sum() + 2 * _parts(c)[2].sum(),
        ),
        unlike(
            "Eq. 10 counts the negative pairs twice; yours counts them once",
            lambda c: _weighted(_parts(c), 1),
        ),
        unlike(
            "a negative pair should have an affinity of 0, so its loss is -log(1 - W); yours takes "
            "-log W, which would pull it to 1",
            lambda c: _weighted([*_parts(c)[:2], -c.W[c.negative].log()]),
        ),
    ],
    [
        (
            "Three means: `-log W` over the background pairs and over the foreground pairs, and "
            "`-log(1 - W)` over the negative ones."
        ),
        (
            "`W[mask]` are the affinities of one kind. An empty one has the mean nan: write "
            "`values.sum() / max(len(values), 1)`."
        ),
        "Eq. 10 adds them with weights 1, 1 and 2.",
    ],
    "Positive and negative pairs now weigh the same, two means against two, however many there are.",
    _balanced,
)


def _losses() -> list[dict[str, Any]]:
    case = _pairs()[0]
    masks = [case[name] for name in ("background", "foreground", "negative")]

    def plain(W: Tensor) -> Tensor:
        return _mean(torch.cat([-W[masks[0] | masks[1]].log(), -(1 - W[masks[2]]).log()]))

    def balanced(W: Tensor) -> Tensor:
        return _balanced(W, *masks)

    return [{"loss": each, "W": case["W"], "mask": masks[2]} for each in (plain, balanced)]


def _gradient(loss: Callable[[Tensor], Tensor], W: Tensor) -> Tensor:
    W = W.clone().requires_grad_()
    return torch.autograd.grad(loss(W), W)[0]


def _pull(loss: Callable[[Tensor], Tensor], W: Tensor, mask: Tensor) -> float:
    force = _gradient(loss, W).abs()
    return float(force[mask].sum() / force.sum())


PULL = Exercise(
    "3.4",
    _losses,
    [
        shape("one number"),
        unlike(
            "pulls up and down must not cancel: take the absolute values of the gradient before "
            "you sum",
            lambda c: (g := _gradient(c.loss, c.W))[c.mask].sum() / g.sum(),
        ),
        unlike(
            "the share is that of the gradient; yours is that of the number of pairs",
            lambda c: c.mask.float().mean(),
        ),
        unlike(
            "it is the share of all pairs' pull; yours is not divided by the sum over all of them",
            lambda c: _gradient(c.loss, c.W).abs()[c.mask].sum(),
        ),
        Property(
            "a share lies between 0 and 1; yours is {:.2f}",
            lambda c: 0 <= float(c.got) <= 1,
        ),
    ],
    [
        "Tell a copy of W that it needs a gradient: `W = W.clone().requires_grad_()`.",
        "`(gradient,) = torch.autograd.grad(loss(W), W)` is a number for each pair.",
        "Sum its absolute values over the mask, and divide by the sum over all.",
    ],
    "Balance is not a detail of the loss: it decides whom the network listens to.",
    _pull,
)

EXERCISES = (AFFINITY, MAP, LOSS, PULL)

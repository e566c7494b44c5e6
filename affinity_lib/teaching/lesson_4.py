"""Exercises on the random walk: Eq. 11 and 12, where it ends, and why it is cheap."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from affinity_lib.affinity import half_plane_offsets, pairs_inside
from affinity_lib.random_walk import chebyshev_coefficients, random_walk, transition_matrix
from affinity_lib.teaching.exercise import Exercise, Property, close, rand, shape, unlike

OFFSETS = half_plane_offsets(3)
AFFINITY = (0.3 + 0.7 * rand(len(OFFSETS), 3, 4)) * pairs_inside(OFFSETS, 3, 4)
BETA = 3.0


def dense(affinity: Tensor, offsets: Tensor) -> Tensor:
    """Affinities, a map an offset, as the matrix of all pairs, for maps of a few hundred pixels.

    Args:
        affinity: (P, h, w).
        offsets: (P, 2).

    Returns:
        W, (n, n) with n = h w: symmetric, 1 on the diagonal, 0 where there is no pair.

    >>> dense(torch.tensor([[[0.5, 0.0]]]), torch.tensor([[0, 1]]))
    tensor([[1.0000, 0.5000],
            [0.5000, 1.0000]])
    """
    T = transition_matrix(affinity, offsets, beta=1)
    return T / T.diagonal()[:, None]  # W_ii = 1, so T_ii = 1 / D_ii


def _transition(W: Tensor, beta: float) -> Tensor:
    return transition_matrix(AFFINITY, OFFSETS, beta)


TRANSITION = Exercise(
    "4.1",
    lambda: [{"W": dense(AFFINITY, OFFSETS), "beta": beta} for beta in (8.0, 2.0)],
    [
        shape("a row and a column for each pixel, (n, n)"),
        unlike(
            "each affinity is raised to the power beta; yours is not: a factor beta cancels in the "
            "rows",
            lambda c: c.W / c.W.sum(dim=1, keepdim=True),
        ),
        unlike(
            "the power comes before the division; yours divides first, and the rows sum to less "
            "than one",
            lambda c: (c.W / c.W.sum(dim=1, keepdim=True)) ** c.beta,
        ),
        unlike(
            "the rows must sum to one; in yours the columns do: sum over `dim=1`, with "
            "`keepdim=True`",
            lambda c: (b := c.W**c.beta) / b.sum(dim=0, keepdim=True),
        ),
        unlike(
            "the power is one of each entry, as the small circle in the equation says; yours is a "
            "power of the matrix",
            lambda c: (b := torch.linalg.matrix_power(c.W, int(c.beta))) / b.sum(1, keepdim=True),
        ),
        Property(
            "the rows must sum to one; yours sum to {:.1f}: divide by D",
            lambda c: close(c.got.sum(dim=1), 1),
            lambda c: float(c.got.sum(dim=1).max()),
        ),
    ],
    [
        "Two steps: raise every entry to the power beta, then divide each row by its sum.",
        "`W_beta.sum(dim=1, keepdim=True)` is a column of the row sums.",
    ],
    "Each row is a distribution: where a step from this pixel leads.",
    _transition,
)


def _walks() -> list[dict[str, Any]]:
    T = transition_matrix(AFFINITY, OFFSETS, BETA)
    M = rand(2, 3, 4, seed=2)
    M[1] = 0.5  # one map is the same everywhere
    return [{"M": M, "T": T, "t": t} for t in (0, 1, 6)]


def _walked(c: Any, matrix: Tensor) -> Tensor:
    return (c.M.flatten(1) @ matrix.T).view(c.M.shape)


def _power(c: Any, t: int) -> Tensor:
    return torch.linalg.matrix_power(c.T, max(t, 0))


WALK = Exercise(
    "4.2",
    _walks,
    [
        shape("the shape of M, a map for each class"),
        Property(
            "a walk of t = 0 steps changes nothing; yours does",
            lambda c: c.t > 0 or close(c.got, c.M),
        ),
        unlike(
            "T stands at the left: a pixel takes the mean of its neighbours; yours multiplies from "
            "the right and hands its own value out",
            lambda c: _walked(c, _power(c, c.t).T),
        ),
        unlike(
            "T to the power t is a power of the matrix, t steps; yours raises each entry",
            lambda c: _walked(c, c.T**c.t),
        ),
        unlike("t steps are t products; yours makes one", lambda c: _walked(c, c.T)),
        unlike(
            "t steps are t products; yours makes one less", lambda c: _walked(c, _power(c, c.t - 1))
        ),
        unlike(
            "t steps are t products; yours makes one more", lambda c: _walked(c, _power(c, c.t + 1))
        ),
        Property(
            "a map that is the same everywhere stays as it is, as each step is a mean; yours "
            "becomes {:.2f} where it was 0.5",
            lambda c: close(c.got[1], 0.5),
            lambda c: float(c.got[1].flatten()[0]),
        ),
    ],
    [
        "`M.flatten(1)` has a row a map; its transpose has vec(M) in its columns.",
        "One step is `T @ v`. Take t of them in a loop, or `torch.linalg.matrix_power`.",
        "At the end transpose back and give it the shape of M: `.T.view(M.shape)`.",
    ],
    "A mean of means is a mean: no walk ever makes a value larger than the largest it began with.",
    lambda M, T, t: random_walk(M, AFFINITY, OFFSETS, BETA, t, method="dense"),
)


def _degrees(c: Any, beta: float) -> Tensor:
    return (c.W**beta).sum(dim=1)


def _end(M: Tensor, W: Tensor, beta: float) -> Tensor:
    return random_walk(M.view(1, 3, 4), AFFINITY, OFFSETS, beta, t=20_000).mean()


END = Exercise(
    "4.3",
    lambda: [
        {"M": rand(12, seed=seed), "W": dense(AFFINITY, OFFSETS), "beta": beta}
        for seed, beta in ((4, 2.0), (5, 3.0))
    ],
    [
        shape("one number"),
        unlike(
            "not every pixel has the same say; yours is the plain mean of M: weigh it with the row "
            "sums D",
            lambda c: c.M.mean(),
        ),
        unlike(
            "the row sums are those of W to the power beta; yours leaves beta out",
            lambda c: (d := _degrees(c, 1)) @ c.M / d.sum(),
        ),
        unlike(
            "a pixel with many friends is visited more often; yours weighs with 1 / D: weigh with D",
            lambda c: (d := 1 / _degrees(c, c.beta)) @ c.M / d.sum(),
        ),
        Property(
            "a mean lies between the smallest and the largest value; yours is {:.2f}: divide by "
            "the sum of the weights",
            lambda c: float(c.M.min()) <= float(c.got) <= float(c.M.max()),
        ),
    ],
    [
        "Walk far: `my_walk` with `my_transition_matrix(W, 1)` and t = 1000. Which mean is it?",
        "In the lesson the blur over four pixels ended in 2 / (2 + 3 + 3 + 2).",
        "`(D * M).sum() / D.sum()` with the row sums D of `W**beta`.",
    ],
    "Too long a walk forgets where it began and keeps one number a map. t is a matter of taste "
    "between the CAM and this.",
    _end,
)


def _coefficients(t: int) -> np.ndarray:
    kept = chebyshev_coefficients(t, 1e-12)
    return np.pad(kept, (0, t + 1 - len(kept)))


def _series(c: Any, x: float) -> float:
    return float((c.got * torch.cos(torch.arange(c.t + 1) * np.arccos(x))).sum())


COEFFICIENTS = Exercise(
    "4.4",
    lambda: [{"t": 3}, {"t": 16}],
    [
        shape("a coefficient for each degree from 0 to t"),
        Property(
            "degrees that are odd where t is even, or even where it is odd, have the coefficient "
            "0; yours have {:.2g}",
            lambda c: close(c.got[1 - c.t % 2 :: 2], 0),
            lambda c: float(c.got[1 - c.t % 2 :: 2].abs().max()),
        ),
        unlike(
            "degree 0 has half of the formula; yours has all of it",
            lambda c: c.want + (c.want[0] * (torch.arange(c.t + 1) == 0)),
        ),
        Property(
            "the coefficients sum to one, as 1 to any power is 1; yours sum to {:.2f}: the factor "
            "is 2 to the power 1 - t",
            lambda c: close(c.got.sum(), 1),
            lambda c: float(c.got.sum()),
        ),
        Property(
            "at x = 0.5 the series must give 0.5 to the power t; yours is off by {:.2g}: degree k "
            "stands at place k",
            lambda c: close(_series(c, 0.5), 0.5**c.t),
            lambda c: abs(_series(c, 0.5) - 0.5**c.t),
        ),
    ],
    [
        "`from math import comb`; (t - k) / 2 is a whole number where t - k is even: `// 2`.",
        "`2 * comb(t, (t - k) // 2) / 2**t` if `(t - k) % 2 == 0`, else 0.",
        "At the end halve the coefficient of degree 0.",
    ],
    "Beyond a few times the square root of t nothing is left: that is the whole saving.",
    _coefficients,
)

EXERCISES = (TRANSITION, WALK, END, COEFFICIENTS)

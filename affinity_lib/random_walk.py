"""Propagation of CAMs by a random walk over the semantic affinities (Sec. 3.3, Eq. 11-12)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import binom
from torch import Tensor
from torch.autograd.function import once_differentiable

from affinity_lib.affinity import check_offsets, flat_shifts, pair_slices, pairs_inside
from affinity_lib.errors import InputError

METHODS = ("chebyshev", "sparse", "dense")


def random_walk(
    cams: Tensor,
    affinity: Tensor,
    offsets: Tensor,
    beta: float = 8,
    t: int = 256,
    method: str | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Walk ``t`` steps from every pixel: vec(M*) = T^t vec(M) (Eq. 12).

    Only the maps passed are walked, so pass those of the tags present. Differentiable with
    respect to ``cams`` and ``affinity``.

    Args:
        cams: score maps M, shape (K, H, W) or (B, K, H, W).
        affinity: W of Eq. 3, shape (P, H, W) or (B, P, H, W), from `affinity.affinities`; values
            whose second pixel is outside of the map are ignored.
        offsets: (P, 2) from `affinity.half_plane_offsets`.
        beta: Hadamard power of W, > 0; larger is more conservative (Eq. 11).
        t: number of steps, any integer >= 0.
        method: "chebyshev" (about sqrt(2 t ln(2 / eps)) sparse products), "sparse" (t products)
            or "dense" (squarings of the n x n matrix, for small maps); None takes "chebyshev" for
            t >= 32 and "sparse" below.
        eps: the weight of the Chebyshev terms that are left out, in (0, 1).

    Returns:
        The walked maps, shape and type of ``cams``.

    Raises:
        InputError: a shape, a type or a setting does not fit.

    >>> from affinity_lib.affinity import half_plane_offsets
    >>> offsets = half_plane_offsets(2)
    >>> cams = torch.zeros(1, 3, 3)
    >>> cams[0, 1, 1] = 1
    >>> random_walk(cams, torch.ones(4, 3, 3), offsets, t=1).round(decimals=3)[0, 1].tolist()
    [0.16699999570846558, 0.11100000143051147, 0.16699999570846558]
    """
    if method is None:
        method = "chebyshev" if t >= 32 else "sparse"
    if method not in METHODS:
        raise InputError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if t < 0 or t != int(t):
        raise InputError(f"t must be a whole number of steps >= 0 (Eq. 12), got {t}")
    if not 0 < eps < 1:
        raise InputError(f"eps must be between 0 and 1, got {eps}")
    _check(affinity, offsets, beta)
    if cams.device != affinity.device:
        raise InputError(
            f"cams are on {cams.device} and affinity is on {affinity.device}: move the cams there, "
            "as in cams.to(affinity.device)"
        )
    sizes = [(tensor.ndim, tensor.shape[:-3], tensor.shape[-2:]) for tensor in (cams, affinity)]
    if sizes[0] != sizes[1] or not cams.is_floating_point():
        raise InputError(
            f"cams must be floating point (K, H, W), or (B, K, H, W), with the map size and batch "
            f"of the affinity {tuple(affinity.shape)}, got {cams.dtype} {tuple(cams.shape)}"
        )
    if method == "dense":
        matrix = torch.linalg.matrix_power(transition_matrix(affinity, offsets, beta), int(t))
        return (cams.flatten(-2).to(matrix.dtype) @ matrix.mT).view(cams.shape).to(cams.dtype)
    if t == 0:
        return cams.clone()
    if method == "chebyshev":
        coefficients = chebyshev_coefficients(int(t), eps)
    else:
        coefficients = np.zeros(int(t) + 1)
        coefficients[-1] = 1
    maps = cams.to(_working_type(cams, affinity)).movedim(-3, 0)
    weights, degree, shifts = _powers(affinity, offsets, beta, maps.dtype)
    scale = degree.rsqrt()
    walked = _Polynomial.apply(
        maps.flatten(1) / scale, weights, scale, shifts, coefficients, method == "chebyshev"
    )
    walked = (walked * scale).view(maps.shape).movedim(0, -3)
    return walked.to(cams.dtype).contiguous()


def transition_matrix(affinity: Tensor, offsets: Tensor, beta: float = 8) -> Tensor:
    """The dense transition matrix T = D^-1 W^beta (Eq. 11), for maps of a few thousand pixels.

    Args:
        affinity: W of Eq. 3, shape (P, H, W) or (B, P, H, W).
        offsets: (P, 2) from `affinity.half_plane_offsets`.
        beta: Hadamard power, > 0.

    Returns:
        T, shape (n, n) or (B, n, n) with n = H W; pixels in row-major order, rows sum to one.

    Raises:
        InputError: a shape, a type or ``beta`` does not fit.

    >>> transition_matrix(torch.tensor([[[0.5, 0.0]]]), torch.tensor([[0, 1]]), beta=1)
    tensor([[0.6667, 0.3333],
            [0.3333, 0.6667]])
    """
    _check(affinity, offsets, beta)
    height, width = affinity.shape[-2:]
    index = torch.arange(height * width, device=affinity.device).view(height, width)
    matrix = torch.eye(index.numel(), dtype=affinity.dtype, device=affinity.device)
    matrix = matrix.expand(*affinity.shape[:-3], -1, -1).clone()
    for k, (dy, dx) in enumerate(offsets.tolist()):
        first, second = pair_slices(dy, dx, height, width)
        values = affinity[..., k, :, :][first].flatten(-2) ** beta
        i, j = index[first].flatten(), index[second].flatten()
        matrix[..., i, j] = values
        matrix[..., j, i] = values
    return matrix / matrix.sum(-1, keepdim=True)


def chebyshev_coefficients(t: int, eps: float = 1e-5) -> np.ndarray:
    """Coefficients of x^t = sum_k c_k T_k(x) on [-1, 1], cut where the rest is below ``eps``.

    c_k = 2 binomial(t, (t - k) / 2) / 2^t for k > 0 of the parity of t, half of that for k = 0.
    They sum to one, so that a constant map stays as it is.

    >>> chebyshev_coefficients(3).round(2).tolist()
    [0.0, 0.75, 0.0, 0.25]
    >>> len(chebyshev_coefficients(256))
    71
    """
    degree = np.arange(t + 1)
    coefficients = np.where((t - degree) % 2 == 0, 2 * binom.pmf((t - degree) // 2, t, 0.5), 0.0)
    if t % 2 == 0:
        coefficients[0] /= 2
    rest = np.cumsum(coefficients[::-1])[::-1]
    kept = coefficients[: np.count_nonzero(rest >= eps)]
    return kept / kept.sum()


def _check(affinity: Tensor, offsets: Tensor, beta: float) -> None:
    check_offsets(offsets)
    if affinity.ndim not in (3, 4) or affinity.shape[-3] != len(offsets):
        raise InputError(
            f"affinity must be (P, H, W) or (B, P, H, W) with P = {len(offsets)} offsets, got "
            f"{tuple(affinity.shape)}"
        )
    if not 0 < beta < math.inf:
        raise InputError(f"beta must be > 0 (Eq. 11), got {beta}")
    if not affinity.amin() >= 0:
        raise InputError("affinity must be >= 0 everywhere (Eq. 3), got a negative or NaN value")


def _working_type(cams: Tensor, affinity: Tensor) -> torch.dtype:
    """float64, as in float32 the rows of T miss one by 3e-8, 256 times in one direction; but not on
    Apple's GPUs, which have none."""
    if cams.device.type != "mps":
        return torch.float64
    return torch.promote_types(torch.promote_types(cams.dtype, affinity.dtype), torch.float32)


def _powers(
    affinity: Tensor, offsets: Tensor, beta: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, list[int]]:
    """W^beta and its row sums D, from which S = D^-1/2 W^beta D^-1/2, similar to T, is made.

    The maps of a batch are laid end to end, N = B H W pixels in a row, so that the neighbours with
    one offset are all one shift apart. D is summed in ``dtype`` from the entries as they are
    stored, so that the rows of T sum to one whatever the precision of ``affinity``.

    Returns:
        The entries of W^beta at (i, i + shift), shape (P, N), zero where there is no pair; the
        degrees D (N,); the P shifts.
    """
    height, width = affinity.shape[-2:]
    pairs = flat_shifts(offsets, height, width)
    kept, shifts = [k for k, _ in pairs], [shift for _, shift in pairs]
    outside = ~pairs_inside(offsets, height, width).to(affinity.device)[kept]
    weights = affinity if len(kept) == len(offsets) else affinity[..., kept, :, :]
    weights = weights.to(torch.promote_types(weights.dtype, torch.float32))
    weights = (weights.masked_fill(outside, 1) ** beta).masked_fill_(outside, 0)
    weights = weights.movedim(-3, 0).flatten(1)
    degree = torch.ones(weights.shape[1], dtype=dtype, device=weights.device)
    for weight, shift in zip(weights, shifts, strict=True):
        degree += weight
        degree[shift:] += weight[:-shift]
    return weights, degree, shifts


def _multiplier(weights: Tensor, scale: Tensor, shifts: list[int]) -> Callable[[Tensor], Tensor]:
    """The function that multiplies maps (K, N) with S, in the way that suits where they are.

    A CPU reads the matrix once for all maps and keeps its pace when that outgrows the cache, if MKL
    is there. On a GPU the maps are so small that the number of kernels decides: one for all rows,
    not two a shift. ``make bench`` and ``make gpu`` measure it.
    """
    if scale.device.type != "cpu":
        return _by_bags(weights, scale, shifts)
    by = _by_rows if torch.backends.mkl.is_available() else _by_shifts
    return by(weights, scale, shifts)


def _by_rows(weights: Tensor, scale: Tensor, shifts: list[int]) -> Callable[[Tensor], Tensor]:
    """A product of a sparse matrix (CSR)."""
    count = scale.numel()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls its sparse tensors beta, once a process
        matrix = torch.sparse_csr_tensor(*_rows(weights, scale, shifts), (count, count))
    return lambda maps: (matrix @ maps.T).T


def _by_bags(weights: Tensor, scale: Tensor, shifts: list[int]) -> Callable[[Tensor], Tensor]:
    """A weighted sum of pixels a row, in one kernel and without a copy of the neighbours."""
    starts, places, values = _rows(weights, scale, shifts)

    def multiply(maps: Tensor) -> Tensor:
        pixels = maps.T.contiguous()
        return F.embedding_bag(places, pixels, starts[:-1], per_sample_weights=values, mode="sum").T

    return multiply


def _by_shifts(weights: Tensor, scale: Tensor, shifts: list[int]) -> Callable[[Tensor], Tensor]:
    """Two products with shifted views of the maps a shift."""
    edges, stay = list(_edges(weights, scale, shifts)), scale**2

    def multiply(maps: Tensor) -> Tensor:
        total = maps * stay
        for edge, shift in zip(edges, shifts, strict=True):
            total[:, :-shift].addcmul_(maps[:, shift:], edge)
            total[:, shift:].addcmul_(maps[:, :-shift], edge)
        return total

    return multiply


def _edges(weights: Tensor, scale: Tensor, shifts: list[int]) -> Iterator[Tensor]:
    """The entries of S at (i, i + shift) for i + shift < N, one shift after the other."""
    for weight, shift in zip(weights, shifts, strict=True):
        yield weight[:-shift] * scale[:-shift] * scale[shift:]


def _rows(weights: Tensor, scale: Tensor, shifts: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """S by rows that have one place for each diagonal: where they start, the places' columns and
    their values, as in compressed sparse rows.

    Places outside of the matrix hold a zero in its first or last column.
    """
    count = scale.numel()
    distances = sorted({0, *shifts, *(-shift for shift in shifts)})
    values = scale.new_zeros(count, len(distances))
    values[:, distances.index(0)] = scale**2
    for edge, shift in zip(_edges(weights, scale, shifts), shifts, strict=True):
        values[:-shift, distances.index(shift)] += edge  # narrow maps have equal shifts
        values[shift:, distances.index(-shift)] += edge
    whole = {"dtype": torch.int32, "device": scale.device}
    columns = torch.arange(count, **whole)[:, None] + torch.tensor(distances, **whole)
    starts = torch.arange(0, values.numel() + 1, len(distances), **whole)
    return starts, columns.clamp_(0, count - 1).flatten(), values.flatten()


class _Polynomial(torch.autograd.Function):
    """sum_k c_k X_k with X_0 = maps and X_k = S X_(k-1), or X_k = T_k(S) X_0 by the recurrence
    T_(k+1) = 2 S T_k - T_(k-1) of the Chebyshev polynomials."""

    @staticmethod
    def forward(ctx, maps, weights, scale, shifts, coefficients, chebyshev):
        ctx.save_for_backward(maps, weights, scale)
        ctx.settings = shifts, coefficients, chebyshev
        multiply = _multiplier(weights, scale, shifts)
        return _sum(coefficients, _terms(multiply, maps, len(coefficients), chebyshev))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        maps, weights, scale = ctx.saved_tensors
        shifts, coefficients, chebyshev = ctx.settings
        multiply, length = _multiplier(weights, scale, shifts), len(coefficients)
        if not any(ctx.needs_input_grad[1:3]):  # S is symmetric
            return _sum(coefficients, _terms(multiply, grad, length, chebyshev)), *(None,) * 5
        terms = torch.stack(list(_terms(multiply, maps, length, chebyshev)))
        adjoint = torch.zeros(length + 2, *maps.shape, dtype=maps.dtype, device=maps.device)
        for k in reversed(range(length)):
            factor = 2 if chebyshev and k else 1
            adjoint[k] = coefficients[k] * grad + factor * multiply(adjoint[k + 1])
            if chebyshev:
                adjoint[k] -= adjoint[k + 2]
        grad_maps = adjoint[0].clone()
        left, right = adjoint[1:length].flatten(0, 1), terms[:-1].flatten(0, 1)
        if chebyshev:
            adjoint[2:] *= 2
        grad_weights, grad_scale = torch.zeros_like(weights), 2 * scale * (left * right).sum(0)
        for weight, shift, row in zip(weights, shifts, grad_weights, strict=True):
            edge = (left[:, :-shift] * right[:, shift:]).sum(0)
            edge += (left[:, shift:] * right[:, :-shift]).sum(0)
            row[:-shift] = edge * scale[:-shift] * scale[shift:]
            grad_scale[:-shift] += edge * weight[:-shift] * scale[shift:]
            grad_scale[shift:] += edge * weight[:-shift] * scale[:-shift]
        return grad_maps, grad_weights, grad_scale, None, None, None


def _terms(
    multiply: Callable[[Tensor], Tensor], maps: Tensor, length: int, chebyshev: bool
) -> Iterator[Tensor]:
    previous, current = None, maps
    yield current
    for _ in range(length - 1):
        following = multiply(current)
        if chebyshev and previous is not None:
            following.mul_(2).sub_(previous)
        previous, current = current, following
        yield current


def _sum(coefficients: np.ndarray, terms: Iterator[Tensor]) -> Tensor:
    total = None
    for coefficient, term in zip(coefficients.tolist(), terms, strict=True):
        if coefficient:
            total = coefficient * term if total is None else total.add_(term, alpha=coefficient)
    return total

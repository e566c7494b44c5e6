"""Confident areas of the CAMs, from which AffinityNet learns (section 3.2.1)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from affinity_lib.cam import resize, to_labels, with_background
from affinity_lib.crf import CRFSettings, dense_crf
from affinity_lib.errors import InputError
from affinity_lib.evaluation import VOID


def confident_labels(
    image: np.ndarray,
    cams: Tensor,
    tags: Sequence[int],
    alpha_strong: float = 4,
    alpha_weak: float = 24,
    crf: CRFSettings | None = None,
) -> np.ndarray:
    """Label of each pixel whose class can be trusted, neutral elsewhere.

    An object is trusted where its class wins even against the amplified background
    (``alpha_strong``), the background where it wins even when weakened (``alpha_weak``), both
    after dCRF.

    Args:
        image: (H, W, 3) uint8.
        cams: (K, h, w) in [0, 1], of the tags present.
        tags: the K labels, 1..C.
        alpha_strong: exponent of Eq. 2 that amplifies the background.
        alpha_weak: exponent that weakens it, larger than ``alpha_strong``.
        crf: settings of the dCRF, or None for none.

    Returns:
        (H, W) uint8: 0 for trusted background, a tag for a trusted object, 255 for neutral.

    Raises:
        InputError: an exponent below 1, ``alpha_weak`` below ``alpha_strong``, or no CAM.

    >>> cams = torch.tensor([[[1.0, 0.1, 0.0]]])
    >>> confident_labels(np.zeros((1, 3, 3), np.uint8), cams, tags=[2]).tolist()
    [[2, 255, 0]]
    """
    check_alphas(alpha_strong, alpha_weak)
    if len(cams) == 0:
        raise InputError("an image without a tag has no confident areas: give it a tag")
    return trusted(confidences(image, cams, (alpha_strong, alpha_weak), crf), tags).numpy()


def confidences(
    image: np.ndarray, cams: Tensor, alphas: Sequence[float], crf: CRFSettings | None = None
) -> Tensor:
    """Background and CAMs after the dCRF, for each of some exponents of Eq. 2.

    Args:
        image: (H, W, 3) uint8.
        cams: (K, h, w) in [0, 1], of the tags present.
        alphas: A exponents.
        crf: settings of the dCRF, or None for none.

    Returns:
        (A, 1 + K, H, W), background first.
    """
    cams = resize(cams, image.shape[:2])
    return refined(image, [with_background(cams, alpha) for alpha in alphas], crf)


def refined(image: np.ndarray, scores: Iterable[Tensor], crf: CRFSettings | None = None) -> Tensor:
    """Scores with some backgrounds at the size of the image, after the dCRF.

    Args:
        image: (H, W, 3) uint8.
        scores: A times (1 + K, h, w), background first.
        crf: settings of the dCRF, or None for none.

    Returns:
        (A, 1 + K, H, W).
    """
    maps = torch.stack([resize(each, image.shape[:2]) for each in scores])
    return maps if crf is None else torch.from_numpy(dense_crf(image, maps.numpy(), crf))


def trusted(scores: Tensor, tags: Sequence[int]) -> Tensor:
    """Labels from ``confidences`` with the amplified and with the weakened background.

    Args:
        scores: (2, 1 + K, H, W). Where all of them are 0, nothing is known.
        tags: the K labels, 1..C.

    Returns:
        (H, W) uint8: 0 for trusted background, a tag for a trusted object, 255 for neutral.
    """
    strong, weak = (to_labels(each, tags) for each in scores)
    strong[strong == 0] = VOID
    strong[weak == 0] = 0
    strong[scores.amax(dim=(0, 1)) < 1e-5] = VOID
    return strong


def to_grid(labels: Tensor, size: tuple[int, int], num_labels: int) -> Tensor:
    """Label maps on the coarse grid of the features: the label with the largest area of a cell.

    Args:
        labels: (B, H, W) integers, 0..C or 255.
        size: height and width (h, w) of the grid.
        num_labels: C + 1.

    Returns:
        (B, h, w) integers, 0..C or 255.

    >>> labels = torch.tensor([[[1, 1, 255, 255], [1, 0, 255, 0]]])
    >>> to_grid(labels, (1, 2), num_labels=2)
    tensor([[[  1, 255]]])
    """
    if labels.shape[-2:] == tuple(size):
        return labels
    winner = labels.new_full((len(labels), *size), VOID, dtype=torch.long)
    most = torch.zeros(winner.shape, device=labels.device)
    for label in (*range(num_labels), VOID):  # one at a time: all together take 35 MB an image
        area = F.adaptive_avg_pool2d((labels == label).float(), size)
        larger = area > most
        winner.masked_fill_(larger, label)
        most = torch.maximum(most, area)
    return winner


def check_alphas(alpha_strong: float, alpha_weak: float) -> None:
    if not alpha_weak >= alpha_strong:
        raise InputError(
            f"alpha_weak weakens the background, so it must be >= alpha_strong: "
            f"got {alpha_weak:g} < {alpha_strong:g}"
        )

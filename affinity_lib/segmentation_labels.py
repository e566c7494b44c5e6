"""Score maps to label maps: upsample, dCRF, argmax (section 3.4)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from affinity_lib.cam import resize, to_labels
from affinity_lib.crf import CRFSettings, dense_crf


def synthesize_labels(
    image: np.ndarray, scores: Tensor, tags: Sequence[int], crf: CRFSettings | None = None
) -> np.ndarray:
    """Segmentation labels of one image.

    Args:
        image: (H, W, 3) uint8, the photograph.
        scores: (1 + K, h, w), background first, as after the random walk.
        tags: the K labels, 1..C.
        crf: settings of the dCRF, or None for none.

    Returns:
        (H, W) uint8: 0 for background, else a tag.

    >>> image = np.zeros((2, 4, 3), np.uint8)
    >>> scores = torch.tensor([[[0.9, 0.1]], [[0.1, 0.9]]])
    >>> synthesize_labels(image, scores, tags=[3]).tolist()
    [[0, 0, 3, 3], [0, 0, 3, 3]]
    """
    scores = resize(scores, image.shape[:2])
    if crf is not None:
        scores = torch.from_numpy(dense_crf(image, scores.numpy(), crf))
    return to_labels(scores, tags).numpy()


def enlarge(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Label map (h, w) at another size (H, W), nearest neighbour."""
    return np.array(Image.fromarray(labels).resize(size[::-1], Image.Resampling.NEAREST))

"""Fully connected CRF (dCRF) of one image (Sec. 3.2.1, 3.4)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from pydensecrf.densecrf import DenseCRF2D

from affinity_lib.errors import InputError


@dataclass(frozen=True)
class CRFSettings:
    """Settings of `dense_crf`; the defaults are those of the released code.

    ``gaussian_sxy`` and ``bilateral_sxy`` are standard deviations in pixels, ``bilateral_srgb``
    in intensity levels (0..255); ``*_compat`` are Potts weights; ``iterations`` of mean-field
    inference; probabilities are clipped from below at ``clip`` before the logarithm. Where label maps
    are written, the dCRF looks at images whose sides are ``scale`` times as long.

    >>> CRFSettings(iterations=5).bilateral_sxy
    80.0
    """

    gaussian_sxy: float = 3.0
    gaussian_compat: float = 3.0
    bilateral_sxy: float = 80.0
    bilateral_srgb: float = 13.0
    bilateral_compat: float = 10.0
    iterations: int = 10
    clip: float = 1e-5
    scale: float = 1.0

    def __post_init__(self) -> None:
        for name in ("gaussian_sxy", "bilateral_sxy", "bilateral_srgb", "clip", "scale"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} of the dCRF must be > 0, got {getattr(self, name)}")
        if self.iterations < 0:
            raise InputError(f"iterations of the dCRF must be >= 0, got {self.iterations}")


def dense_crf(
    image: np.ndarray, probabilities: np.ndarray, settings: CRFSettings | None = None
) -> np.ndarray:
    """Refine label probabilities along the edges of an image (Sec. 3.2.1 and 3.4).

    Args:
        image: RGB, uint8, (H, W, 3).
        probabilities: (L, H, W), one map per label present, or (A, L, H, W), several of these,
            for which the pairwise terms are set up once; need not sum to one, only the values
            between ``settings.clip`` and 1 matter.
        settings: default `CRFSettings()`.

    Returns:
        Probabilities of the same shape, float32, that sum to one over the labels.

    Raises:
        InputError: a shape or a type does not fit.

    >>> image = np.zeros((4, 6, 3), np.uint8)
    >>> dense_crf(image, np.full((2, 4, 6), 0.5)).shape
    (2, 4, 6)
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise InputError(
            f"the dCRF needs an RGB image (H, W, 3) of uint8, got {image.dtype} {image.shape}"
        )
    height, width = image.shape[:2]
    if probabilities.ndim not in (3, 4) or probabilities.shape[-2:] != (height, width):
        raise InputError(
            f"probabilities must be (L, {height}, {width}) like the image, got "
            f"{probabilities.shape}; resize them first"
        )
    if not probabilities.size or not np.isfinite(probabilities).all():
        raise InputError("probabilities must be finite maps of at least one label")
    s, count = settings or CRFSettings(), probabilities.shape[-3]
    crf, rgb = DenseCRF2D(width, height, count), np.ascontiguousarray(image)
    crf.addPairwiseGaussian(sxy=s.gaussian_sxy, compat=s.gaussian_compat)
    crf.addPairwiseBilateral(
        sxy=s.bilateral_sxy, srgb=s.bilateral_srgb, rgbim=rgb, compat=s.bilateral_compat
    )
    unaries = -np.log(np.clip(probabilities, s.clip, 1.0)).reshape(-1, count, height * width)
    refined = []
    for unary in unaries:
        crf.setUnaryEnergy(np.ascontiguousarray(unary, dtype=np.float32))
        refined.append(np.array(crf.inference(s.iterations), dtype=np.float32))
    return np.reshape(refined, probabilities.shape)

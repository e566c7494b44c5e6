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
        probabilities: (L, H, W), one map per label present; need not sum to one, only the
            values between ``settings.clip`` and 1 matter.
        settings: default `CRFSettings()`.

    Returns:
        Probabilities (L, H, W), float32, that sum to one over the labels.

    Raises:
        InputError: a shape or a type does not fit.

    >>> image = np.zeros((4, 6, 3), np.uint8)
    >>> dense_crf(image, np.full((2, 4, 6), 0.5)).shape
    (2, 4, 6)
    """
    return PairwiseCRF(image, settings)(probabilities)


class PairwiseCRF:
    """The pairwise terms of one image, set up once and used for several unaries.

    Call it like `dense_crf` without the image.

    >>> crf = PairwiseCRF(np.zeros((4, 6, 3), np.uint8))
    >>> strong, weak = (crf(np.full((2, 4, 6), value)) for value in (0.9, 0.1))
    >>> strong.shape == weak.shape
    True
    """

    def __init__(self, image: np.ndarray, settings: CRFSettings | None = None) -> None:
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise InputError(
                f"the dCRF needs an RGB image (H, W, 3) of uint8, got {image.dtype} {image.shape}"
            )
        self.settings = settings or CRFSettings()
        self._image = np.ascontiguousarray(image)
        self._set_up: dict[int, DenseCRF2D] = {}

    def __call__(self, probabilities: np.ndarray) -> np.ndarray:
        """Probabilities (L, H, W) before -> after inference; see `dense_crf`."""
        height, width = self._image.shape[:2]
        if probabilities.ndim != 3 or probabilities.shape[1:] != (height, width):
            raise InputError(
                f"probabilities must be (L, {height}, {width}) like the image, got "
                f"{probabilities.shape}; resize them first"
            )
        count = len(probabilities)
        if count == 0 or not np.isfinite(probabilities).all():
            raise InputError(
                "probabilities must be finite maps of at least one label, got "
                + ("none" if count == 0 else "infinite or NaN values")
            )
        crf = self._pairwise(count)
        unary = -np.log(np.clip(probabilities, self.settings.clip, 1.0))
        crf.setUnaryEnergy(np.ascontiguousarray(unary.reshape(count, -1), dtype=np.float32))
        refined = np.array(crf.inference(self.settings.iterations), dtype=np.float32)
        return refined.reshape(count, height, width)

    def _pairwise(self, count: int) -> DenseCRF2D:
        if count not in self._set_up:
            height, width = self._image.shape[:2]
            s = self.settings
            crf = DenseCRF2D(width, height, count)
            crf.addPairwiseGaussian(sxy=s.gaussian_sxy, compat=s.gaussian_compat)
            crf.addPairwiseBilateral(
                sxy=s.bilateral_sxy,
                srgb=s.bilateral_srgb,
                rgbim=self._image,
                compat=s.bilateral_compat,
            )
            self._set_up[count] = crf
        return self._set_up[count]

"""Image and labels through the same flips, scales and crops (Sec. 4.2, data augmentation)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import nn
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from affinity_lib.errors import InputError
from affinity_lib.voc import VOID

ImageOrLabels = TypeVar("ImageOrLabels", Image.Image, np.ndarray)


class ScoreMaps(tv_tensors.Mask):
    """Score maps (L, H, W) that move with an image as its labels do."""


class TrainTransform:
    """Random colours, scale, flip and crop: the paper's augmentation for all three networks.

    Image and labels move together; colours change in the image alone. An image smaller than the
    crop lands at a random place of it, surrounded by the mean colour (which normalises to 0) and
    by void labels. All randomness is torch's global generator's, so ``torch.manual_seed`` before
    a call fixes its result.

    Args:
        crop: side of the square crop in pixels; 448 in the paper's recipe.
        mean: the backbone's mean colour, three numbers in 0..1.
        std: the backbone's standard deviation, three numbers.
        scale: (smallest, largest) factor of the random scale, or None for none: the paper scales
            for all networks but AffinityNet.
        flip: mirror every second image.
        jitter: change brightness, contrast, saturation (by up to 30 %) and hue (by up to 0.1).

    Raises:
        InputError: crop < 1 or scale is not 0 < smallest <= largest.

    >>> transform = TrainTransform(32, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    >>> photo = Image.new("RGB", (50, 40), "gray")
    >>> image, labels = transform(photo, np.ones((40, 50), dtype=np.uint8))
    >>> image.shape, labels.shape, labels.dtype
    (torch.Size([3, 32, 32]), torch.Size([32, 32]), torch.int64)
    """

    def __init__(
        self,
        crop: int,
        mean: Sequence[float],
        std: Sequence[float],
        scale: tuple[float, float] | None = (0.5, 1.5),
        flip: bool = True,
        jitter: bool = True,
    ) -> None:
        if crop < 1:
            raise InputError(f"crop must be >= 1 pixel, got {crop}")
        steps: list[nn.Module] = []
        if jitter:
            steps.append(v2.ColorJitter(brightness=0.3, contrast=0.3, saturation=0.3, hue=0.1))
        if scale is not None:
            steps.append(_RandomScale(*scale))
        if flip:
            steps.append(v2.RandomHorizontalFlip())
        steps += [
            v2.ToDtype(
                {
                    tv_tensors.Image: torch.float32,
                    tv_tensors.Mask: torch.int64,
                    ScoreMaps: torch.float32,
                },
                scale=True,
            ),
            v2.Normalize(mean, std),
            v2.RandomCrop(
                crop,
                pad_if_needed=True,
                fill={tv_tensors.Image: 0, tv_tensors.Mask: VOID, ScoreMaps: 0},
            ),
        ]
        self._steps = v2.Compose(steps)

    def __call__(
        self, image: Image.Image, labels: np.ndarray | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Augment one image and, if there are, its labels.

        Args:
            image: RGB, any size.
            labels: (H, W) of the image's size, 0..C or 255, or score maps (L, H, W); None trains
                on tags.

        Returns:
            image, float32 (3, crop, crop), normalised; labels, int64 (crop, crop), score maps,
            float32 (L, crop, crop) with 0 around the image, or None.

        Raises:
            InputError: labels of another size than the image.
        """
        pixels = functional.to_image(image)
        if labels is None:
            return self._steps(pixels).as_subclass(torch.Tensor), None
        if labels.shape[-2:] != (image.height, image.width):
            raise InputError(
                f"labels of shape {labels.shape} do not fit an image of {image.height} x "
                f"{image.width} (H x W): resize them together"
            )
        soft = labels.ndim == 3
        mask = ScoreMaps(torch.from_numpy(labels)) if soft else tv_tensors.Mask(labels[None])
        pixels, mask = self._steps(pixels, mask)
        mask = mask.as_subclass(torch.Tensor)
        return pixels.as_subclass(torch.Tensor), mask if soft else mask[0]


def to_tensor(image: Image.Image, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """An image as a network takes it: float32 (3, H, W), normalised, nothing random.

    Args:
        image: RGB.
        mean: the backbone's mean colour, three numbers in 0..1.
        std: the backbone's standard deviation, three numbers.

    >>> white = Image.new("RGB", (2, 1), "white")
    >>> to_tensor(white, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.5)).squeeze().tolist()
    [[2.0, 2.0], [2.0, 2.0], [1.0, 1.0]]
    """
    pixels = functional.to_dtype(functional.to_image(image), torch.float32, scale=True)
    return functional.normalize(pixels.as_subclass(torch.Tensor), list(mean), list(std))


def resize_long_side(image: ImageOrLabels, n: int) -> ImageOrLabels:
    """Resize so that the longer side has n pixels and the shape stays.

    Args:
        image: a PIL image (smoothed), or labels (H, W) uint8 (nearest neighbour).
        n: pixels, or 0 to leave the image as it is.

    Raises:
        InputError: n < 0.

    >>> resize_long_side(Image.new("RGB", (500, 375)), 384).size
    (384, 288)
    """
    if n < 0:
        raise InputError(f"the long side must be >= 1 pixel, or 0 to leave it, got {n}")
    if isinstance(image, np.ndarray):
        resized = resize_long_side(Image.fromarray(image), n) if n else image
        return np.array(resized)
    factor = n / max(image.size)
    if not n or factor == 1:
        return image
    width, height = (max(1, round(side * factor)) for side in image.size)
    labels = image.mode in ("L", "P")
    return image.resize(
        (width, height), Image.Resampling.NEAREST if labels else Image.Resampling.BICUBIC
    )


class _RandomScale(v2.Transform):
    """Image and labels by one factor, uniform in [smallest, largest]."""

    def __init__(self, smallest: float, largest: float) -> None:
        super().__init__()
        if not 0 < smallest <= largest:
            raise InputError(
                f"scale must be (smallest, largest) with 0 < smallest <= largest, "
                f"got ({smallest}, {largest})"
            )
        self.smallest, self.largest = smallest, largest

    def make_params(self, flat_inputs: list) -> dict[str, list[int]]:
        factor = torch.empty(()).uniform_(self.smallest, self.largest).item()
        height, width = functional.get_size(flat_inputs[0])
        return {"size": [max(1, round(height * factor)), max(1, round(width * factor))]}

    def transform(self, inpt: torch.Tensor, params: dict[str, list[int]]) -> torch.Tensor:
        return functional.resize(inpt, params["size"])

"""Image and labels through the same flips, scales and crops (Sec. 4.2, data augmentation)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad
from torchvision.transforms import v2
from torchvision.transforms.v2 import InterpolationMode, functional

from affinity_lib.errors import InputError
from affinity_lib.evaluation import VOID

ImageOrLabels = TypeVar("ImageOrLabels", Image.Image, np.ndarray)


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
        if scale is not None and not (len(scale) == 2 and 0 < scale[0] <= scale[1]):
            raise InputError(
                "scale must be (smallest, largest) with 0 < smallest <= largest, got "
                f"({', '.join(map(str, scale))})"
            )
        self.crop, self.scale, self.flip = crop, scale, flip
        self.jitter = v2.ColorJitter(0.3, 0.3, 0.3, 0.1) if jitter else None
        self._mean, self._std = (
            255 * torch.tensor(x, dtype=torch.float32).view(3, 1, 1) for x in (mean, std)
        )

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
        pixels, size = functional.pil_to_tensor(image), [image.height, image.width]
        soft = labels is not None and labels.ndim == 3
        maps = None if labels is None else torch.from_numpy(labels if soft else labels[None])
        if maps is not None and list(maps.shape[1:]) != size:
            raise InputError(
                f"labels of shape {labels.shape} do not fit an image of {size[0]} x {size[1]} "
                "(H x W): resize them together"
            )
        if self.jitter is not None:
            pixels = self.jitter(pixels)
        if self.scale is not None:
            factor = torch.empty(()).uniform_(*self.scale).item()
            size = [max(1, round(side * factor)) for side in size]
            pixels = functional.resize(pixels, size)
            if maps is not None:
                how = InterpolationMode.BILINEAR if soft else InterpolationMode.NEAREST
                maps = functional.resize(maps, size, how)
        position = random_position(size, self.crop)
        place = (*position, self.crop, self.flip and bool(torch.rand(()) < 0.5))
        pixels = crop_and_flip(pixels.float().sub_(self._mean), *place, fill=0).div_(self._std)
        if maps is None:
            return pixels, None
        maps = crop_and_flip(maps, *place, fill=0 if soft else VOID)
        return pixels, maps if soft else maps[0].long()


def random_position(size: Sequence[int], crop: int) -> tuple[int, int]:
    """Top and left of a random square of ``crop`` cells in a map of this size (H, W).

    Where the map is smaller they are negative, and the map lies at a random place of the square.
    """
    rooms = [side - crop for side in size]
    top, left = (int(torch.randint(min(room, 0), max(room, 0) + 1, ())) for room in rooms)
    return top, left


def crop_and_flip(x: Tensor, top: int, left: int, crop: int, flip: bool, fill: float) -> Tensor:
    """The square of ``crop`` cells of a map (C, H, W), mirrored if asked, ``fill`` outside of it.

    >>> crop_and_flip(torch.tensor([[[1, 2, 3]]]), top=0, left=1, crop=2, flip=True, fill=9).tolist()
    [[[3, 2], [9, 9]]]
    """
    height, width = x.shape[-2:]
    x = pad(x, (-left, left + crop - width, -top, top + crop - height), value=fill)
    return x.flip(-1) if flip else x


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
    size = scaled_size(image.size, n)
    if size == image.size:
        return image
    labels = image.mode in ("L", "P")
    return image.resize(size, Image.Resampling.NEAREST if labels else Image.Resampling.BICUBIC)


def scaled_size(size: tuple[int, int], n: int) -> tuple[int, int]:
    """The two sides of an image when the longer one has n pixels, or as they are for n = 0.

    >>> scaled_size((500, 375), 384)
    (384, 288)
    """
    first, second = (max(1, round(side * n / max(size))) if n else side for side in size)
    return first, second

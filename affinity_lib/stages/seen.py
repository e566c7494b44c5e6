"""What a network takes of an image, wherever it computes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from affinity_lib.training.inputs import Inputs


def as_stored(inputs: Inputs, scales: Sequence[float], flip: bool) -> bool:
    """Whether the stored levels of a frozen backbone are all that is looked at."""
    return inputs.stored and list(scales) == [1] and not flip


def seen(inputs: Inputs, image_id: str) -> Tensor | list[Tensor]:
    """What a network takes of an image, on the CPU: the image, or the stored levels."""
    return inputs.stored_levels(image_id) if inputs.stored else inputs.image(image_id)[None]


def moved(device: torch.device, seen: Tensor | list[Tensor]) -> Tensor | list[Tensor]:
    return seen.to(device) if isinstance(seen, Tensor) else [level.to(device) for level in seen]


def device_of(net: torch.nn.Module) -> torch.device:
    return next(net.parameters()).device

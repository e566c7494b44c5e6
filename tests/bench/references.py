"""What the benchmark compares with: the released code's ways to walk, to compare pairs, to take CAMs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from affinity_lib.cam import CAMNet, normalize
from affinity_lib.data.files import save_scores
from affinity_lib.evaluation import VOID
from affinity_lib.training.inputs import Inputs

SCALES = (0.5, 1.0, 1.5, 2.0)


def squarings(matrix: Tensor, count: int) -> Tensor:
    """matrix^(2^count): the released code's way to walk."""
    for _ in range(count):
        matrix = matrix @ matrix
    return matrix


def gathered_loss(features: Tensor, labels: Tensor, offsets: Tensor) -> Tensor:
    """The same as the released code computes it: masks times logarithms of gathered pairs."""
    affinity = gather_then_subtract(features, offsets)
    first, second = _pairs(*features.shape[-2:], offsets)
    one = labels.flatten(1)[:, None, first]
    other = labels.flatten(1)[:, second]
    known = (one != VOID) & (other != VOID)
    positive, negative = known & (one == other), known & (one != other)
    masks = (positive & (one == 0), positive & (one > 0), negative)
    total = 0
    for mask, values, weight in zip(
        masks, (affinity, affinity, 1 - affinity), (1, 1, 2), strict=True
    ):
        total = total - weight * (mask * (values + 1e-5).log()).sum() / mask.sum().clamp(min=1)
    return total


def gather_then_subtract(features: Tensor, offsets: Tensor) -> Tensor:
    """The released code's way to affinities: first pixels 4 cells away from three borders, their
    partners gathered into (B, C, K, pairs)."""
    first, second = _pairs(*features.shape[-2:], offsets)
    flat = features.flatten(2)
    one = flat.index_select(2, first).unsqueeze(2)
    other = flat.index_select(2, second.flatten()).unflatten(2, second.shape)
    return torch.exp(-(other - one).abs().sum(1))


@torch.no_grad()
def one_view_at_a_time(net: CAMNet, inputs: Inputs, ids: Sequence[str], out: Path) -> None:
    """CAM files as the released code makes them: each view of each image on its own, its maps
    brought to the size of the image."""
    for image_id in ids:
        image = inputs.image(image_id)[None]
        height, width = image.shape[-2:]
        total = 0
        for scale in SCALES:
            size = (round(height * scale), round(width * scale))
            view = F.interpolate(image, size, mode="bilinear", antialias=True)
            for flipped in (False, True):
                maps = net.activation(net.backbone.levels(view.flip(-1) if flipped else view))
                maps = F.interpolate(maps, (height, width), mode="bilinear").relu()
                total = total + (maps.flip(-1) if flipped else maps)
        tags = inputs.data.tags(image_id)
        save_scores(out / f"{image_id}.npz", tags, normalize(total[0], tags))


def _pairs(height: int, width: int, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Flat indices of the released code's first pixels (pairs,) and of their partners (K, pairs)."""
    reach = int(offsets.max())
    index = torch.arange(height * width).view(height, width)
    rows, columns = height - reach, width - 2 * reach
    first = index[:rows, reach : reach + columns].flatten()
    second = torch.stack(
        [
            index[dy : dy + rows, reach + dx : reach + dx + columns].flatten()
            for dy, dx in offsets.tolist()
        ]
    )
    return first, second

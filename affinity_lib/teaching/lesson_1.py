"""Exercises on class activation maps: Eq. 1 and 2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from affinity_lib import cam
from affinity_lib.evaluation import image_miou
from affinity_lib.teaching.exercise import Exercise, Property, close, rand, shape, unlike
from affinity_lib.teaching.lesson_0 import disc

EVIDENCE = Exercise(
    "1.1",
    lambda: [{"features": rand(4, 3, 5), "w": rand(2, 4, seed=1) - 0.5}],
    [
        shape("a map for each class, (C, h, w)"),
        Property(
            "evidence may speak against a class, too, so some of it is negative here; yours has "
            "none: leave clamping to the next exercise",
            lambda c: bool((c.got < 0).any()),
        ),
        Property(
            "the mean of a map over all places must be the score of its class; yours is off by "
            "{:.2g}: multiply each channel by its weight and sum over the channels",
            lambda c: close(c.got.mean(dim=(1, 2)), c.w @ c.features.mean(dim=(1, 2))),
            lambda c: float(
                (c.got.mean(dim=(1, 2)) - c.w @ c.features.mean(dim=(1, 2))).abs().max()
            ),
        ),
    ],
    [
        "Every place is a vector of D features. What does the classifier do with such a vector?",
        "A sum over d of `w[c, d] * features[d, y, x]`, for all c, y and x.",
        '`torch.einsum("cd,dhw->chw", w, features)` reads just like that.',
    ],
    "The classifier was trained on pooled features alone, and yet it says where.",
    lambda features, w: F.conv2d(features[None], w[:, :, None, None])[0],
)


def _cams(evidence: Tensor) -> Tensor:
    """All maps of Eq. 1, with or without a tag."""
    return cam.normalize(evidence, range(1, len(evidence) + 1))


CAMS = Exercise(
    "1.2",
    lambda: [
        {"evidence": rand(4, 3, 5) * 6 - 2, "tags": [3, 1]},
        {"evidence": rand(3, 4, 4, seed=2) * 9 - 4, "tags": [2]},
    ],
    [
        shape("a map for each tag and none for the other classes, (K, h, w)"),
        unlike(
            "tag 1 is the first map, as 0 is the background; yours are the maps of the next "
            "classes: subtract 1",
            lambda c: _cams(c.evidence)[c.tags],
        ),
        unlike(
            "the maps stand in the order of the tags; yours stand in that of the classes",
            lambda c: _cams(c.evidence)[[tag - 1 for tag in sorted(c.tags)]],
        ),
        unlike(
            "each map is divided by its own maximum; yours are all divided by one: keep the "
            "dimension of the maps in `amax(dim=(1, 2), keepdim=True)`",
            lambda c: (e := c.evidence[[t - 1 for t in c.tags]].relu()) / e.max(),
        ),
        Property(
            "negative evidence counts as none; yours goes down to {:.2f}: clamp at 0",
            lambda c: bool((c.got >= 0).all()),
            lambda c: float(c.got.min()),
        ),
        Property(
            "the strongest place of each map must be 1; yours is {:.2f}: divide by the maximum "
            "over the places, not by a sum",
            lambda c: close(c.got.amax(dim=(1, 2)), 1),
            lambda c: float(c.got.amax(dim=(1, 2))[0]),
        ),
    ],
    [
        "Three steps: take the maps of the tags, clamp them at 0, divide.",
        "`evidence[[tag - 1 for tag in tags]]` are the maps of the tags.",
        "`maps / maps.amax(dim=(1, 2), keepdim=True)` divides each by its own maximum.",
    ],
    "A map says where, no longer how sure: an unsure network and a sure one have the same peak.",
    cam.normalize,
)

BACKGROUND = Exercise(
    "1.3",
    lambda: [{"cams": rand(2, 3, 4), "alpha": 16.0}, {"cams": rand(3, 5, 2), "alpha": 4.0}],
    [
        shape("one map for all classes together, (h, w)"),
        unlike(
            "alpha is an exponent; yours leaves it out: `(...) ** alpha`",
            lambda c: 1 - c.cams.amax(dim=0),
        ),
        unlike(
            "the exponent belongs to the whole bracket, 1 minus the maximum; yours raises the "
            "maximum alone",
            lambda c: 1 - c.cams.amax(dim=0) ** c.alpha,
        ),
        unlike(
            "background is where no class has evidence, so the strongest class counts; yours takes "
            "the mean of the classes",
            lambda c: (1 - c.cams.mean(dim=0)) ** c.alpha,
        ),
        unlike(
            "background is where no class has evidence, so the strongest class counts; yours takes "
            "the weakest",
            lambda c: (1 - c.cams.amin(dim=0)) ** c.alpha,
        ),
        Property(
            "a background map lies between 0 and 1; yours goes up to {:.2f}",
            lambda c: bool(((c.got >= 0) & (c.got <= 1)).all()),
            lambda c: float(c.got.abs().max()),
        ),
    ],
    [
        "First the strongest class at each place: a maximum over the first dimension.",
        "`1 - cams.amax(dim=0)` is where nothing is lit.",
    ],
    "The background is made of what the classes leave over: no one had to tag it.",
    cam.background,
)


def blurred(mask: Tensor, reach: int) -> Tensor:
    """A map as soft as a CAM: a mask averaged over squares of a side of 2 reach + 1, peak 1.

    >>> blurred(torch.tensor([[0.0, 1.0, 0.0, 0.0]]), 1).tolist()
    [[1.0, 1.0, 1.0, 0.0]]
    """
    side = 2 * reach + 1
    soft = F.avg_pool2d(mask[None, None].float(), side, 1, reach)[0, 0]
    return soft / soft.max()


def _soft_maps() -> list[dict[str, Any]]:
    """CAMs that fade a little or a lot, so that different exponents suit them."""
    cases = []
    for reach, seed in ((3, 0), (9, 1)):
        truth = torch.from_numpy(disc(48, 12, 22, 26))
        soft = blurred(truth, reach) * (0.9 + 0.1 * rand(48, 48, seed=seed))
        cams = torch.stack([soft / soft.max()])
        alphas = [1, 2, 4, 8, 16, 32]
        cases.append({"cams": cams, "tags": [1], "truth": truth.numpy(), "alphas": alphas})
    return cases


def _mious(cams: Tensor, tags: Sequence[int], truth: Any, alphas: Sequence[float]) -> list[float]:
    maps = (cam.to_labels(cam.with_background(cams, alpha), tags).numpy() for alpha in alphas)
    return [image_miou(truth, labels, 2) for labels in maps]


def _best(cams: Tensor, tags: Sequence[int], truth: Any, alphas: Sequence[float]) -> float:
    mious = _mious(cams, tags, truth, alphas)
    return alphas[mious.index(max(mious))]


def _worst(c: Any) -> float:
    mious = _mious(c.cams, c.tags, c.truth, c.alphas)
    return c.alphas[mious.index(min(mious))]


ALPHA = Exercise(
    "1.4",
    _soft_maps,
    [
        Property(
            "the result must be one of the alphas that were tried, {}; yours is {}",
            lambda c: c.got.numel() == 1 and c.got.item() in c.alphas,
            lambda c: (c.alphas, c.got.tolist()),
        ),
        unlike(
            "the best alpha has the highest mIoU; yours has the lowest",
            _worst,
        ),
        unlike(
            "which alpha fits depends on how the maps fade; yours is the paper's 16 whatever the "
            "maps: try them all",
            lambda c: 16,
        ),
        Property(
            "of these alphas {:g} has the highest mIoU on these maps; yours is {:g}",
            lambda c: close(c.got, c.want),
            lambda c: (float(c.want), float(c.got)),
        ),
    ],
    [
        "Three calls for each alpha: `cam.with_background`, `cam.to_labels`, `image_miou`.",
        "Collect the numbers in a list or a dict, and take the alpha of the largest.",
        "`max(alphas, key=miou)`, with a function `miou(alpha)` of those three calls.",
    ],
    "The wider a map fades, the less background it can bear against it: choose alpha anew whenever "
    "the maps change, and say with which masks.",
    _best,
)

EXERCISES = (EVIDENCE, CAMS, BACKGROUND, ALPHA)

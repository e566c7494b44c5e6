"""Exercises on the segmentation network: its loss, its views, and why it may outdo its labels."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from affinity_lib.evaluation import VOID
from affinity_lib.segmentation import label_probabilities, segmentation_loss
from affinity_lib.teaching.exercise import Exercise, Property, close, rand, shape, unlike


def _batches() -> list[dict[str, Any]]:
    logits = 4 * rand(2, 3, 4, 5)
    labels = (3 * rand(2, 4, 5, seed=1)).long()
    labels[:, 1, 2:] = VOID
    return [
        {"logits": logits, "labels": labels},
        {"logits": logits, "labels": torch.full_like(labels, VOID)},
    ]


def _sum(c: Any) -> Tensor:
    return F.cross_entropy(c.logits, c.labels, ignore_index=VOID, reduction="sum")


LOSS = Exercise(
    "6.1",
    _batches,
    [
        shape("one number"),
        Property(
            "a batch that is all void has the loss 0; yours is {}: divide by the number of pixels "
            "that count or by 1, whichever is larger",
            lambda c: bool(c.got.isfinite()),
        ),
        unlike(
            "void pixels, 255, teach nothing; yours takes them for background",
            lambda c: F.cross_entropy(c.logits, c.labels.where(c.labels != VOID, 0)),
        ),
        unlike(
            "the mean is over the pixels that count; yours divides by all, void ones included",
            lambda c: _sum(c) / c.labels.numel(),
        ),
        unlike("the loss is a mean over pixels; yours is a sum", _sum),
        Property(
            "a cross-entropy is not negative; yours is {:.2f}: minus the logarithm",
            lambda c: float(c.got) >= 0,
        ),
        unlike(
            "probabilities sum to one over the labels, `dim=1`; yours do over another dimension",
            lambda c: (
                F.nll_loss(
                    c.logits.log_softmax(dim=-1), c.labels, ignore_index=VOID, reduction="sum"
                )
                / (c.labels != VOID).sum().clamp(min=1)
            ),
        ),
    ],
    [
        "`logits.log_softmax(dim=1)` are log-probabilities, (B, C + 1, h, w).",
        '`F.nll_loss(log_p, labels, ignore_index=255, reduction="sum")` picks and sums them.',
        "Divide by `(labels != 255).sum().clamp(min=1)`.",
    ],
    "What is left out costs nothing and teaches nothing, exactly like the neutral pairs of lesson 2.",
    segmentation_loss,
)


def _networks() -> list[dict[str, Any]]:
    net = nn.Conv2d(3, 4, 3, padding=1)
    with torch.no_grad():
        net.weight.copy_(4 * (rand(4, 3, 3, 3) - 0.5))
        net.bias.copy_(rand(4, seed=1))
    return [{"net": net.requires_grad_(False), "image": rand(1, 3, 6, 7, seed=2)}]


def _mirrored(net: nn.Module, image: Tensor) -> Tensor:
    return label_probabilities(net, image, tuple(image.shape[-2:]), flip=True)


def _p(logits: Tensor) -> Tensor:
    return logits.softmax(dim=1)[0]


VIEWS = Exercise(
    "6.2",
    _networks,
    [
        shape("a map of probabilities for each label, (C + 1, H, W), without the batch"),
        unlike(
            "the mirrored view must be mirrored back; yours averages two different places",
            lambda c: (_p(c.net(c.image)) + _p(c.net(c.image.flip(-1)))) / 2,
        ),
        unlike(
            "the mirror image has a say, too; yours is the first view alone",
            lambda c: _p(c.net(c.image)),
        ),
        unlike(
            "the views are averaged as probabilities; yours averages logits and takes the softmax "
            "afterwards",
            lambda c: _p((c.net(c.image) + c.net(c.image.flip(-1)).flip(-1)) / 2),
        ),
        unlike(
            "a mirror exchanges left and right, the last dimension; yours stands on its head",
            lambda c: (_p(c.net(c.image)) + _p(c.net(c.image.flip(-2)).flip(-2))) / 2,
        ),
        Property(
            "the probabilities of a pixel sum to one; yours sum to {:.2f}",
            lambda c: close(c.got.sum(dim=0), 1),
            lambda c: float(c.got.sum(dim=0).max()),
        ),
    ],
    [
        "`image.flip(-1)` is the mirror image; so is `.flip(-1)` of its answer, back again.",
        "`net(view).softmax(dim=1)[0]` are the probabilities of one view.",
    ],
    "Two looks at the same scene err in different places, and their mean errs less.",
    _mirrored,
)


def lesson_of(features: Tensor) -> Tensor:
    """The true class of each pixel of the exercise: its brightest channel, (n,)."""
    return features.argmax(dim=1)


def wrong_labels(truth: Tensor, share: float = 0.4, seed: int = 0) -> Tensor:
    """Labels of which a share has been replaced by any of the three, (n,).

    >>> truth = torch.zeros(1000, dtype=torch.long)
    >>> int((wrong_labels(truth) == truth).sum())
    741
    """
    any_label = (3 * rand(len(truth), seed=seed + 1)).long()
    return torch.where(rand(len(truth), seed=seed) < share, any_label, truth)


def _pixels() -> list[dict[str, Any]]:
    """Classes that are the brightest channel, and classes that are the next one."""
    features = rand(1500, 3)
    truths = (lesson_of(features), (lesson_of(features) + 1) % 3)
    return [{"features": features, "labels": wrong_labels(truth)} for truth in truths]


def _truth(c: Any) -> Tensor:
    channel = lesson_of(c.features)
    classes = (channel, (channel + 1) % 3)
    return max(classes, key=lambda truth: int((truth == c.labels).sum()))


def _right(c: Any, labels: Tensor) -> float:
    return 100 * float((labels.long() == _truth(c)).float().mean())


PUPIL = Exercise(
    "6.3",
    _pixels,
    [
        Property(
            "the result must have a label for each pixel, the shape {}; yours has {}",
            lambda c: c.got.shape == c.labels.shape,
            lambda c: (tuple(c.labels.shape), tuple(c.got.shape)),
        ),
        Property(
            "the pupil must answer for itself; yours gives back the labels that it was taught",
            lambda c: not close(c.got, c.labels),
        ),
        Property(
            "the pupil must tell the classes apart; yours gives one label to every pixel",
            lambda c: len(c.got.unique()) > 1,
        ),
        Property(
            "the labels tell which class a colour has; yours takes the brightest channel whatever "
            "they say",
            lambda c: (
                close(_truth(c), lesson_of(c.features)) or not close(c.got, lesson_of(c.features))
            ),
        ),
        Property(
            "the pupil must be right more often than its teacher, whose labels are right in {:.0f} "
            "percent, by ten points at least; yours is in {:.0f}: take more steps, or larger ones",
            lambda c: _right(c, c.got) > _right(c, c.labels) + 10,
            lambda c: (_right(c, c.labels), _right(c, c.got)),
        ),
    ],
    [
        "A linear layer is enough: `net = torch.nn.Linear(3, 3)`, its outputs are logits.",
        (
            "A step: `loss = F.cross_entropy(net(features), labels)`, then `optimizer.zero_grad()`, "
            "`loss.backward()` and `optimizer.step()`."
        ),
        (
            "`torch.optim.Adam(net.parameters(), lr=0.1)` and 100 steps; then "
            "`net(features).argmax(dim=1)`."
        ),
    ],
    "Errors without a pattern cannot be learned, what they hide can. Errors with a pattern are "
    "learned all too well: those are what lessons 2 to 5 were about.",
)

EXERCISES = (LOSS, VIEWS, PUPIL)

"""Class activation maps of all images of a data set (section 3.1)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from affinity_lib.cam import (
    CAMNet,
    background,
    multi_scale_activation,
    normalize,
    resize,
    views_together,
)
from affinity_lib.data.files import load_scores, missing, save_scores
from affinity_lib.data.voc import VOCData
from affinity_lib.training.inference import for_inference
from affinity_lib.training.inputs import Inputs, device_of, forward, moved
from affinity_lib.training.parallel import compute_on, each_image


def infer_cams(
    net: CAMNet,
    inputs: Inputs,
    ids: Sequence[str],
    out: Path,
    scales: Sequence[float] = (1.0,),
    flip: bool = True,
    eps: float = 0,
    mixed_precision: bool = False,
) -> None:
    """Write the CAMs of the tags present for each image that has none yet.

    An image without a tag is left out. Images of one size are looked at together, as many as a
    batch's pixels allow.

    Args:
        net: the classification network, in ``eval`` mode.
        inputs: of the network's backbone.
        ids: image ids.
        out: folder of ``ID.npz`` score files, (K, h, w) in half precision.
        scales, flip: see ``multi_scale_activation``; stored levels know scale 1 without flip.
        eps: see ``normalize``.
        mixed_precision: see ``for_inference``.

    Raises:
        InputError: an image with a tag that the network does not know.
    """
    waiting = inputs.data.with_tags(missing(ids, out, "npz"))
    tags = {image_id: inputs.data.tags(image_id) for image_id in waiting}
    device = device_of(net)
    stored = inputs.as_stored(scales, flip)
    fast = net if stored or not waiting else for_inference(net, mixed_precision)
    if stored:
        inputs.store(waiting)

    @torch.inference_mode()
    def work(some: Sequence[str]) -> None:
        if stored:
            (image_id,) = some
            levels = inputs.stored_levels(image_id)

            def evidence_of() -> Tensor:
                return net.evidence(moved(levels, device)).cpu()
        else:
            images = torch.stack([inputs.image(i) for i in some])

            def evidence_of() -> Tensor:
                return multi_scale_activation(fast, images.to(device), scales, flip).cpu()

        evidence = compute_on(device, evidence_of)
        for image_id, each in zip(some, evidence, strict=True):
            cams = normalize(each, tags[image_id], eps)
            save_scores(out / f"{image_id}.npz", tags[image_id], cams)

    batches = []
    for size, same in _by_size(inputs, waiting).items():
        count = 1 if stored else views_together(size, device)
        batches += [same[k : k + count] for k in range(0, len(same), count)]
    each_image(work, batches, "CAMs", count=len)


def cam_labels(
    data: VOCData, image_id: str, cams: Path, alphas: Sequence[float]
) -> Iterator[np.ndarray]:
    """Label maps (H, W) uint8 of an image, one for each of some exponents of the background map.

    Args:
        data: the data set.
        image_id: which image.
        cams: folder of ``ID.npz`` score files.
        alphas: exponents of Eq. 2.
    """
    tags, maps = load_scores(cams / f"{image_id}.npz")
    maps, size = torch.from_numpy(maps), data.image_size(image_id)[::-1]
    highest, first = resize(maps, size).max(dim=0)
    winner = torch.tensor(tags, dtype=torch.uint8)[first]
    for alpha in alphas:
        yield (winner * (highest > resize(background(maps, alpha)[None], size)[0])).numpy()


def tag_accuracy(net: CAMNet, inputs: Inputs, ids: Sequence[str]) -> dict[str, float]:
    """How often the classification network is right about each class of some images, in percent.

    Args:
        net: in ``eval`` mode.
        inputs: of the network's backbone.
        ids: image ids, at least one.

    Returns:
        Class -> percent of the images.
    """
    device = device_of(net)
    fast = net if inputs.stored else for_inference(net)
    inputs.store(ids)

    @torch.inference_mode()
    def work(image_id: str) -> Tensor:
        seen = inputs.seen(image_id)
        return compute_on(device, lambda: forward(fast, moved(seen, device)).cpu())

    right = (torch.cat(each_image(work, ids, "tags")) > 0) == inputs.data.multi_hot(ids).bool()
    percent = 100 * right.float().mean(dim=0)
    return dict(zip(inputs.data.classes, percent.tolist(), strict=True))


def _by_size(inputs: Inputs, ids: Sequence[str]) -> dict[tuple[int, int], list[str]]:
    groups = defaultdict(list)
    for image_id in ids:
        groups[inputs.size(image_id)].append(image_id)
    return groups

"""Class activation maps of all images of a data set (section 3.1)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from affinity_lib.cam import CAMNet, multi_scale_activation, normalize, views_together
from affinity_lib.data.files import missing, save_scores
from affinity_lib.errors import InputError
from affinity_lib.training.inference import for_inference
from affinity_lib.training.inputs import Inputs
from affinity_lib.training.parallel import each_image


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

    Images of one size are looked at together, as many as a batch's pixels allow.

    Args:
        net: the classification network, in ``eval`` mode.
        inputs: of the network's backbone.
        ids: image ids.
        out: folder of ``ID.npz`` score files, (K, h, w) in half precision.
        scales, flip: see ``multi_scale_activation``; stored levels know scale 1 without flip.
        eps: see ``normalize``.
        mixed_precision: see ``for_inference``.

    Raises:
        InputError: an image without a tag, or with one that the network does not know.
    """
    todo = missing(ids, out, "npz")
    tags = {image_id: inputs.data.tags(image_id) for image_id in todo}
    for image_id in todo:
        if not tags[image_id]:
            raise InputError(f"image {image_id} has no tag, so no CAM: give it one or leave it out")
    device = net.classifier.weight.device
    as_stored = inputs.stored and list(scales) == [1] and not flip
    fast = net if as_stored or not todo else for_inference(net, mixed_precision)

    @torch.inference_mode()
    def work(some: Sequence[str]) -> None:
        if as_stored:
            evidence = torch.cat([net.evidence(inputs.levels(i, net.backbone)) for i in some])
        else:
            images = torch.stack([inputs.image(i) for i in some]).to(device)
            evidence = multi_scale_activation(fast, images, scales, flip)
        for image_id, each in zip(some, evidence.cpu(), strict=True):
            cams = normalize(each, tags[image_id], eps)
            save_scores(out / f"{image_id}.npz", tags[image_id], cams)

    batches = []
    for size, same in _by_size(inputs, todo).items():
        count = 1 if as_stored else views_together(size, device)
        batches += [same[k : k + count] for k in range(0, len(same), count)]
    each_image(work, batches, "CAMs", device, count=len)


@torch.inference_mode()
def tag_accuracy(net: CAMNet, inputs: Inputs, ids: Sequence[str]) -> Tensor:
    """Percent of the images for which the classification network says a tag rightly, (C,)."""
    logits: dict[str, Tensor] = {}

    @torch.inference_mode()
    def work(image_id: str) -> None:
        logits[image_id] = net.from_levels(inputs.levels(image_id, net.backbone)).cpu()

    each_image(work, ids, "tags", net.classifier.weight.device)
    says = torch.cat([logits[image_id] for image_id in ids]) > 0
    return (says == inputs.data.multi_hot(ids).bool()).float().mean(dim=0) * 100


def _by_size(inputs: Inputs, ids: Sequence[str]) -> dict[tuple[int, int], list[str]]:
    groups = defaultdict(list)
    for image_id in ids:
        groups[inputs.size(image_id)].append(image_id)
    return groups

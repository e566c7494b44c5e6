"""What the segmentation network says of all images (section 4.2)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from affinity_lib.crf import CRFSettings
from affinity_lib.data.files import missing
from affinity_lib.segmentation import SegmentationNet, label_probabilities, probabilities
from affinity_lib.segmentation_labels import enlarge, synthesize_labels
from affinity_lib.stages.segmentation_labels import pixels
from affinity_lib.training.inference import for_inference
from affinity_lib.training.inputs import Inputs, device_of, moved
from affinity_lib.training.parallel import compute_on, each_image


def write_predictions(
    net: SegmentationNet,
    inputs: Inputs,
    ids: Sequence[str],
    out: Path,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    crf: CRFSettings | None = None,
    mixed_precision: bool = False,
) -> None:
    """Write ``predict_labels`` of each image that has none yet, as palette PNGs.

    Args:
        net: in ``eval`` mode.
        inputs: of the network's backbone.
        ids: image ids.
        out: folder of the label maps.
        scales, flip, crf: see ``predict_labels``.
        mixed_precision: see ``for_inference``.
    """
    waiting = missing(ids, out, "png")
    stored = inputs.as_stored(scales, flip)
    fast = net if stored or not waiting else for_inference(net, mixed_precision)
    if stored:
        inputs.store(waiting)

    def work(image_id: str) -> None:
        labels = predict_labels(fast, inputs, image_id, scales, flip, crf)
        inputs.data.write_labels(out / f"{image_id}.png", labels)

    each_image(work, waiting, "predictions")


def predict_labels(
    net: SegmentationNet,
    inputs: Inputs,
    image_id: str,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    crf: CRFSettings | None = None,
) -> np.ndarray:
    """The label map of one image, (H, W) uint8 in 0..C; ``crf`` refines it with a dCRF."""
    scores = predict(net, inputs, image_id, scales, flip)
    if crf is None:
        return scores.numpy().argmax(axis=0).astype(np.uint8)
    photograph = pixels(inputs.data.image(image_id), crf)
    labels = synthesize_labels(photograph, scores, range(1, len(scores)), crf)
    return enlarge(labels, scores.shape[-2:])


@torch.inference_mode()
def predict(
    net: SegmentationNet,
    inputs: Inputs,
    image_id: str,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
) -> Tensor:
    """Label probabilities of one image, averaged over scales and mirror images.

    Args:
        net: in ``eval`` mode, or its copy by ``for_inference``.
        inputs: of the network's backbone; stored levels know scale 1 without flip.
        image_id: which image.
        scales, flip: see ``label_probabilities``.

    Returns:
        (C + 1, H, W) at the size of the original image, summing to one, on the CPU.
    """
    size, device = inputs.data.image_size(image_id)[::-1], device_of(net)
    if inputs.as_stored(scales, flip):
        levels = inputs.stored_levels(image_id)

        def compute() -> Tensor:
            return probabilities([net.from_levels(moved(levels, device))], size).cpu()
    else:
        image = inputs.image(image_id)[None]

        def compute() -> Tensor:
            return label_probabilities(net, image.to(device), size, scales, flip).cpu()

    return compute_on(device, compute)

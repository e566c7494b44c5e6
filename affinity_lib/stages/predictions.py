"""What the segmentation network says of all images (section 4.2)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from affinity_lib.crf import CRFSettings, dense_crf
from affinity_lib.data.files import missing
from affinity_lib.segmentation import SegmentationNet, label_probabilities, probabilities
from affinity_lib.stages.segmentation_labels import crf_settings
from affinity_lib.training.inputs import Inputs
from affinity_lib.training.parallel import each_image


def predict_images(
    net: SegmentationNet, inputs: Inputs, ids: Sequence[str], out: Path, config: Any
) -> None:
    """Write the label map of each image that has none yet, as a palette PNG.

    Args:
        net: in ``eval`` mode.
        inputs: of the network's backbone.
        ids: image ids.
        out: folder of the label maps.
        config: the settings: scales, flip and dCRF.
    """
    crf = crf_settings(config) if config.test_crf else None

    def work(image_id: str) -> None:
        labels = predict_labels(net, inputs, image_id, config.test_scales, config.test_flip, crf)
        inputs.data.write_labels(out / f"{image_id}.png", labels)

    each_image(work, missing(ids, out, "png"), "predictions", next(net.parameters()).device)


def predict_labels(
    net: SegmentationNet,
    inputs: Inputs,
    image_id: str,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    crf: CRFSettings | None = None,
) -> np.ndarray:
    """The label map of one image, (H, W) uint8 in 0..C; ``crf`` refines it with a dCRF."""
    scores = predict(net, inputs, image_id, scales, flip).numpy()
    if crf is not None:
        scores = dense_crf(np.array(inputs.data.image(image_id)), scores, crf)
    return scores.argmax(axis=0).astype(np.uint8)


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
        net: in ``eval`` mode.
        inputs: of the network's backbone; stored levels know scale 1 without flip.
        image_id: which image.
        scales, flip: see ``label_probabilities``.

    Returns:
        (C + 1, H, W) at the size of the original image, summing to one, on the CPU.
    """
    width, height = inputs.data.image(image_id).size
    if inputs.stored and list(scales) == [1] and not flip:
        logits = [net.from_levels(inputs.levels(image_id, net.backbone))]
        return probabilities(logits, (height, width)).cpu()
    image = inputs.image(image_id)[None].to(next(net.parameters()).device)
    return label_probabilities(net, image, (height, width), scales, flip).cpu()

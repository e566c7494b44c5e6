"""From files to files: what each stage of the paper does with all images of a data set.

The modules of the paper know tensors alone; here their functions are called for one image after
the other, over all cores, and what they give is written aside and renamed, so that a stage that is
stopped goes on with the images that are missing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from affinity_lib.affinity_labels import check_alphas, confidences, trusted
from affinity_lib.cam import (
    CAMNet,
    multi_scale_activation,
    normalize,
    resize,
    views_together,
    with_background,
)
from affinity_lib.crf import CRFSettings, dense_crf
from affinity_lib.data.files import load_scores, missing, save_scores
from affinity_lib.data.voc import VOCData
from affinity_lib.errors import InputError
from affinity_lib.evaluation import Evaluation, confusion
from affinity_lib.segmentation import SegmentationNet, label_probabilities, probabilities
from affinity_lib.segmentation_labels import enlarge, synthesize_labels
from affinity_lib.training.inference import for_inference
from affinity_lib.training.inputs import Inputs
from affinity_lib.training.parallel import each_image, map_images
from affinity_lib.training.progress import track


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


def _by_size(inputs: Inputs, ids: Sequence[str]) -> dict[tuple[int, int], list[str]]:
    groups = defaultdict(list)
    for image_id in ids:
        groups[inputs.size(image_id)].append(image_id)
    return groups


def write_confident_labels(
    data: VOCData,
    ids: Sequence[str],
    cams: Path,
    out: Path,
    alpha_strong: float = 4,
    alpha_weak: float = 24,
    crf: CRFSettings | None = None,
    crf_scale: float = 1.0,
    workers: int | None = None,
    soft: Path | None = None,
) -> None:
    """Write ``confident_labels`` of each image that has none yet, over a process pool.

    Args:
        data: the data set.
        ids: image ids.
        cams: folder of ``ID.npz`` score files.
        out: folder of the label maps, palette PNGs of the images' size.
        alpha_strong, alpha_weak, crf: see ``confident_labels``.
        crf_scale: factor on the image's size at which the dCRF runs.
        workers: processes, None for one a core.
        soft: folder for what ``SoftLabels`` reads, both dCRF results in half precision; None to
            keep the labels alone.
    """
    alphas = (alpha_strong, alpha_weak)
    check_alphas(*alphas)
    job = partial(_write_confident, data, Path(cams), Path(out), soft, alphas, crf, crf_scale)
    map_images(job, missing(ids, out, "png"), workers=workers)


class SoftLabels:
    """The released code's way of bringing labels to the grid of the features.

    The two dCRF results of an image are cropped as they are, averaged over each cell, and compared
    then. ``maps`` and ``pool`` are the arguments ``labels`` and ``pool`` of ``Inputs.samples``.

    Args:
        data: the data set.
        folder: of the ``ID.npz`` that ``write_confident_labels`` wrote.
        stride: pixels a cell.
    """

    def __init__(self, data: VOCData, folder: Path, stride: int) -> None:
        self.data, self.folder, self.stride = data, Path(folder), stride

    def maps(self, image_id: str) -> np.ndarray:
        """Both results, background first in each, float32 (2 (1 + K), H, W)."""
        return load_scores(self.folder / f"{image_id}.npz")[1]

    def pool(self, image_id: str, maps: Tensor) -> Tensor:
        """Labels of the grid (h, w), int64: 0, a tag or 255, from cropped maps."""
        means = F.avg_pool2d(maps, self.stride, ceil_mode=True)
        return trusted(means.unflatten(0, (2, -1)), self.data.tags(image_id)).long()


def write_segmentation_labels(
    data: VOCData,
    ids: Sequence[str],
    scores: Path,
    out: Path,
    alpha: float | None = None,
    crf: CRFSettings | None = None,
    crf_scale: float = 1.0,
    workers: int | None = None,
) -> None:
    """Write a palette PNG of labels for each image that has none yet, over a process pool.

    Args:
        data: the data set.
        ids: image ids.
        scores: folder of ``ID.npz`` score files.
        out: folder of the label maps.
        alpha: exponent of the background map (Eq. 2) for scores that hold CAMs alone; None for
            scores whose first map is the background.
        crf: settings of the dCRF, or None for none.
        crf_scale: factor on the image's size at which the dCRF runs.
        workers: processes, None for one a core.

    Raises:
        InputError: scores without a background map and no ``alpha``, or with one and ``alpha``.
    """
    job = partial(_write_segmentation, data, Path(scores), Path(out), alpha, crf, crf_scale)
    map_images(job, missing(ids, out, "png"), workers=workers if crf else 1)


def evaluate(
    data: VOCData,
    ids: Iterable[str],
    predict: Callable[[str], np.ndarray],
    *,
    split: str,
    uses_tags: bool,
    chosen_with: Mapping[str, str] | None = None,
    crf: bool = False,
) -> Evaluation:
    """Compare predictions with the data set's masks.

    Args:
        data: where the masks are.
        ids: the images to evaluate.
        predict: image id -> labels (H, W) of the mask's size, 0..C.
        split: the name of the split the ids are from.
        uses_tags: whether ``predict`` knows the images' tags.
        chosen_with: setting -> split whose masks it was chosen with, e.g. ``{"alpha": "train"}``.
        crf: whether the predictions were refined by dCRF.

    Raises:
        InputError: no ids, a missing mask, a prediction of another size or with other labels.
    """
    ids = list(ids)
    if not ids:
        raise InputError(f"no image of the {split} split to evaluate: give at least one id")
    num_labels = len(data.classes) + 1
    total = np.zeros((num_labels, num_labels), dtype=np.int64)
    for image_id in track(ids, "evaluation"):
        try:
            total += confusion(data.mask(image_id), predict(image_id), num_labels)
        except InputError as error:
            raise InputError(f"image {image_id} cannot be evaluated: {error}") from error
    return Evaluation.from_confusion(
        total,
        data.classes,
        split=split,
        num_images=len(ids),
        uses_tags=uses_tags,
        chosen_with=chosen_with,
        crf=crf,
    )


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


def pixels(data: VOCData, image_id: str, scale: float = 1.0) -> np.ndarray:
    """The photograph as (H, W, 3) uint8, its sides times ``scale``."""
    image = data.image(image_id)
    if scale != 1:
        size = [max(round(side * scale), 1) for side in image.size]
        image = image.resize(size, Image.Resampling.BILINEAR)
    return np.array(image)


def _write_confident(data, cams, out, soft, alphas, crf, crf_scale, image_id) -> None:
    tags, maps = load_scores(cams / f"{image_id}.npz")
    image = pixels(data, image_id, crf_scale)
    scores = confidences(image, torch.from_numpy(maps), alphas, crf)
    labels = trusted(scores, tags).numpy()
    width, height = data.image(image_id).size
    if soft is not None:
        whole = resize(scores.flatten(0, 1), (height, width))
        save_scores(soft / f"{image_id}.npz", [0, *tags] * 2, whole, compress=True)
    data.write_labels(out / f"{image_id}.png", enlarge(labels, (height, width)))


def _write_segmentation(data, scores, out, alpha, crf, crf_scale, image_id) -> None:
    tags, maps = load_scores(scores / f"{image_id}.npz")
    maps = torch.from_numpy(maps)
    if (alpha is None) != (0 in tags):
        raise InputError(
            f"{scores / image_id}.npz has "
            + ("no background map: give alpha" if alpha is None else "one: leave alpha out")
        )
    if alpha is None:
        tags = tags[1:]
    else:
        maps = with_background(maps, alpha)
    image = pixels(data, image_id, crf_scale)
    labels = synthesize_labels(image, maps, tags, crf)
    width, height = data.image(image_id).size
    data.write_labels(out / f"{image_id}.png", enlarge(labels, (height, width)))

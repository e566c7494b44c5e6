"""Affinity labels of all images, and how AffinityNet learns from them (section 3.2.1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from affinity_lib.affinity_labels import check_alphas, confidences, refined, trusted
from affinity_lib.cam import resize
from affinity_lib.crf import CRFSettings
from affinity_lib.data.files import load_scores, missing, save_scores
from affinity_lib.data.voc import VOCData
from affinity_lib.segmentation_labels import enlarge
from affinity_lib.stages.segmentation_labels import pixels
from affinity_lib.training.parallel import map_images


def write_confident_labels(
    data: VOCData,
    ids: Sequence[str],
    cams: Path,
    out: Path,
    alpha_strong: float = 4,
    alpha_weak: float = 24,
    crf: CRFSettings | None = None,
    soft: Path | None = None,
) -> None:
    """Write ``confident_labels`` of each tagged image that has none yet, over a process pool.

    Args:
        data: the data set.
        ids: image ids.
        cams: folder of ``ID.npz`` score files.
        out: folder of the label maps, palette PNGs of the images' size.
        alpha_strong, alpha_weak, crf: see ``confident_labels``.
        soft: folder for what ``SoftLabels`` reads, both dCRF results in half precision; None to
            keep the labels alone.
    """
    alphas = (alpha_strong, alpha_weak)
    check_alphas(*alphas)
    job = partial(write_trusted, data, Path(cams), Path(out), soft, alphas, crf)
    map_images(job, data.with_tags(missing(ids, out, "png")))


def affinity_targets(config: Any, data: VOCData, labels: Path) -> dict[str, Callable]:
    """What AffinityNet learns from, as arguments of :meth:`Inputs.samples`.

    Args:
        config: the settings.
        data: the data set.
        labels: folder that ``write_confident_labels`` wrote.
    """
    if config.label_pooling == "mean":
        soft = SoftLabels(data, labels / "soft", config.affinity_stride)
        return {"labels": soft.maps, "pool": soft.pool}
    return {"labels": lambda image_id: data.read_labels(labels / f"{image_id}.png")}


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


def write_trusted(
    data: VOCData,
    scores: Path,
    out: Path,
    soft: Path | None,
    alphas: tuple[float, float] | None,
    crf: CRFSettings | None,
    image_id: str,
) -> None:
    """Write the trusted areas of one image.

    Args:
        scores: folder of CAMs, or of walked maps with both backgrounds (2 (1 + K), h, w).
        alphas: exponents of Eq. 2 for the CAMs; None for walked maps.
        data, out, soft, crf: see ``write_confident_labels``.
        image_id: which image.
    """
    tags, maps = load_scores(scores / f"{image_id}.npz")
    image, maps = pixels(data.image(image_id), crf), torch.from_numpy(maps)
    if alphas is None:  # walked maps, with both backgrounds
        tags = tags[1 : len(tags) // 2]
        sharp = refined(image, maps.unflatten(0, (2, -1)), crf)
    else:
        sharp = confidences(image, maps, alphas, crf)
    labels = trusted(sharp, tags).numpy()
    size = data.image_size(image_id)[::-1]
    if soft is not None:
        whole = resize(sharp.flatten(0, 1), size)
        save_scores(soft / f"{image_id}.npz", [0, *tags] * 2, whole, compress=True)
    data.write_labels(out / f"{image_id}.png", enlarge(labels, size))

"""Segmentation labels of all images (section 3.4)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from affinity_lib.cam import with_background
from affinity_lib.crf import CRFSettings
from affinity_lib.data.files import load_scores, missing
from affinity_lib.data.voc import VOCData
from affinity_lib.errors import InputError
from affinity_lib.segmentation_labels import enlarge, synthesize_labels
from affinity_lib.training.parallel import map_images


def write_segmentation_labels(
    data: VOCData,
    ids: Sequence[str],
    scores: Path,
    out: Path,
    alpha: float | None = None,
    crf: CRFSettings | None = None,
) -> None:
    """Write a palette PNG of labels for each tagged image that has none yet, over a process pool.

    Args:
        data: the data set.
        ids: image ids.
        scores: folder of ``ID.npz`` score files.
        out: folder of the label maps.
        alpha: exponent of the background map (Eq. 2) for scores that hold CAMs alone; None for
            scores whose first map is the background.
        crf: settings of the dCRF, or None for none.

    Raises:
        InputError: scores without a background map and no ``alpha``, or with one and ``alpha``.
    """
    job = partial(_write_segmentation, data, Path(scores), Path(out), alpha, crf)
    map_images(job, data.with_tags(missing(ids, out, "png")))


def crf_settings(config: Any, prefix: str = "crf") -> CRFSettings:
    """The dCRF that the settings ask for.

    Args:
        config: the settings.
        prefix: "crf" after the walk, "cam_crf" on the CAMs alone, "affinity_crf" for affinity labels.
    """
    return CRFSettings(
        bilateral_srgb=config.crf_srgb,
        bilateral_sxy=getattr(config, f"{prefix}_sxy"),
        bilateral_compat=getattr(config, f"{prefix}_compat"),
        iterations=config.crf_iterations,
        scale=config.crf_scale,
    )


def pixels(photograph: Image.Image, crf: CRFSettings | None) -> np.ndarray:
    """A photograph as the dCRF looks at it, (H, W, 3) uint8, its sides times the dCRF's scale."""
    if crf is not None and crf.scale != 1:
        size = [max(round(side * crf.scale), 1) for side in photograph.size]
        photograph = photograph.resize(size, Image.Resampling.BILINEAR)
    return np.array(photograph)


def _write_segmentation(data, scores, out, alpha, crf, image_id) -> None:
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
    labels = synthesize_labels(pixels(data.image(image_id), crf), maps, tags, crf)
    labels = enlarge(labels, data.image_size(image_id)[::-1])
    data.write_labels(out / f"{image_id}.png", labels)

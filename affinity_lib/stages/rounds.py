"""Further rounds of AffinityNet, which learn from what the last one has walked (ours)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from affinity_lib.affinity_labels import check_alphas
from affinity_lib.data.files import missing, save_scores
from affinity_lib.stages.affinity_labels import write_trusted
from affinity_lib.stages.segmentation_labels import crf_settings
from affinity_lib.stages.walk import Walk
from affinity_lib.training.parallel import each_image, map_images


def write_walked_labels(config: Any, walk: Walk, ids: Sequence[str], out: Path) -> None:
    """Write the trusted areas of walked maps, for one more round of AffinityNet.

    As ``write_confident_labels``, with backgrounds and CAMs that have been walked: they cover
    more of the objects.

    Args:
        config: the settings; the dCRF is that after the walk.
        walk: over what AffinityNet has learned so far.
        ids: image ids.
        out: folder of the label maps; keeps the walked maps in its folder ``walked``, and what
            ``SoftLabels`` reads in ``soft`` if the settings ask for it.
    """
    alphas = (config.walked_alpha_strong, config.walked_alpha_weak)
    check_alphas(*alphas)
    beta, t, data = config.beta, config.t, walk.inputs.data
    soft = out / "soft" if config.label_pooling == "mean" else None

    def work(image_id: str) -> None:
        tags, maps = walk.walks(image_id, alphas, beta, t)
        save_scores(out / "walked" / f"{image_id}.npz", [0, *tags] * 2, maps.flatten(0, 1))

    waiting = data.with_tags(missing(ids, out / "walked", "npz"))
    walk.inputs.store(waiting)
    each_image(work, waiting, "random walk")
    job = partial(write_trusted, data, out / "walked", out, soft, None, crf_settings(config))
    map_images(job, data.with_tags(missing(ids, out, "png")))

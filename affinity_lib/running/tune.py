"""Which settings suit a run: tried on some of its training images that have masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from affinity_lib.backbones.weights import load_network
from affinity_lib.cam import with_background
from affinity_lib.data.files import load_scores, save_text
from affinity_lib.errors import InputError
from affinity_lib.plots import markdown_table
from affinity_lib.running.manifest import load_manifest
from affinity_lib.running.settings import KINDS, resolve
from affinity_lib.running.stage import Stage
from affinity_lib.stages import tuning
from affinity_lib.stages.segmentation_labels import crf_settings
from affinity_lib.stages.walk import Walk, last_network
from affinity_lib.training.networks import affinity_network

LEAST_COVERAGE = 75
"""Percent of the pixels that the trusted areas are to cover."""

_CRFS = [(width, weight) for width in (0.5, 1.0, 2.0) for weight in (0.5, 1.0, 2.0)]


def tune(run: Path, count: int = 48, show: Callable[[str], Any] = print) -> Path:
    """Try settings on training images that have masks, and write down which suit them best.

    The exponents of the affinity labels need the CAMs of notebook 1; alpha, beta, t and the dCRF
    after the walk need the network of notebook 3, too. Nothing is trained. With other affinity
    labels notebooks 2 and 3 have to be run again before the walk is tuned.

    Args:
        run: folder of a run.
        count: images, evenly spaced in the training list.
        show: takes the tables and what they mean.

    Returns:
        ``tuned.yaml`` in the run: settings as ``--set`` takes them.

    Raises:
        InputError: no image has a mask, or notebook 1 was not run.
    """
    manifest = load_manifest(run)
    profile, settings = manifest["profile"], manifest["settings"]
    own = resolve(profile, {})
    given = {name: settings[name] for name in KINDS if settings.get(name, own[name]) != own[name]}
    stage = Stage("04_random_walk", given | {"profile": profile, "run_dir": str(run.resolve())})
    config, data = stage.config, stage.data
    judged = data.with_masks(data.with_tags(data.ids(config.train_split)))
    if not judged:
        raise InputError(
            "no training image has a mask to choose settings with: take those of the profile, look "
            "at the labels on the page of the run, and change alpha (more background: lower it) and "
            "beta (walks that leak: raise it) by eye"
        )
    ids = [judged[k] for k in np.linspace(0, len(judged) - 1, min(count, len(judged))).astype(int)]
    cams = stage.input("01_class_activation_maps/cams")
    show(f"On {len(ids)} training images and their masks:\n")
    found = _labels(stage, ids, cams, show)
    network = run / last_network(config) / "network.safetensors"
    if network.is_file():
        found |= _walk(stage, ids, cams, network, show)
        found |= _cam_crf(stage, ids, cams, show)
    else:
        show("The walk is tuned after notebook 3.")
    path = run / "tuned.yaml"
    lines = [f"# Chosen with the masks of {len(ids)} training images of {run.name}."]
    lines += [f"{name}: {value}" for name, value in found.items()]
    save_text(path, "\n".join(lines) + "\n")
    return path


def _labels(stage: Stage, ids: Sequence[str], cams: Path, show: Callable) -> dict[str, float]:
    config = stage.config
    crf = crf_settings(config, "affinity_crf")
    rows = tuning.try_affinity_labels(stage.data, ids, cams, crf)
    rows.sort(key=lambda row: (row.coverage < LEAST_COVERAGE, -row.accuracy))
    show(f"Trusted areas that cover {LEAST_COVERAGE} percent, the most accurate first:\n")
    show(markdown_table(["alpha_strong", "alpha_weak", "coverage", "accuracy"], rows[:6]))
    return {"alpha_strong": rows[0].alpha_strong, "alpha_weak": rows[0].alpha_weak}


def _walk(
    stage: Stage, ids: Sequence[str], cams: Path, network: Path, show: Callable
) -> dict[str, float]:
    config = stage.config
    net = affinity_network(config, weights="")
    load_network(net, network)
    net.eval().to(stage.device)
    pad_to = config.affinity_stride if config.walk_pooling else 1
    inputs = stage.inputs(net.backbone, "affinity", pad_to)
    walk = Walk.of(config, net, inputs, cams)
    betas = [float(f"{config.beta * factor:.2g}") for factor in (0.5, 0.7, 1, 1.4, 2)]
    steps = sorted({64, 256, config.t})
    alphas = tuning.ALPHAS[2:]
    mious = tuning.try_walks(walk, ids, alphas, betas, steps)
    a, b, s = np.unravel_index(mious.argmax(), mious.shape)
    best, beta, t = alphas[a], betas[b], steps[s]
    show(f"\nmIoU after the walk, t = {t}:\n")
    heads = ["alpha", *(f"beta {value:g}" for value in betas)]
    chosen = mious[:, :, steps.index(t)]
    show(markdown_table(heads, ([alpha, *row] for alpha, row in zip(alphas, chosen, strict=True))))

    affinity = {image_id: walk.affinity(image_id) for image_id in ids}

    def maps(alpha: float) -> dict[str, np.ndarray]:
        walk.alpha = alpha
        return {i: walk.walked(i, beta, t, affinity[i])[1].numpy() for i in ids}

    near = tuning.ALPHAS[max(tuning.ALPHAS.index(best) - 2, 0) :][:4]
    alpha, sxy, compat = _crfs(stage, ids, {a: maps(a) for a in near}, "crf", "the walk", show)
    return {"alpha": alpha, "beta": beta, "t": t, "crf_sxy": sxy, "crf_compat": compat}


def _cam_crf(stage: Stage, ids: Sequence[str], cams: Path, show: Callable) -> dict[str, float]:
    known = {i: torch.from_numpy(load_scores(cams / f"{i}.npz")[1]) for i in ids}
    place = int(np.abs(np.subtract(tuning.ALPHAS, stage.config.crf_alpha)).argmin())
    maps = {
        alpha: {i: with_background(each, alpha).numpy() for i, each in known.items()}
        for alpha in tuning.ALPHAS[max(place - 1, 0) :][:3]
    }
    alpha, sxy, compat = _crfs(stage, ids, maps, "cam_crf", "the CAMs alone", show)
    return {"crf_alpha": alpha, "cam_crf_sxy": sxy, "cam_crf_compat": compat}


def _crfs(
    stage: Stage,
    ids: Sequence[str],
    maps: dict[float, dict[str, np.ndarray]],
    prefix: str,
    after: str,
    show: Callable,
) -> tuple[float, float, float]:
    """The exponent, the width and the weight that are best together."""
    now = crf_settings(stage.config, prefix)
    tried = [
        replace(
            now,
            bilateral_sxy=float(f"{now.bilateral_sxy * width:.2g}"),
            bilateral_compat=float(f"{now.bilateral_compat * weight:.2g}"),
        )
        for width, weight in _CRFS
    ]
    mious = tuning.try_crfs(stage.data, ids, maps, tried)
    alphas = list(maps)
    show(f"\nmIoU after {after} and a dCRF:\n")
    heads = ["width", "weight", *(f"alpha {alpha:g}" for alpha in alphas)]
    pairs = [(each.bilateral_sxy, each.bilateral_compat) for each in tried]
    show(markdown_table(heads, ([*pair, *row] for pair, row in zip(pairs, mious, strict=True))))
    row, column = np.unravel_index(mious.argmax(), mious.shape)
    return (alphas[column], *pairs[row])

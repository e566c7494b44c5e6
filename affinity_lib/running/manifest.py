"""What a run has made, held in its ``manifest.json``: a record of each stage, with hashes."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from affinity_lib.data.files import files_in, load_json, save_json
from affinity_lib.data.paths import find_root
from affinity_lib.errors import InputError
from affinity_lib.running import cache
from affinity_lib.running.stage import (
    DATA,
    data_hash,
    input_hash,
    plain_value,
    setting_hashes,
)
from affinity_lib.training.cores import available_cores

FORMAT = 3
"""Of the manifest; a run of another format is made anew."""

_TOOLS = ("papermill", "nbclient", "ipykernel", "matplotlib", "pillow", "safetensors")


def load_manifest(run: Path) -> dict[str, Any]:
    """The manifest of a run, or an empty one.

    Raises:
        InputError: the file is not what :func:`save_manifest` saved.
    """
    path = run / "manifest.json"
    if not path.is_file():
        return {"format": FORMAT, "stages": {}}
    manifest = load_json(path)
    if isinstance(manifest, dict):
        if manifest.get("format") != FORMAT:
            return {"format": None, "stages": {}}  # of another version: no more of it is read
        if manifest.pop("digest", "") == cache.digest(manifest):
            return manifest
    raise InputError(f"{path} is no whole manifest: remove it, and the run begins anew")


def save_manifest(run: Path, manifest: Mapping[str, Any]) -> None:
    """Save the manifest of a run, whole or not at all, with a hash of itself."""
    save_json(run / "manifest.json", {**manifest, "digest": cache.digest(manifest)})


def find_run(name: str | Path) -> Path:
    """The folder of a run, given as a path, from here or from the project, or as a name in ``runs/``.

    Raises:
        InputError: it has no ``manifest.json``, or one of another version of the project.
    """
    places = [Path(name), find_root() / "runs" / name, find_root() / name]
    for place in places:
        if (place / "manifest.json").is_file():
            if load_manifest(place)["format"] != FORMAT:
                raise InputError(
                    f"{place} was made by an earlier version of this project: run it again"
                )
            return place
    raise InputError(f"{name} is not a run: there is no {places[0] / 'manifest.json'}")


def artifacts(run: Path, stem: str) -> dict[str, dict[str, Any]]:
    """Every file that a stage made, hidden ones left out, with its hash and size.

    Returns:
        Path within the run -> ``{"sha256": ..., "bytes": ...}``, sorted.
    """
    files = files_in(run / stem)
    return {path.relative_to(run).as_posix(): fingerprint(path) for path in files}


def fingerprint(path: Path) -> dict[str, Any]:
    """SHA-256 and size of a file."""
    return {"sha256": cache.file_hash(path), "bytes": path.stat().st_size}


def damage(run: Path, recorded: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The recorded files that are missing or not what they were, one phrase each."""
    found = []
    for name, value in recorded.items():
        path = run / name
        if not path.is_file():
            found.append(f"{name} is missing")
        elif path.stat().st_size != value["bytes"] or fingerprint(path) != value:
            found.append(f"{name} has changed")
    return found


def verify(run: Path) -> tuple[int, list[str]]:
    """Hash everything that a run recorded again.

    Returns:
        How many files were checked, and a phrase for each that differs, for each stage that is
        not finished, and for each thing that a stage has read and that is another one now.
    """
    manifest = load_manifest(run)
    count, found = 0, []
    for stem, record in manifest["stages"].items():
        if record["state"] != "done":
            found.append(f"{stem} is not finished")
            continue
        recorded = record["artifacts"] | record["notebook"]
        count += len(recorded)
        found += damage(run, recorded)
        extra = artifacts(run, stem).keys() - record["artifacts"].keys()
        found += [f"{name} is not recorded" for name in sorted(extra)]
        current = inputs_now(run, record["key"])
        found += [
            f"{name} has changed since {stem} has read it"
            for name, value in record["key"]["inputs"].items()
            if current[name] != value
        ]
        settings = record["key"]["settings"]
        values = {name: plain_value(value) for name, value in settings.items()}
        found += [
            f"{name} {values[name]} has changed since {stem} has read it"
            for name, value in setting_hashes(values, values).items()
            if value != settings[name]
        ]
    results = manifest.get("results", {})
    return count + len(results), list(dict.fromkeys(found + damage(run, results)))


def inputs_now(run: Path, key: Mapping[str, Any]) -> dict[str, str]:
    """What a stage has read, by the names in its key, as it is now."""
    return {
        name: data_hash(key["settings"]["data_root"]) if name == DATA else input_hash(run, name)
        for name in key["inputs"]
    }


def up_to_date(run: Path, stages: Mapping[str, Any]) -> list[str]:
    """The stages that are done and have read what other such stages have made, as it is now."""
    found: list[str] = []
    for stem, record in sorted(stages.items()):
        if record["state"] != "done":
            continue
        read = {n: value for n, value in record["key"]["inputs"].items() if n != DATA}
        makers = {Path(name).parts[0] for name in read} & {*stages}
        if makers <= {*found} and all(input_hash(run, n) == value for n, value in read.items()):
            found.append(stem)
    return found


def settings_of(values: Mapping[str, Any], run: Path, stages: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that the results of a run were made with.

    Args:
        values: the settings of the last command, which count for what has not been made.
        run: folder of the run.
        stages: their records.
    """
    found = dict(values)
    for stem in up_to_date(run, stages):
        for name, value in stages[stem]["key"]["settings"].items():
            if name in found:
                found[name] = plain_value(value)
    return found


def now() -> str:
    """The time as records have it: in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def surroundings(device: str = "auto") -> dict[str, Any]:
    """Where a run happens: versions of packages, the seed of Python's hashes, the computer."""
    packages = {"python": platform.python_version()} | cache.versions((*cache.PACKAGES, *_TOOLS))
    return {"packages": packages, "hash_seed": hash_seed()} | computer(device)


def computer(device: str = "auto") -> dict[str, Any]:
    """The machine that this runs on, its accelerator, and the threads that a notebook has.

    Args:
        device: by its name in the settings.
    """
    from affinity_lib.training.precision import accelerator

    return {
        "accelerator": accelerator(device),
        "machine": {
            "name": platform.node(),
            "system": platform.platform(),
            "processor": platform.processor() or platform.machine(),
            "cores": available_cores(),
        },
        "threads": threads(),
    }


def hash_seed() -> str:
    """The seed of Python's hashes in a notebook: ``PYTHONHASHSEED``, or 0."""
    return os.environ.get("PYTHONHASHSEED", "0")


def threads() -> int:
    """The number of threads that a notebook computes with: ``OMP_NUM_THREADS``, or all cores."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdigit() and int(given) else available_cores()


def git_state(folder: Path) -> dict[str, Any]:
    """The commit of the checkout and whether it has uncommitted changes; None where unknown."""

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", *words], cwd=folder, capture_output=True, text=True, check=True
            )
        except (OSError, subprocess.CalledProcessError):
            return None
        return done.stdout.strip()

    status = git("status", "--porcelain")
    return {"commit": git("rev-parse", "HEAD"), "dirty": None if status is None else bool(status)}

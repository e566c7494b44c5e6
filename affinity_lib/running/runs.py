"""Where a run keeps its things: ``runs/PROFILE/``, one folder a stage, named like its notebook."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affinity_lib.data.files import load_json, save_json
from affinity_lib.data.paths import find_root
from affinity_lib.errors import InputError
from affinity_lib.running.locks import briefly

if TYPE_CHECKING:  # the runner needs this module and no tensors: it starts without torch
    import torch

NOTE = "made_with.json"


def shard_of(ids: Sequence[str], shard: int, num_shards: int) -> list[str]:
    """The images that one of several jobs works on: every ``num_shards``-th, from ``shard`` on.

    Args:
        ids: all image ids.
        shard: the job's number, from 0.
        num_shards: how many jobs share the images.

    Raises:
        InputError: there is no such shard.

    >>> shard_of(["a", "b", "c"], shard=0, num_shards=2)
    ['a', 'c']
    """
    if not 0 <= shard < num_shards:
        raise InputError(
            f"shard must be one of 0 to num_shards - 1, got shard {shard} of {num_shards}"
        )
    return list(ids)[shard::num_shards]


class Run:
    """One run of the notebooks with one profile.

    Args:
        profile: the profile's name; the run lives in ``runs/PROFILE`` of the project.
        run_dir: another folder for the run; relative ones start at the project's folder.

    >>> import tempfile
    >>> run = Run("toy", run_dir=tempfile.mkdtemp())
    >>> run.save_metrics("04_random_walk", {"table1": {"rw": 58.1}})
    >>> run.metrics("04_random_walk")
    {'table1': {'rw': 58.1}}
    """

    def __init__(self, profile: str = "toy", run_dir: str | Path = "") -> None:
        if profile in ("", "..") or Path(profile).name != profile:
            raise InputError(f"profile must be a plain name such as toy, got {profile!r}")
        self.profile = profile
        path = Path(run_dir).expanduser() if run_dir else Path("runs", profile)
        self.path = path if path.is_absolute() else find_root() / path
        _refuse_own_folder(self.path)

    def stage(self, name: str) -> Path:
        """The folder of a stage, made if need be; ``name`` is the notebook's stem."""
        folder = self.path / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def folder(self, stage: str, name: str, **made_with: Any) -> Path:
        """A folder of results that are worth keeping only while they are made in the same way.

        What they are made with is noted in the folder. Called again with the same, the folder
        is as it was, so that work goes on where it stopped; with anything else, it is emptied.
        Several processes may ask for it at once.

        Args:
            stage: the stem of the notebook.
            name: of the folder.
            made_with: settings, as plain values; a path stands for what the file holds, or for
                what its folder is made with.

        >>> import tempfile
        >>> run = Run("toy", run_dir=tempfile.mkdtemp())
        >>> (run.folder("04_random_walk", "walked", beta=8) / "a.npz").touch()
        >>> (run.folder("04_random_walk", "walked", beta=8) / "a.npz").exists()
        True
        >>> (run.folder("04_random_walk", "walked", beta=4) / "a.npz").exists()
        False
        """
        folder = self.path / stage / name
        note = {key: _fingerprint(value) for key, value in sorted(made_with.items())}
        with briefly(self.path / stage / f".{name}.lock"):
            if not (folder / NOTE).exists() or load_json(folder / NOTE) != note:
                shutil.rmtree(folder, ignore_errors=True)
                save_json(folder / NOTE, note)
        return folder

    def require(self, stage: str, file: str) -> Path:
        """The path of what an earlier stage made.

        Args:
            stage: the stem of the notebook that makes it.
            file: name of a file or folder in that stage's folder.

        Raises:
            InputError: it is not there yet, or is an empty folder; names the notebook to run.
        """
        path = self.path / stage / file
        if not path.exists() or (path.is_dir() and not any(p.name != NOTE for p in path.iterdir())):
            raise InputError(
                f"{path} is missing: run notebooks/{stage}.ipynb with the profile "
                f"{self.profile} first"
            )
        return path

    def save_metrics(self, stage: str, metrics: dict[str, Any]) -> None:
        """Save a stage's numbers as its ``metrics.json``, whole or not at all; NaN becomes null."""
        save_json(self.path / stage / "metrics.json", _replaced(metrics, math.nan, None))

    def metrics(self, stage: str) -> dict[str, Any]:
        """The numbers that a stage saved; null becomes NaN again.

        Raises:
            InputError: the stage has not run; names the notebook.
        """
        return _replaced(load_json(self.require(stage, "metrics.json")), None, math.nan)


def _refuse_own_folder(path: Path) -> None:
    """A run removes what stands where its stages go: that must not be the project."""
    root, path = find_root().resolve(), path.resolve()
    own = [root / name for name in ("notebooks", "affinity_lib", "tests", ".git")]
    if root.is_relative_to(path) or any(path.is_relative_to(folder) for folder in own):
        raise InputError(
            f"{path} holds the project's own files and cannot be the folder of a run: give one of "
            "its own, such as runs/NAME"
        )
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is a file and cannot be the folder of a run: give a folder")


def _replaced(value: Any, old: float | None, new: float | None) -> Any:
    """The same structure with one kind of "no number" in place of the other."""
    if isinstance(value, dict):
        return {key: _replaced(item, old, new) for key, item in value.items()}
    if old is None:
        return new if value is None else value
    return new if isinstance(value, float) and math.isnan(value) else value


def _fingerprint(value: Any) -> Any:
    if isinstance(value, Path):
        value = value / NOTE if value.is_dir() else value
        return hashlib.sha256(value.read_bytes()).hexdigest()
    return json.loads(json.dumps(value))


def pick_device(name: str = "auto") -> torch.device:
    """The device to compute on.

    Args:
        name: "auto" (the GPU if there is one), "cpu", "cuda", "cuda:1", "mps".

    Raises:
        InputError: the name is unknown or this machine has no such device.

    >>> pick_device("cpu")
    device(type='cpu')
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(
            f"device {name!r} is not available on this machine: use auto or cpu"
        ) from error
    return device

"""What a notebook says to the machine: its settings, what it reads, what it makes.

``stage = Stage("04_random_walk")`` is a notebook's first word. It checks what was given, and from
then on ``stage.config`` has the settings, ``stage.input`` the results of earlier notebooks,
``stage.output`` a folder for a result that is kept while nothing has changed that it depends on
(:mod:`affinity_lib.running.cache`), and ``stage.save`` the numbers.
"""

from __future__ import annotations

import ast
import json
import linecache
import math
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from IPython import get_ipython

from affinity_lib.data.files import load_json, save_json
from affinity_lib.data.paths import data_path, find_root
from affinity_lib.errors import InputError
from affinity_lib.running import cache
from affinity_lib.running.locks import locked
from affinity_lib.running.settings import DEFAULTS, KINDS, PLACES, resolve

if TYPE_CHECKING:
    import torch
    from torch import nn

    from affinity_lib.data.voc import VOCData
    from affinity_lib.training.inputs import Inputs

NOTE = "made_with.json"
"""Beside a result: what it was made with. Hidden in a stage's folder: the same of the whole stage."""

DATA = "the data set"
"""Its name among the things that a notebook reads."""


class Config:
    """The settings of a run, as attributes; tells which of them are read.

    >>> Config({"beta": 8.0}).beta
    8.0
    """

    def __init__(
        self, values: Mapping[str, Any], on_read: Callable[[str], None] | None = None
    ) -> None:
        self._values, self._on_read = dict(values), on_read

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in self._values:
            raise AttributeError(f"there is no setting {name!r}")
        if self._on_read is not None:
            self._on_read(name)
        return self._values[name]

    def __getstate__(self) -> dict[str, Any]:
        return {"_values": self._values, "_on_read": None}  # another process tells nobody

    def __dir__(self) -> list[str]:
        return sorted(self._values)


class Stage:
    """One notebook at work, in the run that its profile names.

    Args:
        name: the notebook's stem.
        given: profile, run_dir, shard and settings that replace the profile's; by default what the
            notebook's parameters cell and papermill's say.

    Raises:
        InputError: an unknown name or profile, or a value of the wrong kind, before anything is
            made or removed.

    >>> import tempfile
    >>> stage = Stage("04_random_walk", {"run_dir": tempfile.mkdtemp(), "beta": 4})
    >>> stage.config.beta, stage.config.gamma
    (4.0, 5.0)
    """

    def __init__(self, name: str, given: Mapping[str, Any] | None = None) -> None:
        given = dict(written() if given is None else given)
        self.name = name
        self.profile, run_dir, shard = (given.pop(key, "") for key in PLACES)
        self.profile = self.profile or "toy"
        self.path = run_folder(self.profile, run_dir)
        self._share = parse_shard(shard) if shard else (0, 1)
        self._values = resolve(self.profile, given)
        self.config = Config(self._values, self._note_read)
        self._read: dict[int, set[str]] = {}  # number of a cell -> the settings that it has read
        self._inputs: dict[str, str] = {}
        self._machine: dict[str, Any] = {}
        self._made: list[str] = []  # results of this notebook, which later ones may go on from
        self._open: dict[Path, tuple[int, set[str]]] = {}  # note -> cell that makes it, settings

    @cached_property
    def data(self) -> VOCData:
        """The data set."""
        from affinity_lib.data.voc import VOCData

        root = self.config.data_root
        data = VOCData(data_path(root), self.config.classes)
        self._inputs[DATA] = data_hash(root)
        return data

    @cached_property
    def device(self) -> torch.device:
        """The device to compute on."""
        from affinity_lib.training.precision import pick_device

        self._machine = machine_now(self.config.device)
        return pick_device(self.config.device)

    def inputs(self, backbone: nn.Module, network: str, pad_to: int = 1) -> Inputs:
        """What a network looks at: augmented images, or the stored features of its backbone.

        Args:
            backbone: of the network.
            network: "cam", "affinity" or "segmentation", for the setting ``..._finetune``.
            pad_to: see :class:`affinity_lib.training.inputs.Inputs`.
        """
        from affinity_lib.training.inputs import Inputs

        finetune = getattr(self.config, f"{network}_finetune")
        levels = self.path / "levels"
        return Inputs(self.data, backbone, finetune, self.config.long_side, levels, pad_to)

    def share(self, ids: Sequence[str]) -> list[str]:
        """The images that this job works on: all, or every N-th from the K-th on with shard K/N."""
        shard, count = self._share
        return list(ids)[shard::count]

    def input(self, result: str) -> Path:
        """The folder or file that an earlier notebook has made.

        Args:
            result: the notebook's stem and the name of the result, "01_class_activation_maps/cams".

        Raises:
            InputError: it is not there yet, or is an empty folder; names the notebook to run.
        """
        path = self.path / result
        if not path.exists() or (path.is_dir() and not any(p.name != NOTE for p in path.iterdir())):
            stem = result.partition("/")[0]
            raise InputError(
                f"{path} is missing: run notebooks/{stem}.ipynb with the profile {self.profile}, "
                f"or make all that this notebook reads: python -m affinity_lib run {self.profile} "
                f"--before {self.name.partition('_')[0]}"
            )
        self._inputs[result] = input_hash(self.path, result)
        return path

    def metrics(self, stem: str) -> dict[str, Any]:
        """The numbers that an earlier notebook saved; null becomes NaN again."""
        return _replaced(load_json(self.input(f"{stem}/metrics.json")), None, math.nan)

    def output(self, name: str) -> Path:
        """The folder of a result: as it was, if nothing has changed that it depends on, else empty.

        Work goes on there with what is missing. What the folder had, if that is out of date, is put
        aside until :meth:`save`, and comes back if the change is undone. Results that this notebook
        has made before count among what it depends on.

        Args:
            name: of the result.
        """
        result, home = f"{self.name}/{name}", self.path / self.name
        self._made = self._made[: self._made.index(result)] if result in self._made else self._made
        note = self._note(cache.needed_cells(_cells()))
        self._made = [*self._made, result]
        folder, aside = home / name, home / f".{name}.before"
        with locked(home / f".{name}.lock"):
            self._open[folder / NOTE] = (len(_cells()), set(note["settings"]))
            if self._fits(folder, note):
                return folder
            if self._fits(aside, note):
                spare = home / f".{name}.spare"
                if folder.exists():
                    os.replace(folder, spare)
                os.replace(aside, folder)
                shutil.rmtree(spare, ignore_errors=True)
                return folder
            if folder.is_dir() and any(path.name != NOTE for path in folder.iterdir()):
                shutil.rmtree(aside, ignore_errors=True)
                os.replace(folder, aside)
            shutil.rmtree(folder, ignore_errors=True)
            save_json(folder / NOTE, note)
        return folder

    def save(self, metrics: dict[str, Any]) -> None:
        """Save the stage's numbers as ``metrics.json`` (NaN becomes null); the stage is finished."""
        home = self.path / self.name
        save_json(home / "metrics.json", _replaced(metrics, math.nan, None))
        save_json(home / f".{NOTE}", self._note([*map(cache.plain, _cells())], figures=True))
        for aside in home.glob(".*.before"):
            shutil.rmtree(aside)

    def __repr__(self) -> str:
        return f"<Stage {self.name} of profile {self.profile}>"

    def _repr_markdown_(self) -> str:
        """The settings that the notebook explains, beside their defaults."""
        from affinity_lib.plots import markdown_table  # which draws, as the runner never does

        names = [name for name in written(all_names=True) if name in KINDS]
        own = self._values
        rows = [[f"`{name}`", _shown(own[name]), _shown(DEFAULTS[name])] for name in names]
        table = markdown_table(["setting", "this run", "default"], rows)
        told = (
            "A default is the paper's value where it gives one, else the released code's or ours:\n"
            "`affinity_lib/running/settings.py` says which."
        )
        return f"Profile `{self.profile}`.\n\n{table}\n\n{told}" if rows else ""

    def _note(self, cells: Sequence[str], figures: bool = False) -> dict[str, Any]:
        """What a result depends on, from the code of the cells that has to do with it.

        Args:
            cells: code; empty for a cell that has nothing to do with it.
            figures: it is of the whole stage, figures and all.
        """
        code = "\n".join(filter(None, cells))
        read = (self._read.get(k, set()) for k, cell in enumerate(cells, 1) if cell)
        read = cache.named_settings(code).intersection(self._values).union(*read)
        made = [] if figures else self._made  # a stage is no input of itself
        return {
            "code": cache.digest(code),
            "settings": setting_hashes(self._values, read),
            "inputs": self._inputs | {result: input_hash(self.path, result) for result in made},
            "library": cache.library(code, figures),
            "packages": cache.versions(cache.PACKAGES),
            "machine": self._machine,
        }

    def _note_read(self, name: str) -> None:
        """Remember that a setting is read, also for what the running cell is making."""
        self._read.setdefault(len(_cells()), set()).add(name)
        for path, (cell, settings) in self._open.items():
            if name in settings or name in cache.SPEED or cell != len(_cells()):
                continue
            settings.add(name)
            with locked(path.parent.parent / f".{path.parent.name}.lock"):
                note = load_json(path)
                if name not in note["settings"]:
                    own = note["settings"] | setting_hashes(self._values, [name])
                    note["settings"] = dict(sorted(own.items()))
                    save_json(path, note)

    def _fits(self, folder: Path, note: Mapping[str, Any]) -> bool:
        if not (folder / NOTE).is_file():
            return False
        now = {**note, "settings": setting_hashes(self._values, self._values)}
        return not cache.differences(load_json(folder / NOTE), now)


def written(all_names: bool = False) -> dict[str, Any]:
    """What the parameters cell of this notebook says, and papermill's cell after it.

    Args:
        all_names: with those that are None, which leave a setting to the profile.

    Raises:
        InputError: a value that is no plain Python value.
    """
    found: dict[str, Any] = {}
    for source in _cells():
        first = source.lstrip()
        if first.startswith("profile: "):
            found = {}  # the cell was edited and run again
        elif not first.startswith("# Parameters\n"):
            continue
        for line in ast.parse(source).body:
            target = getattr(line, "target", None) or getattr(line, "targets", [None])[0]
            if not isinstance(target, ast.Name) or line.value is None:
                continue
            try:
                found[target.id] = ast.literal_eval(line.value)
            except ValueError:
                raise InputError(
                    f"{target.id} must be a plain value, got {ast.unparse(line.value)}"
                ) from None
    return {k: v for k, v in found.items() if all_names or v is not None}


def run_folder(profile: str, run_dir: str | Path = "") -> Path:
    """Where a run lives: ``runs/PROFILE`` of the project, or another folder.

    Args:
        profile: the profile's name.
        run_dir: another folder; relative ones start at the project's.

    Raises:
        InputError: no plain name, or a folder that holds the project's own files, which a run
            would remove.
    """
    if profile in ("", "..") or Path(profile).name != profile:
        raise InputError(f"profile must be a plain name such as toy, got {profile!r}")
    root = find_root()
    path = root / (Path(run_dir).expanduser() if run_dir else Path("runs", profile))
    own = [root.resolve() / name for name in ("notebooks", "affinity_lib", "tests", ".git")]
    place = path.resolve()
    if root.resolve().is_relative_to(place) or any(map(place.is_relative_to, own)):
        raise InputError(
            f"{path} holds the project's own files and cannot be the folder of a run: give one of "
            "its own, such as runs/NAME"
        )
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is a file and cannot be the folder of a run: give a folder")
    return path


def parse_shard(text: str) -> tuple[int, int]:
    """Read ``K/N``: share K, from 0, of N of the images.

    Raises:
        InputError: it has another form, or K is not one of 0 to N - 1.

    >>> parse_shard("0/4")
    (0, 4)
    """
    shard, _, count = text.partition("/")
    if not (shard.isdecimal() and count.isdecimal() and int(shard) < int(count)):
        raise InputError(
            f"a shard is K/N with K from 0 to N - 1, such as 0/4 for the first of four, got {text!r}"
        )
    return int(shard), int(count)


def machine_now(device: str) -> dict[str, Any]:
    """What of a device, by its name in the settings, can change a number."""
    from affinity_lib.training.precision import accelerator

    facts = accelerator(device)
    return {name: facts[name] for name in ("device", "bfloat16")}


def data_hash(data_root: str) -> str:
    """What stands for a data set in the notes of what was made from it."""
    return cache.listing(data_path(data_root))


def input_hash(run: Path, result: str) -> str:
    """What stands for a result in the notes of those that read it: its own note, or its content."""
    path = run / result
    try:
        if path.is_dir():
            return cache.digest(load_json(path / NOTE)) if (path / NOTE).is_file() else ""
        return cache.file_hash(path) if path.is_file() else ""
    except (OSError, ValueError):  # a name that cannot be, or a damaged note
        return ""


def setting_hashes(values: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """The values of some settings; one that names a file, with the hash of that file."""
    found = {}
    for name in sorted(set(names) - set(cache.SPEED)):
        value = json.loads(json.dumps(values[name]))
        path = find_root() / value if isinstance(value, str) and value else None
        found[name] = [value, cache.file_hash(path)] if path and os.path.isfile(path) else value
    return found


def plain_value(value: Any) -> Any:
    """The value of a setting in what ``setting_hashes`` gives."""
    named = isinstance(value, list) and [*map(type, value)] == [str, str]
    return value[0] if named and re.fullmatch(r"[0-9a-f]{64}", value[1]) else value


def _cells() -> list[str]:
    """The code cells that this kernel has run, the running one last; none outside of a kernel."""
    shell = get_ipython()
    if shell is None:
        return ["pass"]
    if len(shell.user_ns["In"]) == 1:
        return _compiled_cells(shell.user_ns)
    return list(shell.user_ns["In"][1:])


def _compiled_cells(names: Mapping[str, Any]) -> list[str]:
    """The same where no history is kept, as under nbval: what the kernel has compiled."""
    cells = {}
    for place in linecache.cache:
        if Path(place).parent.name == f"ipykernel_{os.getpid()}":
            cells[place] = "".join(linecache.getlines(place))
    running, frame = "", sys._getframe()
    while frame is not None:
        running = frame.f_code.co_filename if frame.f_globals is names else running
        frame = frame.f_back
    last = [cells.pop(running)] if running in cells else []
    return [*cells.values(), *last] or ["pass"]


def _replaced(value: Any, old: float | None, new: float | None) -> Any:
    """The same structure with one kind of "no number" in place of the other."""
    if isinstance(value, dict):
        return {key: _replaced(item, old, new) for key, item in value.items()}
    if old is None:
        return new if value is None else value
    return new if isinstance(value, float) and math.isnan(value) else value


def _shown(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_shown, value))
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)

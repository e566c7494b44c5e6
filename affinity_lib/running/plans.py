"""What is to be run: the notebooks, a profile and the values that replace some of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from affinity_lib.data.paths import find_root
from affinity_lib.errors import InputError
from affinity_lib.running.parameters import Parameter, checked, declared_parameters, load_profile

OF_THE_COMMAND = {
    "profile": "PROFILE",
    "run_dir": "--run-dir FOLDER",
    "shard": "--shard K/N",
    "num_shards": "--shard K/N",
}
"""Parameters that say where and in which part something runs, and how the command gives them."""


@dataclass(frozen=True)
class Plan:
    """What is to be run: checked parameters and the notebooks that they belong to.

    Made by :func:`plan`. ``values`` are the profile's and the overrides; ``notebooks`` are all
    stages by stem, in order; ``declared`` is what their parameter cells declare.
    """

    profile: str
    values: Mapping[str, Any]
    notebooks: Mapping[str, Path]
    declared: Mapping[str, Mapping[str, Parameter]]

    @property
    def root(self) -> Path:
        """The project's folder."""
        return next(iter(self.notebooks.values())).parent.parent

    def parameters(self, stem: str) -> dict[str, Any]:
        """All values that decide what a notebook makes: not where, and in which part, it runs."""
        declared = self.declared[stem]
        values = {name: self.values.get(name, one.default) for name, one in declared.items()}
        places = OF_THE_COMMAND.keys() - {"profile"}
        return {name: value for name, value in values.items() if name not in places}

    def with_values(self, overrides: Mapping[str, Any]) -> Plan:
        """The same plan with some values in place of the profile's.

        Raises:
            InputError: an unknown parameter, or a value of the wrong kind.
        """
        for name in overrides:
            if name in OF_THE_COMMAND:
                raise InputError(f"{name} cannot be set: give {OF_THE_COMMAND[name]} instead")
        return replace(self, values=checked({**self.values, **overrides}, self.declared))


def plan(profile: str, folder: Path | None = None) -> Plan:
    """Read the notebooks and the profile, and check every parameter.

    Args:
        profile: a file in ``notebooks/profiles``, without its ``.yaml``.
        folder: the notebooks' folder; the project's unless given.

    Raises:
        InputError: no notebooks or profile, an unknown parameter or one of the wrong kind.
    """
    folder = folder or find_root() / "notebooks"
    notebooks = {path.stem: path for path in sorted(folder.glob("[0-9][0-9]_*.ipynb"))}
    if not notebooks:
        raise InputError(f"{folder} has no notebooks named like 00_name.ipynb")
    declared = {stem: declared_parameters(path) for stem, path in notebooks.items()}
    values = load_profile(folder / "profiles" / f"{profile}.yaml")
    for name in values:
        if name != "profile" and name in OF_THE_COMMAND:
            raise InputError(f"{name} is no setting of a profile: give {OF_THE_COMMAND[name]}")
    return Plan(profile, checked(values, declared), notebooks, declared)


def chosen_notebooks(todo: Plan, only: Sequence[str]) -> list[str]:
    """The stems that begin with one of some letters; all if there are none.

    Raises:
        InputError: nothing begins like that.
    """
    for name in only:
        if not any(stem.startswith(name) for stem in todo.notebooks):
            raise InputError(
                f"no notebook starts with {name!r}: there are {', '.join(todo.notebooks)}"
            )
    return [stem for stem in todo.notebooks if stem.startswith(tuple(only) or "")]

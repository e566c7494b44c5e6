"""What is to be run: the notebooks, a profile and the settings that replace some of its own."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from affinity_lib.data.paths import find_root
from affinity_lib.errors import InputError
from affinity_lib.running.settings import check, resolve


@dataclass(frozen=True)
class Plan:
    """What is to be run.

    Made by :func:`make_plan`. ``given`` are the settings in place of the profile's; ``notebooks``
    are all stages by stem, in order.
    """

    profile: str
    given: Mapping[str, Any]
    notebooks: Mapping[str, Path]

    @property
    def root(self) -> Path:
        """The project's folder."""
        return next(iter(self.notebooks.values())).parent.parent

    @cached_property
    def values(self) -> dict[str, Any]:
        """All settings, as the notebooks will find them."""
        folder = self.root / "notebooks" / "profiles"
        return resolve(self.profile, self.given, folder)

    def has_tag(self, stem: str, tag: str) -> bool:
        """Whether a cell of a notebook has a tag, such as "train"."""
        cells = json.loads(self.notebooks[stem].read_text(encoding="utf-8"))["cells"]
        return any(tag in cell["metadata"].get("tags", []) for cell in cells)

    def with_settings(self, given: Mapping[str, Any]) -> Plan:
        """The same plan with some more settings in place of the profile's.

        Raises:
            InputError: an unknown setting, or a value of the wrong kind.
        """
        return Plan(self.profile, {**self.given, **check(given)}, self.notebooks)


def make_plan(profile: str, folder: Path | None = None) -> Plan:
    """Find the notebooks, and read the profile.

    Args:
        profile: a file in ``notebooks/profiles``, without its ``.yaml``.
        folder: the notebooks' folder; the project's unless given.

    Raises:
        InputError: no notebooks or profile, an unknown setting or a value of the wrong kind.
    """
    folder = folder or find_root() / "notebooks"
    lessons = sorted(folder.glob("[0-9][0-9]*_*.ipynb"))  # one that takes no profile is no stage
    stages = [path for path in lessons if "profile: str" in path.read_text(encoding="utf-8")]
    notebooks = {path.stem: path for path in stages}
    if not notebooks:
        raise InputError(f"{folder} has no notebooks named like 00_name.ipynb")
    plan = Plan(profile, {}, notebooks)
    _ = plan.values
    return plan


def chosen_notebooks(plan: Plan, only: Sequence[str]) -> list[str]:
    """The stems that begin with one of some letters; all if there are none.

    Raises:
        InputError: nothing begins like that.
    """
    chosen = set() if only else set(plan.notebooks)
    for name in only:
        found = [stem for stem in plan.notebooks if stem.startswith(name)]
        if not found:
            raise InputError(
                f"no notebook starts with {name!r}: there are {', '.join(plan.notebooks)}"
            )
        chosen |= {stem for stem in found if stem.startswith(f"{name}_")} or set(found)
    return [stem for stem in plan.notebooks if stem in chosen]


def notebooks_before(plan: Plan, number: str) -> list[str]:
    """The stems that come before a notebook, which make all that it reads.

    Args:
        plan: from :func:`make_plan`.
        number: of the notebook, such as "4" or "04".

    Raises:
        InputError: there is no such notebook, or none before it.
    """
    if not number:
        raise InputError("which notebook? Give its number, as in make chapter N=4 or --before 4")
    (stem, *_) = chosen_notebooks(plan, [number.zfill(2)])
    stems = list(plan.notebooks)
    if stem == stems[0]:
        raise InputError(f"{stem} reads nothing that another notebook makes: just open it")
    return stems[: stems.index(stem)]

"""Grids of runs: every combination of some parameters' values.

Each combination is a run of its own in ``RUN/sweep/alpha=8,beta=4``. Stages that a parameter does
not touch have equal keys and are taken from each other, so nothing is computed twice.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from affinity_lib.errors import InputError
from affinity_lib.running import preflight
from affinity_lib.running.manifest import load_manifest
from affinity_lib.running.plan import Plan, chosen_notebooks
from affinity_lib.running.results import load_results
from affinity_lib.running.runner import execute
from affinity_lib.running.stage import run_folder

Row = dict[str, Any]
"""What a sweep knows of one run: the swept parameters and the metrics that it has, by name."""

_OF_THE_DRAWING = ("train_images", "val_images", "image_size", "data_seed")


def execute_grid(
    plan: Plan,
    grid: Mapping[str, Sequence[Any]],
    run_dir: str | Path = "",
    *,
    only: Sequence[str] = (),
    force: bool = False,
    log: Callable[..., None] = print,
) -> tuple[list[Row], Path]:
    """Run every combination of the values.

    Args:
        plan: from :func:`affinity_lib.running.plan.make_plan`.
        grid: setting -> its values.
        run_dir, only, force, log: as for :func:`affinity_lib.running.runner.execute`.

    Returns:
        A row for each run, and the folder that the runs are in, ``RUN/sweep``.

    Raises:
        InputError: as the runner, for any combination, before the first one runs; or a parameter
            by which the toy data are drawn, as all combinations read the same.
        StageFailed: a notebook failed.
    """
    drawn = [name for name in grid if name in _OF_THE_DRAWING]
    if drawn and plan.values["dataset"] == "toy":
        raise InputError(
            f"{drawn[0]} draws the toy data anew in {plan.values['data_root']}, which other runs "
            f"read: give one run a value, --set {drawn[0]}=VALUE --set data_root=FOLDER --run-dir ..."
        )
    points = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    plans = [plan.with_settings(point) for point in points]
    base = run_folder(plan.profile, run_dir)
    folder = base / "sweep"
    names = [",".join(f"{key}={value}" for key, value in point.items()) for point in points]
    runs = [folder / re.sub(r"[^\w.,=+-]+", "_", name) for name in names]
    if twice := [run.name for run, count in Counter(runs).items() if count > 1]:
        raise InputError(
            f"two points of the grid would share the folder {folder / twice[0]}: give values that "
            "differ in letters and digits, one run each with --set and --run-dir"
        )
    for one, run in zip(plans, runs, strict=True):
        stages = {} if force else load_manifest(run)["stages"]
        preflight.check(one, chosen_notebooks(one, only), stages, run)
    rows: list[Row] = []
    for point, one, name, run in zip(points, plans, names, runs, strict=True):
        log(name)
        donors = [base, *sorted(folder.glob("*/"))]
        execute(
            one,
            _with_levels_of(base, run),
            only=only,
            force=force,
            donors=donors,
            log=log,
        )
        results = load_results(run)
        # a setting may be called as a metric is, such as "supervised"
        rows.append(results["table1"] | results["segmentation"] | point)
    return rows, folder


def _with_levels_of(base: Path, run: Path) -> Path:
    """The run's folder, where a frozen backbone's levels are those of ``base``: stored only once.

    Their folders are named after all that they depend on, so runs can share them.
    """
    run.mkdir(parents=True, exist_ok=True)
    (base / "levels").mkdir(exist_ok=True)
    if not (run / "levels").exists():
        (run / "levels").symlink_to(Path("..", "..", "levels"), target_is_directory=True)
    return run

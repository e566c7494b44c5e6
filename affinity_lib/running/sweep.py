"""Grids of runs: every combination of some parameters' values, with a table and a picture.

Each combination is a run of its own in ``RUN/sweep/alpha=8,beta=4``. Stages that a parameter does
not touch have equal keys and are taken from each other, so nothing is computed twice.
"""

from __future__ import annotations

import csv
import io
import itertools
import math
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from affinity_lib.data.files import load_json, write_aside
from affinity_lib.errors import InputError
from affinity_lib.running.plan import Plan
from affinity_lib.running.results import TABLE1
from affinity_lib.running.runner import execute
from affinity_lib.running.stage import run_folder

METRICS = {key: f"{name}, train" for key, (name, _) in TABLE1.items()} | {"val": "network, val"}
"""Columns of the table: key -> its heading."""

Row = dict[str, Any]

_OF_THE_DRAWING = ("train_images", "val_images", "image_size", "data_seed")


def execute_grid(
    plan: Plan,
    grid: Mapping[str, Sequence[Any]],
    run_dir: str | Path = "",
    *,
    only: Sequence[str] = (),
    force: bool = False,
    log: Callable[..., None] = print,
) -> Path:
    """Run every combination of the values, and write table and picture.

    Args:
        plan: from :func:`affinity_lib.running.plan.make_plan`.
        grid: parameter -> its values; if ``seed`` is one, mean and spread over it are added.
        run_dir, only, force, log: as for :func:`affinity_lib.running.runner.execute`.

    Returns:
        The table as markdown, ``RUN/sweep/NAMES.md``; beside it lie a ``.csv`` and a ``.png``.

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
    rows: list[Row] = []
    for point, one in zip(points, plans, strict=True):
        name = ",".join(f"{key}={value}" for key, value in point.items())
        log(name)
        donors = [base, *sorted(folder.glob("*/"))]
        run = execute(
            one,
            _with_levels_of(base, folder / re.sub(r"[^\w.,=+-]+", "_", name)),
            only=only,
            force=force,
            donors=donors,
            log=log,
        )
        results = load_json(run / "results.json")
        rows.append(point | results["table1"] | results["segmentation"])
    return write_tables(rows, list(grid), folder)


def _with_levels_of(base: Path, run: Path) -> Path:
    """The run's folder, where a frozen backbone's levels are those of ``base``: stored only once.

    Their folders are named after all that they depend on, so runs can share them.
    """
    run.mkdir(parents=True, exist_ok=True)
    (base / "levels").mkdir(exist_ok=True)
    if not (run / "levels").exists():
        (run / "levels").symlink_to(Path("..", "..", "levels"), target_is_directory=True)
    return run


def write_tables(rows: Sequence[Row], names: Sequence[str], folder: Path) -> Path:
    """Write the table of a sweep as CSV and markdown, and draw it.

    Args:
        rows: one mapping a run, with the swept parameters and the metrics that it has.
        names: the swept parameters.
        folder: where the files go, named after the parameters.

    Returns:
        Path of the markdown file.
    """
    metrics = [key for key in METRICS if any(row.get(key) is not None for row in rows)]
    text = io.StringIO()
    table = csv.DictWriter(text, [*names, *metrics], extrasaction="ignore", lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    stem = ",".join(names)
    with write_aside(folder / f"{stem}.csv") as aside:
        aside.write_text(text.getvalue(), encoding="utf-8")

    blocks = [_markdown(rows, names, metrics)]
    others = [name for name in names if name != "seed"]
    means = _over_seeds(rows, others, metrics)
    if "seed" in names:
        spread = [
            row | {key: f"{row[key]:.1f} ± {row[key + ' spread']:.1f}" for key in metrics}
            for row in means
        ]
        blocks.append("Mean and standard deviation over the seeds:\n")
        blocks.append(_markdown(spread, others, metrics))
    if others and metrics:
        with write_aside(folder / f"{stem}.png") as aside:
            _picture(means, others, metrics).savefig(aside, dpi=100)
    with write_aside(folder / f"{stem}.md") as aside:
        aside.write_text("\n".join(blocks), encoding="utf-8")
    return folder / f"{stem}.md"


def _over_seeds(rows: Sequence[Row], names: Sequence[str], metrics: Sequence[str]) -> list[Row]:
    """One row for each combination of ``names``: mean and spread of each metric."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(str([row[name] for name in names]), []).append(row)
    means = []
    for group in groups.values():
        mean: Row = {name: group[0][name] for name in names}
        for key in metrics:
            values = [row[key] for row in group if row.get(key) is not None] or [math.nan]
            mean[key] = statistics.fmean(values)
            mean[f"{key} spread"] = statistics.stdev(values) if len(values) > 1 else 0.0
        means.append(mean)
    return means


def _markdown(rows: Sequence[Row], names: Sequence[str], metrics: Sequence[str]) -> str:
    heads = [*names, *(METRICS[key] for key in metrics)]
    lines = [heads, ["---"] * len(names) + ["---:"] * len(metrics)]
    for row in rows:
        values = ["-" if row.get(key) is None else row[key] for key in metrics]
        numbers = [f"{one:.1f}" if isinstance(one, float) else str(one) for one in values]
        lines.append([*(str(row[name]) for name in names), *numbers])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _picture(means: Sequence[Row], names: Sequence[str], metrics: Sequence[str]) -> Figure:
    """A heat-map a metric over the first two parameters, or lines over the only one."""
    if len(names) == 1:
        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.subplots()
        ticks = [str(row[names[0]]) for row in means]
        for key, marker in zip(metrics, "osD^v", strict=False):
            axes.plot(ticks, [row[key] for row in means], marker=marker, label=METRICS[key])
        axes.set(xlabel=names[0], ylabel="mIoU in percent")
        axes.legend()
        return figure
    down, across = names[:2]
    ys = list(dict.fromkeys(str(row[down]) for row in means))
    xs = list(dict.fromkeys(str(row[across]) for row in means))
    figure = Figure(figsize=(3.2 * len(metrics), 3.2), layout="constrained")
    for axes, key in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True):
        cells = [[_cell(means, {down: y, across: x}, key) for x in xs] for y in ys]
        image = axes.imshow(cells, cmap="cividis")
        for y, x in itertools.product(range(len(ys)), range(len(xs))):
            value = cells[y][x]
            dark = image.norm(value) < 0.5
            axes.text(x, y, f"{value:.1f}", ha="center", va="center", color="w" if dark else "k")
        axes.set(title=METRICS[key], xlabel=across, ylabel=down)
        axes.set_xticks(range(len(xs)), xs)
        axes.set_yticks(range(len(ys)), ys)
    return figure


def _cell(means: Sequence[Row], place: Mapping[str, str], key: str) -> float:
    """The best value there, over the parameters that are not axes."""
    return max(
        row[key] for row in means if all(str(row[name]) == text for name, text in place.items())
    )

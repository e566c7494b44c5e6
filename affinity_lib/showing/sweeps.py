"""A grid of runs as a table, with mean and spread over the seeds, and as a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev

from matplotlib.figure import Figure

from affinity_lib.data.files import save_text, write_aside
from affinity_lib.evaluation import PAPER_TABLE1
from affinity_lib.plots import heat_map
from affinity_lib.running.sweep import Row
from affinity_lib.showing.tables import Table

METRICS = {key: f"{name}, train" for key, (name, _) in PAPER_TABLE1.items()}
METRICS["val"] = "network, val"
"""Columns of the table: key -> its heading."""


def write_sweep(rows: Sequence[Row], names: Sequence[str], folder: Path) -> Path:
    """Write the table of a sweep as CSV and markdown, and draw it.

    Args:
        rows: what :func:`affinity_lib.running.sweep.execute_grid` found.
        names: the swept parameters; if ``seed`` is one, mean and spread over it are added.
        folder: where the files go, named after the parameters.

    Returns:
        The table as markdown, ``NAMES.md``; beside it lie a ``.csv`` and a ``.png``.
    """
    metrics = [
        key for key in METRICS if key not in names and any(row.get(key) is not None for row in rows)
    ]
    others = [name for name in names if name != "seed"]
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(str([row[name] for name in others]), []).append(row)
    means = [g[0] | {key: mean(_values(g, key)) for key in metrics} for g in groups.values()]
    tables = [_table("Runs", rows, names, metrics)]
    if "seed" in names:
        spread = [
            g[0] | {key: _spread(_values(g, key)) for key in metrics} for g in groups.values()
        ]
        title = "Mean and standard deviation over the seeds"
        tables.append(_table(title, spread, others, metrics))
    path = folder / f"{','.join(names)}.md"
    save_text(path, "\n\n".join(table.markdown() for table in tables) + "\n")
    save_text(path.with_suffix(".csv"), replace(tables[0], header=[*names, *metrics]).csv())
    if others and metrics:
        with write_aside(path.with_suffix(".png")) as aside:
            _picture(means, others, metrics).savefig(aside, dpi=100)
    return path


def _values(group: Sequence[Row], key: str) -> list[float]:
    return [row[key] for row in group if row.get(key) is not None] or [math.nan]


def _spread(values: Sequence[float]) -> str:
    return f"{mean(values):.1f} ± {stdev(values) if len(values) > 1 else 0:.1f}"


def _table(title: str, rows: Sequence[Row], names: Sequence[str], metrics: Sequence[str]) -> Table:
    header = [*names, *(METRICS[key] for key in metrics)]
    cells = [[*(str(row[n]) for n in names), *(row.get(key) for key in metrics)] for row in rows]
    return Table("sweep", title, header, cells)


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
        heat_map(axes, cells, {down: ys}, {across: xs})
        axes.set_title(METRICS[key])
    return figure


def _cell(means: Sequence[Row], place: Mapping[str, str], key: str) -> float:
    """The best value there, over the parameters that are not axes."""
    return max(
        row[key] for row in means if all(str(row[name]) == text for name, text in place.items())
    )

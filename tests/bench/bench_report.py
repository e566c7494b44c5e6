"""What the benchmark found, as a table in Markdown and as a plot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from measuring import Measurement

from affinity_lib.plots import markdown_table

MIB = 2**20
STRUCTURES = """\
The walk multiplies by rows (CSR of torch, with MKL), which won this comparison of one product with
3 maps in float64, on one thread of an AMD EPYC; times its time at stride 8 and at stride 4: rows in
numba 0.95 and 1.04, diagonals in numba 1.1 and 1.3 (a second of compilation and one dependency
more), shifted views 2.6 and 1.8, CSR of scipy 2.9 and 2.8, diagonals of scipy 7.1 and 4.5, shifted
views under torch.compile 8.2 and 4.8 (and a minute of compilation), COO of torch 26 and 25. Shifted
views, which need nothing but torch, walk where MKL is missing; on a GPU one embedding_bag a step
does."""


@dataclass(frozen=True)
class Row:
    """One line of the table: what was measured, against what, and the bars it should reach."""

    name: str
    reference: str
    ours: Measurement
    theirs: Measurement
    faster_bar: float
    smaller_bar: float | None = None
    images: int | None = None
    """Through which both went; their seconds are then told for one image."""

    @property
    def faster(self) -> float:
        """How many times faster than the reference."""
        return self.theirs.seconds / self.ours.seconds

    @property
    def smaller(self) -> float | None:
        """How many times less memory than the reference."""
        if self.ours.memory is None or self.theirs.memory is None:
            return None
        return self.theirs.memory / max(self.ours.memory, 1)


def table(machine: dict[str, Any], rows: Sequence[Row], exponents: dict[str, float]) -> str:
    """The report in Markdown."""
    header = ["what", "against", "ours", "reference", "times faster", "times less memory"]
    cells = []
    for row in rows:
        faster, smaller = f"{row.faster:.4g}", "" if row.smaller is None else f"{row.smaller:.1f}"
        faster += f" (bar {row.faster_bar:g})" if row.faster_bar > 1 else ""
        smaller += f" (bar {row.smaller_bar:g})" if row.smaller_bar and smaller else ""
        ours, theirs = _told(row.ours, row.images), _told(row.theirs, row.images)
        cells.append([row.name, row.reference, ours, theirs, faster, smaller])
    machine_line = (
        "{processor}, {cores} cores, {threads} threads, {system}, Python {python}, torch {torch}"
    )
    lines = [machine_line.format(**machine), "", markdown_table(header, cells)]
    grows = ", ".join(f"{method} {exponent:.2f}" for method, exponent in exponents.items())
    if grows:
        lines += ["", f"Time of the walk grows with megapixels (1 to 16) to the power of {grows}."]
    return "\n".join(lines)


def linearity(curves: dict[str, list[dict[str, float]]]) -> dict[str, float]:
    """Exponent of size in time between the first point of a megapixel or more and the last.

    1 is linear, 2 quadratic.

    >>> points = [{"megapixels": size, "seconds": 0.3 * size} for size in (1, 16)]
    >>> linearity({"chebyshev": points})
    {'chebyshev': 1.0}
    """
    exponents = {}
    for method, points in curves.items():
        large = [point for point in points if point["megapixels"] >= 1]
        if len(large) > 1:
            growth = np.log(large[-1]["seconds"] / large[0]["seconds"])
            size = np.log(large[-1]["megapixels"] / large[0]["megapixels"])
            exponents[method] = round(float(growth / size), 2)
    return exponents


def plot_curves(curves: dict[str, list[dict[str, float]]], path: Path, title: str) -> None:
    """Time and memory of the walk against the size of the image, both axes logarithmic."""
    import matplotlib.pyplot as plt

    styles = {"dense": ("#e69f00", "s"), "sparse": ("#56b4e9", "^"), "chebyshev": ("#0072b2", "o")}
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for axis, key, unit, label in (
        (axes[0], "seconds", 1, "seconds"),
        (axes[1], "memory", MIB, "peak memory in MiB"),
    ):
        for method, points in curves.items():
            known = [(p["megapixels"], p[key] / unit) for p in points if p[key]]
            if known:
                color, marker = styles[method]
                axis.loglog(*zip(*known, strict=True), color=color, marker=marker, label=method)
        axis.set(xlabel="megapixels of the image (stride 8)", ylabel=label)
        axis.grid(alpha=0.3)
        axis.legend()
    figure.suptitle(title)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _told(cost: Measurement, images: int | None = None) -> str:
    each = cost.seconds / (images or 1)
    told = f"{each:.3g} s" if each >= 1 else f"{1000 * each:.3g} ms"
    told += " an image" if images else ""
    return told if cost.memory is None else f"{told}, {cost.memory / MIB:.3g} MiB"

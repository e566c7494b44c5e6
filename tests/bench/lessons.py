"""Cells of the notebooks, and the three losses that they define, without running a notebook."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from types import SimpleNamespace

from torch import Tensor, nn

from affinity_lib.affinity import half_plane_offsets
from affinity_lib.data.paths import find_root
from affinity_lib.presets import preset

STAGES = {
    "cam": "01_class_activation_maps",
    "affinity": "03_affinitynet",
    "segmentation": "06_segmentation_network",
}


def loss_of(
    network: str, num_classes: int, gamma: float = 5
) -> Callable[[nn.Module, tuple], Tensor]:
    """The function ``loss(model, batch)`` of the notebook that trains a network.

    Args:
        network: "cam", "affinity" or "segmentation".
        num_classes: C, background not counted.
        gamma: Eq. 4, pairs are closer than this.
    """
    cells = map(ast.parse, code_of(STAGES[network]))
    lines = [line for cell in cells for line in cell.body if _is_wanted(line)]
    choice = preset("paper")
    names = {
        "data": SimpleNamespace(classes=[f"class {k}" for k in range(num_classes)]),
        "offsets": half_plane_offsets(gamma),
        "config": choice,
    }
    exec(compile(ast.Module(lines, []), STAGES[network], "exec"), names)  # noqa: S102 - our own cells
    return names["loss"]


def code_of(stem: str) -> list[str]:
    """The code cells of a notebook."""
    path = find_root() / "notebooks" / f"{stem}.ipynb"
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def _is_wanted(line: ast.stmt) -> bool:
    is_loss = isinstance(line, ast.FunctionDef) and line.name == "loss"
    return is_loss or isinstance(line, ast.Import | ast.ImportFrom)

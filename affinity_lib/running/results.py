"""The numbers of a run: merged into ``results.json``, printed beside the paper's, and compared."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from affinity_lib.data.files import load_json, save_json
from affinity_lib.running import manifest as mf

TABLE1 = {
    "cam": ("CAM", 48.0),
    "cam_crf": ("CAM + dCRF", None),
    "rw": ("CAM + RW", 58.1),
    "rw_crf": ("CAM + RW + dCRF", 59.7),
}
"""Rows of the paper's Table 1: key in ``results.json`` -> (name, train mIoU in the paper)."""

PAPER_VAL = 61.7
"""The paper's val mIoU of the segmentation network, Ours-ResNet38 (Table 2)."""

_MERGED = ("dataset", "settings", "table1", "segmentation", "per_class")


def save_results(run: Path, profile: str, manifest: dict[str, Any], skipped: Sequence[str]) -> None:
    """Merge the metrics of all finished stages into ``results.json``; save the manifest with it.

    Args:
        run: folder of the run.
        profile: the profile's name.
        manifest: the run's, where the hash of the results is noted.
        skipped: stages that did not have to run this time.
    """
    results: dict[str, Any] = {"profile": profile} | {part: {} for part in _MERGED}
    results |= {"seconds": {}, "steps": {}, "skipped": list(skipped), "details": {}}
    for stem, record in sorted(manifest["stages"].items()):
        if record["state"] != "done":
            continue
        path = run / stem / "metrics.json"
        metrics = load_json(path) if path.is_file() else {}
        for part in _MERGED:
            _merge(results[part], metrics.pop(part, {}))
        if metrics:
            results["details"][stem] = metrics
        results["seconds"][stem] = record["seconds"]
        results["steps"][stem] = record.get("steps", {})
    save_json(run / "results.json", results)
    manifest["results"] = {"results.json": mf.fingerprint(run / "results.json")}
    mf.save_manifest(run, manifest)


def seconds_of_sections(notebook: Path, seconds: float) -> dict[str, float]:
    """Seconds of the sections of a notebook that papermill has executed, by their headings.

    Args:
        notebook: the executed notebook.
        seconds: that all of it took; what no section took is the start, of the kernel and imports.
    """
    found: dict[str, float] = {"start": seconds}
    heading = "start"
    for cell in load_json(notebook)["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown" and (match := re.match(r"## (.+)", source)):
            heading = re.sub(r"[$\\]", "", match[1])  # formulas as plain words
        took = cell["metadata"].get("papermill", {}).get("duration") or 0
        if heading != "start":
            found[heading] = found.get(heading, 0) + took
            found["start"] -= took
    return {heading: round(took, 1) for heading, took in found.items() if took >= 0.05}


def summary(run: Path) -> str:
    """The paper's Table 1 for this run, and the segmentation network's val mIoU, as text."""
    results = load_json(run / "results.json")
    lines = ["mIoU in percent           this run  paper", "Table 1, train"]
    rows = [(name, results["table1"].get(key), paper) for key, (name, paper) in TABLE1.items()]
    lines += [f"  {name:<24}{_number(ours)}{_number(paper)}" for name, ours, paper in rows]
    ours = results["segmentation"].get("val")
    return "\n".join(
        [*lines, f"{'Segmentation network, val':<26}{_number(ours)}{_number(PAPER_VAL)}"]
    )


def compare(first: Path, second: Path) -> str:
    """Settings and metrics of two runs side by side, as text; a star marks what differs."""
    rows: list[tuple[str, str, str]] = []
    for read in (_settings, _metrics):
        left, right = read(first), read(second)
        rows += [
            (name, str(left.get(name, "-")), str(right.get(name, "-")))
            for name in dict.fromkeys([*left, *right])
        ]
    heads = ("", shown(first), shown(second))
    widths = [max(len(row[column]) for row in [heads, *rows]) for column in range(3)]
    lines = []
    for row in [heads, *rows]:
        star = "*" if row is not heads and row[1] != row[2] else " "
        line = f"{star} {row[0]:<{widths[0]}}  {row[1]:>{widths[1]}}  {row[2]:>{widths[2]}}"
        lines.append(line.rstrip())
    return "\n".join(lines)


def shown(path: Path) -> str:
    """A path as a person would type it: from the current folder where it lies in there."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def _number(value: float | None) -> str:
    return f"{'-' if value is None else format(value, '.1f'):>7} "


def _merge(into: dict[str, Any], new: Mapping[str, Any]) -> None:
    for name, value in new.items():
        if isinstance(value, dict) and isinstance(into.get(name), dict):
            _merge(into[name], value)
        else:
            into[name] = value


def _settings(run: Path) -> dict[str, Any]:
    return mf.load_manifest(run).get("settings", {})


def _metrics(run: Path) -> dict[str, str]:
    path = run / "results.json"
    results = load_json(path) if path.is_file() else {}
    return {
        name: f"{value:.2f}"
        for part in ("table1", "segmentation", "per_class", "seconds")
        for name, value in _flat(results.get(part, {}), part)
    }


def _flat(value: Any, name: str) -> list[tuple[str, float]]:
    if isinstance(value, Mapping):
        return [pair for key, one in value.items() for pair in _flat(one, f"{name}.{key}")]
    if isinstance(value, int | float) and not isinstance(value, bool):
        return [(name, value)]
    return []

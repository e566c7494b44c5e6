"""The numbers of a run: merged into ``results.json``, printed beside the paper's, and compared."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from affinity_lib.data.files import load_json, save_json
from affinity_lib.data.literature import printed
from affinity_lib.errors import InputError
from affinity_lib.evaluation import PAPER_NETWORKS, PAPER_TABLE1
from affinity_lib.running import manifest as mf
from affinity_lib.stages import STEPS

_MERGED = ("dataset", "settings", "table1", "segmentation", "per_class")
_NUMBERS = ("table1", "segmentation", "per_class", "seconds")


def save_results(run: Path, profile: str, manifest: dict[str, Any], skipped: Sequence[str]) -> None:
    """Merge the metrics of the stages that are up to date into ``results.json``; save the manifest.

    A stage whose inputs are no longer what it has read is left out: its numbers are of another run.

    Args:
        run: folder of the run.
        profile: the profile's name.
        manifest: the run's, where the hash of the results is noted.
        skipped: stages that did not have to run this time.
    """
    results: dict[str, Any] = {"profile": profile} | {part: {} for part in _MERGED}
    results |= {"seconds": {}, "steps": {}, "skipped": list(skipped), "details": {}}
    for stem in mf.up_to_date(run, manifest["stages"]):
        record, path = manifest["stages"][stem], run / stem / "metrics.json"
        metrics = load_json(path) if path.is_file() else {}
        for part in _MERGED:
            results[part] |= metrics.pop(part, {})
        if metrics:
            results["details"][stem] = metrics
        results["seconds"][stem] = record["seconds"]
        results["steps"][stem] = record.get("steps", {})
    save_json(run / "results.json", results)
    manifest["settings"] = mf.settings_of(manifest["settings"], run, manifest["stages"])
    manifest["results"] = {"results.json": mf.fingerprint(run / "results.json")}
    mf.save_manifest(run, manifest)


def load_results(run: Path) -> dict[str, Any]:
    """What :func:`save_results` saved.

    Raises:
        InputError: it is missing or damaged.
    """
    path = run / "results.json"
    results = load_json(path)
    whole = isinstance(results, dict) and all(_are_numbers(results.get(p), {}) for p in _NUMBERS)
    if not whole:
        raise InputError(f"{path} does not hold the results of a run: run it again")
    return results


def _are_numbers(value: Any, kind: Any = None) -> bool:
    """Whether a mapping ends in numbers, or None where there is none, at any depth."""
    if isinstance(value, dict):
        return all(_are_numbers(one) for one in value.values())
    number = isinstance(value, int | float) and abs(value) < 1e15
    return kind is None and (value is None or number)


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


def beside_paper(results: Mapping[str, Any]) -> list[tuple[str, float | None, float | None]]:
    """Name, this run's mIoU and the paper's: the rows of Table 1 (train), then the network's (val)."""
    found = [
        (f"{name}, train", results["table1"].get(key), paper)
        for key, (name, paper) in PAPER_TABLE1.items()
    ]
    found += [
        (f"{step.name}, train", results["table1"].get(step.row), None) for step in STEPS if step.row
    ]
    ours, paper = results["segmentation"].get("val"), printed("table4")[PAPER_NETWORKS["resnet38"]]
    return [*found, ("Segmentation network, val", ours, paper["val"])]


def summary(run: Path) -> str:
    """The numbers of a run beside the paper's, as text."""
    lines = [f"{'mIoU in percent':<26}this run  paper"]
    for name, *numbers in beside_paper(load_results(run)):
        cells = ["-" if number is None else f"{number:.1f}" for number in numbers]
        lines.append(f"{name:<26}{cells[0]:>8}{cells[1]:>7}")
    return "\n".join(lines)


def compare(first: Path, second: Path) -> str:
    """Settings and metrics of two runs side by side, as text; a star marks what differs."""
    rows = [
        (name, str(left.get(name, "-")), str(right.get(name, "-")))
        for left, right in zip(_facts(first), _facts(second), strict=True)
        for name in dict.fromkeys([*left, *right])
    ]
    heads = ("", display_path(first), display_path(second))
    widths = [max(len(row[column]) for row in [heads, *rows]) for column in range(3)]
    lines = []
    for row in [heads, *rows]:
        star = "*" if row is not heads and row[1] != row[2] else " "
        line = f"{star} {row[0]:<{widths[0]}}  {row[1]:>{widths[1]}}  {row[2]:>{widths[2]}}"
        lines.append(line.rstrip())
    return "\n".join(lines)


def display_path(path: Path) -> str:
    """A path as a person would type it: from the current folder where it lies in there."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def _facts(run: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The settings and the metrics of a run, each by name."""
    results = load_results(run) if (run / "results.json").is_file() else {}
    metrics = {
        name: f"{value:.2f}"
        for part in _NUMBERS
        for name, value in _flat(results.get(part, {}), part)
    }
    return mf.load_manifest(run).get("settings", {}), metrics


def _flat(value: Any, name: str) -> list[tuple[str, float]]:
    if isinstance(value, Mapping):
        return [pair for key, one in value.items() for pair in _flat(one, f"{name}.{key}")]
    return [] if value is None else [(name, value)]

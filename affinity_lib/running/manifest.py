"""What was run: keys of the stages and hashes of what they made, held in ``manifest.json``."""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import nbformat
from IPython.core.inputtransformer2 import TransformerManager

from affinity_lib.data.files import load_json, save_json
from affinity_lib.data.paths import find_root
from affinity_lib.errors import InputError
from affinity_lib.training.cores import available_cores

DECISIVE = ("torch", "torchvision", "timm", "pydensecrf2", "pydensecrf", "numpy", "scipy")
"""The packages whose versions can change a stage's numbers, and so are in its key."""

_SPEED = ("workers", "nproc")
"""The parameters that change how long a stage takes, and no number but by rounding."""

_TOOLS = ("papermill", "nbclient", "ipykernel", "matplotlib", "pillow", "safetensors")


def stage_key(
    notebook: str | Path, parameters: Mapping[str, Any], inputs: Mapping[str, str]
) -> dict[str, Any]:
    """All that decides what a stage makes; two equal keys mean that it need not run again.

    Args:
        notebook: path of the ``.ipynb``; its code cells count, text and outputs do not.
        parameters: the values that it runs with.
        inputs: stem -> :func:`digest` of what an earlier stage made.

    Returns:
        A mapping for JSON: code, parameters, inputs, weights (the hash of a file that holds
        them, where one is named), library (a hash for each module that the
        notebook imports, directly or not) and packages.
    """
    cells = nbformat.read(notebook, as_version=4).cells
    code = [cell.source for cell in cells if cell.cell_type == "code"]
    return {
        "code": digest(code),
        "parameters": {k: v for k, v in parameters.items() if k not in _SPEED},
        "inputs": dict(inputs),
        "weights": _weights_file(parameters),
        "library": _library_hashes(code),
        "packages": versions(DECISIVE),
    }


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs between two keys of one stage, in words, the likeliest cause first.

    >>> changes({"code": "a", "parameters": {"t": 256}}, {"code": "a", "parameters": {"t": 64}})
    ['t 256 -> 64']
    """
    found = ["its code"] if old.get("code") != new.get("code") else []
    for part, words in (
        ("parameters", "{name} {old} -> {new}"),
        ("library", "{name}"),
        ("packages", "{name} {old} -> {new}"),
        ("inputs", "what {name} made"),
        ("weights", "the content of {name}"),
    ):
        before, after = old.get(part) or {}, new.get(part) or {}
        found += [
            words.format(name=name, old=before.get(name), new=after.get(name))
            for name in sorted({*before, *after})
            if before.get(name) != after.get(name)
        ]
    return found


def artifacts(run: Path, stem: str) -> dict[str, dict[str, Any]]:
    """Every file that a stage made, hidden ones left out, with its hash and size.

    Returns:
        Path within the run -> ``{"sha256": ..., "bytes": ...}``, sorted.
    """
    files = sorted(path for path in (run / stem).rglob("*") if path.is_file())
    return {
        path.relative_to(run).as_posix(): fingerprint(path)
        for path in files
        if not any(part.startswith(".") for part in path.relative_to(run).parts)
    }


def damage(run: Path, recorded: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The recorded files that are missing or not what they were, one phrase each."""
    found = []
    for name, value in recorded.items():
        path = run / name
        if not path.is_file():
            found.append(f"{name} is missing")
        elif path.stat().st_size != value["bytes"] or fingerprint(path) != value:
            found.append(f"{name} has changed")
    return found


def data_listing(folder: str | Path) -> dict[str, Any]:
    """Number, and one hash over names and sizes, of the files in a data set's folder."""
    folder = Path(folder)
    lines = sorted(
        f"{path.relative_to(folder).as_posix()} {path.stat().st_size}"
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    )
    return {"folder": str(folder), "files": len(lines), "sha256": digest(lines)}


def data_changes(record: Mapping[str, Any]) -> list[str]:
    """Whether the data set that a stage has read is another one now, as a phrase."""
    data = record.get("data")
    if not data or data_listing(data["folder"]) == data:
        return []
    return [f"the data set in {data['folder']} has changed"]


def load_manifest(run: Path) -> dict[str, Any]:
    """The manifest of a run, or an empty one."""
    path = run / "manifest.json"
    manifest = load_json(path) if path.is_file() else {"stages": {}}
    if not isinstance(manifest, dict) or not isinstance(manifest.get("stages"), dict):
        raise InputError(f"{path} is no manifest of a run: remove it, and the run begins anew")
    return manifest


def save_manifest(run: Path, manifest: Mapping[str, Any]) -> None:
    """Save the manifest of a run, whole or not at all."""
    save_json(run / "manifest.json", manifest)


def surroundings() -> dict[str, Any]:
    """Where a run happens: versions of packages, the seed of Python's hashes, the computer."""
    packages = {"python": platform.python_version()} | versions((*DECISIVE, *_TOOLS))
    return {"packages": packages, "hash_seed": hash_seed()} | computer()


def computer() -> dict[str, Any]:
    """The machine that this runs on, and the number of threads that a notebook computes with."""
    return {
        "machine": {
            "name": platform.node(),
            "system": platform.platform(),
            "processor": platform.processor() or platform.machine(),
            "cores": available_cores(),
        },
        "threads": threads(),
    }


def hash_seed() -> str:
    """The seed of Python's hashes in a notebook: ``PYTHONHASHSEED``, or 0."""
    return os.environ.get("PYTHONHASHSEED", "0")


def threads() -> int:
    """The number of threads that a notebook computes with: ``OMP_NUM_THREADS``, or all cores."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdigit() and int(given) else available_cores()


def git_state(folder: Path) -> dict[str, Any]:
    """The commit of the checkout and whether it has uncommitted changes; None where unknown."""

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", *words], cwd=folder, capture_output=True, text=True, check=True
            )
        except (OSError, subprocess.CalledProcessError):
            return None
        return done.stdout.strip()

    status = git("status", "--porcelain")
    return {"commit": git("rev-parse", "HEAD"), "dirty": None if status is None else bool(status)}


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Name -> version of those packages that are installed."""
    found = {}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def find_run(name: str | Path) -> Path:
    """The folder of a run, given as a path or as a name in ``runs/``.

    Raises:
        InputError: it has no ``manifest.json``.
    """
    places = [Path(name), find_root() / "runs" / name]
    for place in places:
        if (place / "manifest.json").is_file():
            return place
    raise InputError(f"{name} is not a run: there is no {places[0] / 'manifest.json'}")


def verify(run: Path) -> tuple[int, list[str]]:
    """Hash everything that a run recorded again.

    Returns:
        How many files were checked, and a phrase for each that differs, for each stage that is
        not finished or was made from what another stage no longer has, and for a data set that is
        not what it was.
    """
    manifest = load_manifest(run)
    count, found = 0, []
    for stem, record in manifest["stages"].items():
        if record["state"] != "done":
            found.append(f"{stem} is not finished")
            continue
        recorded = record["artifacts"] | record["notebook"]
        count += len(recorded)
        found += damage(run, recorded)
        extra = artifacts(run, stem).keys() - record["artifacts"].keys()
        found += [f"{name} is not recorded" for name in sorted(extra)]
        found += data_changes(record) + _outdated(stem, manifest["stages"])
    results = manifest.get("results", {})
    return count + len(results), list(dict.fromkeys(found + damage(run, results)))


def _outdated(stem: str, stages: Mapping[str, Any]) -> list[str]:
    """The stages before this one that have made something else since."""
    now = {name: digest(r["artifacts"]) for name, r in stages.items() if r["state"] == "done"}
    inputs = stages[stem]["key"]["inputs"]
    other = [name for name in inputs if name in stages and now.get(name) != inputs[name]]
    return [f"{stem} was made from an earlier {name}" for name in other]


def fingerprint(path: Path) -> dict[str, Any]:
    """SHA-256 and size of a file."""
    with path.open("rb") as file:
        return {
            "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
            "bytes": path.stat().st_size,
        }


def digest(value: Any) -> str:
    """SHA-256 of a JSON value.

    >>> digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    True
    """
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _weights_file(parameters: Mapping[str, Any]) -> dict[str, str]:
    """The file that ``weights`` names, where it does, and its hash."""
    name = str(parameters.get("weights") or "")
    path = find_root() / name
    return {name: fingerprint(path)["sha256"]} if name and path.is_file() else {}


def _library_hashes(cells: Iterable[str]) -> dict[str, str]:
    """Module -> hash of its file, for all of the library that some cells come to import."""
    plain = TransformerManager().transform_cell  # turns %magics into Python
    waiting = {"affinity_lib"}.union(*(_library_imports(plain(cell)) for cell in cells))
    found: dict[str, str] = {}
    while waiting:
        name = waiting.pop()
        path = _module_file(name)
        if name not in found and path is not None:
            found[name] = fingerprint(path)["sha256"]
            waiting |= _library_imports(path.read_text(encoding="utf-8"))
    return dict(sorted(found.items()))


def _module_file(name: str) -> Path | None:
    """The file of a module or package of the library; None for what is neither."""
    path = Path(__file__).parents[2].joinpath(*name.split("."))
    return next((p for p in (path.with_suffix(".py"), path / "__init__.py") if p.is_file()), None)


def _library_imports(code: str) -> set[str]:
    """Every dotted name that an import may mean, with the packages that it lies in."""
    try:
        tree = ast.parse(code)
    except SyntaxError:  # the cell will say so itself when it runs
        return set()
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    parts = [name.split(".") for name in names if name.split(".")[0] == "affinity_lib"]
    return {".".join(part[: k + 1]) for part in parts for k in range(len(part))}

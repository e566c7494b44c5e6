"""Reads the weights of a TensorFlow.js model, ``model.json`` and its shards, without TensorFlow.

Keras's networks are published in this format, ResNet-50 with its ImageNet weights among them.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from affinity_lib.errors import InputError

DTYPES = {"float32": "<f4", "int32": "<i4"}


def read_tfjs(path: str | Path) -> dict[str, np.ndarray]:
    """Read all arrays of a model.

    Nothing in the files is trusted or executed: shards are files beside ``model.json``, and their
    bytes must be as many as the manifest's shapes need.

    Args:
        path: its ``model.json``.

    Returns:
        Arrays by their names in the manifest, such as ``"conv1/kernel"`` (Keras orders a kernel
        as height, width, inputs, outputs).

    Raises:
        InputError: a file is not there, is cut off or no such manifest, or weights are quantised.

    >>> read_tfjs("nowhere.json")
    Traceback (most recent call last):
    affinity_lib.errors.InputError: cannot read nowhere.json (No such file or directory); check the path
    """
    path = Path(path)
    try:
        model = json.loads(_read(path))
        groups = [(group["paths"], group["weights"]) for group in model["weightsManifest"]]
        arrays = {}
        for shards, entries in groups:
            layout = [_entry(entry) for entry in entries]
            arrays |= _cut(path, [str(shard) for shard in shards], layout)
        return arrays
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            f"{path} is not a usable TensorFlow.js model.json ({type(error).__name__}: {error}); "
            "fetch it again"
        ) from None


def _entry(entry: dict[str, Any]) -> tuple[str, str, tuple[int, ...]]:
    """Name, numpy's type and shape of one array."""
    name, dtype, shape = entry["name"], entry["dtype"], entry["shape"]
    if "quantization" in entry or dtype not in DTYPES:
        kind = "quantised" if "quantization" in entry else f"of type {dtype}"
        raise ValueError(f"{name} is {kind}, and only float32 and int32 are read")
    if not all(type(side) is int and side >= 0 for side in shape):
        raise ValueError(f"{name} has the shape {shape}")
    return str(name), DTYPES[dtype], tuple(shape)


def _cut(path: Path, shards: list[str], layout: list[tuple[str, str, tuple[int, ...]]]) -> dict:
    """The arrays of one group, whose bytes run on from shard to shard."""
    for shard in shards:
        if Path(shard).name != shard or shard == "..":
            raise ValueError(f"the shard {shard!r} is not a file beside it")
    files = [path.with_name(shard) for shard in shards]
    needed = sum(4 * math.prod(shape) for _, _, shape in layout)
    there = sum(_size(file) for file in files)
    if there != needed:
        raise ValueError(f"its shards hold {there} bytes where its shapes need {needed}")
    data, start, arrays = b"".join(map(_read, files)), 0, {}
    for name, dtype, shape in layout:
        count = math.prod(shape)
        arrays[name] = np.frombuffer(data, dtype, count, start).reshape(shape).copy()
        start += 4 * count
    return arrays


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from None


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: OSError) -> InputError:
    return InputError(f"cannot read {path} ({error.strerror}); check the path")

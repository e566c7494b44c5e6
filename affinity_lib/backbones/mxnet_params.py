"""Reads MXNet's ``.params`` files without MXNet; ResNet38's ImageNet weights come in one."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import numpy as np

from affinity_lib.errors import InputError

MAGIC = 0x112  # first eight bytes of a file
V1, V2, V3 = 0xF993FAC8, 0xF993FAC9, 0xF993FACA  # first four bytes of an array; else legacy
DTYPES = ("<f4", "<f8", "<f2", "u1", "<i4", "i1", "<i8")  # by type flag


def read_params(path: str | Path) -> dict[str, np.ndarray]:
    """Read all arrays of a ``.params`` file.

    Dense arrays in the legacy layout (before MXNet 0.11) and V1 to V3. No memory is taken for
    lengths that the file does not have.

    Args:
        path: the file.

    Returns:
        Arrays by their names in the file, such as ``"arg:conv1a_weight"``, in the file's order.

    Raises:
        InputError: there is no such file, it is cut off, or it is no ``.params`` file.

    >>> read_params("nowhere.params")
    Traceback (most recent call last):
    affinity_lib.errors.InputError: cannot read nowhere.params (No such file or directory); check the path
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path} ({error.strerror}); check the path") from error
    try:
        return parse_params(data)
    except InputError as error:
        raise InputError(
            f"{path} is not a usable MXNet .params file ({error}); fetch it again"
        ) from None


def parse_params(data: bytes) -> dict[str, np.ndarray]:
    """Arrays by name from the bytes of a ``.params`` file; the work of ``read_params``.

    Args:
        data: the whole file.

    Returns:
        Arrays by name, in the file's order and own types, none sharing memory with ``data``.

    Raises:
        InputError: what is wrong, and at which byte.

    >>> parse_params(struct.pack("<4Q", 0x112, 0, 0, 0))
    {}
    """
    file = _File(data)
    if data[:8] != struct.pack("<Q", MAGIC):
        raise InputError("it does not start with MXNet's 0x112")
    file.skip(16)
    arrays = [_array(file) for _ in range(file.number("Q"))]
    names = [file.text() for _ in range(file.number("Q"))]
    if len(names) != len(arrays) or len(set(names)) != len(names):
        raise InputError(f"{len(arrays)} arrays but {len(set(names))} different names")
    if file.place != len(data):
        raise InputError(f"{len(data) - file.place} bytes too many")
    return {name: array for name, array in zip(names, arrays, strict=True) if array is not None}


class _File:
    """The bytes of a file from one place on, which never goes beyond their end."""

    def __init__(self, data: bytes) -> None:
        self.data, self.place = data, 0

    def skip(self, size: int) -> int:
        """Go on by ``size`` bytes; the place before."""
        if not 0 <= size <= len(self.data) - self.place:
            raise InputError(f"{size} bytes wanted at byte {self.place} of {len(self.data)}")
        self.place += size
        return self.place - size

    def number(self, code: str) -> int:
        return struct.unpack_from(f"<{code}", self.data, self.skip(struct.calcsize(code)))[0]

    def text(self) -> str:
        start = self.skip(self.number("Q"))
        try:
            return self.data[start : self.place].decode()
        except UnicodeDecodeError:
            raise InputError(f"a name at byte {start} that is no text") from None


def _array(file: _File) -> np.ndarray | None:
    """An array, or None where the file has one that was never given a value.

    That has no dimensions, except in V3, where it has -1 of them and a scalar has none.
    """
    version = file.number("I")
    if version in (V2, V3) and file.number("i") != 0:
        raise InputError(f"a sparse array before byte {file.place}, only dense ones are read")
    dimensions = file.number("i") if version in (V1, V2, V3) else version
    if dimensions == (-1 if version == V3 else 0):
        return None
    if not 0 <= dimensions <= 32:
        raise InputError(f"{dimensions} dimensions before byte {file.place}")
    code = "q" if version in (V1, V2, V3) else "I"
    shape = tuple(file.number(code) for _ in range(dimensions))
    if any(size < 1 for size in shape):
        raise InputError(f"shape {shape} before byte {file.place}")
    file.skip(8)  # device type and id
    kind = file.number("i")
    if not 0 <= kind < len(DTYPES):
        raise InputError(f"unknown type {kind} before byte {file.place}")
    dtype, count = np.dtype(DTYPES[kind]), math.prod(shape)
    start = file.skip(count * dtype.itemsize)
    array = np.frombuffer(file.data, dtype, count, start).reshape(shape)
    return array.astype(dtype.newbyteorder("="))

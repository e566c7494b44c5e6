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

_MAX_DIMENSIONS = 32


def read_params(path: str | Path) -> dict[str, np.ndarray]:
    """Read all arrays of a ``.params`` file.

    Dense arrays in the legacy layout (before MXNet 0.11) and V1 to V3.  Nothing in the file is
    trusted: every length is compared with the bytes that are left before it is used.

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
    cursor = _Cursor(data)
    if len(data) < 8 or cursor.read("Q") != MAGIC:
        raise InputError("it does not start with MXNet's 0x112")
    cursor.read("Q")  # reserved
    arrays = [_array(cursor) for _ in range(cursor.count("arrays", at_least=4))]
    names = [_name(cursor) for _ in range(cursor.count("names", at_least=8))]
    if len(names) != len(arrays):
        raise InputError(f"{len(arrays)} arrays but {len(names)} names")
    if len(set(names)) != len(names):
        raise InputError("two arrays have the same name")
    if cursor.left:
        raise InputError(f"{cursor.left} bytes too many after byte {cursor.position}")
    return {name: array for name, array in zip(names, arrays, strict=True) if array is not None}


class _Cursor:
    """A place in the bytes that cannot be moved beyond their end."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.position = 0

    @property
    def left(self) -> int:
        return len(self.data) - self.position

    def skip(self, size: int) -> int:
        """Moves on by ``size`` bytes; the position before."""
        if size > self.left:
            raise InputError(f"{size} bytes wanted at byte {self.position}, {self.left} are left")
        start = self.position
        self.position += size
        return start

    def read(self, code: str) -> int:
        layout = struct.Struct(f"<{code}")
        return layout.unpack_from(self.data, self.skip(layout.size))[0]

    def count(self, what: str, at_least: int) -> int:
        """A number of things, each of which takes at least so many bytes."""
        number = self.read("Q")
        if number > self.left // at_least:
            raise InputError(f"{number} {what} announced in the {self.left} bytes that are left")
        return number


def _array(cursor: _Cursor) -> np.ndarray | None:
    magic = cursor.read("I")
    if magic in (V2, V3) and (storage := cursor.read("i")) != 0:
        raise InputError(f"storage type {storage} before byte {cursor.position}, only 0 is dense")
    if magic in (V1, V2, V3):
        shape = _shape(cursor, cursor.read("i"), "q", scalars=magic == V3)
    else:
        shape = _shape(cursor, magic, "I", scalars=False)
    if shape is None:
        return None
    cursor.skip(8)  # device type and id
    flag = cursor.read("i")
    if not 0 <= flag < len(DTYPES):
        raise InputError(f"unknown type flag {flag} before byte {cursor.position}")
    dtype = np.dtype(DTYPES[flag])
    count = math.prod(shape)
    start = cursor.skip(count * dtype.itemsize)
    array = np.frombuffer(cursor.data, dtype, count, start).reshape(shape)
    return array.astype(dtype.newbyteorder("="))


def _shape(cursor: _Cursor, ndim: int, code: str, scalars: bool) -> tuple[int, ...] | None:
    """The dimensions; None for an array that was never given a value, which has no more bytes.

    That is one without dimensions, except in V3, where it has -1 and a scalar has none.
    """
    if ndim == (-1 if scalars else 0):
        return None
    if not 0 <= ndim <= _MAX_DIMENSIONS:
        raise InputError(f"{ndim} dimensions before byte {cursor.position}")
    shape = tuple(cursor.read(code) for _ in range(ndim))
    if any(size < 1 for size in shape):
        raise InputError(f"shape {shape} before byte {cursor.position}")
    return shape


def _name(cursor: _Cursor) -> str:
    size = cursor.read("Q")
    start = cursor.skip(size)
    try:
        return cursor.data[start : start + size].decode()
    except UnicodeDecodeError:
        raise InputError(f"a name at byte {start} that is no text") from None

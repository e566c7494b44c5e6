"""Reads an array out of a struct in MATLAB's files of level 5, as SBD keeps its masks.

Damaged files crash or fill the memory of the readers in use, so nothing in them is trusted here: no
length is used before it is held against the bytes that are there.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator

import numpy as np

MAX_BYTES = 2**28
"""Of an unpacked variable: a thousand times what a mask takes."""

_DTYPES = {
    1: "i1",
    2: "u1",
    3: "i2",
    4: "u2",
    5: "i4",
    6: "u4",
    7: "f4",
    9: "f8",
    12: "i8",
    13: "u8",
}
_INT8, _MATRIX, _PACKED = 1, 14, 15
_STRUCT, _NUMBERS = 2, range(6, 16)  # classes of arrays; the others are cells, text, complex ...


def read_field(content: bytes, variable: str, field: str) -> np.ndarray:
    """One field, an array of numbers, of a variable that is a struct.

    Args:
        content: the whole file.
        variable, field: their names.

    Returns:
        The array in the file's own type; it may share memory with ``content``.

    Raises:
        ValueError: the file is damaged or of another level, or holds no such array.

    >>> read_field(b"", "GTcls", "Segmentation")
    Traceback (most recent call last):
    ValueError: no MATLAB file of level 5
    """
    order = {b"IM": "<", b"MI": ">"}.get(content[126:128])
    if order is None or content[124:126] not in (b"\x00\x01", b"\x01\x00"):
        raise ValueError("no MATLAB file of level 5")
    for kind, data in _elements(memoryview(content)[128:], order):
        if kind == _PACKED:
            unpacking = zlib.decompressobj()
            try:
                data = memoryview(unpacking.decompress(data, MAX_BYTES))
            except zlib.error as error:
                raise ValueError(f"a packed variable is damaged: {error}") from error
            if unpacking.unconsumed_tail or not unpacking.eof:
                raise ValueError("a packed variable is cut off or too large")
            kind, data = next(_elements(data, order))
        if kind == _MATRIX:
            array_class, shape, name, parts = _matrix(data, order)
            if name == variable.encode() and array_class == _STRUCT and math.prod(shape) == 1:
                return _field(parts, field, order)
    raise ValueError(f"no struct {variable}")


def _elements(data: memoryview, order: str) -> Iterator[tuple[int, memoryview]]:
    """Type and bytes of the elements that follow one another."""
    while data:
        if len(data) < 8:
            raise ValueError(f"{len(data)} bytes too many")
        kind, size = struct.unpack_from(f"{order}2I", data)
        start, step = 8, 8 + size + (-size % 8 if kind != _PACKED else 0)
        if kind >> 16:  # a small element: its size, its type and up to four bytes in eight
            kind, size, start, step = kind & 0xFFFF, kind >> 16, 4, 8
        if start + size > min(len(data), step):
            raise ValueError(f"{size} bytes wanted where {len(data) - start} are left")
        yield kind, data[start : start + size]
        data = data[step:]


def _matrix(data: memoryview, order: str) -> tuple[int, tuple[int, ...], bytes, Iterator]:
    """Class, shape and name of an array, and the elements with its content."""
    parts = _elements(data, order)
    flags, shape, name = (_next(parts) for _ in range(3))
    flags, shape = _array(flags, order), _array(shape, order)
    if name[0] != _INT8 or len(flags) != 2 or not 2 <= len(shape) <= 32 or (shape < 0).any():
        raise ValueError("an array without flags, shape and name")
    return int(flags[0]) & 0x8FF, tuple(shape.tolist()), bytes(name[1]), parts


def _field(parts: Iterator, field: str, order: str) -> np.ndarray:
    length, names = _array(_next(parts), order), bytes(_next(parts)[1])
    if length.size != 1 or not 1 <= length[0] <= max(len(names), 1):
        raise ValueError("a struct without names of fields")
    length = int(length[0])
    fields = [names[k : k + length].split(b"\0")[0] for k in range(0, len(names), length)]
    for name, (kind, data) in zip(fields, parts, strict=False):
        if name == field.encode() and kind == _MATRIX:
            array_class, shape, _, content = _matrix(data, order)
            if array_class not in _NUMBERS:
                raise ValueError(f"{field} is no array of numbers")
            array = _array(_next(content), order)
            if array.size != math.prod(shape):
                raise ValueError(f"{field} has {array.size} numbers for the shape {shape}")
            return array.reshape(shape, order="F")
    raise ValueError(f"no field {field}")


def _array(element: tuple[int, memoryview], order: str) -> np.ndarray:
    kind, data = element
    if kind not in _DTYPES:
        raise ValueError(f"type {kind} where numbers should be")
    dtype = np.dtype(order + _DTYPES[kind])
    if len(data) % dtype.itemsize:
        raise ValueError(f"{len(data)} bytes of {dtype.itemsize}-byte numbers")
    return np.frombuffer(data, dtype)


def _next(parts: Iterator[tuple[int, memoryview]]) -> tuple[int, memoryview]:
    found = next(parts, None)
    if found is None:
        raise ValueError("an array is cut off")
    return found

"""MATLAB's files: a field of a struct comes out as it was, and damage is told and not run into."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.io import savemat

from affinity_lib.data.matfile import read_field


def saved(array: object, packed: bool = False) -> bytes:
    """A struct as SBD has it, with a field of cells before the mask."""
    cells = np.empty((2, 1), object)
    cells[:] = [[np.eye(3)], [np.zeros(0)]]
    content = {"GTcls": {"Boundaries": cells, "Segmentation": array, "CategoriesPresent": 1}}
    file = io.BytesIO()
    savemat(file, {"first": 1, **content}, do_compression=packed)
    return file.getvalue()


@given(
    array=hnp.arrays(
        st.sampled_from(["u1", "i1", "u2", "i4", "f4", "f8"]),
        hnp.array_shapes(min_dims=2, max_dims=3),
        elements=st.integers(0, 100),
    ),
    packed=st.booleans(),
)
def test_what_was_saved_is_read_in_every_type_and_shape(array, packed):
    found = read_field(saved(array, packed), "GTcls", "Segmentation")
    np.testing.assert_array_equal(found, array)
    assert found.dtype == array.dtype


def test_a_file_of_a_machine_with_the_other_order_of_bytes_is_read():
    def element(kind: int, data: bytes) -> bytes:
        if 0 < len(data) <= 4:  # the small form
            return struct.pack(">HH", len(data), kind) + data.ljust(4, b"\0")
        return struct.pack(">2I", kind, len(data)) + data + bytes(-len(data) % 8)

    def matrix(number: int, shape: tuple[int, int], name: bytes, *content: bytes) -> bytes:
        head = element(6, struct.pack(">2I", number, 0)) + element(5, struct.pack(">2i", *shape))
        return element(14, head + element(1, name) + b"".join(content))

    mask = matrix(9, (2, 3), b"", element(2, bytes(range(6))))
    names = element(5, struct.pack(">i", 13)) + element(1, b"Segmentation\0")
    inner = matrix(2, (1, 1), b"GTcls", names, mask)
    packed = zlib.compress(inner)
    for variable in (inner, struct.pack(">2I", 15, len(packed)) + packed):
        content = b"MATLAB".ljust(124) + b"\x01\x00MI" + variable
        assert read_field(content, "GTcls", "Segmentation").tolist() == [[0, 2, 4], [1, 3, 5]]


@pytest.mark.parametrize("packed", [False, True])
def test_a_file_cut_off_anywhere_is_refused(packed):
    content = saved(np.eye(4, dtype=np.uint8), packed)
    end = content.index(b"CategoriesPresent") if not packed else len(content)
    for size in range(0, end, 3):
        with pytest.raises(ValueError):
            read_field(content[:size], "GTcls", "Segmentation")


@given(data=st.data())
def test_a_file_with_foreign_words_in_it_gives_an_array_or_an_error(data):
    content = bytearray(saved(np.eye(4, dtype=np.uint8)))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(120, len(content) - 4))
        content[place : place + 4] = data.draw(st.binary(min_size=4, max_size=4))
    with contextlib.suppress(ValueError):
        read_field(bytes(content), "GTcls", "Segmentation")


def test_a_variable_that_unpacks_to_more_than_a_mask_is_refused(monkeypatch):
    monkeypatch.setattr("affinity_lib.data.matfile.MAX_BYTES", 2**16)
    with pytest.raises(ValueError, match="cut off or too large"):
        read_field(saved(np.zeros((1000, 1000), np.uint8), packed=True), "GTcls", "Segmentation")


@pytest.mark.parametrize(
    ("variable", "field", "message"),
    [
        ("other", "Segmentation", "no struct other"),
        ("first", "Segmentation", "no struct first"),
        ("GTcls", "other", "no field other"),
        ("GTcls", "Boundaries", "Boundaries is no array of numbers"),
    ],
)
def test_what_is_not_there_is_named(variable, field, message):
    with pytest.raises(ValueError, match=message):
        read_field(saved(1), variable, field)


def test_complex_numbers_are_no_mask():
    with pytest.raises(ValueError, match="no array of numbers"):
        read_field(saved(np.eye(2) * 1j), "GTcls", "Segmentation")

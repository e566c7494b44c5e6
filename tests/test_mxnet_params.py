"""The `.params` reader: right on the four layouts, and never more than an error on anything else."""

from __future__ import annotations

import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from affinity_lib.backbones.mxnet_params import parse_params, read_params
from affinity_lib.errors import InputError

LAYOUTS = ("legacy", "V1", "V2", "V3")
FLAGS = {"f4": 0, "f8": 1, "f2": 2, "u1": 3, "i4": 4, "i1": 5, "i8": 6}


def write_array(array: np.ndarray, layout: str, flag: int | None = None) -> bytes:
    """One array as MXNet writes it."""
    magic = {"legacy": [], "V1": [0xF993FAC8], "V2": [0xF993FAC9, 0], "V3": [0xF993FACA, 0]}
    head = b"".join(struct.pack("<I", word) for word in magic[layout])
    sizes = "I" if layout == "legacy" else "q"
    head += struct.pack(f"<I{array.ndim}{sizes}", array.ndim, *array.shape)
    flag = FLAGS[array.dtype.str[1:]] if flag is None else flag
    return (
        head
        + struct.pack("<3i", 1, 0, flag)
        + array.astype(array.dtype.newbyteorder("<")).tobytes()
    )


def write_params(arrays: dict[str, np.ndarray], layout: str = "V2") -> bytes:
    """A whole file as MXNet writes it."""
    blocks = [write_array(array, layout) for array in arrays.values()]
    names = [struct.pack("<Q", len(n.encode())) + n.encode() for n in arrays]
    return b"".join(
        [struct.pack("<3Q", 0x112, 0, len(blocks)), *blocks, struct.pack("<Q", len(names)), *names]
    )


some_array = hnp.arrays(
    dtype=st.sampled_from([np.dtype(code) for code in FLAGS]),
    shape=hnp.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=4),
)
some_arrays = st.dictionaries(st.text(max_size=12), some_array, max_size=4)
SMALL = {"arg:w": np.arange(6, dtype="f4").reshape(2, 3), "aux:m": np.ones(2, "f2")}


@given(arrays=some_arrays, layout=st.sampled_from(LAYOUTS))
def test_what_was_written_is_read_in_every_layout_and_type(arrays, layout):
    read = parse_params(write_params(arrays, layout))
    assert list(read) == list(arrays)
    for name, array in arrays.items():
        assert read[name].dtype == array.dtype
        np.testing.assert_array_equal(read[name], array)


def test_a_legacy_file_written_by_hand_is_read():
    data = bytes.fromhex(
        "1201000000000000 0000000000000000 0100000000000000"  # 0x112, reserved, one array
        "02000000 01000000 02000000"  # legacy: two dimensions, 1 x 2
        "01000000 00000000 00000000"  # on the CPU, f32
        "0000803f 000000c0"  # 1, -2
        "0100000000000000 0500000000000000 6172673a77"  # one name of five bytes, "arg:w"
    )
    np.testing.assert_array_equal(parse_params(data)["arg:w"], np.float32([[1, -2]]))


def test_a_v3_scalar_and_an_array_without_value_are_told_apart():
    scalar = write_array(np.array(7, "i8"), "V3")
    nothing = {
        "V3": struct.pack("<Iii", 0xF993FACA, 0, -1),
        "V2": struct.pack("<Iii", 0xF993FAC9, 0, 0),
        "V1": struct.pack("<Ii", 0xF993FAC8, 0),
        "legacy": struct.pack("<I", 0),
    }
    blocks = [scalar, *nothing.values()]
    names = b"".join(struct.pack("<Qc", 1, bytes([65 + i])) for i in range(5))
    head = struct.pack("<3Q", 0x112, 0, 5)
    assert parse_params(head + b"".join(blocks) + struct.pack("<Q", 5) + names) == {"A": 7}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_file_cut_off_anywhere_is_refused(layout):
    whole = write_params(SMALL, layout)
    for size in range(len(whole)):
        with pytest.raises(InputError):
            parse_params(whole[:size])


@given(data=st.binary(max_size=200))
def test_any_bytes_give_arrays_or_an_error(data):
    for start in (b"", struct.pack("<Q", 0x112), struct.pack("<3Q", 0x112, 0, 1)):
        read_or_refuse(start + data)


@given(st.data(), st.sampled_from(LAYOUTS))
def test_a_file_with_foreign_words_in_it_gives_arrays_or_an_error(data, layout):
    whole = bytearray(write_params(SMALL, layout))
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(whole) - 4))
        words = st.sampled_from([0, 1, 2**31 - 1, 2**31, 2**32 - 1, 0xF993FAC8, 0xF993FACA])
        word = data.draw(words | st.integers(0, 2**32 - 1))
        whole[start : start + 4] = struct.pack("<I", word)
    read_or_refuse(bytes(whole))


@pytest.mark.parametrize(
    "announced",
    [
        struct.pack("<3Q", 0x112, 0, 2**63),  # arrays
        struct.pack("<3QI", 0x112, 0, 1, 2**32 - 1),  # dimensions
        struct.pack("<3QI4I3i", 0x112, 0, 1, 4, *[2**32 - 1] * 4, 1, 0, 0),  # values
        struct.pack("<3QIii4q3i", 0x112, 0, 1, 0xF993FACA, 0, 4, *[2**62] * 4, 1, 0, 0),
        struct.pack("<3QIii2q3i", 0x112, 0, 1, 0xF993FAC9, 0, 2, -1, -8, 1, 0, 0),
        struct.pack("<3QIii2q3i", 0x112, 0, 1, 0xF993FAC9, 0, 2, 0, 2**62, 1, 0, 0),
        struct.pack("<4Q", 0x112, 0, 0, 2**40),  # names
    ],
)
def test_huge_numbers_are_refused_before_memory_is_taken(announced):
    tracemalloc.start()
    try:
        with pytest.raises(InputError):
            parse_params(announced + bytes(64))
        assert tracemalloc.get_traced_memory()[1] < 200_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "does not start"),
        (b"PK\3\4" + bytes(40), "does not start"),
        (write_params(SMALL) + b"\0", "1 bytes too many"),
        (struct.pack("<3QIi", 0x112, 0, 1, 0xF993FAC9, 1) + bytes(40), "a sparse array"),
        (
            struct.pack("<3Q", 0x112, 0, 1) + write_array(np.ones(3, "f4"), "V1", 12),
            "unknown type 12",
        ),
        (
            struct.pack("<3Q", 0x112, 0, 1) + write_array(np.ones(3, "f4"), "V1", -1),
            "unknown type -1",
        ),
        (struct.pack("<4Q", 0x112, 0, 0, 1) + bytes(8), "0 arrays but 1 different names"),
        (struct.pack("<5Q", 0x112, 0, 0, 1, 1) + b"\xff", "no text"),
    ],
)
def test_what_is_wrong_is_said(data, message):
    with pytest.raises(InputError, match=message):
        parse_params(data)


def test_two_arrays_of_one_name_are_refused():
    data = write_params({"a": np.ones(2, "f4"), "b": np.zeros(2, "f4")})
    with pytest.raises(InputError, match="2 arrays but 1 different names"):
        parse_params(data[:-1] + b"a")


def test_the_message_names_the_file_and_the_remedy(tmp_path):
    file = tmp_path / "cut.params"
    file.write_bytes(write_params(SMALL)[:-3])
    with pytest.raises(InputError, match=r"cut.params is not .* bytes wanted .*; fetch it again"):
        read_params(file)
    file.write_bytes(write_params(SMALL))
    assert list(read_params(file)) == list(SMALL)


def read_or_refuse(data: bytes) -> None:
    try:
        arrays = parse_params(data)
    except InputError:
        return
    assert sum(array.nbytes for array in arrays.values()) <= len(data)

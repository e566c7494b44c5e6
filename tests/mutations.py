"""Damage to files, the same for the same seed: bits, cuts, pieces moved, huge numbers in headers."""

from __future__ import annotations

import io
import random
import re
import struct
import zipfile
import zlib

NUMBERS = [
    0,
    1,
    0x7F,
    0xFF,
    0x7FFF,
    0xFFFF,
    0x7FFFFFFF,
    0xFFFFFFFF,
    2**31,
    2**40,
    2**63 - 1,
    2**64 - 1,
]
WORDS = [
    b"-1",
    b"1e999",
    b"nan",
    b"99999999999999999999",
    b"4000000000",
    b"null",
    b"[]",
    b"{}",
    b'""',
]
WORDS += [
    b"\0",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\r",
    b"\n\n",
    b"/",
    b"..",
    b"\xc3",
    b"\xed\xa0\x80",
]


def mutated(data: bytes, draw: random.Random, words: list[bytes] = WORDS) -> bytes:
    """One to three kinds of damage at places of their own; where checksums are, also within them."""
    if data.startswith(b"PK\x03\x04") and draw.random() < 0.6:
        return _within_zip(data, draw, words)
    if data.startswith(b"\x89PNG") and draw.random() < 0.6:
        return _within_png(data, draw, words)
    for _ in range(draw.randint(1, 3)):
        data = draw.choice(_DAMAGES)(bytearray(data), draw, words)
    return bytes(data)


def _flip(data: bytearray, draw: random.Random, words: list[bytes]) -> bytearray:
    for _ in range(draw.choice([1, 1, 2, 8, 64])):
        if data:
            data[_place(data, draw)] ^= 1 << draw.randrange(8)
    return data


def _cut(data: bytearray, draw: random.Random, words: list[bytes]) -> bytearray:
    return data[: draw.randrange(len(data) + 1)]


def _insert(data: bytearray, draw: random.Random, words: list[bytes]) -> bytearray:
    place = draw.randrange(len(data) + 1)
    data[place:place] = draw.randbytes(draw.choice([1, 2, 4, 8, 100]))
    return data


def _remove(data: bytearray, draw: random.Random, words: list[bytes]) -> bytearray:
    place = draw.randrange(len(data) + 1)
    del data[place : place + draw.choice([1, 2, 4, 8, 100])]
    return data


def _splice(data: bytearray, draw: random.Random, words: list[bytes]) -> bytearray:
    """A piece put to another place, once or a thousand times, which nests brackets and tags."""
    start, place = (draw.randrange(len(data) + 1) for _ in range(2))
    piece = data[start : start + draw.choice([1, 2, 4, 16, 64])]
    data[place : place + draw.choice([0, len(piece)])] = piece * draw.choice([1, 1, 2, 1000])
    return data


def _number(data: bytearray, draw: random.Random, words: list[bytes]) -> bytearray:
    """A number of 1 to 8 bytes, mostly a large one, over what is there."""
    code = draw.choice("BHIQ")
    size = struct.calcsize(code)
    value = draw.choice(NUMBERS) & (1 << 8 * size) - 1
    place = _place(data, draw)
    data[place : place + size] = struct.pack(draw.choice("<>") + code, value)
    return data


def _word(data: bytearray, draw: random.Random, words: list[bytes]) -> bytearray:
    """A word of the format in place of a number or a word, or between."""
    found = list(re.finditer(rb"-?\d+|\w+|\S", data[: 1 << 16]))
    if not found:
        return _insert(data, draw, words)
    start, end = draw.choice(found).span()
    data[draw.choice([start, end]) : end] = draw.choice(words)
    return data


_DAMAGES = [_flip, _flip, _cut, _insert, _remove, _splice, _number, _number, _word]


def _place(data: bytearray, draw: random.Random) -> int:
    """Anywhere, or in the first bytes, where headers are."""
    return draw.randrange(max(draw.choice([len(data), min(len(data), 64)]), 1))


def _within_zip(data: bytes, draw: random.Random, words: list[bytes]) -> bytes:
    """A zip file with a damaged member of the right checksum."""
    packed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(packed, "w") as new:
        hit = draw.choice(old.infolist())
        for member in old.infolist():
            content = old.read(member)
            for _ in range(draw.randint(1, 3) if member is hit else 0):
                content = draw.choice(_DAMAGES)(bytearray(content), draw, words)
            new.writestr(member, bytes(content))
    return packed.getvalue()


def _within_png(data: bytes, draw: random.Random, words: list[bytes]) -> bytes:
    """A PNG with a damaged chunk of the right length and checksum; pixels are packed again."""
    chunks, place = [], 8
    while place + 12 <= len(data):
        (size,) = struct.unpack_from(">I", data, place)
        chunks.append((data[place + 4 : place + 8], data[place + 8 : place + 8 + size]))
        place += size + 12
    hit = draw.randrange(len(chunks))
    packed = data[:8]
    for number, (kind, content) in enumerate(chunks):
        if number == hit:
            raw = zlib.decompress(content) if kind == b"IDAT" else content
            content = bytes(draw.choice(_DAMAGES)(bytearray(raw), draw, words))
            content = zlib.compress(content) if kind == b"IDAT" else content
        checksum = zlib.crc32(kind + content)
        packed += struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)
    return packed

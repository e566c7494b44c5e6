"""Files are whole or not there."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from affinity_lib.data.files import (
    load_json,
    load_scores,
    load_tensors,
    missing,
    open_image,
    open_photograph,
    save_json,
    save_scores,
    save_tensors,
    write_aside,
)
from affinity_lib.errors import InputError


def test_nothing_has_the_final_name_before_the_writer_is_done(tmp_path: Path):
    with write_aside(tmp_path / "deep" / "a.txt") as aside:
        aside.write_text("half")
        assert aside.parent == tmp_path / "deep"
        assert aside.suffix == ".txt"
        assert not (tmp_path / "deep" / "a.txt").exists()
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["a.txt"]


@pytest.mark.parametrize("letter", ["n", "ü"])
def test_the_longest_name_that_a_disk_takes_can_be_written(tmp_path: Path, letter: str):
    target = tmp_path / f"{letter * (251 // len(letter.encode()))}.txt"
    with write_aside(target) as aside:
        aside.write_text("whole")
    assert target.read_text() == "whole"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failing_writer_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: type):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(error), write_aside(target) as aside:
        aside.write_text("half")
        raise error
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_failing_writer_leaves_no_folder(tmp_path: Path):
    with pytest.raises(RuntimeError), write_aside(tmp_path / "data") as aside:
        (aside / "images").mkdir(parents=True)
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_folder_takes_the_place_of_an_empty_folder_only(tmp_path: Path):
    (tmp_path / "data").mkdir()
    with write_aside(tmp_path / "data") as aside:
        aside.mkdir()
        (aside / "a").write_text("1")
    with pytest.raises(OSError), write_aside(tmp_path / "data") as aside:
        aside.mkdir()
    assert [p.name for p in tmp_path.rglob("*")] == ["data", "a"]


def test_a_killed_writer_leaves_the_old_file(tmp_path: Path):
    target = tmp_path / "a.txt"
    target.write_text("old")
    code = (
        "import os, sys; from affinity_lib.data.files import write_aside\n"
        "with write_aside(sys.argv[1]) as aside:\n"
        "    aside.write_text('half'); os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(target)], check=False)
    assert killed.returncode == -9
    assert target.read_text() == "old"
    assert [p for p in tmp_path.iterdir() if not p.name.startswith(".")] == [target]


def test_json_comes_back_as_plain_numbers(tmp_path: Path):
    value = {"é": np.float32(0.5), "n": np.int64(3), "t": torch.tensor(2.0), "p": Path("a")}
    save_json(tmp_path / "a.json", value)
    assert load_json(tmp_path / "a.json") == {"é": 0.5, "n": 3, "t": 2.0, "p": "a"}
    assert "é" in (tmp_path / "a.json").read_text(encoding="utf-8")


def test_what_json_cannot_say_is_refused_and_leaves_nothing(tmp_path: Path):
    with pytest.raises(ValueError, match="JSON"):
        save_json(tmp_path / "a.json", {"loss": float("nan")})
    with pytest.raises(TypeError, match="object has no place"):
        save_json(tmp_path / "a.json", {"loss": object()})
    assert list(tmp_path.iterdir()) == []


def test_tensors_come_back_equal_even_if_they_were_views_with_gradients(tmp_path: Path):
    base = torch.arange(24.0).reshape(2, 3, 4).requires_grad_()
    tensors = {"view": base[1].T, "half": torch.ones(2, dtype=torch.float16), "one": torch.ones(())}
    save_tensors(tmp_path / "a.safetensors", tensors, {"classes": "cat dog"})
    loaded, metadata = load_tensors(tmp_path / "a.safetensors")
    assert metadata == {"classes": "cat dog"}
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(loaded[name], tensor.detach(), rtol=0, atol=0)


def test_scores_keep_half_precision_and_the_same_bytes_each_time(tmp_path: Path):
    scores = torch.rand(2, 5, 7, requires_grad=True)
    save_scores(tmp_path / "a.npz", (3, 7), scores)
    save_scores(tmp_path / "b.npz", [3, 7], scores.detach().numpy())
    tags, loaded = load_scores(tmp_path / "a.npz")
    assert tags.dtype == np.int64
    assert tags.tolist() == [3, 7]
    assert loaded.dtype == np.float32
    np.testing.assert_array_equal(loaded, scores.detach().half().float().numpy())
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_an_image_without_maps_is_stored_too(tmp_path: Path):
    save_scores(tmp_path / "a.npz", (), np.zeros((0, 5, 7)))
    tags, scores = load_scores(tmp_path / "a.npz")
    assert tags.shape == (0,)
    assert scores.shape == (0, 5, 7)


@pytest.mark.parametrize(
    ("tags", "scores", "message"),
    [
        ((1,), np.zeros((2, 3, 3)), "one (h, w) map a tag"),
        ((1,), np.zeros((3, 3)), "one (h, w) map a tag"),
        ((1,), np.full((1, 3, 3), 1e6), "within +-65504"),
        ((1,), np.full((1, 3, 3), np.nan), "finite"),
    ],
)
def test_scores_that_do_not_fit_are_refused(tmp_path: Path, tags, scores, message):
    with pytest.raises(InputError, match=re.escape(message)):
        save_scores(tmp_path / "a.npz", tags, scores)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("load", [load_json, load_tensors, load_scores])
@pytest.mark.parametrize("content", [None, b"", b"no such thing", b"PK\x03\x04cut"])
def test_missing_and_broken_files_are_named(tmp_path: Path, load, content):
    path = tmp_path / "a.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=re.escape(str(path))):
        load(path)


def test_a_pickle_is_never_opened(tmp_path: Path):
    np.savez(tmp_path / "a.npz", tags=np.array([object()]), scores=np.zeros((1, 1, 1)))
    with pytest.raises(InputError, match="does not hold whole score maps"):
        load_scores(tmp_path / "a.npz")


@pytest.mark.parametrize("keep", [0.3, 0.9, 0.99])
def test_a_file_that_was_cut_off_is_refused(tmp_path: Path, keep: float):
    save_scores(tmp_path / "a.npz", (1, 2), np.random.default_rng(0).random((2, 20, 20)))
    save_tensors(tmp_path / "a.safetensors", {"a": torch.rand(100)})
    for path, load in (
        (tmp_path / "a.npz", load_scores),
        (tmp_path / "a.safetensors", load_tensors),
    ):
        path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
        with pytest.raises(InputError, match=re.escape(str(path))):
            load(path)


@pytest.mark.parametrize(
    "content",
    [
        {"tags": np.zeros(2, np.int64), "scores": np.zeros((3, 4, 4), np.float16)},
        {"tags": np.zeros(3), "scores": np.zeros((3, 4, 4), np.float16)},
        {"tags": np.zeros(3, np.int64), "scores": np.zeros(3, np.float16)},
    ],
)
def test_scores_that_do_not_belong_to_their_tags_are_refused(tmp_path: Path, content: dict):
    np.savez(tmp_path / "a.npz", **content)
    with pytest.raises(InputError, match="does not hold whole score maps"):
        load_scores(tmp_path / "a.npz")


def test_an_archive_of_something_else_than_arrays_is_refused(tmp_path: Path):
    for content in (b"no array", b"\x93NUMPY\x01\x00\x0a\x00{'a': (((("):
        with zipfile.ZipFile(tmp_path / "a.npz", "w") as packed:
            packed.writestr("tags.npy", content)
            packed.writestr("scores.npy", content)
        with pytest.raises(InputError, match="does not hold whole score maps"):
            load_scores(tmp_path / "a.npz")


def test_json_that_is_nested_without_end_is_refused(tmp_path: Path):
    (tmp_path / "a.json").write_text("[" * 100_000)
    with pytest.raises(InputError, match="is not JSON"):
        load_json(tmp_path / "a.json")


def bitmap(width: int, height: int) -> bytes:
    """A header that announces an image, without its pixels."""
    return b"P6 %d %d 255\n" % (width, height)


@pytest.mark.filterwarnings("ignore:Image size")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (bitmap(11_000, 11_000), "has more than 120 million pixels: make it smaller"),
        (bitmap(20_000, 20_000), "has more than 120 million pixels: make it smaller"),
        (bitmap(40, 30), "does not decode as an image .*: get the file again or take it out"),
        (b"\x89PNG", "does not decode as an image .unknown format.: get"),
        (
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
            "does not decode as an image .unknown format.: get",
        ),
        (b"\0\0\0\x0cjP  \r\n\x87\n\x7f\xff\xff\xf0jp2h", "does not decode as an image"),
    ],
)
def test_what_is_no_whole_image_is_refused_before_memory_is_taken(
    tmp_path: Path, content: bytes, message: str
):
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    for read in (open_image, open_photograph):
        with pytest.raises(InputError, match=rf"a\.jpg {message}"):
            read(path)


def test_a_photograph_that_no_jpeg_could_hold_is_refused(tmp_path: Path):
    Image.new("1", (60_001, 2)).save(tmp_path / "a.png")
    with pytest.raises(
        InputError, match=r"a\.png is 60001 x 2 pixels, too long for a JPEG: cut it"
    ):
        open_photograph(tmp_path / "a.png")


def test_an_image_that_is_a_folder_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="cannot be read"):
        open_image(tmp_path)


def test_the_ids_without_a_file_are_told_in_their_order_and_the_folder_is_made(tmp_path: Path):
    folder = tmp_path / "deep" / "scores"
    assert missing(["b", "a", "c"], folder, "npz") == ["b", "a", "c"]
    assert folder.is_dir()
    (folder / "a.npz").touch()
    (folder / "b.png").touch()
    assert missing(["b", "a", "c"], folder, "npz") == ["b", "c"]
    assert missing([], folder, "npz") == []


def test_a_file_that_is_being_written_is_still_missing(tmp_path: Path):
    with write_aside(tmp_path / "a.npz") as aside:
        aside.touch()
        assert missing(["a"], tmp_path, "npz") == ["a"]
    assert missing(["a"], tmp_path, "npz") == []


def test_dots_in_an_id_are_part_of_it(tmp_path: Path):
    (tmp_path / "2007.png").touch()
    assert missing(["2007.000032"], tmp_path, "png") == ["2007.000032"]

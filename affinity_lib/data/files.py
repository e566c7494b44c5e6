"""Files that are whole or not there: everything a stage leaves behind is written aside and renamed.

A run can be stopped at any moment. What has its final name is complete; what is not complete has
a hidden name beside it and is removed when its writer fails.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError
from safetensors import SafetensorError, safe_open

from affinity_lib.errors import InputError

if TYPE_CHECKING:  # the runner needs this module and no tensors: it starts without torch
    import torch


@contextmanager
def write_aside(path: str | Path) -> Iterator[Path]:
    """Write under a temporary name in the same folder; rename over ``path`` on success.

    The block gets a path that does not exist yet, with the suffix of ``path``, and makes a file
    or a folder of it. If the block ends well, that takes the place of ``path`` in one step; a
    folder can only take the place of nothing or of an empty folder. If the block raises, the
    temporary is removed and ``path`` stays as it was.

    Args:
        path: the final name. Folders above it are made.

    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp()) / "note.txt"
    >>> with write_aside(target) as aside:
    ...     _ = aside.write_text("whole")
    >>> target.read_text(), aside.exists()
    ('whole', False)
    """
    path = Path(os.path.abspath(path))  # "." has no name
    path.parent.mkdir(parents=True, exist_ok=True)
    # No other writer has this name, on this machine or on another one that shares the disk.
    aside = path.with_name(f".{path.stem[:40]}.{uuid.uuid4().hex[:12]}.part{path.suffix}")
    try:
        yield aside
        os.replace(aside, path)
    except BaseException:
        _remove(aside)
        raise


def save_text(path: str | Path, text: str) -> None:
    """Save a text in UTF-8, whole or not at all."""
    with write_aside(path) as aside:
        aside.write_text(text, encoding="utf-8")


def save_json(path: str | Path, value: Any) -> None:
    """Save a value as readable JSON; numpy and torch scalars become plain numbers.

    Args:
        path: the file.
        value: dicts, lists, strings and finite numbers.

    Raises:
        ValueError: a number is NaN or infinite, which JSON cannot say.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "metrics.json"
    >>> save_json(file, {"table1": {"cam": np.float32(48.5)}})
    >>> load_json(file)
    {'table1': {'cam': 48.5}}
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False, default=_plain)
    save_text(path, text + "\n")


def load_json(path: str | Path) -> Any:
    """Load what :func:`save_json` saved.

    Raises:
        InputError: the file is missing or is not JSON.

    >>> load_json("nowhere.json")
    Traceback (most recent call last):
    affinity_lib.errors.InputError: nowhere.json is missing: run the step that writes it
    """
    with _reading(path, "is not JSON", ValueError, RecursionError) as file:
        return json.loads(file.read_text(encoding="utf-8"))


def save_tensors(
    path: str | Path,
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Save named tensors (a ``state_dict``, cached features) as safetensors, no pickles.

    Args:
        path: the file, usually ``*.safetensors``.
        tensors: name -> tensor of any shape and type, on any device.
        metadata: name -> text, e.g. the class names beside the weights.

    >>> import tempfile, torch
    >>> file = Path(tempfile.mkdtemp()) / "weights.safetensors"
    >>> save_tensors(file, {"bias": torch.zeros(3)}, {"classes": "cat dog cow"})
    >>> load_tensors(file)
    ({'bias': tensor([0., 0., 0.])}, {'classes': 'cat dog cow'})
    """
    from safetensors.torch import save_file

    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with write_aside(path) as aside:
        save_file(ready, aside, metadata=dict(metadata or {}))


def load_tensors(path: str | Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Load what :func:`save_tensors` saved, on the CPU.

    Returns:
        The tensors and the metadata, each by name.

    Raises:
        InputError: the file is missing, cut off or not safetensors.

    >>> load_tensors("nowhere.safetensors")
    Traceback (most recent call last):
    affinity_lib.errors.InputError: nowhere.safetensors is missing: run the step that writes it
    """
    with (
        _reading(path, "is not a whole safetensors file", SafetensorError) as there,
        safe_open(there, framework="pt") as file,
    ):
        names = file.keys()
        return {name: file.get_tensor(name) for name in names}, dict(file.metadata() or {})


def save_scores(
    path: str | Path,
    tags: Sequence[int],
    scores: np.ndarray | torch.Tensor,
    compress: bool = False,
) -> None:
    """Save an image's score maps, for the tags present only, in half precision.

    Args:
        path: the file, usually ``*.npz``.
        tags: K class numbers; 0 may stand for a background map.
        scores: (K, h, w), one map a tag, within +-65504.
        compress: pack the file, which pays where most scores are 0 or 1.

    Raises:
        InputError: the number of maps is not the number of tags, or a score is too large.

    >>> import tempfile, torch
    >>> file = Path(tempfile.mkdtemp()) / "cam.npz"
    >>> save_scores(file, (3, 7), torch.ones(2, 4, 5))
    >>> tags, scores = load_scores(file)
    >>> tags.tolist(), scores.shape, scores.dtype
    ([3, 7], (2, 4, 5), dtype('float32'))
    """
    if not isinstance(scores, np.ndarray):
        scores = scores.detach().cpu().numpy()
    if scores.ndim != 3 or len(scores) != len(tags):
        raise InputError(
            f"scores need one (h, w) map a tag, got shape {scores.shape} for {len(tags)} tags"
        )
    with np.errstate(over="ignore"):
        half = scores.astype(np.float16)
    if not np.isfinite(half).all():
        raise InputError(
            f"scores must be finite and within +-65504 to be stored in half precision, "
            f"got {scores.min():g} to {scores.max():g}: normalise them first"
        )
    with write_aside(path) as aside, aside.open("wb") as file:
        save = np.savez_compressed if compress else np.savez
        save(file, tags=np.asarray(tags, dtype=np.int64), scores=half)


def load_scores(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Load what :func:`save_scores` saved.

    Returns:
        tags, int64 (K,), and scores, float32 (K, h, w).

    Raises:
        InputError: the file is missing, cut off or holds something else.

    >>> load_scores("nowhere.npz")
    Traceback (most recent call last):
    affinity_lib.errors.InputError: nowhere.npz is missing: run the step that writes it
    """
    # bytes that are no archive of arrays can raise anything
    with _reading(path, "does not hold whole score maps", Exception) as there:
        with there.open("rb") as whole, np.load(whole, allow_pickle=False) as file:
            tags, scores = file["tags"], file["scores"].astype(np.float32)
        if tags.dtype != np.int64 or scores.ndim != 3 or tags.shape != scores.shape[:1]:
            raise ValueError(f"{scores.shape} for tags {tags.shape} of {tags.dtype}")
        return tags, scores


def link(source: str | Path, target: str | Path) -> None:
    """A second name for a file that nothing writes into; a copy where disks cannot do that."""
    try:
        os.link(Path(source).resolve(), target)
    except OSError:
        shutil.copy2(source, target)


def files_in(folder: Path) -> list[Path]:
    """The files in a folder and in the folders below it, sorted; hidden ones are left out."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def images_in(folder: Path) -> list[Path]:
    """Those of the files whose ending is that of an image which Pillow reads, or a telephone makes."""
    known = Image.registered_extensions()
    formats = {kind for kind in Image.OPEN if Image.MIME.get(kind, "").startswith("image/")}
    endings = {ending for ending, kind in known.items() if kind in formats} | {".heic", ".heif"}
    return [path for path in files_in(folder) if path.suffix.lower() in endings]


def missing(ids: Sequence[str], folder: Path, suffix: str) -> list[str]:
    """The ids that have no file in ``folder`` yet; makes the folder."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    return [image_id for image_id in ids if not (Path(folder) / f"{image_id}.{suffix}").exists()]


IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM", "JPEG2000")
"""What is read as an image, by its content and whatever its suffix; nothing that runs programs."""

MAX_PIXELS = 120_000_000
"""More would take over a gigabyte to decode and to turn upright."""

MAX_SIDE = 60_000
"""A JPEG has 65,500 pixels a side at most, with the legend that a picture gets."""

RAW_SUFFIXES = (
    ".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".pef", ".raf", ".rw2", ".srw",
)  # fmt: skip
"""Cameras' raw files, which decode as the small preview in them."""

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What brings an image of each EXIF orientation upright."""

_HEIF = (b"heic", b"heix", b"heif", b"hevc", b"mif1")


def open_image(path: str | Path) -> Image.Image:
    """Open and decode an image in the mode its file has.

    Raises:
        InputError: the file is missing or does not decode.
    """
    with _opened(path) as image:
        image.load()
        return image


def open_photograph(path: str | Path) -> Image.Image:
    """A photograph as a person sees it: upright, RGB, transparency on white.

    Args:
        path: a file in one of the formats of ``IMAGE_FORMATS`` with 8 bits a colour.

    Raises:
        InputError: there is no such file, it does not decode, holds several images, has more bits
            a colour or more than ``MAX_SIDE`` pixels a side, or is the raw file of a camera.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "clear.png"
    >>> Image.new("RGBA", (40, 30), (0, 0, 0, 0)).save(file)
    >>> open_photograph(file).getpixel((0, 0))
    (255, 255, 255)
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} is not there: check its name")
    if path.suffix.lower() in RAW_SUFFIXES:
        raise InputError(f"{path} is the raw file of a camera: develop it to a JPEG")
    with _opened(path) as image:
        frames = getattr(image, "n_frames", 1)
        if frames > 1 and image.format != "MPO":  # whose second image is a preview
            raise InputError(f"{path} holds {frames} images: save the one that is meant")
        if max(image.size) > MAX_SIDE:
            raise InputError(
                f"{path} is {image.width} x {image.height} pixels, too long for a JPEG: cut it"
            )
        return as_rgb(_upright(image), path)


def _upright(image: Image.Image) -> Image.Image:
    """An image turned as its EXIF data say.

    Pillow's ``exif_transpose`` writes all of the EXIF data anew, and fails for one that is odd.
    """
    image.load()  # EXIF data may come last in a file
    turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    return image if turn is None else image.transpose(turn)


def as_rgb(image: Image.Image, path: str | Path) -> Image.Image:
    """An image as RGB, transparency on white.

    Raises:
        InputError: it has more than 8 bits a colour; names ``path``.
    """
    if image.mode.startswith(("I", "F")):
        raise InputError(f"{path} has {image.mode} pixels: save it in RGB, 8 bits a colour")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def is_plain_jpeg(path: str | Path) -> bool:
    """Whether an image is a JPEG that every program shows alike: RGB or grey, stored upright.

    Raises:
        InputError: the file is missing or is no image.
    """
    with _opened(path) as image:
        plain = image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L")
        return plain and image.getexif().get(ExifTags.Base.Orientation, 1) == 1


def image_size(path: str | Path) -> tuple[int, int]:
    """Width and height of an image, which is not decoded.

    Raises:
        InputError: the file is missing or is no image.
    """
    with _opened(path) as image:
        return image.size


@contextmanager
def _opened(path: str | Path) -> Iterator[Image.Image]:
    try:
        # Read at once: a decoder that is told to read a gigabyte of it takes no more than there is.
        content = Path(path).read_bytes()
    except OSError as error:
        reason = "is missing" if not Path(path).exists() else f"cannot be read ({error.strerror})"
        raise InputError(f"{path} {reason}: unpack the whole data set") from error
    try:
        with Image.open(io.BytesIO(content), formats=IMAGE_FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            yield image
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        raise InputError(
            f"{path} has more than {MAX_PIXELS // 10**6} million pixels: make it smaller"
        ) from error
    except Exception as error:  # bytes that are no image can raise anything
        if content[4:8] == b"ftyp" and content[8:12] in _HEIF:
            raise InputError(f"{path} is a HEIC photograph: save it as JPEG") from error
        unknown = isinstance(error, UnidentifiedImageError)
        raise InputError(
            f"{path} does not decode as an image ({'unknown format' if unknown else error}): "
            "get the file again or take it out"
        ) from error


@contextmanager
def _reading(path: str | Path, fault: str, *errors: type[Exception]) -> Iterator[Path]:
    """Read a file that a step has written; these errors mean that it has the fault."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} is missing: run the step that writes it")
    try:
        yield path
    except errors as error:
        raise InputError(
            f"{path} {fault} ({error}): remove it and run the step that writes it again"
        ) from error


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"{type(value).__name__} has no place in JSON")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)

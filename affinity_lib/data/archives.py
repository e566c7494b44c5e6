"""Published archives: downloaded, checked and unpacked, each whole or not at all."""

from __future__ import annotations

import errno
import gzip
import http.client
import shutil
import struct
import tarfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from torchvision.datasets.utils import calculate_md5

from affinity_lib.data.files import write_aside
from affinity_lib.data.progress import Progress
from affinity_lib.errors import InputError


@dataclass(frozen=True)
class Archive:
    """One archive as its authors publish it.

    Attributes:
        name: what it is called.
        instead: the parameter that takes a copy that is there already, such as "voc=FOLDER".
        url, md5, bytes: of the ``.tar`` or ``.tgz``.
        folder: of the data within the archive.
        parts: the files and folders of it that are needed.
    """

    name: str
    instead: str
    url: str
    md5: str
    bytes: int
    folder: str
    parts: tuple[str, ...]


def fetch(archive: Archive, folder: str | Path) -> Path:
    """Download an archive and unpack the needed parts; what is there already is kept.

    Args:
        archive: what to get.
        folder: where the archive and its data go.

    Returns:
        The folder of the data, below ``folder``.

    Raises:
        InputError: no connection, or an archive that is not the published one.
    """
    target = Path(folder) / archive.folder
    if not target.is_dir():
        unpack(download(archive, folder), target, archive.folder, archive.parts)
    return target


def download(archive: Archive, folder: str | Path) -> Path:
    """Download an archive, going on where an earlier attempt stopped, and check its MD5.

    Returns:
        The file.

    Raises:
        InputError: no connection, or bytes that are not the published archive.
    """
    path = Path(folder) / archive.url.rpartition("/")[2]
    part = path.with_name(f"{path.name}.part")
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            _receive(archive.url, part)
        except (OSError, http.client.HTTPException) as error:
            if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
                raise
            reason = error.reason if isinstance(error, URLError) else error
            raise InputError(
                f"{archive.name} could not be fetched from {archive.url} ({reason}): connect and "
                f"try again, it goes on where it stopped, or give {archive.instead}"
            ) from error
    file = path if path.exists() else part
    if calculate_md5(file) != archive.md5:
        file.unlink()
        raise InputError(
            f"{path} did not have the MD5 {archive.md5} and was removed: try again, or give "
            f"{archive.instead}"
        )
    file.replace(path)
    return path


def unpack(path: str | Path, target: str | Path, folder: str, parts: Iterable[str]) -> None:
    """Unpack some parts of one folder of a tar archive, all of them or nothing.

    Args:
        path: the archive.
        target: the folder to make.
        folder: the folder within the archive that becomes ``target``.
        parts: names of files and folders in there.

    Raises:
        InputError: a damaged archive, one without these parts, or one with a file that would be
            written outside of ``target``. Links and devices are left out.
    """
    path, target = Path(path), Path(target)
    wanted = tuple(f"{folder}/{part}" for part in parts)
    found = set()
    with write_aside(target) as aside:
        aside.mkdir()
        try:
            with tarfile.open(path) as archive:
                for member in archive:
                    name = member.name.removeprefix("./")
                    part = next((w for w in wanted if name == w or name.startswith(f"{w}/")), None)
                    if part and member.isfile():
                        found.add(part)
                        file = aside / name.removeprefix(f"{folder}/")
                        if not file.resolve().is_relative_to(aside.resolve()):
                            raise tarfile.TarError(f"{name} would be written outside of it")
                        file.parent.mkdir(parents=True, exist_ok=True)
                        with file.open("wb") as out:
                            shutil.copyfileobj(archive.extractfile(member), out)
        except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error, struct.error) as error:
            raise InputError(
                f"{path} is damaged ({error}): remove it, and it is fetched again"
            ) from error
        if missing := [name for name in wanted if name not in found]:
            raise InputError(f"{path} has no {missing[0]}: it is not the archive it should be")


def _receive(url: str, part: Path) -> None:
    """Append the rest of ``url`` to ``part``."""
    done = part.stat().st_size if part.exists() else 0
    try:
        response = urlopen(Request(url, headers={"Range": f"bytes={done}-"}), timeout=60)
    except HTTPError as error:
        if error.code == 416 and done:  # nothing is left to ask for
            return
        raise
    with response, part.open("ab" if response.status == 206 else "wb") as file:
        left = int(response.headers.get("Content-Length") or 0)
        total = file.tell() + left
        with Progress.wrapattr(
            response, "read", total=total, initial=file.tell(), desc=part.stem, miniters=1
        ) as body:
            shutil.copyfileobj(body, file, 2**20)
    if part.stat().st_size < total:
        raise ConnectionError(f"it stopped after {part.stat().st_size} of {total} bytes")

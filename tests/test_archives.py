"""Archives of data sets are fetched and unpacked whole, safely, or not at all."""

from __future__ import annotations

import hashlib
import io
import tarfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from affinity_lib.data.archives import Archive, download, fetch, unpack
from affinity_lib.errors import InputError


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A data set as an archive: a folder and a list that are wanted, and more."""
    source = tmp_path / "source"
    for name in ("cls/a.mat", "cls/b.mat", "img/a.jpg", "train.txt"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(name.encode() * 1000)
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        archive.add(source, "release/dataset")
    return path


def about(path: Path, url: str) -> Archive:
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    parts = ("cls", "train.txt")
    return Archive("Things", "things=FOLDER", url, md5, 0, "release/dataset", parts)


class Server(ThreadingHTTPServer):
    """Serves one file, any range of it, and at most ``limit`` bytes an answer."""

    def __init__(self, data: bytes, ranges: bool = True) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.data, self.ranges, self.limit, self.sent = data, ranges, len(data), []


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        start = int(self.headers.get("Range", "bytes=0-")[6:-1]) if self.server.ranges else 0
        if start >= len(self.server.data):
            self.send_error(416)
            return
        body = self.server.data[start:]
        self.send_response(206 if self.server.ranges else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.server.sent.append(min(len(body), self.server.limit))  # before the client is done
        self.wfile.write(body[: self.server.limit])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def serve() -> Iterator:
    servers = []

    def start(path: Path, ranges: bool = True) -> tuple[Server, str]:
        server = Server(path.read_bytes(), ranges)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        return server, f"http://127.0.0.1:{server.server_port}/{path.name}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_download_goes_on_where_it_stopped(published, tmp_path, serve):
    server, url = serve(published)
    server.limit = len(server.data) // 3
    archive = about(published, url)
    for _ in range(2):
        with pytest.raises(InputError, match="it stopped after .* it goes on where it stopped"):
            download(archive, tmp_path / "new")
    server.limit = len(server.data)
    path = download(archive, tmp_path / "new")
    assert path.read_bytes() == server.data
    assert sum(server.sent) == len(server.data)
    assert [p.name for p in path.parent.iterdir()] == ["a.tar"]


def test_a_server_without_ranges_starts_again_from_the_beginning(published, tmp_path, serve):
    server, url = serve(published, ranges=False)
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "a.tar.part").write_bytes(b"of an earlier attempt")
    path = download(about(published, url), tmp_path / "new")
    assert path.read_bytes() == server.data


def test_a_download_that_was_complete_needs_no_byte_more(published, tmp_path, serve):
    server, url = serve(published)
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "a.tar.part").write_bytes(server.data)
    assert download(about(published, url), tmp_path / "new").read_bytes() == server.data
    assert server.sent == []


def test_other_bytes_than_the_published_ones_are_refused_and_removed(published, tmp_path, serve):
    _, url = serve(published)
    archive = replace(about(published, url), md5="0000")
    with pytest.raises(InputError, match="did not have the MD5 0000 and was removed"):
        download(archive, tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, target, 0
    return info


@pytest.mark.parametrize(
    "evil",
    [
        member("../evil"),
        member("dataset/cls/../../../evil"),
        member("/tmp/evil"),
        member("dataset/cls/evil", tarfile.SYMTYPE, "/etc"),
        member("dataset/cls/evil", tarfile.SYMTYPE, "a.mat"),
        member("dataset/cls/evil", tarfile.LNKTYPE, "../../../evil"),
        member("dataset/cls/evil", tarfile.FIFOTYPE),
        member("dataset/cls/evil", tarfile.CHRTYPE),
    ],
    ids=lambda info: f"{info.name} {info.type}",
)
def test_what_would_be_written_elsewhere_or_is_no_file_is_not_unpacked(tmp_path, evil):
    path, target = tmp_path / "a.tar", tmp_path / "target"
    with tarfile.open(path, "w") as archive:
        good = member("dataset/cls/a.mat")
        good.size = 3
        archive.addfile(good, io.BytesIO(b"abc"))
        archive.addfile(evil)
    with suppress(InputError):
        unpack(path, target, "dataset", ["cls"])
    assert {p for p in tmp_path.rglob("*") if not p.is_dir()} <= {path, target / "cls" / "a.mat"}


def test_a_file_that_would_be_written_elsewhere_is_told(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        archive.addfile(member("dataset/cls/../../../evil"))
    with pytest.raises(InputError, match="damaged .*evil would be written outside of it"):
        unpack(path, tmp_path / "target", "dataset", ["cls"])


@pytest.mark.parametrize("mode", ["w", "w:gz"])
@pytest.mark.parametrize("kept", [0.0, 0.4, 0.9])
def test_an_archive_that_is_cut_off_is_refused_and_leaves_nothing(published, tmp_path, mode, kept):
    with tarfile.open(published, mode) as archive:
        archive.add(tmp_path / "source", "release/dataset")
    whole = published.read_bytes()
    published.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(InputError, match=r"a\.tar (is damaged|has no release)"):
        unpack(published, tmp_path / "target", "release/dataset", ["cls", "train.txt", "img"])
    assert not (tmp_path / "target").exists()


def test_only_what_is_needed_is_unpacked_and_it_is_what_was_packed(published, tmp_path):
    archive = about(published, "http://127.0.0.1:9/a.tar")
    target = fetch(archive, tmp_path)
    assert sorted(p.name for p in target.rglob("*") if p.is_file()) == [
        "a.mat",
        "b.mat",
        "train.txt",
    ]
    for path in (p for p in target.rglob("*") if p.is_file()):
        name = path.relative_to(target)
        assert path.read_bytes() == (tmp_path / "source" / name).read_bytes()


def test_what_is_unpacked_already_is_neither_fetched_nor_unpacked_again(published, tmp_path):
    archive = about(published, "http://127.0.0.1:9/a.tar")
    target = fetch(archive, tmp_path)
    published.unlink()
    assert fetch(archive, tmp_path) == target


def test_without_a_connection_one_sentence_says_what_to_do(tmp_path):
    archive = Archive(
        "Things", "things=FOLDER", "http://127.0.0.1:9/a.tar", "0", 0, "dataset", ("cls",)
    )
    with pytest.raises(InputError, match="Things could not be fetched .*, or give things=FOLDER$"):
        fetch(archive, tmp_path)

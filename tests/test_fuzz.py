"""Whatever happens to a file, the library reads it or says in its own words that it cannot.

Twenty thousand damaged files of every kind that is read. Each kind is read in a process of its own,
so that a crash is seen, and that process may not take a gigabyte more than it has at its start.
"""

from __future__ import annotations

import multiprocessing
import random
import re
import resource
import shutil
import signal
import sys
import tarfile
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from mutations import WORDS, mutated
from PIL import Image
from scipy.io import savemat
from test_mxnet_params import write_params

from affinity_lib.backbones.weights import load_network, read_weights
from affinity_lib.data.archives import unpack
from affinity_lib.data.faults import image_faults, list_faults
from affinity_lib.data.files import (
    is_plain_jpeg,
    load_scores,
    load_tensors,
    open_photograph,
    save_json,
    save_scores,
)
from affinity_lib.data.layout import write_lists, write_tags
from affinity_lib.data.tag_tables import read_table
from affinity_lib.data.voc import VOCData, read_labels, write_labels
from affinity_lib.data.voc12 import read_sbd_mask
from affinity_lib.errors import InputError
from affinity_lib.running import manifest, results
from affinity_lib.running.settings import load_profile

MUTATIONS = 20_000
GIB = 2**30
SECONDS = 60
"""For one file, on a machine however busy; most take a thousandth of a second."""


@dataclass(frozen=True)
class Kind:
    """A kind of file: where it lies, whole files of it, how it is read, and words of its format."""

    file: str
    samples: Callable[[Path], list[bytes]]
    read: Callable[[Path], object]
    words: tuple[bytes, ...] = ()


def photographs(folder: Path, *saved: tuple[str, str, dict]) -> list[bytes]:
    """A small photograph in each of some formats, modes and ways of saving."""
    gradient = np.indices((36, 48)).sum(0)
    image = Image.fromarray(
        (np.stack([gradient, gradient.T[:36, :36].repeat(2, 1)[:, :48], gradient], 2) * 3).astype(
            np.uint8
        )
    )
    found = []
    for form, mode, how in saved:
        path = folder / "photograph"
        image.convert(mode).save(path, form, **how)
        found.append(path.read_bytes())
    return found


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "a camera"
    return exif


def jpegs(folder: Path) -> list[bytes]:
    return photographs(
        folder,
        ("JPEG", "RGB", {}),
        ("JPEG", "RGB", {"progressive": True, "exif": turned()}),
        ("JPEG", "CMYK", {}),
        ("JPEG", "L", {"icc_profile": b"none" * 50}),
    )


def pngs(folder: Path) -> list[bytes]:
    modes = ("RGB", "RGBA", "P", "1", "LA")
    return photographs(folder, *(("PNG", mode, {"exif": turned()}) for mode in modes))


def others(folder: Path) -> list[bytes]:
    return photographs(
        folder,
        ("GIF", "P", {}),
        ("BMP", "RGB", {}),
        ("TIFF", "RGB", {}),
        ("TIFF", "RGB", {"compression": "tiff_lzw"}),
        ("TIFF", "CMYK", {"compression": "jpeg"}),
        ("WEBP", "RGBA", {}),
        ("AVIF", "RGB", {}),
        ("JPEG2000", "RGB", {}),
        ("PPM", "RGB", {}),
    )


def read_photograph(path: Path) -> None:
    open_photograph(path)
    is_plain_jpeg(path)


def a_data_set(folder: Path) -> None:
    write_lists(folder, ["cat", "dog", "traffic light"], {"train": ["a", "b"], "val": ["c"]})
    write_tags(folder / "Annotations" / "a.xml", ["cat", "traffic light"], (48, 36))
    write_labels(folder / "SegmentationClass" / "a.png", np.eye(36, 48, dtype=np.uint8) * 2)
    (folder / "JPEGImages").mkdir(exist_ok=True)
    (folder / "JPEGImages" / "a.jpg").write_bytes(jpegs(folder)[0])


def of_a_data_set(name: str) -> Callable[[Path], list[bytes]]:
    def samples(folder: Path) -> list[bytes]:
        a_data_set(folder)
        return [(folder / name).read_bytes()]

    return samples


def annotations(folder: Path) -> list[bytes]:
    (own,) = of_a_data_set("Annotations/a.xml")(folder)
    vocs = b"""<annotation>
	<folder>VOC2012</folder>
	<object><name>dog</name><difficult>0</difficult><part><name>head</name></part>
	<bndbox><xmin>1</xmin><ymax>9.5</ymax></bndbox></object>
</annotation>"""
    return [own, b'<?xml version="1.0" encoding="UTF-8"?>\n' + vocs]


def split_lists(folder: Path) -> list[bytes]:
    (own,) = of_a_data_set("ImageSets/Segmentation/train.txt")(folder)
    paths = b"/JPEGImages/a.jpg /SegmentationClassAug/a.png\n"
    return [own, b"2007_000032  1\n2007_000033 -1\n", paths]


def masks(folder: Path) -> list[bytes]:
    (own,) = of_a_data_set("SegmentationClass/a.png")(folder)
    labels = Image.fromarray(np.eye(36, 48, dtype=np.uint8))
    found = [own]
    for mode in ("L", "1", "RGB", "LA"):
        labels.convert(mode).save(folder / "mask.png")
        found.append((folder / "mask.png").read_bytes())
    return found


def read_mask(path: Path) -> None:
    data = VOCData(path.parents[1])
    read_labels(path)
    data.mask("a")
    list(list_faults(data, "one", "one"))
    image_faults(data, "a")


TABLES = [
    "id,file,tags\n1,a.jpg,cat;traffic light\n2,b.jpg,dog\n",
    'sep=;\nFile;Labels\na.jpg;"cat, dog"\n\nb.jpg;\n',
    "filename, cat, dog\na.jpg, 1, 0\nb.jpg, 0, 1\n",
    "image\ttag\na.jpg\t['cat', \"dog\"]\nb.jpg\tcat\n",
]


def tables(folder: Path) -> list[bytes]:
    return [table.encode(code) for table in TABLES for code in ("utf-8", "utf-8-sig", "utf-16")]


def scores(folder: Path) -> list[bytes]:
    found = []
    for compress in (False, True):
        save_scores(folder / "a.npz", (3, 7), np.eye(5)[None].repeat(2, 0), compress)
        found.append((folder / "a.npz").read_bytes())
    return found


def sbd_masks(folder: Path) -> list[bytes]:
    labels = {"Segmentation": np.eye(6, 8, dtype=np.uint8), "CategoriesPresent": 1}
    found = []
    for compress in (False, True):
        savemat(folder / "a.mat", {"GTcls": labels}, do_compression=compress)
        found.append((folder / "a.mat").read_bytes())
    savemat(folder / "a.mat", {"GTcls": labels["Segmentation"]}, format="4")
    return [*found, (folder / "a.mat").read_bytes()]


def a_network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))


def zips_of_torch(folder: Path) -> list[bytes]:
    return [_saved(folder, content, True) for content in _contents()]


def legacy_of_torch(folder: Path) -> list[bytes]:
    return [_saved(folder, content, False) for content in _contents()]


def _contents() -> list[object]:
    tensors = a_network().state_dict()
    return [tensors, {"state_dict": {f"module.{k}": v for k, v in tensors.items()}, "epoch": 3}]


def _saved(folder: Path, content: object, zipped: bool) -> bytes:
    torch.save(content, folder / "a.pth", _use_new_zipfile_serialization=zipped)
    return (folder / "a.pth").read_bytes()


def safe_tensors(folder: Path) -> list[bytes]:
    return [safetensors.torch.save(a_network().state_dict(), {"classes": "cat"})]


def params(folder: Path) -> list[bytes]:
    arrays = {f"arg:{k}": v.numpy() for k, v in a_network().state_dict().items() if v.ndim}
    return [write_params(arrays, layout) for layout in ("legacy", "V1", "V2", "V3")]


def read_any_weights(path: Path) -> None:
    read_weights(path)
    load_network(a_network(), path)


def runs(folder: Path) -> list[bytes]:
    (folder / "00_a").mkdir(exist_ok=True)
    save_json(
        folder / "00_a" / "metrics.json", {"table1": {"cam": 48.0}, "segmentation": {"val": 1}}
    )
    made = manifest.artifacts(folder, "00_a")
    key = {"code": "c", "settings": {"t": 256, "data_root": str(folder / "00_a")}, "inputs": {}}
    key |= {"library": {}, "packages": {}, "machine": {}}
    record = {"state": "done", "key": key, "artifacts": made, "notebook": {}, "seconds": 1.5}
    read = {"the data set": "x", "00_a/metrics.json": "x"}
    stages = {"00_a": record, "01_b": record | {"key": key | {"inputs": read}}}
    whole = {"format": manifest.FORMAT, "settings": {"t": 256}, "stages": stages}
    results.save_results(folder, "toy", whole, ["00_a"])
    return [(folder / "manifest.json").read_bytes()]


def results_of_runs(folder: Path) -> list[bytes]:
    runs(folder)
    return [(folder / "results.json").read_bytes()]


def read_run(path: Path) -> None:
    manifest.verify(path.parent)
    results.compare(path.parent, path.parent)
    results.summary(path.parent)


def profiles(folder: Path) -> list[bytes]:
    return [
        b"profile: a\nalpha: 16  # Eq. 2\ncam_scales: [1, 1.5]\nweights: ''\ncam_lr: 1e-3\ntest_flip: no\n"
    ]


def archives(folder: Path) -> list[bytes]:
    (folder / "top").mkdir(exist_ok=True)
    (folder / "top" / "list.txt").write_text("a\n")
    found = []
    for mode in ("w", "w:gz"):
        with tarfile.open(folder / "packed", mode) as packed:
            packed.add(folder / "top", "top")
        found.append((folder / "packed").read_bytes())
    return found


def read_archive(path: Path) -> None:
    target = path.with_name("unpacked")
    unpack(path, target, "top", ("list.txt",))
    shutil.rmtree(target)


XML = (b"<!DOCTYPE a [<!ENTITY b 'cc'>]>", b"&b;", b"<object>", b"</name>", b"<!--", b"<![CDATA[")
XML += (b"&#0;", b"&#xffff;", b"xmlns='x'", b"encoding='utf-7'", b"encoding='latin-1'")
CSV = (b'"', b'""', b";", b"\t", b"|", b",,", b"['", b"sep=;\n", b"tags", b"file", b"1", b"\\")
YAML = (b"&a [*a]", b"*a", b"!!python/object:os.system", b"!!timestamp", b": ", b"- ", b"<<: *a")
YAML += (
    b"!!int",
    b"!!binary",
    b"2001-99-99",
    b"0b",
    b"0x",
    b"1:99:99",
    b"? ",
    b"=",
    b"${VOC_ROOT}",
)
KINDS = {
    "jpeg": Kind("a.jpg", jpegs, read_photograph),
    "png": Kind("a.png", pngs, read_photograph),
    "other photograph": Kind("a.image", others, read_photograph),
    "mask": Kind("SegmentationClass/a.png", masks, read_mask),
    "annotation": Kind(
        "Annotations/a.xml", annotations, lambda p: VOCData(p.parents[1]).tags("a"), XML
    ),
    "split list": Kind(
        "ImageSets/Segmentation/train.txt",
        split_lists,
        lambda p: VOCData(p.parents[2]).ids("train"),
    ),
    "class list": Kind("classes.txt", of_a_data_set("classes.txt"), lambda p: VOCData(p.parent)),
    "table": Kind("labels.csv", tables, read_table, CSV),
    "scores": Kind("a.npz", scores, load_scores),
    "mask of SBD": Kind("a.mat", sbd_masks, read_sbd_mask),
    "zip of torch": Kind("a.pth", zips_of_torch, read_any_weights),
    "legacy file of torch": Kind("a.pth", legacy_of_torch, read_any_weights),
    "safetensors": Kind("a.safetensors", safe_tensors, read_any_weights),
    "params of MXNet": Kind("a.params", params, read_weights),
    "stored tensors": Kind("a.safetensors", safe_tensors, load_tensors),
    "manifest": Kind("manifest.json", runs, read_run),
    "results": Kind("results.json", results_of_runs, read_run),
    "profile": Kind("a.yaml", profiles, load_profile, YAML),
    "archive": Kind("a.tgz", archives, read_archive),
}


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Kind -> what went wrong with files of it; two kinds are read at a time."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["test_fuzz"])

    base = tmp_path_factory.mktemp("fuzz")  # here, as two threads would make it at the same time

    def one(name: str) -> list[str]:
        folder = base / name
        folder.mkdir()
        told, tell = context.Pipe(duplex=False)
        worker = context.Process(target=fuzz, args=(name, folder, tell))
        worker.start()
        tell.close()
        found, number = [], 0
        while True:
            try:
                number, fault = told.recv()
            except EOFError:
                break
            found += [f"file {number}: {fault}"] if fault else []
        worker.join()
        if worker.exitcode:
            found.append(f"file {number}: the process ended with {worker.exitcode}")
        return found

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(KINDS, pool.map(one, KINDS), strict=True))


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are Linux's")
@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_is_read_or_refused_in_the_librarys_own_words(kind: str, faults: dict):
    assert not faults[kind], "\n".join([f"{len(faults[kind])} faults", *faults[kind][:20]])


def test_an_annotation_that_would_unfold_without_end_is_refused(tmp_path: Path):
    a_data_set(tmp_path)
    entities = "".join(f"<!ENTITY e{n} '{f'&e{n - 1};' * 50}'>" for n in range(1, 12))
    (tmp_path / "Annotations" / "a.xml").write_text(
        f"<!DOCTYPE annotation [<!ENTITY e0 'cat'>{entities}]>"
        "<annotation><object><name>&e11;</name></object></annotation>"
    )
    with pytest.raises(InputError, match=r"a\.xml is not XML"):
        VOCData(tmp_path).tags("a")


def fuzz(name: str, folder: Path, tell) -> None:
    """Read damaged files of one kind, and tell of each that is begun and of each fault."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    kind = KINDS[name]
    a_data_set(folder)
    (folder / "ImageSets" / "Segmentation" / "one.txt").write_text("a\n")
    samples = kind.samples(folder)
    path = folder / kind.file
    for sample in samples[1:]:
        path.write_bytes(sample)
        _fault(kind, path)  # what is loaded once is loaded now
    path.write_bytes(samples[0])
    kind.read(path)
    used = re.search(r"VmData:\s+(\d+) kB", Path("/proc/self/status").read_text())
    limit = int(used[1]) * 1024 + GIB
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    words = [*WORDS, *kind.words * 3]
    for number in range(-(-MUTATIONS // len(KINDS))):
        draw = random.Random(f"{name} {number}")
        path.write_bytes(mutated(draw.choice(samples), draw, words))
        tell.send((number, ""))
        with _in_time():
            fault = _fault(kind, path)
        if fault:
            tell.send((number, fault))


def _fault(kind: Kind, path: Path) -> str:
    """What went wrong, if not that the library refused the file."""
    try:
        kind.read(path)
    except InputError as error:
        return _hidden(error)
    except BaseException as error:  # noqa: BLE001
        return f"{type(error).__name__}: {error}"[:300]
    return ""


def _hidden(error: BaseException | None) -> str:
    """A lack of memory or of time behind an error."""
    while error is not None:
        if isinstance(error, MemoryError | TimeoutError) or "alloc" in str(error).lower():
            return f"refused, but only after {type(error).__name__}: {error}"[:300]
        error = error.__cause__ or error.__context__
    return ""


@contextmanager
def _in_time() -> Iterator[None]:
    def ring(*_: object) -> None:
        raise TimeoutError(f"it took more than {SECONDS} seconds")

    signal.signal(signal.SIGALRM, ring)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)

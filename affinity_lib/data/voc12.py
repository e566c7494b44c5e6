"""PASCAL VOC 2012 with the Semantic Boundaries Dataset: the paper's training images (Sec. 5.1).

VOC 2012 has 1,464 training and 1,449 validation images with masks. SBD outlines the objects of
11,355 photographs of VOC, some of them the same; without those that VOC validates on, the two
make 10,582 training images.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from torchvision.datasets.sbd import SBDataset
from torchvision.datasets.voc import DATASET_YEAR_DICT

from affinity_lib.data.archives import Archive, fetch
from affinity_lib.data.files import link, save_text, write_aside
from affinity_lib.data.label_maps import write_labels
from affinity_lib.data.layout import read_ids
from affinity_lib.data.matfile import read_field
from affinity_lib.data.progress import Progress
from affinity_lib.data.voc import VOC_CLASSES
from affinity_lib.errors import InputError
from affinity_lib.evaluation import VOID

SIZES = {"train": 1464, "val": 1449, "train_aug": 10582}
"""How many images the lists of the complete data sets have."""

_LISTS = "ImageSets/Segmentation"
_YEAR = DATASET_YEAR_DICT["2012"]
VOC = Archive(
    name="VOC 2012",
    instead="voc=FOLDER",
    url=_YEAR["url"],
    md5=_YEAR["md5"],
    bytes=1_999_639_040,
    folder=Path(_YEAR["base_dir"]).as_posix(),
    parts=("JPEGImages", "Annotations", "SegmentationClass", _LISTS),
)
SBD = Archive(
    name="SBD",
    instead="sbd=FOLDER",
    url=SBDataset.url,
    md5=SBDataset.md5,
    bytes=1_419_539_633,
    folder="benchmark_RELEASE/dataset",
    parts=("cls", "train.txt", "val.txt"),
)


def prepare_voc12(
    root: str | Path, voc: str | Path | None = None, sbd: str | Path | None = None
) -> Path:
    """Make the paper's data set in VOC layout: lists train, train_aug and val, masks for all.

    Images and tags (``Annotations``) are VOC's. Masks are VOC's own where it has them, else SBD's
    turned into palette PNGs; only the evaluator and the fully supervised bound look at them. A
    test list that lies beside VOC's own is taken along with its images. The files of ``voc`` are
    linked where the disk can do that, else copied; neither folder is changed.

    Args:
        root: the folder to make. It is written aside and renamed; one that was made before is
            returned as it is.
        voc: folder of VOC 2012, or None to download it (2.0 GB) next to ``root``.
        sbd: folder of SBD, or None to download it (1.4 GB).

    Returns:
        ``root``.

    Raises:
        InputError: no connection, a damaged archive, a folder without the data set or with a part
            of it, or ``root`` in use for something else.

    >>> import tempfile
    >>> prepare_voc12(Path(tempfile.mkdtemp()) / "voc12", voc="nowhere")
    Traceback (most recent call last):
    affinity_lib.errors.InputError: nowhere has no VOC 2012: ...
    """
    root = Path(root).expanduser()
    if is_prepared(root):
        return root
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise InputError(f"{root} is in use: give a new folder, or remove it first")
    downloads = root.with_name("downloads")
    voc = find_data_set(Path(voc).expanduser(), VOC) if voc else fetch(VOC, downloads)
    sbd = find_data_set(Path(sbd).expanduser(), SBD) if sbd else fetch(SBD, downloads)
    lists = {name: read_ids(_of_voc(voc / _LISTS / f"{name}.txt")) for name in ("train", "val")}
    extra = (read_ids(sbd / f"{name}.txt") for name in ("train", "val"))
    lists["train_aug"] = train_aug(lists["train"], lists["val"], *extra)
    for name, size in SIZES.items():
        if len(lists[name]) != size:
            raise InputError(
                f"{voc} and {sbd} give {len(lists[name])} images for {name} instead of {size}: "
                "unpack both data sets again, whole"
            )
    if (voc / _LISTS / "test.txt").is_file():
        lists["test"] = read_ids(voc / _LISTS / "test.txt")
    with write_aside(root) as aside:
        _assemble(aside, voc, sbd, lists)
    return root


def is_prepared(root: Path) -> bool:
    """Whether ``root`` is what :func:`prepare_voc12` has made."""
    return (root / _LISTS / "train_aug.txt").is_file()


def find_data_set(folder: Path, archive: Archive) -> Path:
    """The folder of the data set at or below the one that was given.

    Raises:
        InputError: it is not there.
    """
    tail = Path(archive.folder)
    for place in (folder, folder / tail.name, folder / tail):
        if all((place / part).exists() for part in archive.parts):
            return place
    raise InputError(
        f"{folder} has no {archive.name}: give the folder that holds {', '.join(archive.parts)}"
    )


def train_aug(
    voc_train: Iterable[str],
    voc_val: Iterable[str],
    sbd_train: Iterable[str],
    sbd_val: Iterable[str],
) -> list[str]:
    """The augmented training list: VOC train + SBD train + SBD val - VOC val (Sec. 5.1).

    Returns:
        Image ids in alphabetical order, each once.

    >>> train_aug(["b", "a"], ["v"], ["b", "c"], ["v", "d"])
    ['a', 'b', 'c', 'd']
    """
    return sorted({*voc_train, *sbd_train, *sbd_val} - {*voc_val})


def read_sbd_mask(path: str | Path) -> np.ndarray:
    """The labels in one of SBD's ``cls/ID.mat``, uint8 (H, W) in 0..20; SBD has no void.

    Raises:
        InputError: the file is missing, damaged, or holds something else.
    """
    path = Path(path)
    try:
        labels = read_field(path.read_bytes(), "GTcls", "Segmentation")
        known = np.issubdtype(labels.dtype, np.integer) and labels.ndim == 2 and labels.size > 0
        if not known or not np.isin(labels, [*range(len(VOC_CLASSES) + 1), VOID]).all():
            raise ValueError(f"labels of type {labels.dtype} and shape {labels.shape}")
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing: unpack the whole of SBD") from error
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} is not a mask of SBD ({error}): unpack the data set again"
        ) from error
    return labels.astype(np.uint8)


def _of_voc(path: Path) -> Path:
    if not path.is_file():
        raise InputError(f"{path} is missing: unpack the whole of VOC 2012")
    return path


def _assemble(root: Path, voc: Path, sbd: Path, lists: dict[str, list[str]]) -> None:
    tagged = sorted({*lists["train_aug"], *lists["val"]})
    own = {*lists["train"], *lists["val"]}
    jobs = [("JPEGImages", ".jpg", sorted({*tagged, *lists.get("test", [])}))]
    jobs += [("Annotations", ".xml", tagged), ("SegmentationClass", ".png", sorted(own))]
    for folder, suffix, ids in jobs:
        (root / folder).mkdir(parents=True)
        for image_id in ids:
            name = f"{folder}/{image_id}{suffix}"
            link(_of_voc(voc / name), root / name)
    for image_id in Progress([i for i in tagged if i not in own], "masks of SBD"):
        labels = read_sbd_mask(sbd / "cls" / f"{image_id}.mat")
        write_labels(root / "SegmentationClass" / f"{image_id}.png", labels)
    for name, ids in lists.items():
        save_text(root / _LISTS / f"{name}.txt", "".join(f"{image_id}\n" for image_id in ids))

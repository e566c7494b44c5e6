"""The data set that the settings ask for, made and looked through (section 5.1)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from affinity_lib.data.faults import Fault, image_faults, list_faults, remarks, shortened
from affinity_lib.data.paths import data_path
from affinity_lib.data.toy import make_toy
from affinity_lib.data.voc import VOCData
from affinity_lib.data.voc12 import prepare_voc12
from affinity_lib.errors import InputError
from affinity_lib.training.parallel import map_images


def prepare_data(config: Any) -> None:
    """Draw the toy scenes or fetch VOC 2012, as the settings ask for; nothing if it is there."""
    root = data_path(config.data_root)
    if config.dataset == "toy":
        sizes = {"train": config.train_images, "val": config.val_images, "size": config.image_size}
        make_toy(root, **sizes, seed=config.data_seed)
    elif config.dataset == "voc12":
        given = [data_path(folder) if folder else None for folder in (config.voc, config.sbd)]
        prepare_voc12(root, *given)


def check_data(data: VOCData, train: str = "train", val: str = "val") -> None:
    """Refuse a data set that a run cannot use, before it costs time; print what else is to know.

    Args:
        data: the data set.
        train, val: names of the lists to look at.

    Raises:
        InputError: there are faults; it names the first five and how many more there are.
    """
    faults = list(find_faults(data, train, val))
    if stopping := [fault for fault in faults if fault.stops]:
        several = f"the data set has {len(stopping)} faults, python -m affinity_lib check "
        several += f"{data.root} lists all of them:\n"
        raise InputError(several * (len(stopping) > 1) + "\n".join(shortened(stopping)))
    for line in [*shortened(faults), *remarks(data, train, val)]:
        print(line)


def find_faults(data: VOCData, train: str = "train", val: str = "val") -> Iterator[Fault]:
    """All that is wrong with a data set: with its lists first, then with each image, over all cores.

    Args:
        data: the data set.
        train, val: names of the lists to look at.
    """
    yield from list_faults(data, train, val)
    # that a list is missing is among the faults of the lists
    ids = dict.fromkeys(i for split in (train, val) for i in data.listed(split, missing_ok=True))
    for faults in map_images(partial(image_faults, data), ids, what="checking images"):
        yield from faults

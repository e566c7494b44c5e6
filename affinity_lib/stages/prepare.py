"""The data set that the settings ask for (section 5.1)."""

from __future__ import annotations

from typing import Any

from affinity_lib.data.paths import data_path
from affinity_lib.data.toy import make_toy
from affinity_lib.data.voc12 import prepare_voc12


def prepare_data(config: Any) -> None:
    """Draw the toy scenes or fetch VOC 2012, as the settings ask for; nothing if it is there."""
    root = data_path(config.data_root)
    if config.dataset == "toy":
        sizes = {"train": config.train_images, "val": config.val_images, "size": config.image_size}
        make_toy(root, **sizes, seed=config.data_seed)
    elif config.dataset == "voc12":
        prepare_voc12(root, config.voc or None, config.sbd or None)

"""The smallest size at which the chain of all notebooks still does everything."""

from __future__ import annotations

TINY = {
    "train_images": 12,
    "val_images": 4,
    "image_size": 48,
    "cam_width": 16,
    "cam_crop": 48,
    "cam_epochs": 2,
    "affinity_width": 0.125,
    "affinity_crop": 48,
    "affinity_epochs": 1,
    "segmentation_width": 16,
    "segmentation_crop": 48,
    "segmentation_epochs": 1,
    "crf_iterations": 2,
}

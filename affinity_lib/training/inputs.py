"""What the networks look at: augmented images, or stored features of a frozen backbone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

from affinity_lib.backbones.base import freeze
from affinity_lib.data.files import load_tensors, missing, save_tensors
from affinity_lib.data.voc import VOCData
from affinity_lib.errors import InputError
from affinity_lib.evaluation import VOID
from affinity_lib.training.inference import for_inference
from affinity_lib.training.parallel import each_image
from affinity_lib.training.transforms import (
    TrainTransform,
    cut,
    random_place,
    resize_long_side,
    scaled_size,
    to_tensor,
)

_PHOTOGRAPHS = 2**28  # bytes of decoded images that are kept in memory


class Inputs:
    """Training samples and inference levels of a data set, for a backbone that learns or not.

    With ``finetune="all"`` the backbone is trained and a sample is an augmented image. With
    ``finetune="head"`` it stays as it is, its levels are computed once an image and stored, and
    a sample is a random crop and flip of these levels.

    Args:
        data: the data set.
        backbone: frozen in place with ``finetune="head"``.
        finetune: ``"all"`` or ``"head"``.
        long_side: longer side in pixels that images are brought to for inference and for stored
            levels; 0 leaves them as they are.
        folder: where levels are stored, in a folder of their own for each state of the backbone.
        pad_to: for inference and stored levels, pad images with the mean colour at their right and
            bottom to multiples of this.

    Raises:
        InputError: another ``finetune``, or ``"head"`` without a folder.
    """

    def __init__(
        self,
        data: VOCData,
        backbone: nn.Module,
        finetune: str = "all",
        long_side: int = 0,
        folder: Path | None = None,
        pad_to: int = 1,
    ):
        if finetune not in ("all", "head"):
            raise InputError(f"finetune must be all or head, got {finetune!r}")
        self.data, self.backbone = data, backbone
        self.long_side, self.pad_to = long_side, pad_to
        self.folder = None
        self._kept: dict[str, list[Tensor]] = {}  # levels in half precision, read once
        self._photographs: dict[str, Image.Image] = {}
        self._room = _PHOTOGRAPHS
        if finetune == "head":
            if folder is None:
                raise InputError("finetune=head stores the backbone's levels: give their folder")
            self.folder = Path(folder) / _digest(backbone, long_side, pad_to, data.root)
            freeze(backbone, up_to=None)

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_kept": {}, "_photographs": {}}  # another process reads them again

    @property
    def stored(self) -> bool:
        """Whether the backbone is frozen and its levels are stored."""
        return self.folder is not None

    def photograph(self, image_id: str) -> Image.Image:
        """The image at ``long_side``, decoded once where the data set fits into memory."""
        image = self._photographs.get(image_id)
        if image is None:
            image = resize_long_side(self.data.image(image_id), self.long_side)
            self._room -= 4 * image.width * image.height  # bytes
            if self._room >= 0:
                self._photographs[image_id] = image
        return image

    def keeps(self, image_id: str) -> bool:
        """Whether the decoded image stays in memory."""
        return image_id in self._photographs

    def size(self, image_id: str) -> tuple[int, int]:
        """Height and width of the image as a network takes it, before it is padded.

        Reads no more than the image's header.
        """
        width, height = scaled_size(self.data.image_size(image_id), self.long_side)
        return height, width

    def image(self, image_id: str) -> Tensor:
        """The image as a network takes it, (3, H, W)."""
        tensor = to_tensor(self.photograph(image_id), self.backbone.mean, self.backbone.std)
        height, width = tensor.shape[1:]
        return F.pad(tensor, (0, -width % self.pad_to, 0, -height % self.pad_to))

    def store(self, ids: Sequence[str]) -> None:
        """Compute and store the levels of the images that have none yet (frozen backbone only)."""
        todo = missing(ids, self.folder, "safetensors") if self.stored else []
        if not todo:
            return
        backbone = for_inference(self.backbone)

        @torch.inference_mode()
        def work(image_id: str) -> None:
            image = self.image(image_id)[None].contiguous(memory_format=torch.channels_last)
            levels = backbone.levels(image.to(_device(backbone)))
            named = {str(k): level[0].half().contiguous() for k, level in enumerate(levels)}
            save_tensors(self._path(image_id), named)

        each_image(work, todo, "features", _device(backbone))

    def levels(self, image_id: str, backbone: nn.Module) -> list[Tensor]:
        """The three levels of one image, each (1, c, h, w): stored, or seen by ``backbone``."""
        device = _device(backbone)
        if self.stored:
            return [level.to(device) for level in self.stored_levels(image_id)]
        return list(backbone.levels(self.image(image_id)[None].to(device)))

    def stored_levels(self, image_id: str) -> list[Tensor]:
        """The stored levels of one image on the CPU, each (1, c, h, w)."""
        if image_id not in self._kept:
            self.store([image_id])
            tensors, _ = load_tensors(self._path(image_id))
            self._kept[image_id] = [tensors[str(k)][None] for k in range(3)]
        return [level.float() for level in self._kept[image_id]]

    def samples(
        self,
        ids: Sequence[str],
        crop: int,
        tags: bool = False,
        labels: Callable[[str], np.ndarray] | None = None,
        scale: tuple[float, float] | None = None,
        jitter: bool = True,
        pool: Callable[[str, Tensor], Tensor] | None = None,
    ) -> Dataset:
        """Training samples: (image or levels, tags or labels) of each id.

        Args:
            ids: image ids.
            crop: side of the random square crop in pixels of the network's input.
            tags: targets are the tags, a multi-hot vector (C,).
            labels: otherwise, targets are label maps: a function from id to (H, W) uint8 at the
                size of the original image, or to score maps (L, H, W) that ``pool`` turns into labels.
            scale: smallest and largest random scale of images.
            jitter: change the colours of images at random.
            pool: from id and cropped score maps, which are 0 around the image, to the target.
        """
        if tags == (labels is not None):
            raise InputError("a sample needs either tags or labels as its target")
        if crop < 1:
            raise InputError(f"crop must be >= 1 pixel, got {crop}")
        if self.stored:
            self.store(ids)
            return _LevelSamples(self, ids, crop, labels, pool)
        transform = TrainTransform(
            crop, self.backbone.mean, self.backbone.std, scale=scale, jitter=jitter
        )
        return _ImageSamples(self, ids, labels, pool, transform)

    def _path(self, image_id: str) -> Path:
        return self.folder / f"{image_id}.safetensors"


def forward(model: nn.Module, seen: Tensor | list[Tensor]) -> Tensor:
    """The model's output for a batch of images, or for a batch of stored levels."""
    return model(seen) if isinstance(seen, Tensor) else model.from_levels(seen)


class _ImageSamples(Dataset):
    def __init__(self, inputs: Inputs, ids, labels, pool, transform: TrainTransform):
        self.inputs, self.ids, self.labels, self.pool = inputs, list(ids), labels, pool
        self.tags = inputs.data.multi_hot(ids) if labels is None else None
        self.transform = transform
        self._kept: dict[str, np.ndarray] = {}  # labels, read once

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, k: int):
        image_id = self.ids[k]
        image = self.inputs.photograph(image_id)
        if self.labels is None:
            return self.transform(image)[0], self.tags[k]
        seen, target = self.transform(image, self._labels(image_id, image))
        return seen, target if self.pool is None else self.pool(image_id, target)

    def _labels(self, image_id: str, image: Image.Image) -> np.ndarray:
        if image_id in self._kept:
            return self._kept[image_id]
        labels = self.labels(image_id)
        if labels.ndim == 3:
            size = (image.height, image.width)
            return labels if labels.shape[1:] == size else _resize(labels, size, "bilinear").numpy()
        labels = resize_long_side(labels, self.inputs.long_side)
        if self.inputs.keeps(image_id):
            self._kept[image_id] = labels
        return labels


class _LevelSamples(Dataset):
    """Random crops and flips of stored levels; labels at ``stride`` pixels a cell follow."""

    def __init__(self, inputs: Inputs, ids, crop, labels, pool):
        self.inputs, self.ids, self.labels, self.pool = inputs, list(ids), labels, pool
        self.tags = inputs.data.multi_hot(ids) if labels is None else None
        self.stride = inputs.backbone.output_stride
        self.cells = max(crop // self.stride, 1)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, k: int):
        image_id = self.ids[k]
        levels = self.inputs.stored_levels(image_id)
        height, width = levels[0].shape[-2:]
        top, left = random_place((height, width), self.cells)
        flip = bool(torch.rand(()) < 0.5)
        levels = [cut(x[0], top, left, self.cells, flip, fill=0) for x in levels]
        if self.labels is None:
            return levels, self.tags[k]
        s = self.stride
        labels, size = np.array(self.labels(image_id)), (height * s, width * s)
        place = (top * s, left * s, self.cells * s, flip)
        if labels.ndim == 3:
            return levels, self.pool(image_id, cut(_resize(labels, size, "bilinear"), *place, 0))
        return levels, cut(_resize(labels[None], size, "nearest-exact").long(), *place, VOID)[0]


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device


def _resize(maps: np.ndarray, size: tuple[int, int], mode: str) -> Tensor:
    return F.interpolate(torch.from_numpy(maps)[None].float(), size, mode=mode)[0]


def _digest(backbone: nn.Module, long_side: int, pad_to: int, root: Path) -> str:
    """What stored levels depend on, as a folder's name."""
    seen = f"{backbone.output_stride} {long_side} {root.absolute()}"
    seen += f" {pad_to}" if pad_to > 1 else ""
    digest = hashlib.sha256(seen.encode())
    for name, value in backbone.state_dict().items():
        digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]

"""What the networks look at: augmented images, or stored features of a frozen backbone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

from affinity_lib.backbones.base import freeze
from affinity_lib.data.files import load_tensors, save_tensors
from affinity_lib.data.voc import VOCData
from affinity_lib.errors import InputError
from affinity_lib.evaluation import VOID
from affinity_lib.training.inference import for_inference
from affinity_lib.training.parallel import compute_on, each_image
from affinity_lib.training.transforms import (
    TrainTransform,
    crop_and_flip,
    random_position,
    resize_long_side,
    scaled_size,
    to_tensor,
)

T = TypeVar("T")

_CACHE = 2**29  # bytes of images, of levels, or of labels that a process keeps in memory


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
        self._images = _Cache()
        self._levels = _Cache()
        if finetune == "head":
            if folder is None:
                raise InputError("finetune=head stores the backbone's levels: give their folder")
            self.folder = Path(folder) / _digest(backbone, long_side, pad_to, data.root)
            freeze(backbone, up_to=None)

    @property
    def stored(self) -> bool:
        """Whether the backbone is frozen and its levels are stored."""
        return self.folder is not None

    def photograph(self, image_id: str) -> Image.Image:
        """The image at ``long_side``, decoded once where the data set fits into memory."""
        return self._images.get(
            image_id, lambda: resize_long_side(self.data.image(image_id), self.long_side)
        )

    def size(self, image_id: str) -> tuple[int, int]:
        """Height and width of the image as a network takes it, before it is padded."""
        width, height = scaled_size(self.data.image_size(image_id), self.long_side)
        return height, width

    def image(self, image_id: str) -> Tensor:
        """The image as a network takes it, (3, H, W)."""
        tensor = to_tensor(self.photograph(image_id), self.backbone.mean, self.backbone.std)
        height, width = tensor.shape[1:]
        return F.pad(tensor, (0, -width % self.pad_to, 0, -height % self.pad_to))

    def store(self, ids: Sequence[str]) -> None:
        """Compute and store the levels of the images that have none yet (frozen backbone only)."""
        waiting = [
            image_id for image_id in ids if self.stored and not self._path(image_id).exists()
        ]
        if not waiting:
            return
        backbone = for_inference(self.backbone)
        device = device_of(backbone)

        @torch.inference_mode()
        def work(image_id: str) -> None:
            image = self.image(image_id)[None].contiguous(memory_format=torch.channels_last)
            levels = compute_on(
                device,
                lambda: [level[0].half().cpu() for level in backbone.levels(image.to(device))],
            )
            save_tensors(self._path(image_id), {str(k): level for k, level in enumerate(levels)})

        each_image(work, waiting, "features")

    def levels(self, image_id: str, backbone: nn.Module) -> list[Tensor]:
        """The three levels of one image, each (1, c, h, w): stored, or seen by ``backbone``."""
        seen = moved(self.seen(image_id), device_of(backbone))
        return seen if self.stored else list(backbone.levels(seen))

    def seen(self, image_id: str) -> Tensor | list[Tensor]:
        """What a network takes of an image, on the CPU: the image, or the stored levels."""
        return self.stored_levels(image_id) if self.stored else self.image(image_id)[None]

    def as_stored(self, scales: Sequence[float], flip: bool) -> bool:
        """Whether the stored levels of a frozen backbone are all that is looked at."""
        return self.stored and list(scales) == [1] and not flip

    def stored_levels(self, image_id: str) -> list[Tensor]:
        """The stored levels of one image on the CPU, each (1, c, h, w)."""
        return [level.float() for level in self._levels.get(image_id, lambda: self._load(image_id))]

    def _load(self, image_id: str) -> list[Tensor]:
        self.store([image_id])
        tensors, _ = load_tensors(self._path(image_id))
        return [tensors[str(k)][None] for k in range(3)]  # in half precision

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

        Levels are computed when ``fit`` has brought the network to its device, or when an item is
        asked for.

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
            return _LevelSamples(self, ids, labels, pool, crop)
        transform = TrainTransform(
            crop, self.backbone.mean, self.backbone.std, scale=scale, jitter=jitter
        )
        return _ImageSamples(self, ids, labels, pool, transform)

    def _path(self, image_id: str) -> Path:
        """Where the levels of this photograph lie; one that takes its place has other bytes."""
        size = self.data.image_path(image_id).stat().st_size
        return self.folder / f"{image_id}.{size}.safetensors"


def forward(model: nn.Module, seen: Tensor | list[Tensor]) -> Tensor:
    """The model's output for a batch of images, or for a batch of stored levels.

    Convolutions may compute in bfloat16. On a GPU losses are taken of float32; on a CPU the numbers
    of the toy data were made with losses of what comes out.
    """
    output = model(seen) if isinstance(seen, Tensor) else model.from_levels(seen)
    return output if output.device.type == "cpu" else output.float()


def moved(seen: Tensor | list[Tensor], device: torch.device) -> Tensor | list[Tensor]:
    """A batch of images, or of stored levels, on a device."""
    return seen.to(device) if isinstance(seen, Tensor) else [level.to(device) for level in seen]


def device_of(net: nn.Module) -> torch.device:
    """Where a network's weights are."""
    return next(net.parameters()).device


class _Samples(Dataset):
    """Item k is of the k-th image: what a network sees, and its tags or labels."""

    def __init__(self, inputs: Inputs, ids, labels, pool):
        self.inputs, self.ids, self.labels, self.pool = inputs, list(ids), labels, pool
        self.tags = inputs.data.multi_hot(ids) if labels is None else None

    def __len__(self) -> int:
        return len(self.ids)


class _ImageSamples(_Samples):
    def __init__(self, inputs: Inputs, ids, labels, pool, transform: TrainTransform):
        super().__init__(inputs, ids, labels, pool)
        self.transform = transform
        self._labels = _Cache()

    def __getitem__(self, k: int):
        image_id = self.ids[k]
        image = self.inputs.photograph(image_id)
        if self.labels is None:
            return self.transform(image)[0], self.tags[k]
        labels = self._labels.get(image_id, lambda: self._read_labels(image_id, image))
        seen, target = self.transform(image, labels)
        return seen, target if self.pool is None else self.pool(image_id, target)

    def _read_labels(self, image_id: str, image: Image.Image) -> np.ndarray:
        labels = self.labels(image_id)
        if labels.ndim == 2:
            return resize_long_side(labels, self.inputs.long_side)
        size = (image.height, image.width)
        return labels if labels.shape[1:] == size else _resize(labels, size, "bilinear").numpy()


class _LevelSamples(_Samples):
    """Random crops and flips of stored levels; labels at ``stride`` pixels a cell follow."""

    def __init__(self, inputs: Inputs, ids, labels, pool, crop: int):
        super().__init__(inputs, ids, labels, pool)
        self.stride = inputs.backbone.output_stride
        self.cells = max(crop // self.stride, 1)

    def prepare(self) -> None:
        self.inputs.store(self.ids)

    def __getitem__(self, k: int):
        image_id = self.ids[k]
        levels = self.inputs.stored_levels(image_id)
        height, width = levels[0].shape[-2:]
        top, left = random_position((height, width), self.cells)
        flip = bool(torch.rand(()) < 0.5)
        levels = [crop_and_flip(x[0], top, left, self.cells, flip, fill=0) for x in levels]
        if self.labels is None:
            return levels, self.tags[k]
        s = self.stride
        labels, size = np.array(self.labels(image_id)), (height * s, width * s)
        place = (top * s, left * s, self.cells * s, flip)
        if labels.ndim == 3:
            maps = _resize(labels, size, "bilinear")
            return levels, self.pool(image_id, crop_and_flip(maps, *place, fill=0))
        maps = _resize(labels[None], size, "nearest-exact").long()
        return levels, crop_and_flip(maps, *place, fill=VOID)[0]


class _Cache:
    """What was made once, as long as there is room; empty again in another process."""

    def __init__(self) -> None:
        self.room, self.values = _CACHE, {}

    def get(self, key: str, make: Callable[[], T]) -> T:
        if key in self.values:
            return self.values[key]
        value = make()
        self.room -= _bytes(value)
        if self.room >= 0:
            self.values[key] = value
        return value

    def __reduce__(self):
        return _Cache, ()


def _bytes(value: Image.Image | np.ndarray | list[Tensor]) -> int:
    if isinstance(value, Image.Image):
        return 4 * value.width * value.height
    return sum(part.nbytes for part in value)


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

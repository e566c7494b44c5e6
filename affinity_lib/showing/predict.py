"""Masks for new photographs, of which nobody knows a tag: a trained network is asked for them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from affinity_lib.cam import resize
from affinity_lib.crf import dense_crf
from affinity_lib.data.files import images_in, load_json, open_photograph, write_aside
from affinity_lib.data.paths import data_path
from affinity_lib.data.toy import MARKER, draw_scene
from affinity_lib.data.voc import VOCData, write_labels
from affinity_lib.errors import InputError
from affinity_lib.plots import labelled, with_legend
from affinity_lib.segmentation import label_probabilities
from affinity_lib.stages.segmentation_labels import pixels
from affinity_lib.training.inference import for_inference
from affinity_lib.training.networks import load_segmentation_network
from affinity_lib.training.parallel import compute_on, each_image
from affinity_lib.training.transforms import resize_long_side, to_tensor

NETWORK = "06_segmentation_network/network/network.safetensors"
"""Where a run keeps its segmentation network."""

MASKS, OVERLAYS = "masks", "overlays"

_PIXELS = 2**20  # of the largest image at which probabilities are computed and refined


class Predictor:
    """A trained segmentation network that gives the mask of any photograph.

    It looks at a photograph as it looked at the test images: at the same size, scales and mirror
    image. One that is larger than all training images is looked at in their size.

    Args:
        network: the file that ``save_network`` saved.
        device: where to compute.
        crf: refine each mask with the dCRF of the run.

    Raises:
        InputError: see ``load_segmentation_network``.
    """

    def __init__(
        self, network: str | Path, device: torch.device | str = "cpu", crf: bool = False
    ) -> None:
        net, self.settings = load_segmentation_network(network)
        self.device = torch.device(device)
        self.net = for_inference(net.to(self.device), self.settings.mixed_precision)
        self.crf = self.settings.crf if crf else None

    @torch.inference_mode()
    def __call__(self, photograph: Image.Image) -> np.ndarray:
        """The labels of a photograph.

        Args:
            photograph: RGB, of any size.

        Returns:
            (H, W) uint8, 0 for background or 1..C.
        """
        settings, backbone = self.settings, self.net.backbone
        side = settings.long_side or min(settings.largest_side, max(photograph.size))
        image = to_tensor(resize_long_side(photograph, side), backbone.mean, backbone.std)
        small = pixels(_within(photograph, _PIXELS), self.crf)
        views = (small.shape[:2], settings.scales, settings.flip)
        scores = compute_on(
            self.device,
            lambda: label_probabilities(self.net, image[None].to(self.device), *views).cpu(),
        )
        if self.crf is not None:
            scores = torch.from_numpy(dense_crf(small, scores.numpy(), self.crf))
        return _highest(scores, (photograph.height, photograph.width)).numpy()

    def overlay(self, photograph: Image.Image, labels: np.ndarray) -> np.ndarray:
        """The labels over the photograph and a legend below it, see ``plots.labelled``."""
        names = self.settings.classes
        return with_legend(labelled(np.array(photograph), labels, names), labels, names)


def find_photographs(paths: Iterable[str | Path], out: str | Path) -> dict[str, Path]:
    """The photographs in files and folders, each with a name of its own for its results.

    Args:
        paths: files, which are taken as they are, and folders, of which all files are taken
            that have the ending of an image, in subfolders too. Hidden ones are left out.
        out: the folder of the results, which are no photographs; nor are those of another call
            below a folder that is given.

    Returns:
        Name -> file. A name is the path below what was given, without the ending; where two would
        be the same, it is the path below the folder that holds all photographs, with the ending.

    Raises:
        InputError: a folder without an image, or two files that cannot be told apart.
    """
    found: dict[Path, Path] = {}  # absolute path -> path below what was given
    kinds = (MASKS, OVERLAYS)
    results = {Path(os.path.abspath(out)) / kind for kind in kinds}
    for given in map(Path, paths):
        if not given.is_dir():
            found.setdefault(Path(os.path.abspath(given)), Path(given.name))
            continue
        folder = Path(os.path.abspath(given))
        others = (path.parent for path in folder.rglob(MASKS) if (path.parent / OVERLAYS).is_dir())
        made = results | {other / kind for other in others for kind in kinds}
        inside = {
            path: path.relative_to(folder)
            for path in images_in(folder)
            if not any(path.is_relative_to(result) for result in made)
        }
        if not inside:
            raise InputError(f"{given} has no photographs in it: give files, or another folder")
        found = inside | found
    return _named(found)


def predict_photographs(
    predictor: Predictor, photographs: Mapping[str, Path], out: str | Path
) -> list[str]:
    """Write the mask of each photograph, and a picture of it for people.

    ``out/masks/NAME.png`` is a palette PNG of the photograph's size in the numbers of the data set
    that the network was trained on; ``out/overlays/NAME.jpg`` shows it over the photograph with a
    legend. What these names hold is replaced.

    Args:
        predictor: what labels them.
        photographs: name -> file, from :func:`find_photographs`.
        out: a folder, made if need be.

    Returns:
        A sentence for each photograph that could not be read; the others are done all the same.
    """
    faults: dict[str, str] = {}
    numbers = np.array(predictor.settings.numbers)

    def work(name: str) -> None:
        try:
            photograph = open_photograph(photographs[name])
        except InputError as error:
            faults[name] = str(error)
            return
        labels = predictor(photograph)
        write_labels(Path(out) / MASKS / f"{name}.png", numbers[labels])
        picture = predictor.overlay(photograph, labels)
        with write_aside(Path(out) / OVERLAYS / f"{name}.jpg") as aside:
            Image.fromarray(picture).save(aside, quality=90, subsampling=0)

    each_image(work, list(photographs), "photographs")
    return [faults[name] for name in photographs if name in faults]


def named_photograph(path: str, data: VOCData) -> Image.Image:
    """The photograph that a reader names, or one that is no training image.

    Args:
        path: of the photograph, from the project's folder; empty for a toy scene that is in no
            split, or, where the data are not drawn, the last image of the list val.
        data: the data set.

    Raises:
        InputError: see ``open_photograph``.
    """
    if path:
        return open_photograph(data_path(path))
    if (data.root / MARKER).is_file():
        drawing = load_json(data.root / MARKER)
        split, number = 2, 2  # train and val are the splits 0 and 1
        scene = draw_scene(drawing["size"], drawing["seed"], split, number)
        return Image.fromarray(scene.image)
    return data.image(data.ids("val")[-1])


def _within(image: Image.Image, most: int) -> Image.Image:
    """The image itself, or brought to so many pixels where it has more."""
    factor = (most / (image.width * image.height)) ** 0.5
    return image if factor >= 1 else resize_long_side(image, int(max(image.size) * factor))


def _highest(scores: Tensor, size: tuple[int, int]) -> Tensor:
    """Number (H, W) uint8 of the highest of some maps (L, h, w), whose lines are smooth at a size.

    Maps that are nowhere the highest stay out of it, and the others are resized one at a time: a
    photograph of many pixels must not take L times their memory.
    """
    highest = scores.max(dim=0).indices.byte()
    if highest.shape == size:
        return highest
    best = torch.zeros(size)
    labels = torch.zeros(size, dtype=torch.uint8)
    for number in highest.unique():
        score = resize(scores[None, int(number)], size)[0]
        labels[score > best] = number
        best = torch.maximum(best, score)
    return labels


def _named(found: Mapping[Path, Path]) -> dict[str, Path]:
    above = os.path.commonpath([path.parent for path in found])
    stems = {path: below.with_suffix("").as_posix() for path, below in found.items()}
    counts = Counter(stem.casefold() for stem in stems.values())
    names = {}
    for path, stem in stems.items():
        alone = counts[stem.casefold()] == 1
        name = stem if alone else path.relative_to(above).as_posix()
        if name in names:
            raise InputError(f"{path} and {names[name]} have one name: rename one")
        names[name] = path
    return names

"""The null experiment: with shuffled image tags there is nothing to learn, and the masks fall apart.

Sixty tiny scenes, a network from scratch for each of two runs: one sees each image's own tags, the
other sees the tags of another image. The masks are compared with the truth at the alpha that suits
them best, so the null has every chance.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scenes import CLASSES, draw_scenes

from affinity_lib.backbones import build_backbone
from affinity_lib.cam import CAMNet, classification_loss, resize, to_labels, with_background
from affinity_lib.data.files import load_scores
from affinity_lib.data.voc import VOCData
from affinity_lib.stages.cams import infer_cams
from affinity_lib.stages.evaluation import evaluate
from affinity_lib.training.inputs import Inputs, forward
from affinity_lib.training.loop import Recipe, fit

SIZE = 48
RECIPE = Recipe(epochs=14, batch_size=10, lr=0.001)


class Shuffled(VOCData):
    """A data set in which every image has the tags of another one."""

    def tags(self, image_id: str) -> tuple[int, ...]:
        ids = self.ids("train")
        other = np.random.default_rng(0).permutation(len(ids))[ids.index(image_id)]
        return super().tags(ids[other])


@pytest.fixture(scope="module")
def miou(tmp_path_factory) -> dict[str, float]:
    """Train mIoU of the CAMs, by the tags in training and the tags when CAMs are taken."""
    root, out = tmp_path_factory.mktemp("scenes"), tmp_path_factory.mktemp("cams")
    truth = draw_scenes(root, 60, SIZE)
    shuffled = Shuffled(root)
    nets = {"true": trained(truth, out / "true.pt"), "shuffled": trained(shuffled, out / "null.pt")}
    return {
        "true": best_miou(nets["true"], truth, truth, out / "true"),
        "shuffled": best_miou(nets["shuffled"], shuffled, truth, out / "shuffled"),
        "shuffled in training": best_miou(nets["shuffled"], truth, truth, out / "half"),
        "all background": score(truth, lambda image_id: np.zeros((SIZE, SIZE), np.uint8)),
    }


def trained(data: VOCData, checkpoint) -> CAMNet:
    torch.manual_seed(0)
    net = CAMNet(build_backbone("small", output_stride=4), len(CLASSES), width=32)
    samples = Inputs(data, net.backbone).samples(data.ids("train"), SIZE, tags=True)

    def loss(model, batch):
        return classification_loss(forward(model, batch[0]), batch[1])

    fit(net, samples, loss, RECIPE, checkpoint)
    return net


def best_miou(net: CAMNet, data: VOCData, truth: VOCData, out) -> float:
    infer_cams(net, Inputs(data, net.backbone), data.ids("train"), out)

    def labels(alpha: float) -> Callable[[str], np.ndarray]:
        def predict(image_id: str) -> np.ndarray:
            tags, cams = load_scores(out / f"{image_id}.npz")
            scores = with_background(torch.from_numpy(cams), alpha)
            return to_labels(resize(scores, (SIZE, SIZE)), tags).numpy()

        return predict

    return max(score(truth, labels(alpha)) for alpha in (1, 2, 4, 8, 16))


def score(data: VOCData, predict: Callable[[str], np.ndarray]) -> float:
    return evaluate(data, data.ids("train"), predict, split="train", uses_tags=True).miou


def test_true_tags_make_masks_that_shuffled_tags_do_not(miou):
    assert miou["true"] > miou["shuffled"] + 10


def test_true_tags_when_the_cams_are_taken_do_not_mend_shuffled_ones_in_training(miou):
    assert miou["true"] > miou["shuffled in training"] + 10


def test_masks_of_shuffled_tags_are_hardly_better_than_no_masks(miou):
    assert miou["shuffled"] < miou["all background"] + 5 < miou["true"]

"""Choosing settings: each number that is compared is the number that the stages would give."""

from __future__ import annotations

import shutil
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from scenes import draw_scenes

from affinity_lib.__main__ import main
from affinity_lib.affinity_labels import confident_labels
from affinity_lib.cam import resize, to_labels, with_background
from affinity_lib.crf import CRFSettings
from affinity_lib.data.files import load_scores
from affinity_lib.data.voc import VOCData
from affinity_lib.errors import InputError
from affinity_lib.evaluation import VOID
from affinity_lib.running.settings import parse
from affinity_lib.running.tune import tune
from affinity_lib.segmentation_labels import synthesize_labels
from affinity_lib.stages.cams import cam_labels
from affinity_lib.stages.evaluation import evaluate, evaluate_each
from affinity_lib.stages.tuning import try_affinity_labels, try_crfs, try_walks

SPLIT = {"split": "train", "uses_tags": True}
CRF = CRFSettings(bilateral_sxy=10, bilateral_compat=3, iterations=2)


class Masks:
    """A walk that comes to the true masks, on a grid of cells of 4 pixels."""

    def __init__(self, data: VOCData):
        self.inputs = SimpleNamespace(data=data)

    def affinity(self, image_id):
        return None

    def walks(self, image_id, alphas, beta, t, affinity):
        tags, mask = self.inputs.data.tags(image_id), self.inputs.data.mask(image_id)
        maps = torch.from_numpy(np.stack([mask == label for label in (0, *tags)])).float()
        return tags, F.avg_pool2d(maps, 4)[None]


def test_cam_labels_of_all_exponents_are_those_of_each(data, cams):
    alphas = (1, 4, 16)
    for image_id in data.ids("train"):
        tags, maps = load_scores(cams / f"{image_id}.npz")
        image = np.array(data.image(image_id))
        for alpha, labels in zip(alphas, cam_labels(data, image_id, cams, alphas), strict=True):
            scores = with_background(torch.from_numpy(maps), alpha)
            assert (labels == synthesize_labels(image, scores, tags)).all()


def test_one_pass_over_the_masks_gives_what_a_pass_for_each_variant_gives(data, cams):
    alphas, ids = (2, 8), data.ids("train")

    def labels(image_id, *some):
        return list(cam_labels(data, image_id, cams, some))

    together = evaluate_each(data, ids, lambda i: labels(i, *alphas), alphas, **SPLIT)
    apart = [evaluate(data, ids, lambda i, a=a: labels(i, a)[0], **SPLIT) for a in alphas]
    assert together == apart
    assert together[0] != together[1]


def test_walks_tried_together_have_the_miou_of_each(data, walk):
    ids, alphas, betas, steps = data.ids("train"), (2, 12), (1, 6), (3, 40)
    found = try_walks(walk, ids, alphas, betas, steps, every=1)
    for (a, alpha), (b, beta), (s, t) in product(*map(enumerate, (alphas, betas, steps))):
        walk.alpha = alpha

        def labels(image_id, beta=beta, t=t):
            tags, walked = walk.walked(image_id, beta, t)
            return to_labels(resize(walked, (40, 40)), tags).numpy()

        one = evaluate(data, ids, labels, **SPLIT)
        assert found[a, b, s] == pytest.approx(one.miou)


def test_of_the_masks_those_pixels_are_looked_at_where_the_labels_are(tmp_path):
    data = draw_scenes(tmp_path, 4, size=96)
    found = [try_walks(Masks(data), data.ids("train"), (1,), (1,), (1,), n).item() for n in (1, 4)]
    assert min(found) > 95  # of things of 20 pixels; a shift by 1.5 would cost ten points


def test_dcrfs_tried_together_have_the_miou_of_each(data, walk):
    ids, settings = data.ids("train"), [CRF, CRFSettings(iterations=1)]
    maps = {}
    for alpha in (2, 12):
        walk.alpha = alpha
        maps[alpha] = {i: walk.walked(i, 4, 16)[1].numpy() for i in ids}
    found = try_crfs(data, ids, maps, settings)
    for (c, crf), (a, of) in product(enumerate(settings), enumerate(maps.values())):

        def labels(image_id, crf=crf, of=of):
            image, scores = np.array(data.image(image_id)), torch.from_numpy(of[image_id])
            return synthesize_labels(image, scores, data.tags(image_id), crf)

        assert found[c, a] == pytest.approx(evaluate(data, ids, labels, **SPLIT).miou)


def test_trusted_areas_tried_together_are_those_of_each_pair_of_exponents(data, cams):
    ids = data.ids("train")
    for row in try_affinity_labels(data, ids, cams, CRF, alphas=(2, 6, 20)):
        right = kept = count = 0
        for image_id in ids:
            tags, maps = load_scores(cams / f"{image_id}.npz")
            image, truth = np.array(data.image(image_id)), data.mask(image_id)
            labels = confident_labels(image, torch.from_numpy(maps), tags, *row[:2], CRF)
            trusted = (truth != VOID) & (labels != VOID)
            right += (trusted & (labels == truth)).sum()
            kept, count = kept + trusted.sum(), count + (truth != VOID).sum()
        assert row.coverage == pytest.approx(100 * kept / count)
        assert row.accuracy == pytest.approx(100 * right / kept)


def test_a_run_is_tuned_and_the_settings_found_can_be_given(tiny_run, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(tiny_run[0], run)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert main(["tune", str(run), "--images", "3"]) == 0
    said = capsys.readouterr().out
    assert "On 3 training images and their masks" in said
    found = parse([str(run / "tuned.yaml"), "beta=5"])
    assert {"alpha", "t", "alpha_weak", "crf_sxy", "cam_crf_compat"} < found.keys()
    assert found["beta"] == [5]
    assert yaml.safe_load((run / "tuned.yaml").read_text())["alpha"] == found["alpha"][0]
    now = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.name != "tuned.yaml"}
    assert {path: now[path] for path in before if path.is_file()} == {
        path: when for path, when in before.items() if path.is_file()
    }


def test_without_masks_the_remedy_is_named(tiny_run, monkeypatch):
    monkeypatch.setattr(VOCData, "with_masks", lambda data, ids: [])
    with pytest.raises(InputError, match="no training image has a mask .* those of the profile"):
        tune(tiny_run[0])

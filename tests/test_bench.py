"""The benchmark runs, and its references compute what the library computes."""

from __future__ import annotations

from pathlib import Path

import bench
import busy
import pytest
import references
import torch

from affinity_lib.affinity import affinities, half_plane_offsets
from affinity_lib.backbones import build_backbone
from affinity_lib.cam import CAMNet
from affinity_lib.data.files import load_json, load_scores
from affinity_lib.data.toy import make_toy
from affinity_lib.data.voc import VOCData
from affinity_lib.evaluation import VOID
from affinity_lib.random_walk import random_walk, transition_matrix
from affinity_lib.stages.cams import infer_cams
from affinity_lib.training.inputs import Inputs


def test_the_benchmark_leaves_a_table_its_numbers_and_a_plot(tmp_path: Path, capsys):
    bench.main(["--quick", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    numbers = load_json(tmp_path / "bench.json")
    assert set(numbers["walk"]) == {"chebyshev", "sparse", "dense"}
    assert all(row["faster"] > 0 and row["name"] in printed for row in numbers["rows"])
    assert numbers["machine"]["torch"] in printed and numbers["structures"] in printed
    assert numbers["largest_difference"] < 1e-5
    assert (tmp_path / "bench.png").stat().st_size > 0


def test_eight_squarings_walk_256_steps():
    affinity, cams, offsets = bench.walk_input(6, 7)
    matrix = references.squarings(transition_matrix(affinity, offsets), 8)
    walked = (cams.flatten(1) @ matrix.T).view_as(cams)
    torch.testing.assert_close(walked, random_walk(cams, affinity, offsets), atol=1e-5, rtol=0)


def test_the_gathered_affinities_are_the_affinities_of_the_inner_pixels():
    features, offsets = torch.rand(2, 3, 12, 12), half_plane_offsets(5)
    inner = affinities(features, offsets)[..., :8, 4:8].flatten(2)
    torch.testing.assert_close(references.gather_then_subtract(features, offsets), inner)


def test_the_gathered_loss_and_its_gradient_are_those_of_the_library():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 6, 14, 15, generator=generator) / 6
    labels = torch.randint(0, 3, (2, 14, 15), generator=generator)
    labels[:, 3] = VOID
    given = features, labels, half_plane_offsets(5)
    ours = bench.with_gradient(bench.balanced_loss, *given)
    theirs = bench.with_gradient(references.gathered_loss, *given)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_one_view_at_a_time_sees_what_the_library_sees(tmp_path: Path):
    torch.manual_seed(0)
    data = VOCData(make_toy(tmp_path / "toy", train=2, val=0, size=48))
    net = CAMNet(build_backbone("small"), len(data.classes), width=8).eval()
    ids, inputs = data.ids("train"), Inputs(data, net.backbone)
    references.one_view_at_a_time(net, inputs, ids, tmp_path / "one")
    infer_cams(net, inputs, ids, tmp_path / "ours", references.SCALES)
    for image_id in ids:
        tags, theirs = load_scores(tmp_path / "one" / f"{image_id}.npz")
        same, ours = load_scores(tmp_path / "ours" / f"{image_id}.npz")
        assert tags.tolist() == same.tolist()
        small = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(theirs), ours.shape[1:])
        for one, other in zip(small.flatten(1), torch.from_numpy(ours).flatten(1), strict=True):
            assert torch.corrcoef(torch.stack([one, other]))[0, 1] > 0.95


@pytest.mark.parametrize("what", [busy.train, busy.in_a_loop, busy.at_once])
def test_work_beside_a_busy_process_is_measured(tmp_path: Path, what, monkeypatch):
    monkeypatch.setattr(busy.loop, "Progress", busy.loop.Progress)  # put back what it changes
    data = VOCData(make_toy(tmp_path / "toy", train=16, val=0, size=48))
    with busy.busy():
        rate, start = what(data, steps=2, nproc=1)
    assert rate > 0 and start >= 0

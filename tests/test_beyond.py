"""The ideas beyond the paper: what they compute, and a trial of all of them on a tiny run."""

from __future__ import annotations

import csv
import shutil
import sys
from itertools import pairwise
from pathlib import Path

import papermill
import pytest
import torch

from affinity_lib.affinity import half_plane_offsets
from affinity_lib.data.files import load_json, missing
from affinity_lib.data.paths import find_root
from affinity_lib.errors import InputError
from affinity_lib.evaluation import VOID
from affinity_lib.random_walk import random_walk

sys.path.append(str(find_root() / "notebooks"))
import beyond

OFFSETS = half_plane_offsets(5)


def boundaries(height: int = 9, width: int = 11) -> torch.Tensor:
    return torch.rand(2, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("dy", "dx"), OFFSETS.tolist())
def test_a_line_goes_from_end_to_end_in_steps_of_one_cell(dy: int, dx: int):
    cells = beyond.line(dy, dx)
    assert (cells[0], cells[-1]) == ((0, 0), (dy, dx))
    steps = [(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(cells)]
    assert all(max(abs(y), abs(x)) == 1 for y, x in steps)
    assert all(abs(y * dx - x * dy) <= max(dy, abs(dx)) / 2 for y, x in cells)  # half a cell beside


def test_a_pair_is_as_near_as_the_highest_boundary_between_it_allows():
    B = boundaries()
    found, (height, width) = beyond.boundary_affinities(B, OFFSETS), B.shape[1:]
    for k, (dy, dx) in enumerate(OFFSETS.tolist()):
        for y in range(height):
            for x in range(width):
                if not (y + dy < height and 0 <= x + dx < width):
                    assert (found[:, k, y, x] == 0).all()
                    continue
                between = torch.stack([B[:, y + a, x + b] for a, b in beyond.line(dy, dx)])
                torch.testing.assert_close(found[:, k, y, x], 1 - between.amax(0))


def test_nothing_walks_through_a_closed_boundary():
    B = torch.zeros(1, 9, 11)
    B[:, :, 5] = 1
    M = torch.zeros(1, 1, 9, 11)
    M[..., :5] = 1
    walked = random_walk(M, beyond.boundary_affinities(B, OFFSETS), OFFSETS, 8, 256)
    torch.testing.assert_close(walked, M)


def test_boundaries_learn_from_pairs_on_either_side_of_them():
    logits = torch.zeros(1, 1, 8, requires_grad=True)
    W = beyond.boundary_affinities(logits.sigmoid(), torch.tensor([[0, 1], [0, 3]]))
    W[0, 1, 0, 2].backward()  # from column 2 to column 5
    assert logits.grad[0, 0, [0, 1, 6, 7]].eq(0).all() and logits.grad.sum() < 0


def test_the_walks_loss_is_least_where_the_walked_maps_are_the_labels():
    labels = torch.tensor([[[0, 0, 1, 2, VOID]]])
    right = torch.zeros(1, 3, 1, 5)
    for x, label in enumerate([0, 0, 1, 2, 0]):
        right[0, label, 0, x] = 0.2
    assert beyond.walk_loss(right, labels) == pytest.approx(0, abs=1e-4)
    assert beyond.walk_loss(right + 0.1, labels) > 0.5
    other = right.clone()
    other[..., 4] = right[..., 2]  # where nothing is trusted nothing is asked
    assert beyond.walk_loss(other, labels) == beyond.walk_loss(right, labels)


def test_the_walks_loss_counts_background_and_objects_alike():
    labels = torch.zeros(1, 10, 10, dtype=torch.long)
    labels[0, 0, 0] = 1
    even = torch.full((1, 2, 10, 10), 0.5)
    assert beyond.walk_loss(even, labels) == pytest.approx(2 * 0.6931, abs=1e-3)


def test_evidence_is_hidden_in_squares_and_in_all_maps_alike():
    torch.manual_seed(0)
    shown = beyond.hide(torch.ones(3, 2, 10, 13), share=0.5, block=4)
    assert set(shown.unique().tolist()) == {0, 1} and shown[:, 0].equal(shown[:, 1])
    assert shown[..., :4, :4].amax((1, 2, 3)).equal(shown[..., :4, :4].amin((1, 2, 3)))
    assert not shown[0].equal(shown[1])
    assert beyond.hide(torch.ones(1, 1, 8, 8), share=0).all()


def test_gradients_of_the_walk_are_those_of_the_dense_matrix():
    torch.manual_seed(0)
    W = torch.rand(1, len(OFFSETS), 6, 7, dtype=torch.double, requires_grad=True)
    M, labels = torch.rand(1, 3, 6, 7, dtype=torch.double), torch.randint(0, 3, (1, 6, 7))
    found = [
        torch.autograd.grad(beyond.walk_loss(random_walk(M, W, OFFSETS, 4, 64, how), labels), W)[0]
        for how in ("dense", "chebyshev")
    ]
    torch.testing.assert_close(*found, atol=1e-4, rtol=1e-3)


def test_a_networks_scores_know_no_other_label_than_the_tags():
    p = torch.tensor([[0.2, 0.7, 0.1], [0.0, 0.9, 0.1]]).T[..., None]  # (C + 1, h, w)
    torch.testing.assert_close(beyond.masked(p, [2]), torch.tensor([[[1 / 3], [1.0]]]))


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("lost", ["03_affinitynet/network", "06_segmentation_network/network"])
def test_a_run_that_is_not_finished_is_refused_before_anything_is_trained(tiny_run, tmp_path, lost):
    finished, plan = tiny_run
    run = shutil.copytree(finished, tmp_path / "run")
    (run / lost / "network.safetensors").unlink()
    with pytest.raises(InputError, match=f"{lost} is missing: run all notebooks of toy first"):
        beyond.Trial(plan.given | {"profile": "toy", "run_dir": str(run)})


@pytest.mark.long
def test_all_ideas_are_tried_on_a_run_and_kept(tiny_run, tmp_path, monkeypatch):
    finished, plan = tiny_run
    run = shutil.copytree(finished, tmp_path / "run")
    given = plan.given | {"profile": "toy", "run_dir": str(run)}
    trial = beyond.Trial(given)
    trial.run()
    beyond.write_tables(trial, tmp_path / "first")
    rows = rows_of(tmp_path / "first" / "toy_rows.csv")
    names = [row["row"] for row in rows]
    assert names[:4] == ["paper", "walk_loss", "walk_loss_hidden", "boundaries"]
    assert names[4:6] == ["round_2_no_walk", "round_2"]
    for row in rows:
        assert all(0 < float(row[k]) < 100 for k in ("walk", "crf", "val"))
        assert (row["beta"] == "") == row["row"].endswith("no_walk")
    later = [float(row["minutes"]) for row in rows[4:]]  # what a round builds on is counted
    assert later[0] == 0 and later == sorted(later) and later[1] > 0
    assert len(later) == 2 or later[2] > later[1]
    walked = [name for name in names if not name.endswith("no_walk")]
    kinds = rows_of(tmp_path / "first" / "toy_affinities.csv")
    assert [row["row"] for row in kinds] == [name for name in walked for _ in range(2)]
    assert all(0 <= float(row["negative"]) <= 1 for row in kinds)
    agreement = rows_of(tmp_path / "first" / "toy_agreement.csv")
    assert [row["row"] for row in agreement] == walked
    assert all(0 <= float(row["walked"]) <= 100 for row in agreement)
    note = load_json(tmp_path / "first" / "toy.json")
    assert note["scene"] in trial.ids and note["packages"]["torch"]
    scene = (tmp_path / "first" / "toy_scene.csv").read_text().splitlines()
    assert len(scene) == 1 + 12 * 12

    def nothing(*_, **__):
        raise AssertionError("what is finished is not done again")

    monkeypatch.setattr(beyond, "predict", nothing)
    monkeypatch.setattr(
        beyond.Walk,
        "write",
        lambda walk, ids, out, *_: nothing() if missing(ids, out, "npz") else None,
    )
    again = beyond.Trial(given)
    monkeypatch.setattr(again, "note_affinities", lambda *_: None)
    again.run()
    assert again.tables["rows"] == trial.tables["rows"]

    lesson = find_root() / "notebooks" / "08_beyond.ipynb"
    given = {"folder": str(tmp_path / "first")}
    how = {"kernel_name": "python3", "cwd": tmp_path, "progress_bar": False}
    done = papermill.execute_notebook(lesson, tmp_path / "out.ipynb", given, **how)
    outputs = [o for cell in done.cells if cell.cell_type == "code" for o in cell.outputs]
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]
    told = "".join(o.get("text", "") for o in outputs)
    assert "toy, 3. boundaries: walk " in told

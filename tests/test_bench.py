"""The benchmark runs, and its references compute what the library computes."""

from __future__ import annotations

from pathlib import Path

import torch

from affinity_lib import bench
from affinity_lib.affinity import affinities, half_plane_offsets
from affinity_lib.files import load_json
from affinity_lib.random_walk import random_walk, transition_matrix


def test_the_benchmark_leaves_a_table_its_numbers_and_a_plot(tmp_path: Path, capsys):
    bench.main(["--quick", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    numbers = load_json(tmp_path / "bench.json")
    assert set(numbers["walk"]) == {"chebyshev", "sparse", "dense"}
    assert all(row["faster"] > 0 and row["name"] in printed for row in numbers["rows"])
    assert numbers["machine"]["torch"] in printed
    assert (tmp_path / "bench.png").stat().st_size > 0


def test_eight_squarings_walk_256_steps():
    affinity, cams, offsets = bench.walk_input(6, 7)
    matrix = bench.squarings(transition_matrix(affinity, offsets), 8)
    walked = (cams.flatten(1) @ matrix.T).view_as(cams)
    torch.testing.assert_close(walked, random_walk(cams, affinity, offsets), atol=1e-5, rtol=0)


def test_the_gathered_affinities_are_the_affinities_of_the_inner_pixels():
    features, offsets = torch.rand(2, 3, 12, 12), half_plane_offsets(5)
    inner = affinities(features, offsets)[..., :8, 4:8].flatten(2)
    torch.testing.assert_close(bench.gather_then_subtract(features, offsets), inner)

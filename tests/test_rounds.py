"""Further rounds of AffinityNet, which learn from walked maps."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from scenes import draw_scenes, noise_cams, small_affinity_net

from affinity_lib.affinity import half_plane_offsets
from affinity_lib.affinity_labels import refined, trusted
from affinity_lib.running import runner
from affinity_lib.running.settings import resolve
from affinity_lib.running.stage import NOTE, Config
from affinity_lib.stages.affinity_labels import SoftLabels
from affinity_lib.stages.rounds import write_walked_labels
from affinity_lib.stages.segmentation_labels import crf_settings
from affinity_lib.stages.walk import Walk, last_network
from affinity_lib.training.inputs import Inputs


@pytest.mark.parametrize("preset", ["paper", "released"])
def test_walked_maps_with_both_backgrounds_give_the_trusted_areas(tmp_path, preset):
    data = draw_scenes(tmp_path / "data", 3, size=40)
    net, cams = small_affinity_net(), noise_cams(data, tmp_path / "cams")
    given = {"preset": preset, "beta": 3, "t": 16, "crf_iterations": 2, "gamma": 3}
    config = Config(resolve("toy", given))
    walk = Walk.of(config, net, Inputs(data, net.backbone), cams)
    write_walked_labels(config, walk, data.ids("train"), tmp_path / "out")
    for image_id in data.ids("train"):
        maps = []
        for alpha in (config.walked_alpha_strong, config.walked_alpha_weak):
            one = Walk(net, walk.inputs, walk.cams, half_plane_offsets(3), alpha, config.distance)
            one.border, one.pooling = config.pair_border, config.walk_pooling
            maps.append(one.walked(image_id, 3, 16)[1].half().float())
        image = np.array(data.image(image_id))
        expected = trusted(refined(image, maps, crf_settings(config)), data.tags(image_id))
        labels = data.read_labels(tmp_path / "out" / f"{image_id}.png")
        assert (labels == expected.numpy()).mean() > 0.995  # rounding of half precision
        if preset == "released":
            soft = SoftLabels(data, tmp_path / "out" / "soft", 4).maps(image_id)
            assert soft.shape == (2 * (1 + len(data.tags(image_id))), 40, 40)


@pytest.mark.long
def test_a_second_round_leaves_the_first_as_it_was_and_is_what_walks(tiny_run, tmp_path):
    run, plan = tiny_run
    shutil.copytree(run, tmp_path / "run")
    plan = plan.with_settings({"affinity_rounds": 2})
    runner.execute(plan, tmp_path / "run", only=["03", "04"])
    stage = tmp_path / "run" / "03_affinitynet"
    first, second = stage / "network", stage / "network_2"
    name = "network.safetensors"
    assert (first / name).read_bytes() == (run / "03_affinitynet/network" / name).read_bytes()
    assert (second / name).read_bytes() != (first / name).read_bytes()
    noted = json.loads((second / NOTE).read_text())
    assert {"beta", "walked_alpha_weak", "crf_sxy"} <= noted["settings"].keys()
    assert "03_affinitynet/network" in noted["inputs"]
    walked = json.loads((tmp_path / "run/04_random_walk/walked" / NOTE).read_text())
    assert last_network(Config(plan.values)) == "03_affinitynet/network_2"
    assert "03_affinitynet/network_2" in walked["inputs"]
    history = json.loads((stage / "metrics.json").read_text())["history"]
    assert len(history) == 2 * plan.values["affinity_epochs"]

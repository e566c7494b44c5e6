"""Whole networks from files: a run's own, and the checkpoints of AffinityNet's authors."""

from __future__ import annotations

import json

import pytest
import torch

from affinity_lib.cam import normalize
from affinity_lib.data.files import load_scores, load_tensors
from affinity_lib.data.voc import VOCData
from affinity_lib.errors import InputError
from affinity_lib.running import runner
from affinity_lib.running.settings import resolve
from affinity_lib.running.stage import Config
from affinity_lib.training.inputs import Inputs
from affinity_lib.training.networks import (
    AUTHORS_LAYERS,
    affinity_network,
    cam_network,
    load_segmentation_network,
    load_trained,
)


def authors_checkpoint(network, backbone_names) -> dict[str, torch.Tensor]:
    """Random weights in the layout of the authors' files, of the same sizes as a network's."""
    file = {f"module.{theirs}": value for theirs, value in backbone_names.items()}
    for theirs, ours in AUTHORS_LAYERS.items():
        for kind in ("weight", "bias"):
            value = network.state_dict().get(f"{ours}.{kind}")
            if value is not None:
                value = torch.randn(value.shape)
                file[f"module.{theirs}.{kind}"] = (
                    value[..., None, None] if theirs == "fc8" else value
                )
    return file


@pytest.mark.parametrize("backbone", ["resnet38", "vgg16"])
@pytest.mark.parametrize("kind", ["cam", "affinity"])
def test_a_whole_network_of_the_authors_is_taken(tmp_path, backbone, kind):
    config = Config(resolve("voc12-released", {"backbone": backbone, "weights": ""}))
    build = {
        "cam": lambda: cam_network(config, 20, ""),
        "affinity": lambda: affinity_network(config, ""),
    }
    net, own = build[kind](), {}
    for name, value in net.backbone.state_dict().items():
        own[name] = torch.rand_like(value) if value.is_floating_point() else value
    file = authors_checkpoint(net, own)
    torch.save(file, tmp_path / "net.pth")
    load_trained(net, tmp_path / "net.pth")
    for name, value in net.state_dict().items():
        if name.startswith("backbone."):
            assert torch.equal(value, own[name.removeprefix("backbone.")])
    heads = {k: v for k, v in net.state_dict().items() if not k.startswith("backbone.")}
    assert len(heads) == len(file) - len(own)
    for theirs, ours in AUTHORS_LAYERS.items():
        if f"{ours}.weight" in heads:
            value = file[f"module.{theirs}.weight"]
            assert torch.equal(heads[f"{ours}.weight"], value.view_as(heads[f"{ours}.weight"]))


def test_a_network_of_other_classes_or_kind_is_refused(tmp_path):
    config = Config(resolve("voc12-released", {"weights": ""}))
    cams, affinity = cam_network(config, 20, ""), affinity_network(config, "")
    file = authors_checkpoint(cams, cams.backbone.state_dict())
    torch.save(file, tmp_path / "cls.pth")
    with pytest.raises(
        InputError, match=r"classifier.weight is \(20, 4096\) in the file and \(5, 4"
    ):
        load_trained(cam_network(config, 5, ""), tmp_path / "cls.pth")
    with pytest.raises(InputError, match="convs.0.weight is missing in the file"):
        load_trained(affinity, tmp_path / "cls.pth")
    file["module.f9.weight"] = torch.zeros(1)
    torch.save(file, tmp_path / "both.pth")
    with pytest.raises(InputError, match="convs.3.weight is .* and missing in the network"):
        load_trained(cams, tmp_path / "both.pth")


def test_a_broken_head_is_refused_before_anything_is_said(tmp_path, capsys):
    config = Config(resolve("voc12-released", {"weights": ""}))
    net = affinity_network(config, "")
    file = authors_checkpoint(net, net.backbone.state_dict())
    file["module.f9.weight"][0] = torch.nan
    torch.save(file, tmp_path / "aff.pth")
    with pytest.raises(InputError, match=r"has NaN or infinity in convs\.3\.weight"):
        load_trained(net, tmp_path / "aff.pth")
    assert capsys.readouterr().out == ""


def test_a_network_of_an_earlier_run_is_taken(tmp_path):
    config = Config(resolve("toy", {}))
    first, second = cam_network(config, 6, ""), cam_network(config, 6, "")
    torch.save(first.state_dict(), tmp_path / "net.pth")
    load_trained(second, tmp_path / "net.pth")
    assert all(
        torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)
    )
    assert not second.training


@pytest.mark.long
def test_a_run_with_trained_networks_trains_neither_and_makes_the_same(tiny_run, tmp_path):
    run, plan = tiny_run
    files = {
        "cam_network": run / "01_class_activation_maps" / "network" / "network.safetensors",
        "affinity_network": run / "03_affinitynet" / "network" / "network.safetensors",
    }
    plan = plan.with_settings({name: str(file) for name, file in files.items()})
    other = runner.execute(plan, tmp_path / "run", only=["00", "01", "02", "03", "04"])
    for stem, file in zip(
        ("01_class_activation_maps", "03_affinitynet"), files.values(), strict=True
    ):
        executed = (other / "notebooks" / f"{stem}.ipynb").read_text(encoding="utf-8")
        assert f"nothing is trained: the network is that of {file}" in executed
        assert json.loads((other / stem / "metrics.json").read_text())["history"] == []
        assert not (other / stem / "network" / "checkpoint.pt").exists()
    for walked in sorted((run / "04_random_walk" / "walked").glob("*.npz")):
        made = other / "04_random_walk" / "walked" / walked.name
        for one, two in zip(load_scores(made), load_scores(walked), strict=True):
            assert (one == two).all()


@pytest.mark.long
def test_a_second_round_begins_with_the_scores_of_the_first_ones_segmentation_network(
    tiny_run, tmp_path
):
    run, plan = tiny_run
    file = run / "06_segmentation_network" / "network" / "network.safetensors"
    changed = {"cam_network": str(file), "cam_scales": [1], "cam_flip": False}
    plan = plan.with_settings({**changed, "mixed_precision": False})
    other = runner.execute(plan, tmp_path / "run")
    assert {*json.loads((other / "results.json").read_text())["table1"]} >= {"cam", "rw", "rw_crf"}
    made = load_tensors(other / "01_class_activation_maps" / "network" / "network.safetensors")[0]
    assert all(torch.equal(made[name], value) for name, value in load_tensors(file)[0].items())
    net, _ = load_segmentation_network(file)
    inputs = Inputs(VOCData(plan.values["data_root"]), net.backbone)
    for path in sorted((other / "01_class_activation_maps" / "cams").glob("*.npz"))[:4]:
        tags, cams = load_scores(path)
        with torch.inference_mode():
            p = net(inputs.image(path.stem)[None])[0].softmax(dim=0)
        expected = normalize(p[1:] / (p[:1] + p[1:]), tags)
        torch.testing.assert_close(torch.from_numpy(cams), expected, atol=1e-3, rtol=0)

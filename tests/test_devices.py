"""Every step that a notebook does on a device, on a GPU that is not there.

Inside of torch's FakeTensorMode tensors have a device, a type and a shape, and no values: on fake
``cuda:0`` all goes the way that it goes on a GPU, and devices that are mixed raise. The backward
pass of CUDA wants a driver even there, so it is taken on the device ``meta``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lessons import STAGES, code_of, loss_of
from scenes import draw_scenes
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from affinity_lib import cam, plots
from affinity_lib.affinity import half_plane_offsets
from affinity_lib.affinitynet import AffinityNet
from affinity_lib.backbones import build_backbone
from affinity_lib.backbones.base import freeze
from affinity_lib.cam import CAMNet, multi_scale_activation
from affinity_lib.data.files import save_scores
from affinity_lib.data.voc import VOCData
from affinity_lib.errors import InputError
from affinity_lib.random_walk import random_walk
from affinity_lib.segmentation import SegmentationNet
from affinity_lib.stages import cams
from affinity_lib.stages import walk as walk_stage
from affinity_lib.stages.cams import infer_cams, tag_accuracy
from affinity_lib.stages.predictions import predict
from affinity_lib.stages.walk import Walk, affinity_of, mean_affinities
from affinity_lib.training import inference, inputs, parallel
from affinity_lib.training.inference import for_inference
from affinity_lib.training.inputs import Inputs, forward
from affinity_lib.training.precision import autocast
from affinity_lib.training.recipe import Recipe
from affinity_lib.training.state import TrainingState

GPU, CLASSES, CROP = torch.device("cuda:0"), 3, 64
OFFSETS = half_plane_offsets(2)
BACKBONES = ("small", "efficientnet_lite0", "vgg16", "resnet38")
LOSSES = {name: loss_of(name, CLASSES, gamma=2) for name in STAGES}


@pytest.fixture
def gpu(monkeypatch) -> Iterator[torch.device]:
    """A GPU with bfloat16 that computes nothing."""
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    offsets = OFFSETS.tolist()  # the only values that a step asks for
    monkeypatch.setattr(Tensor, "tolist", lambda tensor: offsets)
    monkeypatch.setattr(FakeTensor, "__bool__", lambda tensor: True)  # all checks of values pass
    monkeypatch.setattr(FakeTensor, "__deepcopy__", _copy)  # torch's reads memory that is not there
    monkeypatch.setattr(nn.Module, "_apply", _replace_weights)
    for module in (cams, walk_stage, inputs):  # the mode is a thread's own
        monkeypatch.setattr(
            module, "each_image", lambda work, jobs, *rest, **more: [work(job) for job in jobs]
        )
    monkeypatch.setattr(parallel, "_GPU_THREAD", "")  # as if it were this one
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield GPU


def _copy(tensor: FakeTensor, memo: dict) -> Tensor:
    copied = tensor.detach().clone()
    if isinstance(tensor, nn.Parameter):
        copied = nn.Parameter(copied, tensor.requires_grad)
    return memo.setdefault(id(tensor), copied)


def _replace_weights(module: nn.Module, change: Callable[[Tensor], Tensor]) -> nn.Module:
    """What nn.Module does to go to another device, but without swapping weights in place."""
    for part in module.modules():
        for name, own in part._parameters.items():
            if own is not None:
                part._parameters[name] = nn.Parameter(change(own), own.requires_grad)
        for name, own in part._buffers.items():
            part._buffers[name] = None if own is None else change(own)
    return module


def build(network: str, backbone: nn.Module) -> nn.Module:
    if network == "cam":
        return CAMNet(backbone, CLASSES, width=8)
    if network == "affinity":
        return AffinityNet(backbone, (8, 8, 8))
    return SegmentationNet(backbone, CLASSES, width=8)


def batch_of(network: str, seen: Tensor | list[Tensor]) -> tuple:
    if network == "cam":
        return seen, torch.zeros(2, CLASSES)
    return seen, torch.zeros(2, CROP, CROP, dtype=torch.long)


@pytest.mark.parametrize("network", LOSSES)
@pytest.mark.parametrize("name", BACKBONES)
def test_a_training_step_of_every_network_stays_on_the_gpu(gpu, name: str, network: str):
    loss = LOSSES[network]
    for device in (gpu, torch.device("meta")):
        with device:
            backbone = build_backbone(name, output_stride=8)
            net = build(network, backbone)
            images = torch.zeros(2, 3, CROP, CROP)
            batch = batch_of(network, images)
            levels = [torch.zeros(2, c, CROP // 8, CROP // 8) for c in backbone.channels]
        for finetune in ("all", "head"):
            if finetune == "head":
                freeze(backbone, up_to=None)
                batch = (levels, batch[1])
            learned = [p for p in net.parameters() if p.requires_grad]
            if device.type == "meta":  # there is neither mixed precision nor an optimizer
                loss(net, batch).backward()
                assert all(p.grad.device == device for p in learned if p.grad is not None)
                assert sum(p.grad is not None for p in learned) > 1
                net.zero_grad()
                continue
            for mixed in (False, True):
                with autocast(device, mixed):
                    value, output = loss(net, batch), forward(net, batch[0])
                assert (value.device, value.dtype) == (device, torch.float32)
                assert output.dtype == torch.float32  # so that losses are


def test_a_step_of_the_optimizer_and_of_the_average_stays_on_the_gpu(gpu):
    with gpu:
        net = CAMNet(build_backbone("small"), CLASSES, width=8)
    state = TrainingState(net, Recipe(epochs=1, batch_size=2, lr=1e-3, ema_decay=0.9), images=4)
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    state.step()
    state.step()
    assert {p.device for p in (*net.parameters(), *state.ema.parameters())} == {gpu}


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("name", BACKBONES)
def test_cams_of_all_scales_and_mirrored_stay_on_the_gpu(gpu, name: str, mixed: bool):
    with gpu:
        net = CAMNet(build_backbone(name), CLASSES, width=8).eval()
        images = torch.zeros(2, 3, 60, 52)
    fast = for_inference(net, mixed)
    maps = multi_scale_activation(fast, images, scales=[0.5, 1, 1.5], flip=True)
    assert (maps.device, maps.dtype, maps.shape) == (gpu, torch.float32, (2, CLASSES, 8, 7))


def test_a_folded_copy_is_checked_on_the_cpu_where_nothing_is_rounded(gpu, monkeypatch):
    seen = []

    def agree(*nets: nn.Module) -> bool:
        seen.extend(p.device.type for net in nets for p in net.parameters())
        return True

    monkeypatch.setattr(inference, "_agree", agree)
    with gpu:
        net = CAMNet(build_backbone("small"), CLASSES, width=8).eval()
    assert {p.device for p in for_inference(net).parameters()} == {gpu}
    assert set(seen) == {"cpu"}


def test_cudnn_computes_all_convolutions_of_a_copy_but_depthwise_ones(gpu, monkeypatch):
    seen = {}

    def convolve(conv: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        seen.setdefault(conv.groups > 1, set()).add(torch.backends.cudnn.enabled)
        return computed(conv, x, weight, bias)

    with gpu:
        net = CAMNet(build_backbone("efficientnet_lite0"), CLASSES, width=8).eval()
        images = torch.zeros(1, 3, 60, 52)
    fast, computed = for_inference(net), nn.Conv2d._conv_forward
    monkeypatch.setattr(nn.Conv2d, "_conv_forward", convolve)
    multi_scale_activation(fast, images, scales=[1], flip=False)
    assert seen == {True: {False}, False: {True}} and torch.backends.cudnn.enabled


@pytest.mark.parametrize("t", [0, 1, 16, 256])
def test_a_walk_of_any_length_stays_on_the_gpu(gpu, t: int):
    maps, affinity = (torch.rand(k, 9, 11, device=gpu) for k in (3, len(OFFSETS)))
    walked = random_walk(maps, affinity, OFFSETS, 8, t)
    assert (walked.device, walked.dtype) == (gpu, torch.float32)


def test_maps_and_affinities_on_two_devices_are_refused_in_one_sentence(gpu):
    affinity = torch.rand(len(OFFSETS), 9, 11, device=gpu)
    with pytest.raises(InputError, match="cams are on cpu and affinity is on cuda:0: move the"):
        random_walk(torch.rand(3, 9, 11), affinity, OFFSETS)


class Looked(Inputs):
    """Inputs whose images are read, as what is read has values."""

    def image(self, image_id: str) -> Tensor:
        return torch.zeros(3, 40, 40)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> VOCData:
    return draw_scenes(tmp_path_factory.mktemp("scenes"), 2, size=40)


@pytest.fixture
def saved(monkeypatch) -> list[Tensor]:
    """What would be written into files, and so must be on the CPU."""
    kept: list[Tensor] = []
    for module in (cams, walk_stage):
        monkeypatch.setattr(module, "save_scores", lambda path, tags, scores: kept.append(scores))
    monkeypatch.setattr(inputs, "save_tensors", lambda path, tensors: kept.extend(tensors.values()))
    return kept


@pytest.fixture
def walk_of(gpu, data, tmp_path) -> Callable[..., Walk]:
    """Makes the walk of the training images, whose CAMs lie in ``tmp_path``."""
    for image_id in data.ids("train"):
        tags = data.tags(image_id)
        save_scores(tmp_path / f"{image_id}.npz", tags, np.ones((len(tags), 5, 5)))
    with gpu:
        net = AffinityNet(build_backbone("small"), (8, 8, 8)).eval()

    def walk(*how: object, pad_to: int = 1) -> Walk:
        seen = Looked(data, net.backbone, pad_to=pad_to)
        return Walk(net, seen, tmp_path, OFFSETS, 16, "mean", *how)

    return walk


def test_cams_come_from_the_gpu_before_they_are_written(gpu, data, saved, tmp_path):
    with gpu:
        net = CAMNet(build_backbone("small"), CLASSES, width=8).eval()
    infer_cams(net, Looked(data, net.backbone), data.ids("train"), tmp_path, [1, 1.5])
    assert [scores.device.type for scores in saved] == ["cpu", "cpu"]


def test_features_that_are_stored_are_computed_where_the_network_is(
    gpu, data, saved, tmp_path, monkeypatch
):
    with gpu:
        net = CAMNet(build_backbone("small"), CLASSES, width=8).eval()
    monkeypatch.setattr(inputs, "_digest", lambda *words: "digest")
    Looked(data, net.backbone, "head", folder=tmp_path).store(data.ids("train"))
    assert {level.device.type for level in saved} == {"cpu"} and len(saved) == 6


def test_the_classes_that_a_network_is_right_about_are_counted_on_the_cpu(gpu, data, monkeypatch):
    with gpu:
        net = CAMNet(build_backbone("small"), CLASSES, width=8).eval()
    monkeypatch.setattr(FakeTensor, "tolist", lambda tensor: [tensor.device.type] * CLASSES)
    right = tag_accuracy(net, Looked(data, net.backbone), data.ids("train"))
    assert right == dict.fromkeys(data.classes, "cpu")


def test_affinities_are_seen_on_the_gpu_and_averaged_on_the_cpu(gpu, data, monkeypatch):
    with gpu:
        net = AffinityNet(build_backbone("small"), (8, 8, 8)).eval()
    seen, ids = Looked(data, net.backbone), data.ids("train")
    assert affinity_of(net, seen, ids[0], OFFSETS, "mean", border=4).device == gpu
    monkeypatch.setattr(FakeTensor, "tolist", lambda tensor: [tensor.device.type] * 3)
    monkeypatch.setattr(FakeTensor, "__getitem__", _values_of_a_mask)
    means = mean_affinities(net, seen, ids, data.mask, OFFSETS)
    assert means == {"background": "cpu", "foreground": "cpu", "negative": "cpu"}


def _values_of_a_mask(tensor: FakeTensor, index) -> Tensor:
    """Indexing by a mask, whose result has a size that depends on values."""
    if isinstance(index, Tensor) and index.dtype == torch.bool:
        assert index.device == tensor.device
        return tensor.new_zeros(1)
    return Tensor.__getitem__(tensor, index)


@pytest.mark.parametrize("pooling", [False, True])
def test_the_walk_of_an_image_starts_from_files_and_ends_on_the_cpu(
    gpu, data, walk_of, saved, tmp_path: Path, pooling: bool
):
    ids, walk = data.ids("train"), walk_of(4, pooling, pad_to=8)
    affinity = walk.affinity(ids[0])
    assert affinity.device == gpu
    for t in (0, 1, 256):
        tags, walked = walk.walked(ids[0], 8, t, affinity)
        assert walked.device.type == "cpu" and len(walked) == 1 + len(tags)
    walk.write(ids, tmp_path / "walked", 8, 256)
    assert [scores.device.type for scores in saved] == ["cpu", "cpu"]


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("name", BACKBONES)
def test_predictions_of_all_scales_and_mirrored_come_from_the_gpu(gpu, data, name, mixed):
    with gpu:
        net = SegmentationNet(build_backbone(name), CLASSES, width=8).eval()
    fast = for_inference(net, mixed)
    scores = predict(fast, Looked(data, net.backbone), data.ids("train")[0], [0.5, 1], True)
    assert (scores.device.type, scores.dtype) == ("cpu", torch.float32)
    assert scores.shape == (CLASSES + 1, 40, 40)


def test_the_figure_of_notebook_4_walks_where_the_affinities_are(data, walk_of, monkeypatch):
    ids, walk = data.ids("train"), walk_of()
    shown = []
    monkeypatch.setattr(plots, "show", lambda rows, *words, **more: shown.extend(rows))
    monkeypatch.setattr(plots, "overlay", lambda image, scores: scores.device.type)
    (cell,) = [code for code in code_of("04_random_walk") if "for s in steps" in code]
    names = {"np": np, "plots": plots, "cam": cam, "data": data, "ids": ids, "walk": walk}
    names |= {"config": SimpleNamespace(beta=8)}
    exec(cell, names)  # noqa: S102 - our own cell
    assert [walked for row in shown for walked in row[1:]] == ["cpu"] * 5 * len(ids)

"""Weight files: each kind ends where it should, and what does not fit is refused."""

from __future__ import annotations

import argparse
import pickle
import struct
import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from affinity_lib.backbones import SmallBackbone, build_backbone
from affinity_lib.backbones.base import IMAGENET_MEAN, IMAGENET_STD
from affinity_lib.backbones.resnet38 import ResNet38
from affinity_lib.backbones.vgg16 import VGG16
from affinity_lib.backbones.weights import (
    WRAPPERS,
    fill_backbone,
    load_backbone,
    load_network,
    read_weights,
)
from affinity_lib.cam import CAMNet
from affinity_lib.errors import InputError
from affinity_lib.segmentation import SegmentationNet

# MXNet's names of ResNet38's blocks -> the authors' names
BLOCKS = {
    "2a": "b2",
    "2b1": "b2_1",
    "2b2": "b2_2",
    "3a": "b3",
    "3b1": "b3_1",
    "3b2": "b3_2",
    "4a": "b4",
    "4b1": "b4_1",
    "4b2": "b4_2",
    "4b3": "b4_3",
    "4b4": "b4_4",
    "4b5": "b4_5",
    "5a": "b5",
    "5b1": "b5_1",
    "5b2": "b5_2",
    "6a": "b6",
    "7a": "b7",
}
NORM = {
    "arg:{}_gamma": "weight",
    "arg:{}_beta": "bias",
    "aux:{}_moving_mean": "running_mean",
    "aux:{}_moving_var": "running_var",
}


def mxnet_names() -> dict[str, str]:
    """All names of the ImageNet file that the backbone uses -> the authors' names."""
    names = {"arg:conv1a_weight": "conv1a.weight"}
    norms = {"bn7": "bn7"}
    for mxnet, ours in BLOCKS.items():
        deep = mxnet in ("6a", "7a")
        branches = ["branch2a", "branch2b1"] + ["branch2b2"] * deep
        for branch in branches + ["branch1"] * mxnet.endswith("a"):
            names[f"arg:res{mxnet}_{branch}_weight"] = f"{ours}.conv_{branch}.weight"
        for branch in branches:
            norms[f"bn{mxnet}_{branch}"] = f"{ours}.bn_{branch}"
    for theirs, ours in norms.items():
        names |= {key.format(theirs): f"{ours}.{kind}" for key, kind in NORM.items()}
    return names


@pytest.fixture(scope="module")
def resnet38() -> ResNet38:
    with torch.device("meta"):
        network = ResNet38()
    return network.to_empty(device="cpu")


@pytest.fixture
def small() -> SmallBackbone:
    torch.manual_seed(0)
    return build_backbone("small")


@pytest.mark.parametrize("kind", ["mxnet", "authors"])
def test_resnet38_takes_every_tensor_of_both_kinds_of_file(resnet38, kind):
    shapes = {k: v.shape for k, v in resnet38.state_dict().items() if "batches" not in k}
    names = mxnet_names()
    assert sorted(names.values()) == sorted(shapes)
    numbers = {ours: float(i) for i, ours in enumerate(shapes)}
    file = {
        theirs if kind == "mxnet" else ours: torch.tensor(numbers[ours]).expand(shapes[ours])
        for theirs, ours in names.items()
    }
    file |= {"arg:linear1000_weight": torch.ones(1000, 8), "fc8.weight": torch.ones(20, 8, 1, 1)}
    assert fill_backbone(resnet38, file, kind) == []
    filled = resnet38.state_dict()
    assert {k: filled[k].flatten()[-1].item() for k in shapes} == numbers


def test_a_params_file_is_recognised_by_its_content(tmp_path):
    file = tmp_path / "weights.bin"
    legacy = struct.pack("<II3i3f", 1, 3, 1, 0, 0, 1.0, 2.0, 3.0)
    name = b"arg:conv1a_weight"
    file.write_bytes(
        struct.pack("<3Q", 0x112, 0, 1) + legacy + struct.pack("<2Q", 1, len(name)) + name
    )
    assert read_weights(file)["arg:conv1a_weight"].tolist() == [1.0, 2.0, 3.0]
    with torch.device("meta"):
        network = ResNet38()
    with pytest.raises(InputError, match="fills 0% of ResNet38.* missing: conv1a.weight .* more;"):
        load_backbone(network, file)


def test_vgg16_takes_torchvisions_convolutions_and_thins_the_connected_layers():
    with torch.device("meta"):
        shapes = torchvision.models.vgg16().state_dict()
    file = {k: torch.randn(v.shape) for k, v in shapes.items() if k.startswith("features")}
    rows = torch.arange(4096).remainder(251).to(torch.uint8)
    cells = torch.arange(49, dtype=torch.uint8)
    file["classifier.0.weight"] = cells.repeat(4096, 512)
    file["classifier.0.bias"] = rows
    file["classifier.3.weight"] = rows.expand(4096, 4096)
    file["classifier.3.bias"] = rows
    network = VGG16()
    assert fill_backbone(network, file, "torchvision") == []
    for key, value in network.features.state_dict().items():
        assert torch.equal(value, file[f"features.{key}"])
    assert network.fc6.weight[5, 7].flatten().tolist() == [0, 3, 6, 21, 24, 27, 42, 45, 48]
    every_fourth = rows[::4].float()
    assert torch.equal(network.fc6.bias, every_fourth)
    assert torch.equal(network.fc7.bias, every_fourth)
    assert torch.equal(network.fc7.weight[3, :, 0, 0], every_fourth)


def test_vgg16s_tensors_of_foreign_shapes_are_refused_and_not_tripped_over():
    with torch.device("meta"):
        network = VGG16()
    scalar = torch.ones(())
    for names in (("features.0", "classifier.0", "classifier.3"), ("conv1_1", "fc6", "fc7")):
        file = {f"{name}.{kind}": scalar for name in names for kind in ("weight", "bias")}
        file[f"{names[1]}.weight"] = torch.ones(1).expand(4096, 512 * 49)
        with pytest.raises(InputError, match=r"fills \d% of VGG16"):
            fill_backbone(network, file, "file")


def test_vgg16_without_its_connected_layers_is_refused():
    with torch.device("meta"):
        network = VGG16()
    file = {k: v for k, v in network.state_dict().items() if k.startswith("features")}
    with pytest.raises(InputError, match=r"fills 72% .* fc6.weight, fc6.bias, fc7.weight"):
        fill_backbone(network, file, "features.pth")


@torch.inference_mode()
def test_the_authors_vgg16_sees_our_images_as_it_saw_caffes():
    network = VGG16().eval()
    names = [f"conv{i + 1}_{j + 1}" for i, n in enumerate((2, 2, 3, 3, 3)) for j in range(n)]
    modules = [key.removesuffix(".weight") for key in network.state_dict() if "weight" in key]
    file = {}
    for theirs, ours in zip([*names, "fc6", "fc7"], modules, strict=True):
        module = network.get_submodule(ours)
        file[f"{theirs}.weight"] = torch.randn_like(module.weight) / 100
        file[f"{theirs}.bias"] = torch.randn_like(module.bias)
    assert fill_backbone(network, file, "vgg16.pth") == []
    assert torch.equal(network.fc7.weight, file["fc7.weight"])
    assert torch.equal(network.features[28].weight, file["conv5_3.weight"])

    rgb = torch.rand(1, 3, 12, 12)
    bgr = (255 * rgb - torch.tensor([122.675, 116.669, 104.008]).view(3, 1, 1)).flip(1)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    theirs = torch.conv2d(bgr, file["conv1_1.weight"], file["conv1_1.bias"], padding=1)
    ours = network.features[0]((rgb - mean) / std)
    inner = (..., slice(1, -1), slice(1, -1))  # at the border theirs pads with Caffe's mean
    torch.testing.assert_close(ours[inner], theirs[inner], atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(ours, theirs, atol=0.2, rtol=0)


@torch.inference_mode()
def test_timms_resnet50_with_torchvisions_weights_is_torchvisions_atrous_network(tmp_path):
    atrous = [False, True, True]
    theirs = torchvision.models.resnet50(replace_stride_with_dilation=atrous).eval()
    torch.save(theirs.state_dict(), tmp_path / "resnet50.pth")
    ours = build_backbone("resnet50", 8, weights=str(tmp_path / "resnet50.pth")).eval()
    image = torch.randn(1, 3, 33, 40)
    expected = torch.nn.Sequential(*list(theirs.children())[:-2])(image)
    torch.testing.assert_close(ours(image).top, expected, atol=1e-3, rtol=1e-3)


def as_network(prefix: str) -> Callable[[dict], dict]:
    """The backbone's tensors within those of a network."""
    return lambda tensors: (
        {f"{prefix}{k}": v for k, v in tensors.items()}
        | {f"{prefix.replace('backbone', 'head')}last.weight": torch.ones(3)}
    )


LAYOUTS = {
    "alone": dict,
    "within a network": as_network("backbone."),
    "within a parallel network": as_network("module.backbone."),
    "within two wrappers": as_network("module.module."),
    "compiled": as_network("_orig_mod.backbone."),
    "within a trainer": as_network("model.encoder."),
}
WRAPS = {
    **{key: lambda t, key=key: {key: t, "epoch": 3} for key in WRAPPERS},
    "two deep": lambda t: {"checkpoint": {"model": t}, "step": torch.tensor(3)},
    "beside an optimizer": lambda t: {"model": t, "optimizer": {"state": {0: {"exp_avg": t}}}},
    "under another name": lambda t: {"generator": t, "optimizer": {"state": {0: torch.ones(2)}}},
    "beside its average": lambda t: {
        "state_dict": t,
        "ema": {k: torch.zeros_like(v) for k, v in t.items()},
    },
    "beside arguments": lambda t: {
        "net": t,
        "args": argparse.Namespace(lr=0.1, out=Path("runs"), best=np.float64(0.5)),
        "history": np.arange(3),
    },
    "as arrays": lambda t: {k: v.numpy() for k, v in t.items()},
    "as arrays in Fortran's order": lambda t: {
        k: np.asfortranarray(v.numpy()) for k, v in t.items()
    },
    "as big-endian arrays": lambda t: {
        k: v.numpy().astype(v.numpy().dtype.newbyteorder(">")) for k, v in t.items()
    },
    "as parameters": lambda t: {
        k: nn.Parameter(v) if v.is_floating_point() else v for k, v in t.items()
    },
}


def comes_back(small: SmallBackbone, file: Path) -> None:
    other = SmallBackbone()
    assert load_backbone(other, file) == []
    for key, value in small.state_dict().items():
        assert torch.equal(value, other.state_dict()[key])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_backbones_own_weights_come_back_alone_or_within_a_network(
    tmp_path, small, layout, suffix
):
    tensors, file = LAYOUTS[layout](small.state_dict()), tmp_path / f"weights{suffix}"
    save = safetensors.torch.save_file if suffix == ".safetensors" else torch.save
    save(tensors, file)
    comes_back(small, file)


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("zipped", [True, False])
def test_a_state_dict_is_found_wherever_a_checkpoint_keeps_it(tmp_path, small, wrap, zipped):
    content, file = WRAPS[wrap](dict(small.state_dict())), tmp_path / "checkpoint.pth"
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    comes_back(small, file)


def test_older_and_newer_numpys_names_are_known_alike(tmp_path, small):
    content = {"model": small.state_dict(), "args": argparse.Namespace(best=np.float32(0.5))}
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    saved, names = (tmp_path / "a.pth").read_bytes(), (b"numpy._core", b"numpy.core")
    here, other = names if names[0] in saved else names[::-1]
    assert here in saved
    (tmp_path / "a.pth").write_bytes(saved.replace(here, other))
    comes_back(small, tmp_path / "a.pth")


def test_a_checkpoint_of_two_networks_is_not_guessed_at(tmp_path, small):
    tensors = dict(small.state_dict())
    torch.save({"student": tensors, "teacher": tensors}, tmp_path / "two.pth")
    with pytest.raises(InputError, match=r"two.pth holds several state dicts, student, teacher: "):
        load_backbone(SmallBackbone(), tmp_path / "two.pth")
    both = as_network("encoder_q.")(tensors) | as_network("encoder_k.")(tensors)
    with pytest.raises(InputError, match="more than once, as encoder_q. and encoder_k.: save the"):
        fill_backbone(SmallBackbone(), both, "moco.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<!DOCTYPE html><html>Sign in</html>", "it is a page of a website: download the file"),
        (b"\xef\xbb\xbf\n <html>Sign in</html>", "it is a page of a website"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n", "git lfs pull"),
        (b'{"message": "Not Found"}', "it is JSON, often a server's message"),
        (b"\x89HDF\r\n\x1a\n" + bytes(40), "it is HDF5, as Keras writes it"),
        (b"\x1f\x8b\x08" + bytes(40), "packed with gzip: unpack it"),
        (b"", "is empty; fetch it again"),
        (b"PK\x03\x04" + bytes(40), "must be MXNet's .params, a PyTorch state dict or safetensors"),
    ],
)
def test_what_was_saved_under_the_name_of_weights_is_called_what_it_is(tmp_path, content, message):
    file = tmp_path / "resnet38.params"
    file.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_weights(file)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore")
def test_a_whole_network_or_program_is_not_run_and_the_remedy_is_told(tmp_path, small):
    torch.save(small, tmp_path / "whole.pth")
    words = (
        r"needs the code of affinity_lib\.backbones\.small\.SmallBackbone, which is not run; load"
    )
    with pytest.raises(InputError, match=words):
        read_weights(tmp_path / "whole.pth")
    torch.jit.save(torch.jit.script(nn.ReLU()), tmp_path / "program.pt")
    with pytest.raises(
        InputError, match="is a TorchScript program, which is not run; load it with"
    ):
        read_weights(tmp_path / "program.pt")


def test_half_precision_files_fill_a_single_precision_backbone(small):
    file = {k: v.half() for k, v in small.state_dict().items()}
    other = SmallBackbone()
    fill_backbone(other, file, "half")
    assert other.stem[0].weight.dtype == torch.float32
    torch.testing.assert_close(other.stem[0].weight, small.stem[0].weight, atol=1e-3, rtol=1e-3)


def test_a_file_that_lacks_a_little_is_taken_with_a_warning(small):
    file = small.state_dict()
    del file["stem.0.weight"]
    with pytest.warns(UserWarning, match="had no stem.0.weight: left"):
        assert fill_backbone(SmallBackbone(), file, "file") == ["stem.0.weight"]


def test_a_full_file_gives_no_warning(small):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fill_backbone(SmallBackbone(), small.state_dict(), "file")


@pytest.mark.parametrize("lost", ["running_", "stage3.0.0.weight"])
def test_a_file_that_fills_too_few_tensors_or_values_is_refused_and_changes_nothing(small, lost):
    before = {k: v.clone() for k, v in small.state_dict().items()}
    file = {k: torch.zeros_like(v) for k, v in before.items() if lost not in k}
    with pytest.raises(InputError, match="at least 90% are needed; missing: .*; take") as caught:
        fill_backbone(small, file, "file")
    assert all(k in caught.value.__notes__[0] for k in before if lost in k)
    assert all(torch.equal(v, before[k]) for k, v in small.state_dict().items())


def test_tensors_of_other_shapes_are_missing_and_both_shapes_are_named(small):
    file = {k: torch.zeros(*v.shape, 1) for k, v in small.state_dict().items()}
    with pytest.raises(InputError, match=r"\(32, 3, 3, 3, 1\) instead of \(32, 3, 3, 3\)"):
        fill_backbone(small, file, "file")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_file_with_numbers_that_are_none_is_refused(small, value):
    file = small.state_dict()
    file["stem.1.running_var"] = torch.full((32,), value)
    with pytest.raises(InputError, match="NaN or infinity in stem.1.running_var"):
        fill_backbone(SmallBackbone(), file, "file")


class Forged:
    """Unpickled carelessly, it would write a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_forged_pickle_is_refused_and_not_run(tmp_path, legacy):
    trace = tmp_path / "trace"
    torch.save(
        {"conv1a.weight": Forged(trace)},
        tmp_path / "forged.pth",
        _use_new_zipfile_serialization=not legacy,
    )
    (tmp_path / "bare.pth").write_bytes(pickle.dumps({"conv1a.weight": Forged(trace)}, protocol=2))
    for name in ("forged.pth", "bare.pth"):
        with pytest.raises(InputError, match=f"{name} holds no weights that can be read safely"):
            read_weights(tmp_path / name)
    assert not trace.exists()


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, torch.ones(3)])
def test_a_file_without_a_state_dict_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(InputError, match="other.pth holds no state dict"):
        read_weights(tmp_path / "other.pth")


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match="cannot read weights .*gone.pth"):
        read_weights(tmp_path / "gone.pth")
    with pytest.raises(InputError, match="cannot read weights"):
        read_weights(tmp_path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@settings(max_examples=60, deadline=None)
@given(data=st.data(), kind=st.sampled_from(["zip", "pickle", "safetensors", "noise"]))
def test_damaged_files_give_tensors_or_a_clear_error(tmp_path_factory, data, kind):
    file = tmp_path_factory.mktemp("damaged") / "weights"
    place = st.integers(0, 2**12)  # pickles hold addresses: they differ in length from run to run
    tensors = {"a": torch.arange(6.0), "b": torch.ones(2, 2)}
    if kind == "safetensors":
        whole = bytearray(safetensors.torch.save(tensors))
    elif kind == "noise":
        whole = bytearray(data.draw(st.binary(min_size=1, max_size=64)))
    else:
        content = {"net": tensors | {"c": np.ones((2, 3), ">f4")}, "best": np.float64(0.5)}
        torch.save(content, file, _use_new_zipfile_serialization=kind == "zip")
        whole = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(place) % len(whole)] = data.draw(st.integers(0, 255))
    file.write_bytes(whole[: data.draw(place) % (len(whole) + 1)])
    try:
        read = read_weights(file)
    except InputError:
        return
    assert all(isinstance(value, torch.Tensor) for value in read.values())


def test_a_length_of_gigabytes_takes_no_memory_where_it_is_only_announced(tmp_path):
    file = tmp_path / "weights.pth"
    file.write_bytes(b"\x80\x02X\xff\xff\xff\x7fcut")
    tracemalloc.start()
    with pytest.raises(InputError, match="holds no weights that can be read safely"):
        read_weights(file)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**24


@pytest.fixture
def saved(tmp_path) -> Path:
    """A CAM network of five classes, as notebook 1 leaves it."""
    net = CAMNet(SmallBackbone(), num_classes=5, width=8)
    safetensors.torch.save_file(net.state_dict(), tmp_path / "network.safetensors")
    return tmp_path / "network.safetensors"


def not_loaded(network: torch.nn.Module, path: Path, words: str) -> None:
    before = {k: v.clone() for k, v in network.state_dict().items()}
    with pytest.raises(InputError, match=words) as caught:
        load_network(network, path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


def test_a_network_comes_back_as_it_was_saved(saved):
    network = CAMNet(SmallBackbone(), num_classes=5, width=8)
    load_network(network, saved)
    tensors = read_weights(saved)
    assert all(torch.equal(v, tensors[k]) for k, v in network.state_dict().items())


def test_a_network_of_another_class_count_is_refused_with_both_shapes(saved):
    network = CAMNet(SmallBackbone(), num_classes=20, width=8)
    words = (
        r"network\.safetensors does not fit CAMNet: classifier\.weight is \(5, 8\) in the file "
        r"and \(20, 8\) in the network; set preset, classes and widths"
    )
    not_loaded(network, saved, words)


def test_a_segmentation_network_of_another_class_count_is_refused_too(tmp_path):
    net = SegmentationNet(SmallBackbone(), num_classes=5, width=8)
    safetensors.torch.save_file(net.state_dict(), tmp_path / "network.safetensors")
    words = r"head\.3\.weight is \(6, 8, 3, 3\) in the file and \(4, 8, 3, 3\) in the network"
    network = SegmentationNet(SmallBackbone(), num_classes=3, width=8)
    not_loaded(network, tmp_path / "network.safetensors", words)


def test_another_network_is_refused_with_the_first_tensor_that_differs(saved):
    network = SegmentationNet(SmallBackbone(), num_classes=5, width=8)
    not_loaded(
        network, saved, r"head\.0\.weight is missing in the file and \(.*; set preset, classes"
    )
    headless = CAMNet(SmallBackbone(), num_classes=5, head="linear")
    not_loaded(
        headless,
        saved,
        r"does not fit CAMNet: classifier\.weight is \(5, 8\) .*; set preset, classes",
    )


def test_a_network_with_numbers_that_are_none_is_refused(saved):
    network = CAMNet(SmallBackbone(), num_classes=5, width=8)
    tensors = read_weights(saved)
    tensors["neck.0.bias"][3] = float("nan")
    safetensors.torch.save_file(tensors, saved)
    not_loaded(network, saved, r"NaN or infinity in neck\.0\.bias; train it again")


def test_a_network_file_that_is_not_there_is_named(tmp_path):
    network = CAMNet(SmallBackbone(), num_classes=5, width=8)
    not_loaded(network, tmp_path / "network.safetensors", "cannot read weights")

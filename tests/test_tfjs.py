"""TensorFlow.js models are read whole, and damaged or hostile ones are refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from affinity_lib.backbones.tfjs import read_tfjs
from affinity_lib.errors import InputError

ARRAYS = {
    "conv/kernel": np.arange(24, dtype="<f4").reshape(2, 3, 4),
    "conv/bias": np.arange(4, dtype="<f4") / 3,
    "steps": np.array(7, "<i4"),
    "none": np.zeros((0, 5), "<f4"),
}
NAMES = {"<f4": "float32", "<i4": "int32"}


def manifest(arrays: dict[str, np.ndarray], paths: list[str]) -> dict:
    weights = [
        {"name": name, "shape": list(a.shape), "dtype": NAMES[a.dtype.str]}
        for name, a in arrays.items()
    ]
    return {"paths": paths, "weights": weights}


def save(folder: Path, arrays=ARRAYS, size: int = 30) -> Path:
    """A model in one group, cut into shards of ``size`` bytes as the converter cuts them."""
    data = b"".join(a.tobytes() for a in arrays.values())
    shards = [data[k : k + size] for k in range(0, len(data), size)]
    paths = [f"group1-shard{k + 1}of{len(shards)}.bin" for k in range(len(shards))]
    for name, shard in zip(paths, shards, strict=True):
        (folder / name).write_bytes(shard)
    path = folder / "model.json"
    path.write_text(json.dumps({"weightsManifest": [manifest(arrays, paths)]}))
    return path


def change(path: Path, edit) -> None:
    model = json.loads(path.read_text())
    edit(model["weightsManifest"][0])
    path.write_text(json.dumps(model))


def test_arrays_come_back_across_the_borders_of_shards(tmp_path):
    found = read_tfjs(save(tmp_path))
    assert list(found) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_several_groups_have_shards_of_their_own(tmp_path):
    groups = []
    for k, (name, array) in enumerate(ARRAYS.items()):
        (tmp_path / f"{k}.bin").write_bytes(array.tobytes())
        groups.append(manifest({name: array}, [f"{k}.bin"]))
    (tmp_path / "model.json").write_text(json.dumps({"weightsManifest": groups}))
    found = read_tfjs(tmp_path / "model.json")
    assert all(np.array_equal(found[name], array) for name, array in ARRAYS.items())


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda g: g.pop("paths"), "KeyError"),
        (lambda g: g["weights"].append(3), "TypeError"),
        (lambda g: g["weights"][0].update(shape=[-2, 3, 4]), r"has the shape \[-2, 3, 4\]"),
        (lambda g: g["weights"][0].update(shape=[10**30]), "where its shapes need"),
        (lambda g: g["weights"][0].update(shape=[2, 3, 5]), "hold 116 bytes .* need 140"),
        (lambda g: g["weights"][0].update(dtype="string"), "conv/kernel is of type string"),
        (lambda g: g["weights"][0].update(quantization={}), "conv/kernel is quantised"),
        (lambda g: g["paths"].append("../other.bin"), "not a file beside it"),
        (lambda g: g["paths"].append("/etc/passwd"), "not a file beside it"),
        (lambda g: g["paths"].append(".."), "not a file beside it"),
        (lambda g: g["paths"].append("gone.bin"), "cannot read .*gone.bin .No such file"),
    ],
)
def test_what_is_no_whole_model_is_refused(tmp_path, edit, message):
    path = save(tmp_path)
    change(path, edit)
    with pytest.raises(InputError, match=message):
        read_tfjs(path)


def test_a_shard_that_was_cut_off_is_refused(tmp_path):
    path = save(tmp_path)
    shard = tmp_path / "group1-shard2of4.bin"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(InputError, match="hold 115 bytes where its shapes need 116"):
        read_tfjs(path)


@given(data=st.binary(max_size=200))
@settings(max_examples=50)
def test_bytes_that_are_no_model_give_an_error(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("any") / "model.json"
    path.write_bytes(data)
    with pytest.raises(InputError, match="not a usable TensorFlow.js model.json"):
        read_tfjs(path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["paths", "weights", "name", "shape", "dtype"]), inner, max_size=5
        )
    ),
    max_leaves=12,
)


@given(groups=json_values)
@settings(max_examples=100)
def test_a_manifest_of_anything_gives_arrays_or_an_error(tmp_path_factory, groups):
    path = tmp_path_factory.mktemp("any") / "model.json"
    path.write_text(json.dumps({"weightsManifest": groups}))
    try:
        assert all(isinstance(a, np.ndarray) for a in read_tfjs(path).values())
    except InputError as error:
        assert str(path.parent) in str(error)

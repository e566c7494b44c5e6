"""What a result depends on, and whether it is up to date: the one notion of it, whoever asks.

A result, such as a folder of CAMs, is made by a cell of a notebook. It depends on

* the code that its making needs: that cell, and of the statements before it those that bind or
  change a name which is needed (found by going backwards), without comments and docstrings;
* the settings that were read, or are named in that code;
* what it reads: the data set, the results of earlier notebooks and earlier ones of its own;
* the modules of the library that this code comes to import, without comments and docstrings; those
  that run notebooks or draw cannot change a number and do not count;
* the versions of the packages that compute, and the kind of device.

All of it is noted beside the result. A result is kept while none of it has changed.
"""

from __future__ import annotations

import ast
import builtins
import hashlib
import importlib.metadata
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

from IPython.core.inputtransformer2 import TransformerManager

LIBRARY = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "torchvision", "timm", "pydensecrf2", "pydensecrf", "numpy", "scipy")
"""The packages whose versions can change a number."""

SPEED = ("workers", "nproc", "device")
"""The settings that change no number but by rounding; the kind of device is noted by itself."""

_SHOWS = ("affinity_lib.plots", "affinity_lib.showing", "matplotlib", "IPython", "tqdm")
_RUNS = ("affinity_lib.running", "affinity_lib.showing", "affinity_lib.__main__")


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What of the things that a result was made with is another one now, in words.

    Args:
        old: the note of a result: code, settings, inputs, library, packages, machine.
        new: the same, as it is now; it may have more settings and inputs.

    >>> differences({"code": "a", "settings": {"t": 256}}, {"code": "a", "settings": {"t": 64}})
    ['t 256 -> 64']
    """
    found = ["its code"] if old.get("code") != new.get("code") else []
    for part, words in (
        ("settings", "{name} {old} -> {new}"),
        ("library", "{name}"),
        ("packages", "{name} {old} -> {new}"),
        ("machine", "{name} {old} -> {new}"),
        ("inputs", "{name}"),
    ):
        before, after = old.get(part) or {}, new.get(part) or {}
        for name in sorted(before if part in ("settings", "inputs") else {*before, *after}):
            if before.get(name) != after.get(name):
                found.append(words.format(name=name, old=before.get(name), new=after.get(name)))
    return found


def plain(source: str) -> str:
    """Python code as it runs: without comments, docstrings and layout.

    >>> plain('x = (1,\\n  2)  # two\\ndef f():\\n    "Says so."\\n    return x')
    'x = (1, 2)\\n\\ndef f():\\n    return x'
    """
    try:
        tree = ast.parse(TransformerManager().transform_cell(source))
    except SyntaxError:  # whoever runs it will say so
        return source
    for node in ast.walk(tree):
        if isinstance(node, _DOCUMENTED) and node.body and _is_text(node.body[0]):
            node.body[:] = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


def needed_cells(cells: Sequence[str]) -> list[str]:
    """The statements of some cells that the last cell needs, each in its cell, and the last cell.

    Going backwards, a statement is needed if it binds or may change a name that is needed. Calls
    that only draw, print or assert change nothing.

    >>> needed_cells(["a = 1\\nb = 2", "print(b)", "b = 3", "c = a"])
    ['a = 1', '', '', 'c = a']
    """
    trees = [*map(_statements, cells[:-1]), ast.parse(plain(cells[-1])).body]
    shows = {"print", "display"} | _bound_to(chain.from_iterable(trees), _SHOWS)
    kept, needed = [[] for _ in trees], set()
    for place, statements in reversed([*enumerate(trees)]):
        for statement in reversed(statements):
            binds = _binds(statement)
            last = place == len(trees) - 1
            if not last and not (binds | _changes(statement, shows)) & needed:
                continue
            if isinstance(statement, ast.Import | ast.ImportFrom) and not last:
                statement.names = [a for a in statement.names if _bound_name(a) in needed]
            if isinstance(statement, _REPLACES):
                needed -= binds
            needed |= _loads(statement)
            kept[place].insert(0, ast.unparse(statement))
    return ["\n".join(statements) for statements in kept]


def named_settings(code: str) -> set[str]:
    """The settings that some code names, as in ``config.beta``.

    >>> sorted(named_settings("walk(maps, config.beta, config.t)"))
    ['beta', 't']
    """
    return set(re.findall(r"\bconfig\.(\w+)", code))


def library(code: str, figures: bool = False) -> dict[str, str]:
    """Module -> hash, for all of the library that some code comes to import and that counts.

    Args:
        code: Python.
        figures: count what draws, too.
    """
    waiting, found = _library_imports(code), {}
    while waiting:
        name = waiting.pop()
        if name in found or name.startswith(_SHOWS) and not figures:
            continue
        found[name], imports = _module(name)
        waiting |= imports
    counts = {name: value for name, value in found.items() if value}
    return {name: value for name, value in sorted(counts.items()) if not name.startswith(_RUNS)}


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Name -> version of those packages that are installed."""
    found = {}
    for name in packages:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def listing(folder: Path) -> str:
    """One hash over names and sizes of the files in a data set's folder."""
    try:
        lines = sorted(
            f"{path.relative_to(folder).as_posix()} {path.stat().st_size}"
            for path in folder.rglob("*")
            if path.is_file() and not path.name.startswith(".")
        )
    except (OSError, ValueError):  # a folder that cannot be, or cannot be read
        return ""
    return digest(lines)


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(value: Any) -> str:
    """SHA-256 of a JSON value.

    >>> digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    True
    """
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


_REPLACES = (
    ast.Assign, ast.AnnAssign, ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef,
)  # fmt: skip
"""The statements after which a name no longer is what it was before them."""

_DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
_Comprehension = ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp


def _statements(cell: str) -> list[ast.stmt]:
    try:
        return ast.parse(plain(cell)).body
    except SyntaxError:
        return []


def _loads(node: ast.AST) -> set[str]:
    """The names that some code reads, but for those that it has bound itself."""
    inner = set().union(*map(_loads, ast.iter_child_nodes(node)))
    if isinstance(node, ast.Name):
        return set() if _is_store(node) or hasattr(builtins, node.id) else {node.id}
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | _Comprehension):
        return inner - _stores(node) - _arguments(node)
    if isinstance(node, ast.Lambda):
        return inner - _arguments(node)
    if isinstance(node, ast.For):
        return inner - _stores(node.target) | _loads(node.iter)
    return inner


def _stores(node: ast.AST) -> set[str]:
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and _is_store(n)}


def _arguments(node: ast.AST) -> set[str]:
    return {argument.arg for argument in ast.walk(node) if isinstance(argument, ast.arg)}


def _binds(statement: ast.stmt) -> set[str]:
    """The names that a statement binds; within ``if``, ``for`` and the like it may bind them."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {statement.name}
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return set(map(_bound_name, statement.names))
    found = {statement.id} if isinstance(statement, ast.Name) and _is_store(statement) else set()
    if isinstance(statement, ast.Lambda | _Comprehension):
        return found
    return found.union(*map(_binds, ast.iter_child_nodes(statement)))


def _bound_name(alias: ast.alias) -> str:
    return alias.asname or alias.name.split(".")[0]


def _changes(node: ast.AST, shows: set[str]) -> set[str]:
    """The names whose objects a statement may change: by assigning into them, or in a bare call."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Lambda):
        return set()
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        callee = ast.unparse(node.value.func)
        only_shows = _base(node.value.func) in shows or callee.startswith("torch.testing.")
        return set() if only_shows else _loads(node)
    if isinstance(node, ast.Attribute | ast.Subscript) and _is_store(node):
        return {_base(node)}
    if isinstance(node, ast.AugAssign):
        return {_base(node.target)}
    return set().union(*(_changes(child, shows) for child in ast.iter_child_nodes(node)))


def _base(node: ast.AST) -> str:
    """The name that an expression such as ``a.b[0].c(d)`` begins with."""
    while not isinstance(node, ast.Name):
        inner = getattr(node, "value", None) or getattr(node, "func", None)
        if not isinstance(inner, ast.AST):
            return ""
        node = inner
    return node.id


def _bound_to(statements: Iterable[ast.stmt], modules: tuple[str, ...]) -> set[str]:
    """The names that imports bind to some modules or to what is in them."""
    return {bound for name, bound in _imported(statements) if name.startswith(modules)}


def _imported(nodes: Iterable[ast.AST]) -> Iterator[tuple[str, str]]:
    """The dotted name of each thing that is imported, and the name that it is bound to."""
    for node in nodes:
        if isinstance(node, ast.Import | ast.ImportFrom):
            of = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            yield from ((f"{of}{alias.name}", _bound_name(alias)) for alias in node.names)


def _is_store(node: ast.AST) -> bool:
    return isinstance(node.ctx, ast.Store | ast.Del)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


@cache  # of all: lru_cache would keep 128, and there are more
def _module(name: str) -> tuple[str, frozenset[str]]:
    """The hash of a module of the library, empty for what is none, and what it imports."""
    base = LIBRARY.joinpath(*name.split("."))
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.is_file():
            code = plain(path.read_text(encoding="utf-8"))
            return digest(code), frozenset(_library_imports(code))
    return "", frozenset()


def _library_imports(code: str) -> set[str]:
    """Every dotted name of the library that an import may mean, and the packages that hold it."""
    try:
        tree = ast.parse(code)
    except SyntaxError:
        return set()
    parts = [name.split(".") for name, _ in _imported(ast.walk(tree))]
    parts = [part for part in parts if part[0] == "affinity_lib"]
    return {".".join(part[: k + 1]) for part in parts for k in range(len(part))}

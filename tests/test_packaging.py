from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import affinity_lib

ROOT = Path(affinity_lib.__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NEEDED = [
    Requirement(line) for line in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["test"]
]
NAMES_IN_CONDA = {"pytorch-cpu": "torch"}
ONLY_IN_CONDA = {"python", "pip", "cxx-compiler"}


def pins(lines: list[str]) -> dict[str, str]:
    found = {}
    for line in lines:
        if not line.startswith(("#", "-e")):
            name, version = re.fullmatch(r"([\w.-]+)==?([\w.]+)", line).groups()
            found[canonicalize_name(name)] = version
    return found


@pytest.fixture(scope="module")
def constraints() -> dict[str, str]:
    return pins((ROOT / "constraints.txt").read_text(encoding="utf-8").split("\n")[:-1])


@pytest.fixture(scope="module")
def conda() -> dict:
    return yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("needed", NEEDED, ids=str)
def test_constraints_pin_a_version_that_the_project_accepts(needed, constraints):
    assert needed.specifier.contains(constraints[canonicalize_name(needed.name)])


def test_conda_environment_has_exactly_the_projects_packages_at_the_pinned_versions(
    constraints, conda
):
    *plain, by_pip = conda["dependencies"]
    versions = pins([line for line in plain if line not in ONLY_IN_CONDA] + by_pip["pip"])
    python = versions.pop("python")
    versions = {NAMES_IN_CONDA.get(name, name): version for name, version in versions.items()}
    names = {canonicalize_name(needed.name) for needed in NEEDED}
    assert versions == {name: constraints[name] for name in names}
    assert f"{python}.0" in Requirement(f"python{PROJECT['requires-python']}").specifier


def test_conda_environment_uses_conda_forge_alone(conda):
    assert conda["channels"] == ["conda-forge", "nodefaults"]


def test_constraints_leave_out_what_only_some_platforms_have(constraints):
    assert not [name for name in constraints if name.startswith(("nvidia", "cuda", "triton"))]


def test_the_versions_that_run_these_tests_are_the_pinned_ones(constraints):
    if os.environ.get("CONDA_PREFIX") or not (ROOT / ".venv/.ready").is_file():
        pytest.skip("not in the environment that make builds")
    assert {n.name: version(n.name) for n in NEEDED} == {
        n.name: constraints[canonicalize_name(n.name)] for n in NEEDED
    }


def test_version_of_the_package_is_the_librarys():
    assert "version" in PROJECT["dynamic"] and affinity_lib.__version__


def make(folder: Path, *words: str, path: str = os.environ["PATH"]) -> subprocess.CompletedProcess:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    environment = {**os.environ, "PATH": path, "MAKEFLAGS": "", "MAKELEVEL": "0"}
    return subprocess.run(
        ["make", "--no-print-directory", *words],
        check=False,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )


def test_make_lists_every_target_when_asked_for_help(tmp_path):
    shown = make(tmp_path, "help").stdout
    for target in ("run", "test", "long", "lab", "bench", "notebooks", "lint"):
        assert f"make {target} " in shown


@pytest.mark.parametrize("target", ["run", "test"])
def test_make_refuses_an_unsupported_python_in_one_sentence(tmp_path, target):
    python = tmp_path / "python9"
    python.write_text('#!/bin/sh\n[ "$1" = -V ] && echo Python 3.13.1 && exit 0\nexit 1\n')
    python.chmod(0o755)
    done = make(tmp_path, target, f"PYTHON={python}")
    sentence, end = done.stderr.strip().split("\n")
    assert sentence.startswith("Python 3.11 or 3.12 is needed") and "Python 3.13.1" in sentence
    assert end.startswith("make: ***") and done.returncode != 0
    assert not (tmp_path / ".venv").exists()


def test_make_says_when_there_is_no_such_python(tmp_path):
    done = make(tmp_path, "run", "PYTHON=python-that-is-not-there")
    assert "There is no 'python-that-is-not-there' here" in done.stderr and done.returncode != 0


def test_ci_runs_the_tests_without_a_terminal():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    long, test = script.read_text().rstrip().split("\n")[-2:]
    assert long == "make --no-print-directory long"
    assert test == "exec make --no-print-directory test"

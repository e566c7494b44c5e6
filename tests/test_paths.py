"""Where things lie."""

from __future__ import annotations

from pathlib import Path

import pytest

from affinity_lib.data import paths
from affinity_lib.data.paths import data_path, find_root
from affinity_lib.errors import InputError


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "project"
    (root / "notebooks").mkdir(parents=True)
    (root / "pyproject.toml").touch()
    monkeypatch.chdir(root)
    return root


@pytest.mark.parametrize("folder", [".", "notebooks"])
def test_the_root_is_found_from_the_project_and_from_its_notebooks(
    project: Path, monkeypatch: pytest.MonkeyPatch, folder: str
):
    monkeypatch.chdir(project / folder)
    assert find_root() == project


def test_from_elsewhere_the_root_is_the_checkout(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(paths, "__file__", str(project / "affinity_lib" / "data" / "paths.py"))
    monkeypatch.chdir(tmp_path)
    assert find_root() == project


def test_outside_of_any_project_the_remedy_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(paths, "__file__", str(tmp_path / "site-packages" / "a" / "b" / "paths.py"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="change to the project's folder"):
        find_root()


def test_the_data_set_is_found_from_the_project_or_where_the_variable_says(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("VOC_ROOT", str(tmp_path / "VOC2012"))
    assert data_path("data/toy") == project / "data" / "toy"
    assert data_path(str(tmp_path)) == tmp_path
    assert data_path("${VOC_ROOT}") == tmp_path / "VOC2012"
    assert data_path("~/VOC2012") == Path.home() / "VOC2012"
    monkeypatch.delenv("VOC_ROOT")
    with pytest.raises(InputError, match="set VOC_ROOT="):
        data_path("${VOC_ROOT}")
    with pytest.raises(InputError, match=r"no other variable, got \$\{HOME\}"):
        data_path("${HOME}")

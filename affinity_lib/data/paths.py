"""Where things lie: the project's folder, and data sets as a profile names them."""

from __future__ import annotations

import os
from pathlib import Path

from affinity_lib.errors import InputError


def find_root() -> Path:
    """The project's folder: the nearest one upwards with ``pyproject.toml`` and ``notebooks/``.

    papermill runs a notebook in the caller's folder, Jupyter and nbval in the notebook's; both
    are inside the project. From elsewhere it is the checkout that the package is imported from.

    Raises:
        InputError: neither the current folder nor the package lies in the project.

    >>> (find_root() / "notebooks").is_dir()
    True
    """
    here = Path.cwd()
    for folder in (here, *here.parents, Path(__file__).resolve().parents[2]):
        if (folder / "pyproject.toml").is_file() and (folder / "notebooks").is_dir():
            return folder
    raise InputError(f"{here} is not inside the project: change to the project's folder first")


def data_path(data_root: str) -> Path:
    """The folder of a data set, as a profile, the command line or papermill gives it.

    Args:
        data_root: relative paths start at the project's folder, ``~`` is yours, and
            ``${VOC_ROOT}`` stands for that environment variable.

    Raises:
        InputError: ``VOC_ROOT`` is not set, or another variable is named.

    >>> data_path("data/toy") == find_root() / "data" / "toy"
    True
    """
    return find_root() / Path(filled(data_root)).expanduser()


def filled(text: str) -> str:
    """The text with ``${VOC_ROOT}`` filled in; a relative one starts at the current folder.

    Raises:
        InputError: ``VOC_ROOT`` is not set, or another variable is named.
    """
    if "${VOC_ROOT}" in text:
        folder = os.environ.get("VOC_ROOT", "")
        if not folder:
            raise InputError(
                f"{text} needs the folder of the photographs: set VOC_ROOT=.../VOC2012"
            )
        text = text.replace("${VOC_ROOT}", str(Path(folder).expanduser().absolute()))
    if "${" in text:
        raise InputError(f"a setting may use ${{VOC_ROOT}} and no other variable, got {text}")
    return text

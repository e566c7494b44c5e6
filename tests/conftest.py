"""What all tests share: no deadlines on a busy machine, one thread, and how they spread over cores."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import settings

settings.register_profile("project", deadline=None)
settings.load_profile("project")
torch.set_num_threads(1)

LONG = ("test_chain",)
"""Files that take longest, so that they start first."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the tests of a file together, and the notebooks in their order, on one of xdist's workers."""
    for item in items:
        group = "notebooks" if item.path.suffix == ".ipynb" else item.path.stem
        item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=lambda item: _place(item.path))


def _place(path: Path) -> int:
    if path.suffix == ".ipynb":
        return -1
    return LONG.index(path.stem) if path.stem in LONG else len(LONG)

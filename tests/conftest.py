"""What all tests share: one thread, no deadlines, a tiny run, and how they spread over cores."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import settings
from tiny import TINY

from affinity_lib.running import runner
from affinity_lib.running.locks import locked
from affinity_lib.running.plan import Plan, make_plan

if TYPE_CHECKING:
    from affinity_lib.data.voc import VOCData
    from affinity_lib.stages.walk import Walk

sys.path.append(str(Path(__file__).parent / "bench"))
settings.register_profile("project", deadline=None)
settings.load_profile("project")
torch.set_num_threads(1)

LONG = (
    "test_ablation",
    "test_class",
    "test_fuzz",
    "test_jupyter",
    "test_kill",
    "test_site_pages",
    "test_snakemake",
    "test_steps",
    "test_voc12_chain",
)
"""Files that take minutes: their tests are marked so, for ``make long``."""

FIRST = (*LONG, "test_chain", "test_distributed", "test_photos")
"""Files that take longest, so that they start first."""


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory) -> tuple[Path, Plan]:
    """A run of all notebooks at a tiny size that nothing has disturbed, and its plan."""
    base = tmp_path_factory.getbasetemp()
    # the processes that share the tests share the run, too: the first one makes it
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "chain"
    plan = make_plan("toy").with_settings(TINY | {"data_root": str(folder / "data")})
    with locked(folder / ".lock"), pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        if not (folder / "made").exists():
            runner.execute(plan, folder / "run")
            (folder / "made").touch()
    return folder / "run", plan


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> VOCData:
    """Four scenes of 40 x 40 pixels."""
    import scenes  # here, as many tests need no networks

    return scenes.draw_scenes(tmp_path_factory.mktemp("scenes"), 4, size=40)


@pytest.fixture
def cams(data, tmp_path) -> Path:
    """A folder of CAMs of noise for these scenes."""
    import scenes

    return scenes.noise_cams(data, tmp_path / "cams")


@pytest.fixture
def walk(data, cams) -> Walk:
    """A walk over these scenes from these CAMs."""
    import scenes

    return scenes.small_walk(data, cams)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what takes minutes, and begin with what takes longest."""
    for item in items:
        if item.path.stem in LONG:
            item.add_marker("long")
    items.sort(key=lambda item: _place(item.path))


def _place(path: Path) -> int:
    return FIRST.index(path.stem) if path.stem in FIRST else len(FIRST)

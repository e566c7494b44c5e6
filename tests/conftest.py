"""What all tests share: no deadlines on a busy machine, one thread, as the tensors are tiny, a run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import settings
from tiny import TINY

from affinity_lib import runner

settings.register_profile("project", deadline=None)
settings.load_profile("project")
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory) -> tuple[Path, runner.Plan]:
    """A run of all notebooks at a tiny size that nothing has disturbed, and its plan."""
    folder = tmp_path_factory.mktemp("chain")
    todo = runner.plan("toy").with_values(TINY | {"data_root": str(folder / "data")})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        return runner.execute(todo, folder / "run"), todo

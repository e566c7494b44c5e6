"""What all tests share: no deadlines on a busy machine, and one thread, as the tensors are tiny."""

from __future__ import annotations

import torch
from hypothesis import settings

settings.register_profile("project", deadline=None)
settings.load_profile("project")
torch.set_num_threads(1)

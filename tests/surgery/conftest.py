"""What tests of rewritten models need around them."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture
def fresh_dynamo():
    """No forward is captured before or after."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def lone_process(tmp_path):
    """A process group of this process alone."""
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()

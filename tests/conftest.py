"""Fixtures that several parts share: where real CIFAR-10 lies, and a small real training."""

from __future__ import annotations

import os
from pathlib import Path

# One thread a test process: pytest-xdist already fills the cores, and idle OpenMP threads spin.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

REQUIRE = "GAMMABETA_REQUIRE_DATA"


@pytest.fixture(scope="session")
def cifar_root() -> Path:
    """The folder that holds cifar-10-batches-bin; a test without it is skipped with the reason.

    Where $GAMMABETA_REQUIRE_DATA is set (in CI), the missing data fails the test instead.
    """
    beside = Path(__file__).parents[2] / "shared" / "data"
    for root in (beside, Path(os.environ.get("GAMMABETA_DATA", beside))):
        if (root / "cifar-10-batches-bin" / "test_batch.bin").exists():
            return root
    reason = f"no CIFAR-10 in {beside} or $GAMMABETA_DATA"
    if os.environ.get(REQUIRE):
        pytest.fail(f"{reason}, and ${REQUIRE} is set")
    pytest.skip(reason)


@pytest.fixture(autouse=True)
def _one_place_for_files(tmp_path_factory, monkeypatch):
    """Keep every test out of the user's cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))

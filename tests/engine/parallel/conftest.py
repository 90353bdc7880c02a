"""Ranks that run what `vae_jobs.py` has, started once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import HealthCheck, Phase, settings

from livereel.engine.parallel.launch import Ranks

# Without shrinking: a failure says what it was given, and a rank may not live to try again.
settings.register_profile(
    "ranks", deadline=None, derandomize=True, database=None,
    phases=[Phase.explicit, Phase.generate], suppress_health_check=list(HealthCheck),
)  # fmt: skip


@pytest.fixture(scope="session")
def vae_jobs() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parent)
        import vae_jobs

        yield vae_jobs


@pytest.fixture(scope="session")
def two_ranks(vae_jobs: ModuleType) -> Iterator[Ranks]:
    with Ranks(2, threads=1) as ranks:
        yield ranks


@pytest.fixture(scope="session")
def four_ranks(vae_jobs: ModuleType) -> Iterator[Ranks]:
    with Ranks(4, threads=1) as ranks:
        yield ranks

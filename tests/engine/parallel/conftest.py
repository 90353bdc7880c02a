"""Ranks that run what `vae_jobs.py` and `rank_jobs.py` have, started once."""

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
def path() -> Iterator[Path]:
    """This folder, from which ranks import their jobs."""
    here = Path(__file__).parent
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(here)
        yield here


@pytest.fixture(scope="session")
def jobs(path: Path) -> ModuleType:
    import rank_jobs

    return rank_jobs


@pytest.fixture(scope="session")
def vae_jobs(path: Path) -> ModuleType:
    import vae_jobs

    return vae_jobs


@pytest.fixture(scope="session")
def two_ranks(path: Path) -> Iterator[Ranks]:
    with Ranks(2, threads=1) as ranks:
        yield ranks


@pytest.fixture(scope="session")
def four_ranks(path: Path) -> Iterator[Ranks]:
    with Ranks(4, threads=1) as ranks:
        yield ranks

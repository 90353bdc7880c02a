"""A package of AOTInductor graphs of the tiny model, compiled once."""

from __future__ import annotations

from pathlib import Path

import pytest

from livereel.engine.checkpoint.folder import open_folder
from livereel.export.package import plan_export, write_package


@pytest.fixture(scope="session")
def aoti_package(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package's folder; skips where there is nothing to compile with."""
    pytest.importorskip("torch._inductor")
    path = tmp_path_factory.mktemp("aoti") / "package"
    checked = write_package(plan_export(open_folder(tiny_folder)), path, "aoti")
    assert checked.errors
    assert max(checked.errors.values()) <= 1e-4
    return path

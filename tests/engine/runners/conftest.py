"""A package of AOTInductor graphs of a tiny model, compiled once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from livereel.engine.checkpoint.folder import open_folder
from livereel.export.package import plan_export, write_package


@pytest.fixture(scope="session")
def guided_folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The causal model, with guidance in its recipe."""
    folder = shutil.copytree(tiny_folder, tmp_path_factory.mktemp("guided") / "model")
    recipe = folder / "livereel.json"
    recipe.write_text(json.dumps({**json.loads(recipe.read_text()), "guidance_scale": 2.0}))
    return folder


@pytest.fixture(scope="session")
def aoti_package(guided_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its package; skips where there is nothing to compile with."""
    pytest.importorskip("torch._inductor")
    path = tmp_path_factory.mktemp("aoti") / "package"
    checked = write_package(plan_export(open_folder(guided_folder)), path, "aoti")
    assert checked.errors
    assert max(checked.errors.values()) <= 1e-4
    return path

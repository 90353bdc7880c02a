"""Packages of AOTInductor graphs of tiny models, compiled once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from livereel.engine.checkpoint.folder import open_folder
from livereel.export.package import plan_export, write_package

from ...export.conftest import windowed_folder as windowed_folder

_SHALLOW_VAE = {
    "dim_mult": [1, 1], "temperal_downsample": [True], "scale_factor_spatial": 4,
    "scale_factor_temporal": 2,
}  # fmt: skip


@pytest.fixture(scope="session")
def guided_folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The causal model with guidance and control in its recipe, of one layer, and with a VAE of one
    size less: 2 frames a latent frame, not 4. Compiling takes time by the op."""
    from diffusers import AutoencoderKLWan, WanTransformer3DModel

    folder = shutil.copytree(tiny_folder, tmp_path_factory.mktemp("guided") / "model")
    recipe = folder / "livereel.json"
    more = {"guidance_scale": 2.0, "control_channels": 2, "control_wraps": True}
    recipe.write_text(json.dumps({**json.loads(recipe.read_text()), **more}))
    for kind, part, less in (
        (WanTransformer3DModel, "transformer", {"num_layers": 1, "in_channels": 6}),
        (AutoencoderKLWan, "vae", _SHALLOW_VAE),
    ):
        config = kind.load_config(folder / part)
        shutil.rmtree(folder / part)
        kind.from_config(config, **less).save_pretrained(folder / part)
    return folder


def compiled(folder: Path, path: Path) -> Path:
    """A model's package; skips where there is nothing to compile with."""
    inductor = pytest.importorskip("torch._inductor.config")
    # What calls the kernels is most of the code that is compiled, and its speed matters to nobody.
    with inductor.patch("aot_inductor.compile_wrapper_opt_level", "O0"):
        checked = write_package(plan_export(open_folder(folder)), path, "aoti")
    assert checked.errors
    assert max(checked.errors.values()) <= 1e-4
    return path


@pytest.fixture(scope="session")
def aoti_package(guided_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The causal model's package."""
    return compiled(guided_folder, tmp_path_factory.mktemp("aoti") / "package")


@pytest.fixture(scope="session")
def windowed_package(windowed_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That of a CogVideoX."""
    return compiled(windowed_folder, tmp_path_factory.mktemp("windowed_aoti") / "package")

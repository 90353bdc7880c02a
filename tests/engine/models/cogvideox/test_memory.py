"""What is told of a CogVideoX folder before it is loaded."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from livereel.engine import cli, memory, registry
from livereel.engine.checkpoint.folder import open_folder
from livereel.engine.checkpoint.recipes import RECIPES
from livereel.engine.models.cogvideox.config import CogVideoXVAEConfig
from livereel.engine.models.cogvideox.defaults import clip_config
from livereel.engine.models.cogvideox.memory import DecoderSize
from livereel.engine.models.cogvideox.vae import CogVideoXVAE


@pytest.mark.parametrize("levels", [2, 3])
def test_caches_are_as_large_as_told(levels: int) -> None:
    config = CogVideoXVAEConfig(
        block_out_channels=(4, 8, 12)[:levels], latent_channels=3, layers_per_block=1,
        norm_num_groups=2, temporal_compression_ratio=2,
    )  # fmt: skip
    vae = CogVideoXVAE(config)
    with torch.inference_mode():
        _, caches = vae.decode(torch.zeros(1, 3, 1, 3, 2))
    told = DecoderSize(config)
    assert told.spatial == vae.spatial_factor
    assert told.temporal == vae.temporal_factor == 2
    size = 2 * told.spatial, 3 * told.spatial
    assert told.conv_caches(*size) == sum(cache.numel() for cache in caches)
    assert [told.part(n) for n in (1, 2, 3, 12, 13)] == [1, 2, 3, 2, 3]
    assert [told.latents(n) for n in (1, 2, 3, 4)] == [1, 2, 2, 3]


def test_a_published_decoder_takes_gigabytes_at_its_own_size() -> None:
    told = DecoderSize.read({})
    assert told.conv_caches(720, 480) * 2 == pytest.approx(2.81e9, rel=1e-3)
    assert 5e9 < told.call(720, 480, 3, 2) < 20e9


@pytest.mark.parametrize(
    ("values", "size", "fps"),
    [({}, (720, 480), 8), ({"patch_size_t": 2, "sample_width": 300}, (1360, 768), 16)],
)
def test_clips_have_the_size_and_rate_of_the_family(
    values: dict[str, int], size: tuple[int, int], fps: float
) -> None:
    config = clip_config({**values, "max_text_seq_length": 224})
    assert (config.width, config.height) == size
    assert (config.fps, config.max_sequence_length) == (fps, 224)
    assert replace(config, fps=fps) == config


@pytest.mark.parametrize("recipe", [None, "windows-2b"])
def test_info_tells_of_a_folder_before_it_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], recipe: str | None
) -> None:
    parts = {"transformer": "CogVideoXTransformer3DModel", "vae": "AutoencoderKLCogVideoX"}
    index = {name: ["diffusers", cls] for name, cls in parts.items()}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    dit = {"num_attention_heads": 30, "attention_head_dim": 64, "num_layers": 30, "patch_size": 2}
    for name, config in (("transformer", dit), ("vae", {})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        save_file({"a": np.zeros(10, np.float16)}, tmp_path / name / "model.safetensors")
    if recipe is not None:
        (tmp_path / "livereel.json").write_text(json.dumps(RECIPES[recipe].to_dict()))
    assert cli.main(["info", str(tmp_path), "--dtype", "bfloat16"]) == 0
    out = capsys.readouterr().out
    assert "720x480 at 8 fps; sizes are multiples of 16" in out
    assert ("window 13" in out) == ("without a KV ring" in out) == (recipe is not None)
    assert "cache pass" not in out
    need = memory.estimate(open_folder(tmp_path), dtype="bfloat16")
    assert need.kv_ring == 0
    tiled = memory.estimate(open_folder(tmp_path), dtype="bfloat16", tile=True)
    assert tiled.conv_caches * 4 == need.conv_caches
    assert tiled.activations < need.activations
    longer = memory.estimate(open_folder(tmp_path), dtype="bfloat16", frames=1601)
    assert (longer == need) == (recipe is not None)


def test_other_families_have_no_rows() -> None:
    assert registry.clip_config("WanTransformer3DModel") is None
    assert registry.decoder_size("AutoencoderKLWan") is None
    assert registry.decoder_size("AutoencoderKLCogVideoX") is DecoderSize

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from livereel.engine import CheckpointError, ResourceError, memory
from livereel.engine.checkpoint.folder import ModelFolder, open_folder
from livereel.engine.sampling.window import window_of

WAN_1_3B = {
    "num_attention_heads": 12,
    "attention_head_dim": 128,
    "num_layers": 30,
    "ffn_dim": 8960,
    "patch_size": [1, 2, 2],
}
STREAM = {"window": 21, "timesteps": [1000, 500], "width": 832, "height": 480}


def model_folder(
    path: Path,
    *,
    transformer: dict[str, Any] | None = None,
    vae: dict[str, Any] | None = None,
    stream: dict[str, Any] | None = None,
    dtype: type[np.generic] = np.float16,
) -> ModelFolder:
    """A folder whose components hold 100 numbers each, whatever their configs say."""
    classes = {"transformer": "WanTransformer3DModel", "vae": "AutoencoderKLWan"}
    index = {name: ["diffusers", cls] for name, cls in classes.items()}
    (path / "model_index.json").write_text(json.dumps(index))
    (path / "livereel.json").write_text(json.dumps(stream or STREAM))
    for name, config in (("transformer", transformer or WAN_1_3B), ("vae", vae or {})):
        (path / name).mkdir()
        (path / name / "config.json").write_text(json.dumps(config))
        tensors = {"a": np.zeros((9, 10), dtype), "b": np.zeros(10, dtype)}
        save_file(tensors, path / name / "diffusion_pytorch_model.safetensors")
    return open_folder(path)


def test_wan_1_3b_needs_what_its_layout_says(tmp_path: Path) -> None:
    need = memory.estimate(model_folder(tmp_path), width=832, height=480)
    # 30 layers, keys and values, 1560 tokens a latent frame, 1536 wide, 2 bytes: 287.5 MB a frame.
    prompt = 2 * 30 * 512 * 1536 * 2
    assert need.kv_ring - prompt == 21 * 2 * 30 * 1560 * 1536 * 2
    # 32 caches of 2 frames, 1.89 GB in bf16.
    assert need.conv_caches == pytest.approx(1.889e9, rel=1e-3)
    assert need.weights == 400
    assert need.total == need.runtime + need.device
    assert need.device == need.weights + need.kv_ring + need.conv_caches + need.activations


@pytest.mark.parametrize(
    "config",
    [
        {"base_dim": 8, "dim_mult": [1, 2, 2, 3], "num_res_blocks": 1},
        {
            "base_dim": 8,
            "decoder_base_dim": 12,
            "dim_mult": [1, 1, 2],
            "temperal_downsample": [True, True],
            "num_res_blocks": 2,
            "patch_size": 2,
            "in_channels": 12,
            "out_channels": 12,
        },
        {
            "base_dim": 6,
            "dim_mult": [1, 2, 4],
            "temperal_downsample": [False, True],
            "num_res_blocks": 1,
        },
        {
            "base_dim": 4,
            "decoder_base_dim": 8,
            "dim_mult": [1, 2, 2],
            "temperal_downsample": [False, True],
            "num_res_blocks": 1,
            "patch_size": 2,
            "in_channels": 12,
            "out_channels": 12,
            "is_residual": True,
        },
    ],
)
def test_conv_caches_are_those_of_the_decoder(tmp_path: Path, config: dict[str, Any]) -> None:
    from livereel.engine.models.wan.vae import WanVAE

    folder = model_folder(tmp_path, vae=config, dtype=np.float32)
    vae = WanVAE.from_config(config).eval()
    step = vae.config.spatial_factor
    width, height = 3 * step, 2 * step
    with torch.no_grad():
        latents = torch.zeros(1, vae.config.z_dim, 3, height // step, width // step)
        _, caches = vae.decode(latents)
    held = sum(cache.nbytes for cache in caches if cache is not None)
    assert memory.estimate(folder, width=width, height=height).conv_caches == held


@pytest.mark.parametrize("memory_of", [
    {}, {"sinks": 3}, {"anchors": 4, "anchor_every": 8}, {"anchors": 4, "anchor_every": 7},
    {"sinks": 3, "anchors": 1, "anchor_every": 100},
])  # fmt: skip
def test_the_ring_has_the_slots_of_its_window(tmp_path: Path, memory_of: dict[str, int]) -> None:
    folder = model_folder(tmp_path, stream={**STREAM, **memory_of})
    need = memory.estimate(folder, width=832, height=480)
    frame, prompt = (2 * 30 * tokens * 1536 * 2 for tokens in (1560, 512))
    assert need.kv_ring == window_of(folder.stream).slots * frame + prompt


def test_graphs_want_room_for_a_chunk_and_sets_of_caches(tmp_path: Path) -> None:
    folder = model_folder(tmp_path)
    plain = memory.estimate(folder, width=832, height=480)
    graphed = memory.estimate(folder, width=832, height=480, graphs=True)
    spare = folder.stream.chunk_latents * 2 * 30 * 1560 * 1536 * 2
    assert graphed.kv_ring - plain.kv_ring == spare
    assert graphed.conv_caches == 3 * plain.conv_caches


def test_dtype_guidance_and_size_scale_the_estimate(tmp_path: Path) -> None:
    folder = model_folder(tmp_path, dtype=np.float32)
    stored, half = memory.estimate(folder), memory.estimate(folder, dtype="bfloat16")
    assert stored == memory.estimate(folder, dtype="float32", width=832, height=480)
    assert (half.weights, half.kv_ring) == (stored.weights // 2, stored.kv_ring // 2)
    small = memory.estimate(folder, width=416, height=240)
    assert 3.9 < stored.conv_caches / small.conv_caches <= 4.1
    (tmp_path / "livereel.json").write_text(json.dumps({**STREAM, "guidance_scale": 5.0}))
    guided = memory.estimate(open_folder(tmp_path))
    assert guided.kv_ring - stored.kv_ring == 2 * 30 * 512 * 1536 * 4


def test_a_whole_clip_takes_more_the_longer_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams = model_folder(tmp_path)
    assert memory.estimate(streams, frames=9999) == memory.estimate(streams)
    (tmp_path / "livereel.json").unlink()
    clips = open_folder(tmp_path)
    need = memory.estimate(clips, width=832, height=480, frames=81)
    # 21 latent frames under two prompts: a row of the batch each, and keys and values of its text.
    assert need.kv_ring == 2 * (2 * 30 * 512 * 1536 * 2)
    # No layer's keys and values outlive it.
    dit, queries = memory._Transformer.read(WAN_1_3B), 2 * 21 * 1560
    kept = dit.pass_(queries, 0, 2, keeps=True) - dit.pass_(queries, 0, 2, keeps=False)
    assert kept == queries * 2 * 30 * 1536 * 2
    assert need == memory.estimate(clips)
    # It is decoded in parts, so that at this length the DiT's pass is what takes most.
    long = memory.estimate(clips, width=832, height=480, frames=161)
    assert long.activations == dit.pass_(2 * 41 * 1560, 0, 2, keeps=False)
    assert need.activations < 8e9 < long.activations
    monkeypatch.setattr(memory, "available_ram", lambda: need.total)
    memory.check(clips, frames=81)
    with pytest.raises(ResourceError, match="a shorter clip"):
        memory.check(clips, frames=161)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_a_shortage_is_told_in_a_sentence(error: Exception) -> None:
    told = r"^memory ran out; try a smaller size[\w ,]+$"
    with pytest.raises(ResourceError, match=told), memory.shortage_told():
        raise error


def test_other_errors_are_no_shortage() -> None:
    with pytest.raises(RuntimeError, match="shapes"), memory.shortage_told():
        raise RuntimeError("shapes do not match")


def test_parameters_are_counted_without_variants(tmp_path: Path) -> None:
    folder = model_folder(tmp_path)
    save_file({"a": np.zeros(7)}, tmp_path / "vae" / "diffusion_pytorch_model.fp16.safetensors")
    assert memory.count_parameters(folder) == {"transformer": 100, "vae": 100}


def test_size_step_is_vae_times_patch(tmp_path: Path) -> None:
    assert memory.size_step(model_folder(tmp_path)) == 16


def test_too_little_memory_names_both_amounts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = model_folder(tmp_path)
    monkeypatch.setattr(memory, "available_ram", lambda: 3_000_000_000)
    with pytest.raises(ResourceError, match=r"needs about 1\d\.\d GB at 832x480 and 3\.0 GB are"):
        memory.check(folder, width=832, height=480)
    monkeypatch.setattr(memory, "available_ram", lambda: 300_000_000_000)
    assert memory.check(folder, width=832, height=480).total > 10e9
    monkeypatch.setattr(memory, "available_ram", lambda: None)
    memory.check(folder, width=832, height=480)


@pytest.mark.parametrize("config", [{"num_layers": 2}, {**WAN_1_3B, "num_layers": "many"}])
def test_a_config_that_does_not_say_is_told(tmp_path: Path, config: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="config"):
        memory.estimate(model_folder(tmp_path, transformer=config))


@pytest.mark.parametrize(
    "content", [b"", b"\xff" * 16, b"\x02" + b"\0" * 7 + b"[]", b"\x02" + b"\0" * 7 + b"{} "]
)
def test_a_damaged_weight_file_is_told(tmp_path: Path, content: bytes) -> None:
    folder = model_folder(tmp_path)
    (tmp_path / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"vae.diffusion_pytorch_model.safetensors"):
        memory.estimate(folder)


def test_amounts_read_well() -> None:
    assert [memory.gigabytes(n) for n in (0, 812_400_000, 999_600_000, 1_890_000_000)] == [
        "0 MB",
        "812 MB",
        "1.0 GB",
        "1.9 GB",
    ]
    assert [memory.millions(n) for n in (4_100_000, 1_419_000_000)] == ["4.10 M", "1.42 B"]

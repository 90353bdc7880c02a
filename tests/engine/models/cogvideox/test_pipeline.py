"""Clips of a CogVideoX folder against diffusers' pipelines, and streams by windows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
)
from diffusers.schedulers import scheduling_dpm_cogvideox
from transformers import AutoTokenizer, T5Config
from transformers.models.t5.modeling_t5 import T5EncoderModel

from livereel.engine.engine import Engine
from livereel.engine.errors import InputError
from livereel.engine.sampling.noise import normal
from livereel.engine.text.vocabulary import build_tokenizer, save_tokenizer

SCHEDULE: dict[str, Any] = dict(
    beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False,
    prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing",
)  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "2B": {},
    "5B": {"use_rotary_positional_embeddings": True},
    "1.5": {"use_rotary_positional_embeddings": True, "patch_size_t": 2},
}
PROMPT, NEGATIVE = "a red ball", "blue"
STEPS = 4


def save_model(folder: Path, shape: str, scheduler: Any) -> Path:
    torch.manual_seed(3)
    tokenizer = build_tokenizer(["a", "red", "blue", "ball", "moving", "left"])
    save_tokenizer(tokenizer, folder / "tokenizer")
    text = T5EncoderModel(
        T5Config(vocab_size=12, d_model=12, d_kv=4, d_ff=16, num_layers=2, num_heads=2,
                 feed_forward_proj="gated-gelu", initializer_factor=4.0)
    )  # fmt: skip
    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4,
        time_embed_dim=12, text_embed_dim=12, num_layers=2, sample_width=12, sample_height=8,
        sample_frames=9, max_text_seq_length=9, **SHAPES[shape],
    )  # fmt: skip
    vae = AutoencoderKLCogVideoX(
        block_out_channels=(4, 8, 8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=2,
        scaling_factor=0.7,
    )  # fmt: skip
    for module in (transformer, vae):
        for p in module.parameters():
            if p.ndim == 1:
                torch.nn.init.normal_(p, std=0.3)
    CogVideoXPipeline(
        tokenizer=AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True),
        text_encoder=text, vae=vae, transformer=transformer, scheduler=scheduler,
    ).save_pretrained(folder)  # fmt: skip
    save_tokenizer(tokenizer, folder / "tokenizer")
    return folder


def theirs(
    folder: Path, frames: int, latents: int, monkeypatch: pytest.MonkeyPatch, **options: Any
) -> np.ndarray:
    """The pipeline's frames, its noise drawn as ours is: by step, and once each."""
    pipeline = CogVideoXPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    shape = (1, 4, latents, 4, 6)
    drawn: list[int] = []

    def randn(shape_: Any, **_: Any) -> torch.Tensor:
        # The DPM scheduler draws twice in a step, but not in its first, and uses the last draw.
        drawn.append(0)
        step = 1 if len(drawn) == 1 else len(drawn) // 2 + 1
        return normal(11, 0, step, shape).transpose(1, 2)

    monkeypatch.setattr(scheduling_dpm_cogvideox, "randn_tensor", randn)
    with torch.no_grad():
        return pipeline(
            PROMPT, NEGATIVE, height=32, width=48, num_frames=frames, num_inference_steps=STEPS,
            guidance_scale=3.0, latents=normal(11, 0, 0, shape).transpose(1, 2),
            max_sequence_length=9, output_type="np", **options,
        ).frames[0]  # fmt: skip


@pytest.mark.parametrize(
    ("shape", "kind", "frames", "latents"),
    [
        ("2B", "ddim", 9, 3),
        ("2B", "dpm", 17, 5),
        ("5B", "dpm", 9, 3),
        ("1.5", "ddim", 9, 4),
    ],
)
def test_a_clip_equals_the_pipeline_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: str, kind: str, frames: int,
    latents: int,
) -> None:  # fmt: skip
    cls = CogVideoXDPMScheduler if kind == "dpm" else CogVideoXDDIMScheduler
    folder = save_model(tmp_path / "model", shape, cls(**SCHEDULE, snr_shift_scale=3.0))
    options = {"use_dynamic_cfg": True} if kind == "dpm" else {}
    wanted = theirs(folder, frames, latents, monkeypatch, **options)
    engine = Engine.load(folder, device="cpu", dtype="float32")
    assert not engine.streams
    told: list[tuple[int, int]] = []
    video = engine.generate(
        PROMPT, negative_prompt=NEGATIVE, frames=frames, width=48, height=32, steps=STEPS,
        guidance_scale=3.0, seed=11, progress=lambda done, total: told.append((done, total)),
    )  # fmt: skip
    assert video.fps == (16 if shape == "1.5" else 8)
    assert video.frames.shape == wanted.shape
    error = np.abs(video.frames / 255.0 - wanted)
    assert error.max() <= 0.5 / 255 + 1e-4
    parts = (frames // 4 + 1) // 2
    assert told[-1] == (STEPS + parts, STEPS + parts)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    scheduler = CogVideoXDDIMScheduler(**SCHEDULE, snr_shift_scale=3.0)
    return save_model(tmp_path_factory.mktemp("cogvideox") / "model", "2B", scheduler)


def test_a_video_is_changed_as_far_as_asked(folder: Path) -> None:
    engine = Engine.load(folder, device="cpu", dtype="float32")
    video = np.random.default_rng(0).integers(0, 256, (9, 32, 48, 3), np.uint8)
    options: dict[str, Any] = dict(frames=9, width=48, height=32, steps=10, guidance_scale=1.0)
    kept = engine.decode(
        engine.encode(torch.from_numpy(video).permute(3, 0, 1, 2)[None] / 127.5 - 1)
    )
    kept = ((kept[0].permute(1, 2, 3, 0) + 1) * 127.5).numpy()

    def off(strength: float) -> float:
        changed = engine.generate(PROMPT, video=video, strength=strength, **options)
        return float(np.abs(changed.frames - kept).mean())

    assert off(0.1) < off(0.6)


def test_clips_without_a_scheduler_that_is_known_are_refused(folder: Path, tmp_path: Path) -> None:
    import shutil

    from livereel.engine.errors import CheckpointError

    other = tmp_path / "other"
    shutil.copytree(folder, other)
    (other / "scheduler" / "scheduler_config.json").write_text('{"_class_name": "LCMScheduler"}')
    engine = Engine.load(other, device="cpu", dtype="float32")
    with pytest.raises(CheckpointError, match="scheduler 'LCMScheduler' is none of"):
        engine.generate(PROMPT, frames=1, width=48, height=32, steps=1)


def test_sizes_that_patches_do_not_tile_are_refused(folder: Path) -> None:
    engine = Engine.load(folder, device="cpu", dtype="float32")
    assert engine.size_step == 16
    assert (engine.config.width, engine.config.height) == (96, 64)
    assert engine.config.max_sequence_length == 9
    with pytest.raises(InputError, match="width is 40; it must be a multiple of 16"):
        engine.generate(PROMPT, frames=1, width=40, height=32)
    with pytest.raises(InputError, match="from text alone"):
        engine.generate(
            PROMPT, frames=1, width=48, height=32, image=np.zeros((32, 48, 3), np.uint8)
        )

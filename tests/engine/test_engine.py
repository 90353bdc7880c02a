"""Load, generate, encode, decode: against diffusers on the same folder, and against bad input."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan, WanPipeline

from livereel.engine.engine import Engine
from livereel.engine.errors import CheckpointError, InputError
from livereel.engine.models.wan.vae import WanVAE
from livereel.engine.sampling.noise import normal

PROMPT = "a red ball moving left"


def test_generate_gives_exactly_the_frames_asked_for(engine: Engine) -> None:
    assert engine.generate(PROMPT, seconds=1.3).frames.shape == (21, 32, 48, 3)
    assert engine.generate(PROMPT, frames=1).frames.shape == (1, 32, 48, 3)
    video = engine.generate(PROMPT, frames=14, fps=8, width=32, height=16)
    assert video.frames.shape == (14, 16, 32, 3) and video.fps == 8
    assert len(video.stats) == 3


def test_frames_are_those_of_the_open_stream(engine: Engine) -> None:
    chunks = list(engine.open(PROMPT, seed=2, frames=20))
    assert [len(c.frames) for c in chunks] == [1, 12, 7]
    streamed = np.concatenate([c.frames for c in chunks])
    assert np.array_equal(streamed, engine.generate(PROMPT, seed=2, frames=20).frames)


def test_encode_and_decode_equal_diffusers(engine: Engine, tiny_folder: Path) -> None:
    theirs = AutoencoderKLWan.from_pretrained(tiny_folder / "vae").eval()
    frames = torch.rand(1, 3, 9, 32, 48) * 2 - 1
    with torch.no_grad():
        latents = theirs.encode(frames).latent_dist.mode()
        decoded = theirs.decode(latents).sample
    assert torch.allclose(engine.encode(frames), latents, atol=1e-4 * latents.abs().max())
    assert torch.allclose(engine.decode(latents), decoded, atol=1e-4)


def test_a_whole_clip_equals_diffusers_pipeline(clip_folder: Path) -> None:
    """Text, 50-step schedule cut to 4, guidance, UniPC, VAE and pixels, from the same noise."""
    engine = Engine.load(clip_folder, device="cpu", dtype="float32")
    ours = engine.generate(PROMPT, frames=9, steps=4, seed=3, width=48, height=32)
    pipeline = WanPipeline.from_pretrained(clip_folder)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        PROMPT, negative_prompt="", height=32, width=48, num_frames=9, num_inference_steps=4,
        guidance_scale=5.0, latents=normal(3, 0, 0, (1, 4, 3, 4, 6)), max_sequence_length=512,
        output_type="np",
    ).frames[0]  # fmt: skip
    assert np.abs(ours.frames / 255 - theirs).max() <= 1e-3 + 0.5 / 255


def test_a_whole_clip_is_decoded_in_parts_and_tells_how_far_it_is(
    clip_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine.load(clip_folder, device="cpu", dtype="float32")
    plain, sizes = WanVAE.decode, []
    told: list[tuple[int, int]] = []

    def watched(vae: WanVAE, latents: torch.Tensor, caches: Any = None) -> Any:
        sizes.append(latents.shape[2])
        return plain(vae, latents, caches)

    monkeypatch.setattr(WanVAE, "decode", watched)
    engine.generate(
        PROMPT, frames=16, steps=2, width=48, height=32, progress=lambda *at: told.append(at)
    )
    assert sizes == [2, 2, 1]
    assert told == [(i, 5) for i in range(1, 6)]


def test_a_stream_tells_how_far_it_is(engine: Engine) -> None:
    told: list[tuple[int, int]] = []
    engine.generate(PROMPT, frames=14, progress=lambda *at: told.append(at))
    assert told == [(1, 14), (13, 14), (14, 14)]


def test_a_model_for_whole_clips_opens_no_stream(clip_folder: Path) -> None:
    engine = Engine.load(clip_folder, device="cpu", dtype="float32")
    with pytest.raises(InputError, match="makes whole clips"):
        engine.open(PROMPT)


def test_a_stream_can_start_from_a_picture(engine: Engine) -> None:
    image = np.full((32, 48, 3), 200, np.uint8)
    chunks = list(engine.open(PROMPT, image=image, frames=13))
    assert chunks[0].stats.passes == 0
    with torch.inference_mode():
        kept = engine.decode(engine.encode(torch.full((1, 3, 1, 32, 48), 200 / 127.5 - 1)))
    expected = ((kept[0].permute(1, 2, 3, 0) + 1) * 127.5).round().clamp(0, 255)
    assert np.abs(chunks[0].frames.astype(int) - expected.numpy()).max() <= 1
    plain = list(engine.open(PROMPT, frames=13))
    assert not np.array_equal(chunks[1].frames, plain[1].frames)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"prompt": ""}, "prompt is empty"),
        ({"seconds": 0}, "seconds is 0"),
        ({"seconds": 0.03}, "seconds is 0.03, which at 16 frames a second is not one frame"),
        ({"seconds": float("nan")}, "seconds is nan"),
        ({"seconds": float("inf")}, "seconds is inf"),
        ({"seconds": 1, "frames": 2}, "not both"),
        ({"frames": 0}, "frames is 0"),
        ({"width": 50}, "width is 50; it must be a multiple of 16, such as 48 or 64"),
        ({"height": 100_000}, "height is 100000"),
        ({"fps": 0}, "fps is 0"),
        ({"fps": "24"}, "fps is '24'"),
        ({"seed": 2**64}, "seed is 18446744073709551616"),
        ({"steps": 9}, "steps must be from 1 to the 3"),
        ({"image": np.zeros((4, 4, 3), np.uint8)}, "wanted uint8 of shape"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(
    engine: Engine, arguments: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        engine.generate(**({"prompt": PROMPT} | arguments))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"steps": 10**6}, "steps is 1000000"),
        ({"guidance_scale": float("nan")}, "guidance_scale is nan"),
        ({"image": np.zeros((32, 48, 3), np.uint8)}, "leave the image out"),
    ],
)
def test_bad_input_for_a_whole_clip_is_refused_too(
    clip_folder: Path, arguments: dict[str, Any], sentence: str
) -> None:
    engine = Engine.load(clip_folder, device="cpu", dtype="float32")
    with pytest.raises(InputError, match=sentence):
        engine.generate(PROMPT, frames=1, width=48, height=32, **arguments)


def test_tensors_of_another_shape_are_refused(engine: Engine) -> None:
    with pytest.raises(InputError, match="have five dimensions, got \\(3, 9, 32, 48\\)"):
        engine.encode(torch.zeros(3, 9, 32, 48))
    with pytest.raises(InputError, match="wanted \\[B, 3, F, H, W\\]"):
        engine.encode(torch.zeros(1, 4, 9, 32, 48))
    with pytest.raises(InputError, match="wanted \\[B, 4, T, h, w\\]"):
        engine.decode(torch.zeros(1, 5, 3, 4, 6))


def test_models_that_differ_in_weights_alone_have_other_fingerprints(
    tiny_folder: Path, tmp_path: Path, engine: Engine
) -> None:
    folder = tmp_path / "renamed"
    shutil.copytree(tiny_folder, folder)
    assert Engine.load(folder, device="cpu")._fingerprint == engine._fingerprint
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-3] ^= 1
    weights.write_bytes(data)
    assert Engine.load(folder, device="cpu")._fingerprint != engine._fingerprint


def test_what_is_no_model_device_or_dtype_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere"):
        Engine.load(tmp_path / "nowhere")
    with pytest.raises(InputError, match="device 'abacus' is unknown"):
        Engine.load(tiny_folder, device="abacus")
    with pytest.raises(InputError, match="dtype 'int4' is unknown"):
        Engine.load(tiny_folder, dtype="int4")


def test_bfloat16_stays_close_to_float32(tiny_folder: Path, engine: Engine) -> None:
    half = Engine.load(tiny_folder, device="cpu", dtype="bfloat16")
    latents = torch.randn(1, 4, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    error = (half.decode(latents) - engine.decode(latents)).square().mean().sqrt()
    assert error < 0.05

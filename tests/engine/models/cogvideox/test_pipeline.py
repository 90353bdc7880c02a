"""Clips of a CogVideoX folder against diffusers' pipelines, and streams by windows."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    CogVideoXImageToVideoPipeline,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    DiffusionPipeline,
)
from diffusers.schedulers import scheduling_dpm_cogvideox
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoTokenizer, T5Config
from transformers.models.t5.modeling_t5 import T5EncoderModel

from livereel.engine.checkpoint.folder import open_folder
from livereel.engine.engine import Engine
from livereel.engine.errors import CheckpointError, InputError
from livereel.engine.models.cogvideox.fused_vae import FusedVAE
from livereel.engine.models.cogvideox.vae import CogVideoXVAE
from livereel.engine.models.taehv.decoder import TinyDecoder
from livereel.engine.runners import clips
from livereel.engine.runners.roads import roads_of
from livereel.engine.runners.tiled import Tile
from livereel.engine.runners.torch import TorchRunner
from livereel.engine.sampling.noise import normal
from livereel.engine.sampling.stream import StreamState
from livereel.engine.sampling.windowed import Windowed
from livereel.engine.text.vocabulary import build_tokenizer, save_tokenizer

SCHEDULE: dict[str, Any] = dict(
    beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False,
    prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing",
)  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "2B": {},
    "5B": {"use_rotary_positional_embeddings": True},
    "1.5": {"use_rotary_positional_embeddings": True, "patch_size_t": 2},
    "5B-I2V": {
        "use_rotary_positional_embeddings": True, "use_learned_positional_embeddings": True,
        "in_channels": 8, "sample_width": 6, "sample_height": 4,
    },
    "1.5-I2V": {
        "use_rotary_positional_embeddings": True, "patch_size_t": 2, "in_channels": 8,
        "ofs_embed_dim": 12,
    },
}  # fmt: skip
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
        **{
            **dict(num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4,
                   time_embed_dim=12, text_embed_dim=12, num_layers=2, sample_width=12,
                   sample_height=8, sample_frames=9, max_text_seq_length=9),
            **SHAPES[shape],
        }
    )  # fmt: skip
    vae = AutoencoderKLCogVideoX(
        block_out_channels=(4, 8, 8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=2,
        scaling_factor=0.7, invert_scale_latents=shape == "1.5-I2V",
    )  # fmt: skip
    for module in (transformer, vae):
        for p in module.parameters():
            if p.ndim == 1:
                torch.nn.init.normal_(p, std=0.3)
    # diffusers draws a picture's latents; with so little deviation it draws the mean.
    with torch.no_grad():
        vae.encoder.conv_out.conv.weight[4:] = 0
        vae.encoder.conv_out.conv.bias[4:] = -60
    pipeline = CogVideoXImageToVideoPipeline if "I2V" in shape else CogVideoXPipeline
    pipeline(
        tokenizer=AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True),
        text_encoder=text, vae=vae, transformer=transformer, scheduler=scheduler,
    ).save_pretrained(folder)  # fmt: skip
    save_tokenizer(tokenizer, folder / "tokenizer")
    return folder


def theirs(
    folder: Path, frames: int, latents: int, monkeypatch: pytest.MonkeyPatch, **options: Any
) -> np.ndarray:
    """The pipeline's frames, its noise drawn as ours is: by step, and once each."""
    pipeline = DiffusionPipeline.from_pretrained(folder)
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
            prompt=PROMPT, negative_prompt=NEGATIVE, height=32, width=48, num_frames=frames,
            num_inference_steps=STEPS, guidance_scale=3.0, max_sequence_length=9, output_type="np",
            latents=normal(11, 0, 0, shape).transpose(1, 2), **options,
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


@pytest.mark.parametrize(("shape", "latents"), [("5B-I2V", 3), ("1.5-I2V", 4)])
def test_a_clip_from_a_picture_equals_the_pipeline_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: str, latents: int
) -> None:
    scheduler = CogVideoXDDIMScheduler(**SCHEDULE, snr_shift_scale=1.0)
    folder = save_model(tmp_path / "model", shape, scheduler)
    picture = np.random.default_rng(1).integers(0, 256, (32, 48, 3), np.uint8)
    wanted = theirs(folder, 9, latents, monkeypatch, image=Image.fromarray(picture))
    engine = Engine.load(folder, device="cpu", dtype="float32")
    options: dict[str, Any] = dict(
        negative_prompt=NEGATIVE, frames=9, width=48, height=32, steps=STEPS, guidance_scale=3.0,
        seed=11,
    )  # fmt: skip
    video = engine.generate(PROMPT, image=picture, **options)
    assert np.abs(video.frames / 255.0 - wanted).max() <= 0.5 / 255 + 1e-4
    with pytest.raises(InputError, match="starts from a picture"):
        engine.generate(PROMPT, **options)
    with pytest.raises(InputError, match="knows no last picture"):
        engine.generate(PROMPT, image=picture, last_image=picture, **options)
    (folder / "livereel.json").write_text(json.dumps(RECIPE))
    with pytest.raises(InputError, match="it makes whole clips, not streams"):
        Engine.load(folder, device="cpu", dtype="float32").open(PROMPT)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    scheduler = CogVideoXDDIMScheduler(**SCHEDULE, snr_shift_scale=3.0)
    return save_model(tmp_path_factory.mktemp("cogvideox") / "model", "2B", scheduler)


def test_tiles_give_nearly_the_same_clip(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine.load(folder, device="cpu", dtype="float32")
    video = np.full((9, 32, 48, 3), 100, np.uint8)
    options: dict[str, Any] = dict(
        frames=9, width=48, height=32, steps=2, guidance_scale=1.0, video=video, strength=0.5
    )
    whole = engine.generate(PROMPT, **options)
    told: list[tuple[int, int]] = []
    one = engine.generate(
        PROMPT, tile=True, progress=lambda done, total: told.append((done, total)), **options
    )
    assert np.array_equal(one.frames, whole.frames)  # the picture is one tile
    assert told[-1] == (2, 2)
    monkeypatch.setattr(clips, "Tile", partial(Tile, height=24, width=40))
    several = engine.generate(PROMPT, tile=True, **options)
    assert several.frames.shape == whole.frames.shape
    assert 0 < np.abs(several.frames.astype(int) - whole.frames).mean() < 60


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
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    (other / "scheduler" / "scheduler_config.json").write_text('{"_class_name": "LCMScheduler"}')
    engine = Engine.load(other, device="cpu", dtype="float32")
    with pytest.raises(CheckpointError, match="scheduler 'LCMScheduler' is none of"):
        engine.generate(PROMPT, frames=1, width=48, height=32, steps=1)


def test_each_part_is_on_the_road_that_has_it(folder: Path) -> None:
    """The VAE has kernels, the DiT runs in plain torch behind its window on every road."""
    engine = Engine.load(folder, device="cpu", dtype="float32")
    runner = engine.runner
    assert isinstance(runner, TorchRunner)
    assert isinstance(runner.vae, CogVideoXVAE) and isinstance(runner.denoiser, Windowed)
    on_gpu = TorchRunner.on_road(
        "triton", runner.transformer, runner.vae, runner.text_encoder, runner.device, runner.dtype
    )
    assert isinstance(on_gpu.vae, FusedVAE) and isinstance(on_gpu.denoiser, Windowed)
    assert not on_gpu.denoiser.in_place
    told = roads_of(open_folder(folder), "native", torch.float32)
    assert (told["self-attention"], told["VAE norms"]) == ("reference", "reference")
    told = roads_of(open_folder(folder), "triton", torch.bfloat16)
    assert (told["self-attention"], told["VAE norms"]) == ("reference", "triton")


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


RECIPE: dict[str, Any] = {
    "chunk_latents": 2,
    "first_chunk_latents": 1,
    "window": 5,
    "timesteps": [999.0, 749.0, 499.0, 249.0],
    "solver": "ddim",
    "shift": 3.0,
    "guidance_scale": 3.0,
    "fps": 8,
    "max_sequence_length": 9,
    "width": 48,
    "height": 32,
}


@pytest.fixture(scope="module")
def streaming(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    path = tmp_path_factory.mktemp("streaming") / "model"
    shutil.copytree(folder, path)
    (path / "livereel.json").write_text(json.dumps(RECIPE))
    return Engine.load(path, device="cpu", dtype="float32")


def latents_of(engine: Engine, chunks: int) -> torch.Tensor:
    """The clean latents of a stream's first chunks, sampled as a session does."""
    runner, config = engine.runner, engine.config
    sampler = runner.sampler(config, 48, 32)
    state = StreamState(prompt=PROMPT, seed=5, steps=4, width=48, height=32)
    text, nothing = (
        runner.transformer.text_kv(runner.encode_text(prompt, 9)) for prompt in (PROMPT, "")
    )
    made = []
    with torch.inference_mode():
        for _ in range(chunks):
            sampler.remember(state, text)
            latents = sampler.sample(state, text, nothing)
            sampler.keep(state, latents)
            made.append(latents)
    return torch.cat(made, dim=2)


def test_a_stream_is_decoded_exactly(streaming: Engine) -> None:
    """Frames of a session are those of its latents, decoded in the same chunks by diffusers."""
    session = streaming.open(PROMPT, seed=5, frames=17)
    chunks = [chunk.frames for chunk in session]
    assert [len(frames) for frames in chunks] == [1, 8, 8]
    latents = latents_of(streaming, 3) / 0.7
    vae = AutoencoderKLCogVideoX.from_pretrained(streaming.folder.path / "vae")
    caches, parts = None, []
    with torch.no_grad():
        for part in latents.split([1, 2, 2], dim=2):
            frames, caches = vae.decoder(part, conv_cache=caches)
            parts.append(frames)
    wanted = (torch.cat(parts, dim=2)[0].permute(1, 2, 3, 0).clamp(-1, 1) + 1) * 127.5
    assert np.abs(np.concatenate(chunks) - wanted.numpy()).max() <= 0.5 + 1e-2


def test_a_stream_s_latents_are_diffusers_denoising_of_each_window(streaming: Engine) -> None:
    """The first chunk alone, each later one behind its clean past, by the definition."""
    ours = latents_of(streaming, 3)
    dit = streaming.runner.transformer
    text = torch.cat([streaming.runner.encode_text(p, 9) for p in (PROMPT, "")])
    solver = CogVideoXDDIMScheduler(**SCHEDULE, snr_shift_scale=3.0)
    solver.set_timesteps(4)
    assert solver.timesteps.tolist() == RECIPE["timesteps"]
    made = torch.zeros(1, 4, 0, 4, 6)
    with torch.no_grad():
        for chunk, count in enumerate([1, 2, 2]):
            past, x = made[:, :, -3:], normal(5, chunk, 0, (1, 4, count, 4, 6))
            for t in solver.timesteps.tolist():
                both = torch.cat([past, x], dim=2).expand(2, -1, -1, -1, -1)
                times = torch.tensor([[0.0] * past.shape[2] + [t] * count]).expand(2, -1)
                yes, no = dit(both, times, text)[:, :, past.shape[2] :].chunk(2)
                x = solver.step(no + 3.0 * (yes - no), int(t), x, return_dict=False)[0]
            made = torch.cat([made, x], dim=2)
    torch.testing.assert_close(ours, made, rtol=1e-4, atol=1e-4)


def test_a_stream_goes_on_from_a_snapshot_bitwise(streaming: Engine) -> None:
    whole = [chunk.frames for chunk in streaming.open(PROMPT, seed=5, frames=25)]
    session = streaming.open(PROMPT, seed=5)
    for _ in range(2):
        next(session)
    restored = streaming.restore(session.snapshot(), frames=16)
    rest = [chunk.frames for chunk in restored]
    assert np.array_equal(np.concatenate(rest), np.concatenate(whole[2:]))
    light = streaming.restore(session.snapshot(light=True), frames=8)
    assert next(light).frames.shape == (8, 32, 48, 3)


def test_a_stream_starts_from_a_picture_and_takes_another_prompt(streaming: Engine) -> None:
    picture = np.full((32, 48, 3), 90, np.uint8)
    session = streaming.open(PROMPT, image=picture, frames=17)
    first = next(session)
    assert first.frames.shape[0] == 1
    session.update(prompt=NEGATIVE, recache=True)
    second = next(session)
    assert second.applied == ("update",) and len(second.frames) == 8


def test_generate_streams_where_there_is_a_recipe(streaming: Engine) -> None:
    assert streaming.streams
    video = streaming.generate(PROMPT, seed=5, frames=9)
    with pytest.raises(InputError, match="a stream is not decoded in tiles"):
        streaming.generate(PROMPT, frames=9, tile=True)
    session = streaming.open(PROMPT, seed=5, frames=9)
    assert np.array_equal(video.frames, np.concatenate([chunk.frames for chunk in session]))


def test_loras_are_those_of_peft_and_leave_no_trace(streaming: Engine, tmp_path: Path) -> None:
    """Two at once, one in the names of a pipeline and one in an adapter's."""
    torch.manual_seed(0)
    layers = {"transformer_blocks.0.attn1.to_q": (32, 32),
              "transformer_blocks.1.ff.net.0.proj": (128, 32)}  # fmt: skip
    engine = Engine.load(streaming.folder.path, device="cpu", dtype="float32")
    plain = [chunk.frames for chunk in engine.open(PROMPT, seed=5, frames=17)]
    theirs = CogVideoXTransformer3DModel.from_pretrained(engine.folder.path / "transformer")
    for prefix, file, strength in (("transformer", "a", 0.8), ("base_model.model", "b", -0.5)):
        tensors: dict[str, torch.Tensor] = {}
        for name, (outputs, inputs) in layers.items():
            down, up = torch.randn(2, inputs) * 0.3, torch.randn(outputs, 2) * 0.3
            tensors |= {f"{prefix}.{name}.lora_A.weight": down}
            tensors |= {f"{prefix}.{name}.lora_B.weight": up}
            theirs.get_submodule(name).weight.data += strength * up @ down
        save_file(tensors, tmp_path / f"{file}.safetensors")
        engine.load_lora(tmp_path / f"{file}.safetensors")
    x, text, t = torch.randn(1, 4, 3, 4, 6), torch.randn(1, 9, 12), torch.tensor([500.0])
    assert engine.loras is not None and isinstance(engine.runner, TorchRunner)
    engine.loras.use({"a": 0.8, "b": -0.5})
    with torch.no_grad():
        wanted = theirs(x.transpose(1, 2), text, t, return_dict=False)[0].transpose(1, 2)
        found = engine.runner.transformer(x, t, text)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    session = engine.open(PROMPT, seed=5, frames=17)
    assert np.array_equal(next(session).frames, plain[0])
    session.update(loras={"b": 2.0})
    assert not np.array_equal(next(session).frames, plain[1])
    again = [chunk.frames for chunk in engine.open(PROMPT, seed=5, frames=17)]
    assert all(np.array_equal(a, b) for a, b in zip(again, plain, strict=True))


@torch.no_grad()
def test_a_tiny_decoder_streams_in_the_vae_s_place(streaming: Engine, tmp_path: Path) -> None:
    save_file(TinyDecoder(4, (8, 6, 4, 4), 1).state_dict(), tmp_path / "taecvx.safetensors")
    tiny = tmp_path / "taecvx.safetensors"
    engine = Engine.load(streaming.folder.path, device="cpu", dtype="float32", decoder=tiny)
    chunks = [chunk.frames for chunk in engine.open(PROMPT, seed=5, frames=17)]
    assert [len(frames) for frames in chunks] == [1, 8, 8]
    whole = engine.decode(engine.runner.vae.denormalize(latents_of(streaming, 3)))
    wanted = (whole[0].permute(1, 2, 3, 0) + 1) * 127.5
    assert np.abs(np.concatenate(chunks) - wanted.numpy()).max() <= 0.5 + 1e-2

"""Clips from pictures, and by two experts, against diffusers' pipelines on tiny random models."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from livereel.engine import cli, memory
from livereel.engine.checkpoint.folder import open_folder
from livereel.engine.engine import Engine
from livereel.engine.errors import CheckpointError, InputError
from livereel.engine.models.wan.pictures import condition
from livereel.engine.runners.torch import TorchRunner
from livereel.engine.sampling.noise import normal

Make = Callable[[str], tuple[Path, Any]]
PROMPT = "a red ball moving left"
SIZE = dict(height=32, width=48)
TOWER = dict(hidden_size=8, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2,
             image_size=28, patch_size=14)  # fmt: skip
IMAGE = dict(in_channels=12, image_dim=8, added_kv_proj_dim=48)
KINDS: dict[str, dict[str, Any]] = {
    "I2V": dict(dit=IMAGE),
    "FLF2V": dict(dit=IMAGE | {"pos_embed_seq_len": 10}, last=True),
    "A14B I2V": dict(dit=dict(in_channels=12), second=True, last=True),
    "A14B T2V": dict(dit={}, second=True, image=False),
    "TI2V": dict(dit={}, clean_start=True),
    "TI2V from text": dict(dit={}, clean_start=True, image=False),
}


def transformer(**changes: Any) -> Any:
    from diffusers import WanTransformer3DModel

    return WanTransformer3DModel(
        **dict(num_attention_heads=2, attention_head_dim=24, in_channels=4, out_channels=4,
               text_dim=12, freq_dim=32, ffn_dim=64, num_layers=2) | changes
    )  # fmt: skip


def save(kind: str, clip_folder: Path, out: Path) -> Any:
    """A folder of this kind, and diffusers' pipeline over the same weights."""
    from diffusers import WanImageToVideoPipeline, WanPipeline
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

    wanted = KINDS[kind]
    torch.manual_seed(3)
    base = WanPipeline.from_pretrained(clip_folder)
    parts = {
        name: base.components[name] for name in ("tokenizer", "text_encoder", "vae", "scheduler")
    }
    parts |= {"transformer": transformer(**wanted["dit"])}
    if wanted.get("second"):
        parts |= {"transformer_2": transformer(**wanted["dit"]), "boundary_ratio": 0.8}
    if "image_dim" in wanted["dit"]:
        processor = CLIPImageProcessor(
            size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}
        )
        tower = CLIPVisionModel(CLIPVisionConfig(**TOWER))
        parts |= {"image_encoder": tower, "image_processor": processor}
    if wanted.get("clean_start"):
        parts |= {"expand_timesteps": True}
    cls = WanImageToVideoPipeline if wanted.get("image", True) else WanPipeline
    pipeline = cls(**parts)
    pipeline.save_pretrained(out)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def made(clip_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Folder and pipeline of a kind, made once."""

    @lru_cache
    def make(kind: str) -> tuple[Path, Any]:
        folder = tmp_path_factory.mktemp("pictures") / "model"
        return folder, save(kind, clip_folder, folder)

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_clips_equal_diffusers_pipelines(kind: str, made: Make) -> None:
    from PIL import Image

    folder, pipeline = made(kind)
    first, last = np.random.default_rng(1).integers(0, 256, (2, 32, 48, 3), dtype=np.uint8)
    wanted = KINDS[kind]
    ours: dict[str, Any] = {}
    theirs: dict[str, Any] = {}
    if wanted.get("image", True):
        ours["image"], theirs["image"] = first, Image.fromarray(first)
    if wanted.get("last"):
        ours["last_image"], theirs["last_image"] = last, Image.fromarray(last)
    if wanted.get("second"):
        ours["low_noise_guidance_scale"] = theirs["guidance_scale_2"] = 2.5
    engine = Engine.load(folder, device="cpu", dtype="float32")
    video = engine.generate(PROMPT, frames=9, steps=5, seed=3, **SIZE, **ours)
    expected = pipeline(
        prompt=PROMPT, negative_prompt="", **SIZE, num_frames=9, num_inference_steps=5,
        guidance_scale=5.0, latents=normal(3, 0, 0, (1, 4, 3, 4, 6)), max_sequence_length=512,
        output_type="np", **theirs,
    ).frames[0]  # fmt: skip
    assert np.abs(video.frames / 255 - expected).max() <= 2e-3 + 0.5 / 255
    if ours:
        other = engine.generate(PROMPT, frames=9, steps=5, seed=4, **SIZE, **ours).frames
        assert not np.array_equal(other, video.frames)


@pytest.mark.parametrize("frames", [1, 5, 9, 17])
def test_mask_and_latents_are_diffusers(made: Make, frames: int) -> None:
    """Encoded part by part as at once."""
    folder, pipeline = made("FLF2V")
    first, last = torch.rand(2, 1, 3, 1, 32, 48) * 2 - 1
    end = last if frames > 1 else None
    with torch.no_grad():
        _, expected = pipeline.prepare_latents(
            first[:, :, 0], 1, 4, 32, 48, frames, torch.float32, torch.device("cpu"),
            last_image=None if end is None else end[:, :, 0],
        )  # fmt: skip
        runner = TorchRunner.load(
            open_folder(folder), device=torch.device("cpu"), dtype=torch.float32
        )
        found = condition(runner.encode, first, end, (frames - 1) // 4 + 1, 4)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "given", "sentence"),
    [
        ("I2V", {}, "starts from a picture"),
        ("FLF2V", {"image": True}, "a first and a last picture"),
        ("FLF2V", {"image": True, "last_image": True, "frames": 10}, "such as 9; got 10"),
        ("FLF2V", {"image": True, "last_image": True, "frames": 1}, "such as 5; got 1"),
        ("A14B T2V", {"image": True}, "from text alone"),
        ("A14B T2V", {"low_noise_guidance_scale": -1}, "low_noise_guidance_scale is -1"),
        ("TI2V", {"image": True, "last_image": True}, "no last picture"),
        ("TI2V", {"image": False}, "the image is float64 of shape"),
    ],
)
def test_pictures_that_a_model_cannot_use_are_refused(
    kind: str, given: dict[str, Any], sentence: str, made: Make
) -> None:
    engine = Engine.load(made(kind)[0], device="cpu", dtype="float32")
    pictures = {True: np.zeros((32, 48, 3), np.uint8), False: np.zeros((3, 3))}
    values = {k: pictures[v] if k.endswith("image") else v for k, v in given.items()}
    with pytest.raises(InputError, match=sentence):
        engine.generate(PROMPT, **{"frames": 5, "steps": 2, **SIZE, **values})


@pytest.mark.parametrize("ratio", [None, 0, 1, True, "0.9"])
def test_two_experts_want_a_boundary(ratio: object, clip_folder: Path, tmp_path: Path) -> None:
    index = json.loads((clip_folder / "model_index.json").read_text())
    index |= {"transformer_2": ["diffusers", "WanTransformer3DModel"], "boundary_ratio": ratio}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="boundary_ratio must be a number between 0 and 1"):
        open_folder(tmp_path)


def test_two_experts_do_not_stream(engine: Engine) -> None:
    runner = cast(TorchRunner, engine.runner)
    both = replace(runner, low_noise=runner.transformer, boundary=900.0)
    with pytest.raises(InputError, match="has two DiTs: it makes whole clips, not streams"):
        both.sampler(engine.config, 48, 32)


def test_what_two_experts_and_an_image_encoder_take_is_told_before_loading(
    made: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind, part in (("A14B I2V", "transformer_2"), ("I2V", "image_encoder")):
        folder = open_folder(made(kind)[0])
        counts = memory.count_parameters(folder)
        need = memory.estimate(folder, width=48, height=32, dtype="float32")
        assert counts[part] > 0 and need.weights == 4 * sum(counts.values())
        assert cli.main(["info", str(folder.path)]) == 0
        assert part in capsys.readouterr().out


def test_the_command_makes_a_clip_between_two_pictures(
    made: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    for name, level in (("first.png", 40), ("last.jpg", 200)):
        Image.new("RGB", (96, 96), (level, 0, 0)).save(tmp_path / name)
    out = tmp_path / "clip.mp4"
    model = str(made("FLF2V")[0])
    options = ["--steps", "2", "--size", "48x32", "--seconds", "0.7", "--device", "cpu"]
    command = ["generate", PROMPT, "-o", str(out), "--model", model, "--dtype", "float32", *options]
    pictures = ["--image", str(tmp_path / "first.png"), "--last-image", str(tmp_path / "last.jpg")]
    assert cli.main([*command, *pictures]) == 0
    assert "9 frames of 48x32" in capsys.readouterr().out  # 11 and a last one that ends a latent
    assert cli.main([*command, *pictures[2:]]) == 2
    assert "--last-image goes with --image" in capsys.readouterr().err

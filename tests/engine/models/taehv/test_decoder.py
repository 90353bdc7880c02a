"""Tiny decoders against their arithmetic spelled out, streamed against whole, and in the engine."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from livereel.engine.engine import Engine
from livereel.engine.errors import CheckpointError, InputError
from livereel.engine.models.taehv.decoder import TinyDecoder

State = dict[str, torch.Tensor]
CPU = torch.device("cpu")


def weights(channels: int, widths: tuple[int, ...], patch: int, *, spare: bool = False) -> State:
    """Random ones under TAEHV's names; with `spare`, a growing layer has rows for two frames."""
    torch.manual_seed(0)
    state: State = {}

    def conv(name: str, inside: int, outside: int, size: int, *, bias: bool) -> None:
        state[f"decoder.{name}.weight"] = torch.randn(outside, inside, size, size) / (
            size * inside**0.5
        )
        if bias:
            state[f"decoder.{name}.bias"] = torch.randn(outside) * 0.1

    conv("1", channels, widths[0], 3, bias=True)
    for level, (at, frames) in enumerate(((3, 1 + spare), (9, 2), (15, 2))):
        width = widths[level]
        for block in range(at, at + 3):
            for part, times in ((0, 2), (2, 1), (4, 1)):
                conv(f"{block}.conv.{part}", times * width, width, 3, bias=True)
        conv(f"{at + 4}.conv", width, width * frames, 1, bias=False)
        conv(str(at + 5), width, widths[level + 1], 3, bias=False)
    conv("22", widths[-1], 3 * patch**2, 3, bias=True)
    state["encoder.0.weight"] = torch.zeros(1)
    return state


def by_definition(state: State, latents: torch.Tensor, patch: int) -> torch.Tensor:
    """Frames `[F, 3, H, W]` in [0, 1] of latents `[T, C, H, W]`: frame by frame, layer by layer."""

    def conv(x: torch.Tensor, name: str) -> torch.Tensor:
        weight = state[f"decoder.{name}.weight"]
        return F.conv2d(x, weight, state.get(f"decoder.{name}.bias"), padding=weight.shape[-1] // 2)

    frames = [torch.relu(conv(3 * torch.tanh(x / 3), "1")) for x in latents.unsqueeze(1)]
    for at, times in ((3, 1), (9, 2), (15, 2)):
        for block in range(at, at + 3):
            made, before = [], torch.zeros_like(frames[0])
            for x in frames:
                y = torch.relu(conv(torch.cat([x, before], 1), f"{block}.conv.0"))
                y = conv(torch.relu(conv(y, f"{block}.conv.2")), f"{block}.conv.4")
                made.append(torch.relu(y + x))
                before = x
            frames = made
        frames = [x.repeat_interleave(2, 2).repeat_interleave(2, 3) for x in frames]
        frames = [y for x in frames for y in conv(x, f"{at + 4}.conv").chunk(times, 1)]
        frames = [conv(x, str(at + 5)) for x in frames]
    made = [conv(torch.relu(x), "22") for x in frames]
    if patch > 1:
        made = [F.pixel_shuffle(x, patch) for x in made]
    return torch.cat(made).clamp(0, 1)[3:]


def load(folder: Path, state: State) -> TinyDecoder:
    save_file(state, folder / "tiny.safetensors")
    return TinyDecoder.load(folder / "tiny.safetensors", device=CPU, dtype=torch.float32)


@pytest.mark.parametrize(("channels", "patch"), [(16, 1), (48, 2)])
@pytest.mark.parametrize("frames", [1, 2, 5])
@torch.no_grad()
def test_frames_are_what_the_definition_says(
    tmp_path: Path, channels: int, patch: int, frames: int
) -> None:
    state = weights(channels, (12, 8, 6, 4), patch)
    latents = torch.randn(2, channels, frames, 3, 5)
    found, _ = load(tmp_path, state)(latents)
    expected = [by_definition(state, x.transpose(0, 1), patch) for x in latents]
    assert found.shape[2] == 1 + 4 * (frames - 1)
    torch.testing.assert_close(
        (found.transpose(1, 2) + 1) / 2, torch.stack(expected), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("cuts", [[1, 1, 1, 1, 1, 1, 1], [1, 3, 3], [3, 2, 2]])
@torch.no_grad()
def test_streamed_equals_whole(tmp_path: Path, cuts: list[int]) -> None:
    decoder = load(tmp_path, weights(4, (8, 6, 4, 4), 1))
    latents = torch.randn(1, 4, 7, 3, 4)
    whole, _ = decoder(latents)
    parts, caches = [], None
    for part in latents.split(cuts, dim=2):
        frames, caches = decoder(part, caches)
        parts.append(frames)
    assert caches is not None and len(caches) == 9
    assert (torch.cat(parts, dim=2) - whole).abs().max() <= 1e-5


@torch.no_grad()
def test_of_rows_for_more_frames_the_last_count(tmp_path: Path) -> None:
    state = weights(4, (8, 6, 4, 4), 1, spare=True)
    found, _ = load(tmp_path, state)(torch.ones(1, 4, 2, 2, 2))
    state["decoder.7.conv.weight"] = state["decoder.7.conv.weight"][-8:].clone()
    expected, _ = load(tmp_path, state)(torch.ones(1, 4, 2, 2, 2))
    assert torch.equal(found, expected)


def test_published_sizes_have_their_count() -> None:
    with torch.device("meta"):
        decoder = TinyDecoder(16, (256, 128, 64, 64), 1)
    assert round(sum(p.numel() for p in decoder.parameters()) / 1e6, 2) == 9.84


def test_the_engine_decodes_by_it(tiny_folder: Path, tmp_path: Path) -> None:
    """The tiny model's VAE is 4x8x8 with 4 channels."""
    path = tmp_path / "tiny.safetensors"
    state = weights(4, (8, 6, 4, 4), 1)
    save_file(state, path)
    engine = Engine.load(tiny_folder, device="cpu", dtype="float32", decoder=path)
    latents = torch.randn(1, 4, 3, 4, 6)
    expected = by_definition(state, engine.runner.vae.normalize(latents)[0].transpose(0, 1), 1)
    found = (engine.decode(latents)[0].transpose(0, 1) + 1) / 2
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    session = engine.open("a red ball", seed=1)
    chunks = list(islice(session, 2))
    assert [len(chunk.frames) for chunk in chunks] == [1, 12]
    exact, light = session.snapshot(), session.snapshot(light=True)
    rest = next(session).frames
    assert np.array_equal(next(engine.restore(exact)).frames, rest)
    assert np.abs(next(engine.restore(light)).frames.astype(int) - rest).max() <= 2
    plain = Engine.load(tiny_folder, device="cpu", dtype="float32")
    assert not np.array_equal(next(plain.restore(exact)).frames, rest)  # taken for a light one


def test_a_folder_may_hold_one(tiny_folder: Path, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    with pytest.raises(CheckpointError, match="tiny_decoder"):
        Engine.load(folder, device="cpu", decoder="tiny")
    (folder / "tiny_decoder").mkdir()
    save_file(
        weights(4, (8, 6, 4, 4), 1),
        folder / "tiny_decoder" / "diffusion_pytorch_model.safetensors",
    )
    engine = Engine.load(folder, device="cpu", dtype="float32", decoder="tiny")
    assert engine.decode(torch.zeros(1, 4, 2, 4, 6)).shape == (1, 3, 5, 32, 48)
    with pytest.raises(InputError, match=r"wanted \[B, 4, T"):
        engine.decode(torch.zeros(1, 3, 2, 4, 6))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"decoder.1.weight": None}, "no tiny decoder"),
        ({"decoder.5.conv.0.bias": None}, "lacks 1 key"),
        ({"decoder.22.weight": torch.zeros(5, 4, 3, 3)}, "gives 5 numbers a pixel"),
        ({"decoder.8.weight": torch.zeros(9, 8, 3, 3)}, "instead of"),
        ({"decoder.1.weight": torch.zeros(8, 5, 3, 3)}, "latents of 5 channels"),
    ],
)
def test_what_does_not_fit_is_refused(
    tiny_folder: Path, tmp_path: Path, change: State, sentence: str
) -> None:
    state = weights(4, (8, 6, 4, 4), 1) | change
    save_file({k: v for k, v in state.items() if v is not None}, tmp_path / "tiny.safetensors")
    with pytest.raises(CheckpointError, match=sentence):
        Engine.load(tiny_folder, device="cpu", decoder=tmp_path / "tiny.safetensors")

"""Streams by overlapping windows: what a chunk is given, and that the past stays as it was."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from livereel.engine.config import StreamConfig
from livereel.engine.controls import Update
from livereel.engine.errors import InputError
from livereel.engine.generator import ChunkGenerator
from livereel.engine.runners.watch import Watch
from livereel.engine.sampling.stream import StreamSampler, StreamState
from livereel.engine.sampling.windowed import Windowed
from livereel.engine.types import KV, LayerKV

CHANNELS, SIZE = 2, (3, 4)


class Recorder:
    """A DiT of whole clips that says what it was given, and predicts a function of it."""

    channels, text_width, spatial_patch = CHANNELS, 5, 1
    condition_channels, image_width, images = 0, None, None

    def __init__(self, temporal_patch: int = 1) -> None:
        self.temporal_patch = temporal_patch
        self.calls: list[tuple[Tensor, Tensor, Tensor]] = []

    def __call__(
        self, latents: Tensor, timestep: Tensor, text: Tensor, image: Tensor | None = None
    ) -> Tensor:
        self.calls.append((latents, timestep, text))
        return latents.mean() + torch.sin(latents) * text.mean()

    def text_kv(self, text: Tensor) -> KV:
        return [LayerKV(text.unsqueeze(2), text.unsqueeze(2))]

    def cached(self) -> None: ...

    def in_ring(self) -> None: ...

    def native(self) -> None: ...

    def picture_condition(self, *_: Any) -> Tensor:
        raise NotImplementedError


def sampler(dit: Recorder, **values: Any) -> StreamSampler:
    recipe = dict(
        chunk_latents=2, first_chunk_latents=2, window=5, timesteps=(999.0, 499.0),
        solver="ddim", shift=3.0,
    )  # fmt: skip
    return StreamSampler(
        denoiser=Windowed(dit), config=StreamConfig(**{**recipe, **values}), channels=CHANNELS,
        size=SIZE, device=torch.device("cpu"), dtype=torch.float32, warm_up=0,
    )  # fmt: skip


def state() -> StreamState:
    return StreamState(prompt="", seed=1, steps=2, width=8, height=8)


def run(loop: StreamSampler, stream: StreamState, chunks: int, text: Tensor) -> list[Tensor]:
    kv, made = loop.denoiser.text_kv(text), []
    for _ in range(chunks):
        loop.remember(stream, kv)
        latents = loop.sample(stream, kv, None)
        loop.keep(stream, latents)
        made.append(latents)
    return made


TEXT = torch.linspace(-1, 2, 15).reshape(1, 3, 5)


def test_a_chunk_is_given_its_clean_past_and_told_so() -> None:
    dit = Recorder()
    made = run(sampler(dit), state(), 4, TEXT)
    for chunk in range(4):
        past = torch.cat(made[:chunk], dim=2)[:, :, -3:] if chunk else None
        for step, t in enumerate((999.0, 499.0)):
            latents, times, text = dit.calls[2 * chunk + step]
            assert torch.equal(text, TEXT)
            if past is None:
                assert latents.shape[2] == 2 and times.flatten().tolist() == [t]
                continue
            seen = past.shape[2]
            assert times.tolist() == [[0.0] * seen + [t, t]]
            assert torch.equal(latents[:, :, :seen], past)
            assert latents.shape == (1, CHANNELS, seen + 2, *SIZE)
    assert [call[0].shape[2] for call in dit.calls[::2]] == [2, 4, 5, 5]


def test_the_same_seed_gives_the_same_stream() -> None:
    one, other = (run(sampler(Recorder()), state(), 3, TEXT) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    new = run(sampler(Recorder()), StreamState("", 2, 2, 8, 8), 3, TEXT)
    assert not torch.equal(one[2], new[2])


def test_sinks_come_first_in_the_window() -> None:
    dit = Recorder()
    made = run(sampler(dit, sinks=1, window=3), state(), 4, TEXT)
    first = dit.calls[-1][0]
    assert first.shape[2] == 1 + 1 + 2
    whole = torch.cat(made[:3], dim=2)
    assert torch.equal(first[:, :, :1], whole[:, :, :1])
    assert torch.equal(first[:, :, 1:2], whole[:, :, -1:])


def test_a_window_rebuilt_from_kept_latents_is_the_same() -> None:
    dit = Recorder()
    loop, stream = sampler(dit), state()
    run(loop, stream, 3, TEXT)
    kv = loop.denoiser.text_kv(TEXT)
    loop.remember(stream, kv)
    assert stream.ring is not None
    before = stream.ring.read([3, 4, 5])[0].k.clone()
    passes = len(dit.calls)
    loop.rebuild(stream, kv)
    assert torch.equal(stream.ring.read([3, 4, 5])[0].k, before)
    assert len(dit.calls) == passes


def test_patches_in_time_leave_the_oldest_out() -> None:
    dit = Recorder(temporal_patch=2)
    run(sampler(dit), state(), 4, TEXT)
    assert [call[0].shape[2] for call in dit.calls[::2]] == [2, 4, 4, 4]
    with pytest.raises(InputError, match="chunks must be a multiple of 2 latent frames"):
        run(sampler(Recorder(temporal_patch=2), first_chunk_latents=1), state(), 1, TEXT)


def test_only_forwards_are_counted_as_passes() -> None:
    dit = Recorder()
    loop, stream = sampler(dit), state()
    maker = SimpleNamespace(
        latents=loop.sample, frames=lambda *_: (lambda: None, ()), ahead=lambda *_: None
    )
    runner: Any = SimpleNamespace(
        maker=lambda _: maker, encode_text=lambda *_: TEXT, transformer=dit,
        device=torch.device("cpu"),
    )  # fmt: skip
    generator = ChunkGenerator(runner, loop.config, loop, None)
    pace: Any = SimpleNamespace(passes=2, optional_work=True)
    counts = [
        generator.generate(stream, updates, None, pace, Watch(runner.device), fed=False)[1]
        for updates in ([], [], [Update(prompt="another", recache=True)])
    ]
    assert counts == [2, 2, 2] and len(dit.calls) == 6

"""The streaming step against the same written out by hand, which keeps everything it ever saw."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from torch import Tensor

from livereel.engine.config import StreamConfig
from livereel.engine.engine import Engine
from livereel.engine.sampling.noise import normal
from livereel.engine.sampling.stream import StreamSampler, StreamState
from livereel.engine.types import KV, LayerKV, Past, Place

PROMPT = "a red ball moving left"
HEIGHT, WIDTH = 4, 6
TOKENS = 6


def with_config(engine: Engine, **changes: object) -> Engine:
    """The same weights under another livereel.json."""
    stream = StreamConfig.from_dict(engine.config.to_dict() | changes)
    return replace(engine, folder=replace(engine.folder, stream=stream))


def streamed(engine: Engine, chunks: int, seed: int) -> list[Tensor]:
    """The clean latents of a stream's first chunks."""
    session = engine.open(PROMPT, seed=seed)
    latents = []
    for _ in islice(session, chunks):
        assert session._state.pending is not None
        latents.append(session._state.pending)
    return latents


@torch.inference_mode()
def by_hand(engine: Engine, chunks: int, seed: int) -> list[Tensor]:
    """The same with a plain list of every frame's keys and values, none of them ever dropped."""
    config, dit = engine.config, engine.runner.transformer
    text = dit.text_kv(engine.runner.encode_text(PROMPT, config.max_sequence_length))
    frames: list[KV] = []
    made = []
    for chunk in range(chunks):
        length = config.first_chunk_latents if chunk == 0 else config.chunk_latents
        newest = len(frames) - (config.window - config.chunk_latents)
        old = [i for i in range(config.sinks, newest) if i % config.anchor_every == 0]
        kept = old[max(0, len(old) - config.anchors) :]
        seen = [kv for i, kv in enumerate(frames) if i < config.sinks or i in kept or i >= newest]
        past: Past | None = None
        if seen:
            layers = [
                LayerKV(torch.cat([kv.k for kv in layer], 1), torch.cat([kv.v for kv in layer], 1))
                for layer in zip(*seen, strict=True)
            ]
            past = dit.past(len(seen), HEIGHT, WIDTH, layers)
        shape = (1, 4, length, HEIGHT, WIDTH)
        x = normal(seed, chunk, 0, shape)
        for step, t in enumerate(config.timesteps):
            flow, _ = dit.chunk(x, torch.tensor([t]), text, past)
            x = x - t / 1000 * flow
            if step + 1 < len(config.timesteps):
                sigma = config.timesteps[step + 1] / 1000
                x = (1 - sigma) * x + sigma * normal(seed, chunk, step + 1, shape)
        made.append(x)
        _, clean = dit.chunk(x, torch.tensor([config.context_noise]), text, past)
        for i in range(length):
            rows = slice(i * TOKENS, (i + 1) * TOKENS)
            frames.append([LayerKV(kv.k[:, rows], kv.v[:, rows]) for kv in clean])
    return made


@pytest.mark.parametrize(
    "changes",
    [
        {"sinks": 0, "window": 6},
        {"sinks": 0, "window": 3},
        {"sinks": 1, "window": 4},
        {"sinks": 2, "window": 6},
        {"sinks": 5, "window": 3},
        {"sinks": 2, "window": 2, "chunk_latents": 1},
        {"sinks": 3, "window": 7, "chunk_latents": 5, "first_chunk_latents": 5},
        {"sinks": 1, "window": 4, "chunk_latents": 2, "context_noise": 50.0},
        {"anchors": 2, "anchor_every": 4, "window": 4},
        {"anchors": 3, "anchor_every": 2, "window": 3, "sinks": 2},
        {"anchors": 1, "anchor_every": 1, "window": 5, "chunk_latents": 2},
    ],
)
def test_a_stream_equals_a_list_of_all_keys_and_values(
    engine: Engine, changes: dict[str, object]
) -> None:
    engine = with_config(engine, **changes)
    ours, reference = streamed(engine, 7, seed=5), by_hand(engine, 7, seed=5)
    for own, wanted in zip(ours, reference, strict=True):
        torch.testing.assert_close(own, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("first", "picture", "memory"),
    [
        (1, False, {"window": 30}),
        (2, False, {"window": 30}),
        (3, False, {"window": 30}),
        (3, True, {"window": 30}),
        # What is not in the window are sinks, and frames each of which is an anchor.
        (1, False, {"window": 3, "sinks": 2, "anchors": 20}),
        (2, False, {"window": 4, "sinks": 30}),
    ],
)
@torch.inference_mode()
def test_rebuilding_a_ring_that_holds_all_changes_nothing(
    engine: Engine, first: int, picture: bool, memory: dict[str, int]
) -> None:
    engine = with_config(engine, **memory, first_chunk_latents=first)
    session = engine.open(PROMPT, image=np.zeros((32, 48, 3), np.uint8) if picture else None)
    list(islice(session, 5))
    state, sampler = session._state, session._sampler
    assert state.text is not None
    text = engine.runner.transformer.text_kv(state.text)
    sampler.remember(state, text)
    before = sampler.sample(state, text, None)
    again = replace(state)
    assert sampler.rebuild(again, text) == 5 and again.ring is not state.ring
    torch.testing.assert_close(sampler.sample(again, text, None), before, rtol=0, atol=1e-5)


@pytest.mark.parametrize("every", [2, 3, 5, 30])
@pytest.mark.parametrize("sinks", [0, 2])
def test_the_latents_of_old_anchors_are_kept(engine: Engine, every: int, sinks: int) -> None:
    engine = with_config(engine, window=4, sinks=sinks, anchors=3, anchor_every=every)
    made: list[Tensor] = []
    session = engine.open(PROMPT, steps=1)
    for _ in islice(session, 16):
        state = session._state
        assert state.pending is not None
        made += state.pending.unbind(2)
        left = [i for i in range(sinks, len(made) - 4) if i % every == 0][-3:]
        if left:
            assert state.anchors is not None
            assert torch.equal(state.anchors, torch.stack([made[i] for i in left], dim=2))
        else:
            assert state.anchors is None


@torch.inference_mode()
def test_a_ring_is_rebuilt_from_sinks_anchors_and_the_window(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = with_config(engine, window=4, sinks=2, anchors=2, anchor_every=4)
    session = engine.open(PROMPT, steps=1)
    list(islice(session, 8))
    state, sampler = session._state, session._sampler
    assert state.text is not None
    text = engine.runner.transformer.text_kv(state.text)
    sampler.remember(state, text)
    assert state.latent == 22
    given, write = [], StreamSampler._write

    def watched(
        self: StreamSampler, state: StreamState, latents: Tensor, place: Place, text: KV
    ) -> None:
        given.append((latents.shape[2], place.first, list(place.seen)))
        write(self, state, latents, place, text)

    monkeypatch.setattr(StreamSampler, "_write", watched)
    assert sampler.rebuild(state, text) == 6
    # Frames of a pass, the first one's number, what it sees; chunks begin at 0, 1, 4, .. 19.
    assert given == [
        (1, 0, []),
        (1, 1, [0]),
        (1, 12, [0, 1]),
        (1, 16, [0, 1, 12]),
        (1, 18, [0, 1, 12, 16]),
        (3, 19, [0, 1, 12, 16, 18]),
    ]
    # All that the next chunk sees has been rebuilt.
    assert sampler.layout.visible(22) == [0, 1, 16, 20, 21]


@torch.inference_mode()
def test_a_latent_counter_beyond_any_table_changes_nothing(engine: Engine) -> None:
    """The same ring at a frame near 2^42 (a multiple of its slots apart) gives the same chunk."""
    session = engine.open(PROMPT)
    list(islice(session, 3))
    state, sampler = session._state, session._sampler
    assert state.text is not None
    text = engine.runner.transformer.text_kv(state.text)
    sampler.remember(state, text)
    near = sampler.sample(state, text, None)
    far = replace(state, latent=state.latent + 6 * 2**40)
    assert torch.equal(near, sampler.sample(far, text, None))

"""Streams: what leaves when, controls at chunk edges, snapshots, and no end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch

from livereel.engine.engine import Engine
from livereel.engine.errors import InputError
from livereel.engine.layers.pixels import to_uint8
from livereel.engine.sampling.noise import normal
from livereel.engine.session import Session
from livereel.engine.types import Chunk

PROMPT = "a red ball moving left"


def frames_of(chunks: Iterable[Chunk]) -> np.ndarray:
    return np.concatenate([chunk.frames for chunk in chunks])


def take(session: Session, count: int) -> list[Chunk]:
    return list(islice(session, count))


def test_chunks_are_numbered_and_the_first_is_one_picture(engine: Engine) -> None:
    chunks = take(engine.open(PROMPT), 4)
    assert [len(c.frames) for c in chunks] == [1, 12, 12, 12]
    assert [c.index for c in chunks] == [0, 1, 2, 3]
    assert [c.pts for c in chunks] == [0, 1, 13, 25]
    assert chunks[0].frames.dtype == np.uint8 and chunks[0].frames.shape[1:] == (32, 48, 3)
    assert np.abs(np.diff(chunks[1].frames.astype(int), axis=0)).max() > 0


def test_each_frame_is_decoded_from_its_own_denoised_latents(engine: Engine) -> None:
    """Counts the DiT's and the decoder's calls, and recomputes every frame from what they gave."""
    passes: list[tuple[int, ...]] = []
    decoded: list[torch.Tensor] = []
    transformer, vae = engine.runner.transformer, engine.runner.vae
    chunk, decode = transformer.chunk, vae.decode

    def count_chunk(latents, *args):  # type: ignore[no-untyped-def]
        passes.append(tuple(latents.shape))
        return chunk(latents, *args)

    def count_decode(latents, caches=None):  # type: ignore[no-untyped-def]
        out = decode(latents, caches)
        decoded.append(out[0])
        return out

    transformer.chunk, vae.decode = count_chunk, count_decode  # type: ignore[method-assign]
    try:
        chunks = take(engine.open(PROMPT), 3)
    finally:
        transformer.chunk, vae.decode = chunk, decode  # type: ignore[method-assign]
    steps = len(engine.config.timesteps)
    # Three chunks of `steps` passes; the cache pass of each but the last.
    assert len(passes) == 3 * steps + 2 == sum(c.stats.passes for c in chunks)
    assert len(decoded) == 3 == sum(c.stats.decoder_calls for c in chunks)
    for sent, own in zip(chunks, decoded, strict=True):
        assert np.array_equal(sent.frames, to_uint8(own))


def test_the_first_chunk_leaves_before_the_second_is_begun(engine: Engine) -> None:
    session = engine.open(PROMPT)
    first = next(session)
    assert first.stats.passes == len(engine.config.timesteps)
    assert first.stats.cache_s < first.stats.dit_s


def test_the_same_seed_gives_the_same_frames_and_another_seed_others(engine: Engine) -> None:
    one, two = (frames_of(take(engine.open(PROMPT, seed=5), 3)) for _ in range(2))
    assert np.array_equal(one, two)
    assert not np.array_equal(one, frames_of(take(engine.open(PROMPT, seed=6), 3)))


def test_streamed_latents_decode_to_the_same_frames_as_the_whole(engine: Engine) -> None:
    """The chunks' frames against one decode of all their latents."""
    session = engine.open(PROMPT)
    chunks, latents = [], []
    for _ in range(4):
        chunks.append(next(session))
        latents.append(session._state.pending)
    whole = engine.runner.decode(torch.cat(latents, dim=2))[0]
    difference = to_uint8(whole).astype(int) - frames_of(chunks).astype(int)
    assert np.abs(difference).max() <= 1  # rounding of floats that differ by 1e-6


def test_a_chunk_attends_to_the_window_only(engine: Engine) -> None:
    """Chunk 3 of a window of 6 sees chunk 2, not chunk 1: with chunk 2's K/V kept and chunk 1's
    slots overwritten, what it makes is fixed by the ring."""
    session = engine.open(PROMPT)
    take(session, 3)
    ring = session._state.ring
    assert ring is not None and ring.layout.recent == 3
    assert session._sampler.layout.visible(4) == [1, 2, 3]


# Controls


def test_a_new_prompt_takes_hold_at_the_next_chunk(engine: Engine) -> None:
    plain = take(engine.open(PROMPT), 4)
    session = engine.open(PROMPT)
    before = take(session, 2)
    session.update(prompt="a blue ball")
    after = take(session, 2)
    assert np.array_equal(frames_of(before), frames_of(plain[:2]))
    assert after[0].applied == ("update",) and after[1].applied == ()
    assert after[0].stats.text_s > 0
    assert not np.array_equal(after[0].frames, plain[2].frames)


def test_recache_runs_the_window_under_the_new_prompt(engine: Engine) -> None:
    results = []
    for recache in (False, True):
        session = engine.open(PROMPT)
        take(session, 3)
        session.update(prompt="a blue ball", recache=recache)
        results.append(next(session))
    steps = len(engine.config.timesteps)
    assert results[0].stats.passes == steps + 1
    assert results[1].stats.passes == steps + 1 + 2  # six latent frames in chunks of three
    assert not np.array_equal(results[0].frames, results[1].frames)


def test_steps_and_seed_change_on_the_way(engine: Engine) -> None:
    session = engine.open(PROMPT)
    take(session, 2)
    session.update(steps=1)
    session.update(seed=99)
    chunk = next(session)
    assert chunk.applied == ("update", "update")
    assert chunk.stats.passes == 1 + 1


def test_reset_starts_over_while_numbers_go_on(engine: Engine) -> None:
    session = engine.open(PROMPT)
    before = take(session, 2)
    session.reset()
    after = take(session, 2)
    assert np.array_equal(frames_of(before), frames_of(after))
    assert after[0].applied == ("reset",)
    assert [c.index for c in after] == [2, 3] and after[0].pts == 13


def test_pause_holds_the_stream_until_resume(engine: Engine) -> None:
    session = engine.open(PROMPT)
    next(session)
    session.pause()
    arrived = threading.Event()
    made: list[Chunk] = []

    def draw() -> None:
        made.append(next(session))
        arrived.set()

    thread = threading.Thread(target=draw)
    thread.start()
    assert not arrived.wait(0.3)
    session.resume()
    assert arrived.wait(30)
    thread.join()
    assert made[0].index == 1


def test_close_ends_a_paused_stream(engine: Engine) -> None:
    session = engine.open(PROMPT)
    session.pause()
    threading.Timer(0.2, session.close).start()
    assert list(session) == []
    with pytest.raises(InputError, match="closed"):
        session.update(prompt="a ball")


def test_async_iteration_gives_the_same_chunks(engine: Engine) -> None:
    async def collect() -> list[Chunk]:
        return [chunk async for chunk in engine.open(PROMPT, frames=20)]

    chunks = asyncio.run(collect())
    assert np.array_equal(frames_of(chunks), engine.generate(PROMPT, frames=20).frames)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"prompt": "  "}, "prompt is empty"),
        ({"seed": -1}, "seed is -1"),
        ({"steps": 0}, "steps must be from 1 to the 3"),
        ({"steps": 4}, "steps must be from 1 to the 3"),
    ],
)
def test_bad_controls_are_refused_at_once(
    engine: Engine, change: dict[str, object], sentence: str
) -> None:
    session = engine.open(PROMPT)
    with pytest.raises(InputError, match=sentence):
        session.update(**change)  # type: ignore[arg-type]


# Snapshots


@pytest.mark.parametrize("chunks", [0, 1, 2, 4])
def test_an_exact_snapshot_goes_on_bitwise(engine: Engine, chunks: int) -> None:
    session = engine.open(PROMPT, seed=3)
    take(session, chunks)
    restored = engine.restore(session.snapshot())
    ours, theirs = take(restored, 3), take(session, 3)
    assert np.array_equal(frames_of(ours), frames_of(theirs))
    assert [c.pts for c in ours] == [c.pts for c in theirs]


def test_a_light_snapshot_is_small_and_goes_on_closely(engine: Engine) -> None:
    session = engine.open(PROMPT, seed=3)
    take(session, 10)
    exact, light = session.snapshot(), session.snapshot(light=True)
    assert len(light) < len(exact) / 3
    restored = engine.restore(light)
    ours, theirs = frames_of(take(restored, 2)), frames_of(take(session, 2))
    # The window is as long as two chunks and each sees one: the ring is exact. The decoder starts
    # anew 24 latent frames back, whose trace is below a level of brightness.
    assert np.abs(ours.astype(float) - theirs).mean() < 0.5
    assert restored._state.pts == session._state.pts
    assert torch.allclose(restored._state.pending, session._state.pending, atol=1e-4)


def test_damaged_and_foreign_snapshots_are_refused(engine: Engine) -> None:
    session = engine.open(PROMPT)
    take(session, 2)
    data = session.snapshot()
    for broken in (b"", b"nonsense", data[:-100], data[:40]):
        with pytest.raises(InputError, match="no LiveReel snapshot"):
            engine.restore(broken)
    foreign = data.replace(engine._fingerprint().encode(), b"x" * len(engine._fingerprint()))
    with pytest.raises(InputError, match="belongs to model"):
        engine.restore(foreign)


# No end


def test_memory_of_the_state_does_not_grow(engine: Engine) -> None:
    session = engine.open(PROMPT, steps=1)
    take(session, 10)
    size = len(session.snapshot())
    take(session, 8)
    assert abs(len(session.snapshot()) - size) < 64


def test_a_stream_that_starts_at_a_far_frame_works(engine: Engine) -> None:
    chunks = take(engine.open(PROMPT, start_frame=2**31), 3)
    assert [c.pts for c in chunks] == [2**31, 2**31 + 1, 2**31 + 13]
    assert not np.array_equal(frames_of(chunks), frames_of(take(engine.open(PROMPT), 3)))


@torch.inference_mode()
def test_a_latent_counter_beyond_any_table_changes_nothing(engine: Engine) -> None:
    """The same ring at frame 2^40 (a multiple of its slots apart) gives the same chunk."""
    session = engine.open(PROMPT)
    take(session, 3)
    state, sampler = session._state, session._sampler
    text = engine.runner.transformer.text_kv(state.text)
    near = sampler.sample(state, text, None)
    far = replace(state, latent=state.latent + 3 * 2**40)
    assert torch.equal(near, sampler.sample(far, text, None))


@pytest.mark.slow
def test_five_thousand_frames_at_flat_memory(engine: Engine) -> None:
    import resource

    session = engine.open(PROMPT, steps=1)
    count, early = 0, 0
    while count < 5000:
        count += len(next(session).frames)
        if early == 0 and count > 1000:
            early = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    late = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert late - early < 20_000  # KiB


def test_noise_depends_on_seed_chunk_and_step_alone(engine: Engine) -> None:
    """A stream is rebuilt by hand from `normal` and the DiT."""
    session = engine.open(PROMPT, seed=11, steps=1)
    next(session)
    transformer = engine.runner.transformer
    with torch.inference_mode():
        text = transformer.text_kv(engine.runner.encode_text(PROMPT, 8))
        noise = normal(11, 0, 0, (1, 4, 1, 4, 6))
        flow, _ = transformer.chunk(noise, torch.tensor([1000.0]), text, None)
    assert torch.allclose(session._state.pending, noise - flow, atol=1e-6)

"""Streams: what leaves when, controls at chunk edges, faults, and no end."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch

from livereel.engine.controls import MAX_QUEUE
from livereel.engine.engine import Engine
from livereel.engine.errors import InputError, ResourceError
from livereel.engine.layers.pixels import to_uint8
from livereel.engine.sampling.window import KVRing
from livereel.engine.session import Session
from livereel.engine.types import KV, Chunk

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


def test_each_frame_is_decoded_from_its_own_denoised_latents(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counts the DiT's and the decoder's calls, and recomputes every frame from what they gave."""
    passes: list[tuple[int, ...]] = []
    decoded: list[torch.Tensor] = []
    transformer, vae = engine.runner.transformer, engine.runner.vae
    decode = vae.decode

    def counted(forward: Callable[..., Any]) -> Callable[..., Any]:
        def count(latents: torch.Tensor, *args: Any) -> Any:
            passes.append(tuple(latents.shape))
            return forward(latents, *args)

        return count

    def count_decode(latents: torch.Tensor, *args: Any) -> Any:
        out = decode(latents, *args)
        decoded.append(out[0])
        return out

    with monkeypatch.context() as patch:
        for name in ("chunk", "keys_values"):
            patch.setattr(transformer, name, counted(getattr(transformer, name)))
        patch.setattr(vae, "decode", count_decode)
        chunks = take(engine.open(PROMPT), 3)
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


@pytest.mark.parametrize("frames", [1, 5, 9, 17])
@pytest.mark.parametrize("chunk", [1, 2, 3, 5])
def test_streamed_equals_whole(
    engine: Engine, frames: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The decoder's floats, chunk by chunk, against one decode of all latents."""
    stream = replace(engine.config, chunk_latents=chunk, first_chunk_latents=1, window=2 * chunk)
    engine = replace(engine, folder=replace(engine.folder, stream=stream))
    given: list[torch.Tensor] = []
    parts: list[torch.Tensor] = []
    decode = engine.runner.vae.decode

    def watched(latents: torch.Tensor, *caches: Any) -> Any:
        decoded, kept = decode(latents, *caches)
        given.append(latents)
        parts.append(decoded)
        return decoded, kept

    with monkeypatch.context() as patch:
        patch.setattr(engine.runner.vae, "decode", watched)
        streamed = frames_of(engine.open(PROMPT, frames=frames))
    whole = engine.decode(torch.cat(given, dim=2))
    assert len(parts) == 1 + -(-(frames // 4) // chunk)
    assert (torch.cat(parts, dim=2) - whole).abs().max() <= 1e-5
    assert streamed.shape == (frames, 32, 48, 3)
    difference = streamed.astype(int) - to_uint8(whole)[:frames]
    assert np.abs(difference).max() <= 1  # rounding of floats that differ by 1e-6


@pytest.mark.parametrize("frames", [1, 5, 9, 17])
@torch.inference_mode()
def test_encoded_in_parts_equals_encoded_whole(engine: Engine, frames: int) -> None:
    clip = torch.rand(1, 3, frames, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    whole, caches, parts = engine.encode(clip), None, []
    for part in (clip[:, :, :1], *torch.split(clip[:, :, 1:], 4, dim=2)):
        if part.shape[2]:
            latents, caches = engine.runner.encode(part, caches)
            parts.append(engine.runner.vae.denormalize(latents))
    assert (torch.cat(parts, dim=2) - whole).abs().max() <= 1e-5


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


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"prompt": "  "}, "prompt is empty"),
        ({"prompt": "a" * 10_001}, "at most 10,000 characters, got 10,001"),
        ({"seed": -1}, "seed is -1"),
        ({"steps": 0}, "steps must be from 1 to the 3"),
        ({"steps": 4}, "steps must be from 1 to the 3"),
        ({"steps": 1.5}, "steps is 1.5; wanted a whole number"),
    ],
)
def test_bad_controls_are_refused_at_once(
    engine: Engine, change: dict[str, object], sentence: str
) -> None:
    session = engine.open(PROMPT)
    with pytest.raises(InputError, match=sentence):
        session.update(**change)  # type: ignore[arg-type]


# What goes wrong


class Fault:
    """Stands in for a function: call number `at` does its work, and then an error comes."""

    def __init__(self, function: Callable[..., Any], at: int, error: BaseException) -> None:
        self.function, self.at, self.error = function, at, error
        self.calls = 0

    def __call__(self, *args: Any) -> Any:
        self.calls += 1
        result = self.function(*args)
        if self.calls == self.at:
            raise self.error
        return result


@pytest.mark.parametrize(
    ("part", "name", "at"),
    [
        ("text_encoder", "encode", 1),
        ("transformer", "text_kv", 1),
        ("transformer", "keys_values", 1),  # the cache pass
        ("transformer", "keys_values", 3),  # the second pass of the recache
        ("transformer", "chunk", 2),  # a denoising pass
        ("vae", "decode", 1),
    ],
)
@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no memory"), KeyboardInterrupt()])
def test_a_chunk_that_failed_has_not_begun(
    engine: Engine,
    part: str,
    name: str,
    at: int,
    error: BaseException,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing is lost and nothing is done twice: the next step makes the same chunk."""
    sessions = engine.open(PROMPT), engine.open(PROMPT)
    for session in sessions:
        take(session, 3)
        session.update(prompt="a blue ball", recache=True)
        session.update(seed=4, steps=2)
    whole, cut = sessions
    expected = take(whole, 3)
    owner = getattr(engine.runner, part)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, Fault(getattr(owner, name), at, error))
        with pytest.raises((ResourceError, KeyboardInterrupt)):
            next(cut)
    untouched = engine.restore(cut.snapshot())
    chunks = take(cut, 3)
    assert chunks[0].applied == ("update", "update") and chunks[1].applied == ()
    assert [c.pts for c in chunks] == [c.pts for c in expected]
    assert [c.stats.passes for c in chunks] == [c.stats.passes for c in expected]
    assert np.array_equal(frames_of(chunks), frames_of(expected))
    # A snapshot in between holds the state before the controls, which wait.
    assert np.array_equal(next(untouched).frames, take(engine.open(PROMPT), 4)[3].frames)


def test_a_failed_write_to_the_ring_does_no_harm(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ring is shared with the state that is fallen back to, and written in place."""
    session = engine.open(PROMPT)
    take(session, 3)
    write = KVRing.write
    for layers in (1, 2):
        with monkeypatch.context() as patch:

            def cut_short(ring: KVRing, first: int, kv: KV, layers: int = layers) -> None:
                write(ring, first, kv[:layers])
                raise KeyboardInterrupt

            patch.setattr(KVRing, "write", cut_short)
            with pytest.raises(KeyboardInterrupt):
                next(session)
    assert np.array_equal(next(session).frames, take(engine.open(PROMPT), 4)[3].frames)


def test_controls_from_many_threads_all_take_hold(engine: Engine) -> None:
    session = engine.open(PROMPT, steps=1)

    def send() -> None:
        for seed in range(20):
            session.update(seed=seed)

    threads = [threading.Thread(target=send) for _ in range(8)]
    for thread in threads:
        thread.start()
    applied = [name for chunk in take(session, 2) for name in chunk.applied]
    for thread in threads:
        thread.join()
    applied += next(session).applied
    assert applied == ["update"] * 160


def test_only_so_many_controls_may_wait(engine: Engine) -> None:
    session = engine.open(PROMPT)
    for _ in range(MAX_QUEUE):
        session.reset()
    with pytest.raises(ResourceError, match="1000 controls wait already"):
        session.reset()


def test_of_many_recaches_at_one_edge_the_last_is_run(engine: Engine) -> None:
    session, other = engine.open(PROMPT), engine.open(PROMPT)
    take(session, 3), take(other, 3)
    for _ in range(5):
        session.update(prompt="a ball moving left", recache=True)
    session.update(prompt="a blue ball", recache=True)
    other.update(prompt="a blue ball", recache=True)
    chunk, expected = next(session), next(other)
    assert chunk.stats.passes == expected.stats.passes and len(chunk.applied) == 6
    assert np.array_equal(chunk.frames, expected.frames)


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

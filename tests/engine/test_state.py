"""Snapshots: what goes on from them, and what strangers may put into them."""

from __future__ import annotations

import json
import pickle
import threading
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from livereel.engine.engine import Engine
from livereel.engine.errors import InputError
from livereel.engine.session import Session
from livereel.engine.types import Chunk

PROMPT = "a red ball moving left"

Values = dict[str, Any]
Tensors = dict[str, torch.Tensor]


def frames_of(chunks: Iterable[Chunk]) -> np.ndarray:
    return np.concatenate([chunk.frames for chunk in chunks])


def take(session: Session, count: int) -> list[Chunk]:
    return list(islice(session, count))


@pytest.mark.parametrize("chunks", [0, 1, 2, 4])
def test_an_exact_snapshot_goes_on_bitwise(engine: Engine, chunks: int) -> None:
    session = engine.open(PROMPT, seed=3)
    take(session, chunks)
    restored = engine.restore(session.snapshot())
    ours, theirs = take(restored, 3), take(session, 3)
    assert np.array_equal(frames_of(ours), frames_of(theirs))
    assert [c.pts for c in ours] == [c.pts for c in theirs]


def test_a_snapshot_of_a_picture_alone_goes_on_bitwise(engine: Engine) -> None:
    session = engine.open(PROMPT, image=np.full((32, 48, 3), 90, np.uint8))
    take(session, 1)
    restored = engine.restore(session.snapshot())
    assert np.array_equal(frames_of(take(restored, 1)), frames_of(take(session, 1)))


def test_a_light_snapshot_is_small_and_goes_on_closely(engine: Engine) -> None:
    session = engine.open(PROMPT, seed=3)
    take(session, 10)
    exact, light = session.snapshot(), session.snapshot(light=True)
    assert len(light) < len(exact) / 3
    restored = engine.restore(light)
    ours, theirs = frames_of(take(restored, 2)), frames_of(take(session, 2))
    # The window is as long as two chunks and each sees one: the ring is exact. The decoder starts
    # anew some 20 latent frames back, whose trace is below a level of brightness.
    assert np.abs(ours.astype(float) - theirs).mean() < 0.5
    assert restored._state.pts == session._state.pts
    assert torch.allclose(restored._state.pending, session._state.pending, atol=1e-4)


def test_a_light_snapshot_holds_numbers_and_clean_latents_alone(engine: Engine) -> None:
    image = np.zeros((32, 48, 3), np.uint8)
    session = engine.open(PROMPT, image=image)
    take(session, 2)
    assert sorted(load(session.snapshot(light=True))) == ["given", "recent"]
    ours, theirs = take(engine.restore(session.snapshot(light=True)), 1), take(session, 1)
    assert np.abs(frames_of(ours).astype(int) - frames_of(theirs)).max() <= 1


def test_a_snapshot_of_a_light_restored_session_is_exact(engine: Engine) -> None:
    session = engine.open(PROMPT)
    take(session, 3)
    restored = engine.restore(session.snapshot(light=True))
    again = engine.restore(restored.snapshot())
    assert np.array_equal(frames_of(take(again, 2)), frames_of(take(restored, 2)))


ANCHORED = {"window": 4, "sinks": 2, "anchors": 2, "anchor_every": 4}


@pytest.fixture(scope="module")
def anchored(engine: Engine) -> Engine:
    """The same model with a short window, sinks and anchors."""
    stream = replace(engine.config, **ANCHORED)
    return replace(engine, folder=replace(engine.folder, stream=stream))


@pytest.mark.parametrize("chunks", [1, 2, 4, 8])
def test_sinks_and_anchors_go_into_exact_snapshots(anchored: Engine, chunks: int) -> None:
    session = anchored.open(PROMPT, seed=3)
    take(session, chunks)
    snapshot = session.snapshot()
    assert ("anchors" in load(snapshot)) == (chunks > 2)
    assert np.array_equal(
        frames_of(take(anchored.restore(snapshot), 4)), frames_of(take(session, 4))
    )


def test_a_light_snapshot_brings_the_long_memory_back(anchored: Engine) -> None:
    """The ring of a restored session holds what the next chunk sees, close to what it was."""
    session = anchored.open(PROMPT, seed=3)
    take(session, 9)
    light = session.snapshot(light=True)
    assert sorted(load(light)) == ["anchors", "recent", "sinks"]
    restored = anchored.restore(light)
    take(session, 1), take(restored, 1)
    ours, theirs = restored._state, session._state
    assert ours.latent == theirs.latent == 25
    assert torch.equal(ours.anchors, theirs.anchors)
    # Anchors and sinks saw other frames when they were first cached.
    assert (ours.pending - theirs.pending).abs().mean() < 0.1 * theirs.pending.abs().mean()
    # All that the next chunk sees was computed.
    ring, layout = ours.ring, ours.ring.layout
    seen = [layout.slot(frame) for frame in layout.visible(25)]
    assert all(ring.k[:, seen].abs().amax(dim=(0, 2, 3, 4)) > 0)


def test_a_reset_forgets_the_long_memory(anchored: Engine) -> None:
    session = anchored.open(PROMPT)
    before = take(session, 8)
    session.reset()
    assert np.array_equal(frames_of(take(session, 8)), frames_of(before))


@pytest.mark.parametrize("frames", [1, 3])
def test_anchors_that_cannot_be_are_refused(anchored: Engine, frames: int) -> None:
    session = anchored.open(PROMPT)
    take(session, 8)
    wrong = torch.zeros(1, 4, frames, 4, 6)
    broken = tamper(session.snapshot(), lambda values, tensors: tensors.update(anchors=wrong))
    with pytest.raises(InputError, match="anchors is of shape"):
        anchored.restore(broken)


def test_a_snapshot_waits_for_the_chunk_in_the_making(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, vae = engine.open(PROMPT), engine.runner.vae
    take(session, 1)
    begun, go_on = threading.Event(), threading.Event()
    decode, taken = vae.decode, []

    def slow(*args: Any) -> Any:
        begun.set()
        assert go_on.wait(30)
        return decode(*args)

    monkeypatch.setattr(vae, "decode", slow)
    making = threading.Thread(target=take, args=(session, 1))
    making.start()
    assert begun.wait(30)
    saving = threading.Thread(target=lambda: taken.append(session.snapshot()))
    saving.start()
    assert not taken
    go_on.set()
    making.join()
    saving.join()
    assert next(engine.restore(taken[0])).index == 2


def test_what_was_cut_off_a_last_chunk_is_not_counted_again(engine: Engine) -> None:
    session = engine.open(PROMPT, frames=7)
    assert [len(c.frames) for c in session] == [1, 6]
    restored = engine.restore(session.snapshot(), frames=13)
    assert [(c.pts, len(c.frames)) for c in restored] == [(13, 12), (25, 1)]


@pytest.mark.parametrize("frames", [0, -5, 1.5, 10**9])
def test_a_restored_session_ends_after_a_number_of_frames(engine: Engine, frames: Any) -> None:
    snapshot = engine.open(PROMPT).snapshot()
    with pytest.raises(InputError, match="frames is"):
        engine.restore(snapshot, frames=frames)


# Strangers


@pytest.fixture(scope="module")
def snapshot(engine: Engine) -> bytes:
    session = engine.open(PROMPT)
    take(session, 3)
    return session.snapshot()


def tamper(data: bytes, change: Callable[[Values, Tensors], Any]) -> bytes:
    """A snapshot well formed, but of what it should not be."""
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    values, tensors = json.loads(header["__metadata__"]["livereel"]), load(data)
    change(values, tensors)
    return save(tensors, {"livereel": json.dumps(values)})


def test_a_snapshot_put_together_again_is_restored(engine: Engine, snapshot: bytes) -> None:
    assert next(engine.restore(tamper(snapshot, lambda values, tensors: None))).index == 3


@pytest.mark.parametrize(
    "broken",
    [
        lambda data: b"",
        lambda data: b"nonsense",
        lambda data: data[:40],
        lambda data: data[:-100],
        lambda data: pickle.dumps({"seed": 1}),
        lambda data: save({"x": torch.zeros(1)}),
        lambda data: save({"x": torch.zeros(1)}, {"livereel": "[" * 100_000}),
        lambda data: save({"x": torch.zeros(1)}, {"livereel": "[1]"}),
        lambda data: tamper(data, lambda values, tensors: values.pop("seed")),
        lambda data: (2**63).to_bytes(8, "little") + data[8:],
    ],
)
def test_what_is_no_snapshot_is_refused(
    engine: Engine, snapshot: bytes, broken: Callable[[bytes], bytes]
) -> None:
    with pytest.raises(InputError, match="no LiveReel snapshot"):
        engine.restore(broken(snapshot))


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"model": "another"}, "belongs to model 'another'"),
        ({"model": "x" * 10**6}, "belongs to model"),
        ({"format": 2}, "has format 2"),
        ({"seed": 2**64}, "seed is 18446744073709551616"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": True}, "seed is True"),
        ({"pts": 1.5}, "pts is 1.5"),
        ({"index": "1"}, "index is '1'"),
        ({"noise_offset": 2**63}, "noise_offset is"),
        ({"steps": 0}, "steps must be from 1"),
        ({"steps": 10**6}, "steps must be from 1"),
        ({"width": 50}, "width is 50"),
        ({"height": 2**40}, "height is"),
        ({"prompt": " "}, "prompt is empty"),
        ({"prompt": None}, "prompt is empty"),
        ({"prompt": "a" * 10**6}, "at most 10,000 characters"),
        ({"chunk": 0}, "counts 4 latent frames; wanted 0"),
        ({"chunk": 2**62}, "counts 4 latent frames; wanted"),
        ({"latent": 5}, "counts 5 latent frames; wanted 7"),
        ({"latent": 2**61}, "latent is 2305843009213693952"),
        ({"latent": 7}, "pending is of shape"),
        ({"light": True}, "counts 4 latent frames; wanted 7"),
        ({"light": True, "latent": 7}, "is of shape"),
        ({"width": 4096, "height": 4096}, "recent is of shape"),
    ],
)
def test_numbers_that_cannot_be_are_refused(
    engine: Engine, snapshot: bytes, values: Values, sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence) as refusal:
        engine.restore(tamper(snapshot, lambda found, tensors: found.update(values)))
    assert len(str(refusal.value)) < 300


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors.pop("ring.v"),
        lambda tensors: tensors.pop("pending"),
        lambda tensors: tensors.pop("cache.3"),
        lambda tensors: tensors.update(extra=torch.zeros(1)),
        lambda tensors: tensors.update({"cache.99": torch.zeros(1)}),
        lambda tensors: tensors.update(text=torch.zeros(1, 8, 13)),
        lambda tensors: tensors.update(text=torch.zeros(1, 4096, 12)),
        lambda tensors: tensors.update(recent=tensors["recent"].long()),
        lambda tensors: tensors.update(recent=tensors["recent"][:, :, :0]),
        lambda tensors: tensors.update(pending=tensors["pending"].flatten()),
        lambda tensors: tensors.update(picture=torch.zeros(1, 4, 2, 4, 6)),
        lambda tensors: tensors.update({"ring.k": torch.zeros(2, 6, 6, 2, 25)}),
        lambda tensors: tensors.update({"cache.0": torch.zeros(1, 4, 2, 4, 7)}),
    ],
)
def test_tensors_that_cannot_be_are_refused(
    engine: Engine, snapshot: bytes, change: Callable[[Tensors], Any]
) -> None:
    with pytest.raises(InputError, match=r"is of shape .*; wanted|latent frames; wanted"):
        engine.restore(tamper(snapshot, lambda values, tensors: change(tensors)))


def test_nothing_is_computed_at_a_size_that_only_a_number_claims(
    engine: Engine, snapshot: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    vae, transformer, areas = engine.runner.vae, engine.runner.transformer, []
    decode = vae.decode

    def watched(latents: torch.Tensor, *args: Any) -> Any:
        areas.append(latents.shape[2:].numel())
        return decode(latents, *args)

    monkeypatch.setattr(vae, "decode", watched)
    for name in ("chunk", "keys_values"):
        monkeypatch.setattr(transformer, name, None)
    large = tamper(snapshot, lambda values, tensors: values.update(width=8192, height=8192))
    with pytest.raises(InputError, match="recent is of shape"):
        engine.restore(large)
    assert max(areas) == 2  # latents of a pixel or two, from which caches are reckoned

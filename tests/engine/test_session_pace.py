"""Sessions that keep pace, under a clock that only the model's passes move."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from livereel.engine.engine import Engine
from livereel.engine.errors import ResourceError
from livereel.engine.runners import watch
from livereel.engine.session import Session
from livereel.engine.types import Chunk

PROMPT = "a red ball moving left"
PLAYS = 12 / 16  # seconds of a chunk


@dataclass
class Clock:
    """Seconds so far, and how long a pass of the DiT and a call of the decoder take."""

    now: float = 50.0
    a_pass: float = 0.01
    a_decode: float = 0.01

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    transformer, vae = engine.runner.transformer, engine.runner.vae
    decode = vae.decode

    def slow(forward: Callable[..., Any]) -> Callable[..., Any]:
        def slowed(*args: Any) -> Any:
            clock.now += clock.a_pass
            return forward(*args)

        return slowed

    def slow_decode(*args: Any) -> Any:
        clock.now += clock.a_decode
        return decode(*args)

    monkeypatch.setattr(watch, "time", SimpleNamespace(perf_counter=clock.perf_counter))
    for name in ("chunk", "keys_values"):
        monkeypatch.setattr(transformer, name, slow(getattr(transformer, name)))
    monkeypatch.setattr(vae, "decode", slow_decode)
    return clock


def take(session: Session, count: int) -> list[Chunk]:
    return list(islice(session, count))


def paces(chunks: list[Chunk]) -> list[tuple[int, float]]:
    return [(chunk.stats.steps, chunk.stats.rate) for chunk in chunks]


def test_a_stream_that_falls_behind_takes_fewer_steps_and_says_so(
    engine: Engine, clock: Clock
) -> None:
    clock.a_pass = 0.3  # three steps and the cache pass: 1.21 s for 0.75 s of frames
    chunks = take(engine.open(PROMPT, pace=True), 7)
    assert paces(chunks) == [(n, 16.0) for n in (3, 3, 3, 2, 1, 1, 1)]
    assert [c.stats.passes for c in chunks] == [3, 4, 4, 3, 2, 2, 2]
    assert [c.stats.deadline_met for c in chunks] == [True, False, False, False, True, True, True]
    assert chunks[1].stats.lead_s == pytest.approx(PLAYS - 1.21)
    assert chunks[4].stats.lead_s == pytest.approx(PLAYS - 0.61)
    assert chunks[2].stats.jitter_s == 0 < chunks[3].stats.jitter_s


def test_the_frame_rate_is_the_last_to_go_and_the_first_to_come_back(
    engine: Engine, clock: Clock
) -> None:
    clock.a_pass = 1.0
    session = engine.open(PROMPT, pace=True)
    assert paces(take(session, 9))[4:] == [(1, 16), (1, 12), (1, 9), (1, 8), (1, 8)]
    clock.a_pass = 0.01
    seen = list(dict.fromkeys(paces(take(session, 25))))
    assert seen == [(1, 8), (1, 9), (1, 12), (1, 16), (2, 16), (3, 16)]


def test_a_session_that_does_not_keep_pace_only_tells_the_time(
    engine: Engine, clock: Clock
) -> None:
    expected = take(engine.open(PROMPT), 4)
    clock.a_pass = 1.0
    chunks = take(engine.open(PROMPT), 4)
    assert paces(chunks) == [(3, 16.0)] * 4
    assert [c.stats.deadline_met for c in chunks] == [True, False, False, False]
    assert all(np.array_equal(a.frames, b.frames) for a, b in zip(chunks, expected, strict=True))


def test_fewer_steps_are_those_that_a_control_would_set(engine: Engine, clock: Clock) -> None:
    clock.a_pass = 0.3
    paced, told = engine.open(PROMPT, pace=True), engine.open(PROMPT)
    for chunk in take(paced, 6):
        told.update(steps=chunk.stats.steps)
        assert np.array_equal(chunk.frames, next(told).frames)
    # What was asked for stands: another session starts from it, without this one's haste.
    assert next(engine.restore(paced.snapshot(), pace=True)).stats.steps == 3


def test_a_recache_is_skipped_while_the_stream_is_behind(engine: Engine, clock: Clock) -> None:
    session = engine.open(PROMPT, pace=True)
    take(session, 2)
    clock.a_pass = 0.3
    take(session, 4)
    session.update(prompt="a blue ball", recache=True)
    behind = next(session)
    assert behind.applied == ("update",) and behind.stats.skipped == ("recache",)
    assert behind.stats.passes == behind.stats.steps + 1
    clock.a_pass = 0.01
    take(session, 20)
    session.update(prompt="a red ball", recache=True)
    again = next(session)
    assert again.stats.skipped == () and again.stats.passes == 3 + 1 + 2


def test_steps_asked_for_on_the_way_are_the_most_there_are(engine: Engine, clock: Clock) -> None:
    session = engine.open(PROMPT, steps=2, pace=True)
    take(session, 2)
    session.update(steps=3)
    assert next(session).stats.steps == 3
    clock.a_pass = 0.5
    take(session, 5)
    session.update(steps=1)
    assert next(session).stats.steps == 1
    clock.a_pass = 0.01
    take(session, 30)
    assert next(session).stats.steps == 1


def test_a_consumer_that_waits_is_not_late(engine: Engine, clock: Clock) -> None:
    clock.a_pass = 0.1  # 0.41 s a chunk
    session = engine.open(PROMPT, pace=True)
    for _ in range(5):
        chunk = next(session)
        clock.now += 100
        assert chunk.stats.deadline_met and chunk.stats.steps == 3


def test_a_chunk_that_failed_is_not_counted(
    engine: Engine, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = engine.open(PROMPT, pace=True)
    take(session, 2)

    def fail(*_: Any) -> Any:
        clock.now += 60
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(engine.runner.vae, "decode", fail)
        for _ in range(3):
            with pytest.raises(ResourceError):
                next(session)
    chunk = next(session)
    assert chunk.stats.deadline_met and (chunk.stats.steps, chunk.stats.skipped) == (3, ())

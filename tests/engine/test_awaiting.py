"""Awaiting a session's chunks: the same ones, and none lost by who gives up."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

from livereel.engine.engine import Engine
from livereel.engine.errors import InputError
from livereel.engine.types import Chunk

PROMPT = "a red ball moving left"


def frames_of(chunks: Iterable[Chunk]) -> np.ndarray:
    return np.concatenate([chunk.frames for chunk in chunks])


def test_async_iteration_gives_the_same_chunks(engine: Engine) -> None:
    async def collect() -> list[Chunk]:
        return [chunk async for chunk in engine.open(PROMPT, frames=20)]

    chunks = asyncio.run(collect())
    assert np.array_equal(frames_of(chunks), engine.generate(PROMPT, frames=20).frames)


def test_a_chunk_whose_awaiting_was_given_up_comes_next(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    vae, begun, go_on = engine.runner.vae, threading.Event(), threading.Event()
    decode = vae.decode

    def slow(*args: Any) -> Any:
        begun.set()
        assert go_on.wait(30)
        return decode(*args)

    async def collect() -> list[Chunk]:
        session = engine.open(PROMPT, frames=20)
        awaiting = asyncio.ensure_future(anext(session))
        await asyncio.to_thread(begun.wait, 30)
        awaiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await awaiting
        go_on.set()
        return [chunk async for chunk in session]

    with monkeypatch.context() as patch:
        patch.setattr(vae, "decode", slow)
        chunks = asyncio.run(collect())
    assert [c.index for c in chunks] == [0, 1, 2]
    assert np.array_equal(frames_of(chunks), engine.generate(PROMPT, frames=20).frames)


def test_awaiting_can_be_given_up_in_a_pause(engine: Engine) -> None:
    session = engine.open(PROMPT, frames=20)
    session.pause()

    async def give_up(times: int) -> None:
        for _ in range(times):
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(anext(session), 0.05)

    async def collect() -> list[Chunk]:
        await give_up(2)
        awaiting = asyncio.ensure_future(anext(session))
        await asyncio.sleep(0.05)
        session.resume()
        return [await awaiting, *[chunk async for chunk in session]]

    asyncio.run(give_up(1))
    chunks = asyncio.run(collect())
    assert [c.index for c in chunks] == [0, 1, 2]
    assert np.array_equal(frames_of(chunks), engine.generate(PROMPT, frames=20).frames)
    session.pause()
    asyncio.run(give_up(1))
    session._awaited._thread.shutdown(wait=True)  # comes back only if its thread waits no longer


def test_another_event_loop_gets_the_chunk_given_up_in_the_first(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = engine.open(PROMPT, frames=20)
    begun, go_on, make = threading.Event(), threading.Event(), session._make

    def slow(*args: Any) -> Chunk:
        begun.set()
        assert go_on.wait(30)
        return make(*args)

    async def give_up() -> None:
        awaiting = asyncio.ensure_future(anext(session))
        await asyncio.to_thread(begun.wait, 30)
        awaiting.cancel()

    async def collect() -> list[Chunk]:
        return [chunk async for chunk in session]

    monkeypatch.setattr(session, "_make", slow)
    asyncio.run(give_up())
    go_on.set()
    assert [c.index for c in asyncio.run(collect())] == [0, 1, 2]


def test_two_tasks_cannot_await_one_session(engine: Engine) -> None:
    session = engine.open(PROMPT, frames=13)

    async def both() -> list[Any]:
        return await asyncio.gather(anext(session), anext(session), return_exceptions=True)

    first, second = asyncio.run(both())
    assert isinstance(first, Chunk) and first.index == 0
    assert isinstance(second, InputError) and "awaited already" in str(second)
    assert [chunk.index for chunk in session] == [1]

"""The engine without a model keeps the contract that the server is written against."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from livereel.engine.errors import InputError
from livereel.engine.serve.fake import FakeEngine, color_of, draw, number_of
from livereel.engine.serve.messages import (
    Applied,
    ChunkReady,
    Ended,
    Event,
    Pause,
    Resume,
    Spec,
    Update,
)
from livereel.engine.serve.worker_client import Busy, Gone, Rejected


def with_engine(body: Callable[[FakeEngine], Awaitable[None]], limit: int = 4) -> None:
    async def run() -> None:
        engine = FakeEngine(limit=limit, hurry=True)
        await engine.start()
        try:
            await body(engine)
        finally:
            await engine.stop()

    asyncio.run(asyncio.wait_for(run(), 30))


def test_frames_show_their_number() -> None:
    frames = draw("a red circle", 40_000, 3, 128, 64)
    assert [number_of(frame) for frame in frames] == [40_000, 40_001, 40_002]
    assert tuple(frames[0, -1, -1]) == color_of("a red circle")


def test_a_stream_ends_where_it_was_asked_to() -> None:
    async def body(engine: FakeEngine) -> None:
        opened = await engine.open(Spec(prompt="a circle", frames=20))
        events = [event async for event in engine.events(opened.session)]
        chunks = [event for event in events if isinstance(event, ChunkReady)]
        assert [(chunk.chunk, chunk.pts, chunk.count) for chunk in chunks] == [
            (0, 0, 1), (1, 1, 12), (2, 13, 7),
        ]  # fmt: skip
        assert events[-1] == Ended(reason="finished")
        with pytest.raises(Gone):
            await engine.snapshot(opened.session)

    with_engine(body)


def test_a_prompt_takes_hold_where_it_was_announced() -> None:
    async def body(engine: FakeEngine) -> None:
        opened = await engine.open(Spec(prompt="a circle"))
        events: list[Event] = []
        async for event in engine.events(opened.session):
            events.append(event)
            if len(events) == 3:
                await engine.control(opened.session, Update(event_id="e1", prompt="a square"))
            if len(events) == 20:
                break
        (applied,) = [event for event in events if isinstance(event, Applied)]
        assert applied.event_id == "e1" and applied.kind == "update"
        for event in events:
            if isinstance(event, ChunkReady):
                prompt = "a circle" if event.pts < applied.first_frame else "a square"
                assert tuple(event.pixels[0, -1, -1]) == color_of(prompt)

    with_engine(body)


def test_a_paused_stream_waits_and_goes_on() -> None:
    async def body(engine: FakeEngine) -> None:
        opened = await engine.open(Spec(prompt="a circle"))
        events = engine.events(opened.session)
        await engine.control(opened.session, Pause(event_id="p"))
        while not isinstance(await anext(events), Applied):
            pass
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(engine.events(opened.session).__anext__(), 0.05)
        await engine.control(opened.session, Resume(event_id="r"))
        assert isinstance(await anext(events), Applied)
        assert isinstance(await anext(events), ChunkReady)

    with_engine(body)


def test_what_does_not_fit_is_refused() -> None:
    async def body(engine: FakeEngine) -> None:
        opened = await engine.open(Spec(prompt="a circle"))
        with pytest.raises(Busy) as refused:
            await engine.open(Spec(prompt="a square"))
        assert refused.value.retry_after_s > 0 and engine.health == "busy"
        with pytest.raises(Rejected, match="steps is 9"):
            await engine.control(opened.session, Update(event_id="e", steps=9))
        await engine.close(opened.session)
        with pytest.raises(InputError, match="the prompt is empty"):
            await engine.open(Spec(prompt=" "))

    with_engine(body, limit=1)


def test_a_drained_stream_can_be_gone_on_from() -> None:
    async def body(engine: FakeEngine) -> None:
        opened = await engine.open(Spec(prompt="a circle"))
        events = engine.events(opened.session)
        await anext(events)
        led = Update(event_id="e", control=((0.5, 0.5),))
        await engine.control(opened.session, led)
        while not isinstance(await anext(events), Applied):
            pass
        await engine.drain(1.0)
        last = [event async for event in events][-1]
        assert isinstance(last, Ended) and last.reason == "draining" and last.snapshot is not None
        await engine.start()
        again = await engine.open(Spec(snapshot=last.snapshot))
        assert again.pts == again.chunk * 12 - 11
        chunk = await anext(engine.events(again.session))
        assert isinstance(chunk, ChunkReady) and (chunk.pixels[:, 64, 64] == 255).all()

    with_engine(body)

"""The server before an engine of its own process that has no model: what happens when it dies."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import socket as sockets
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from websockets.asyncio.client import connect

from livereel.engine.serve import protocol
from livereel.engine.serve.client import AsyncStream, Refused
from livereel.engine.serve.engine_process import EngineProcess
from livereel.engine.serve.limits import Limits
from livereel.engine.serve.worker import Setup

from .conftest import Live, MakeLive
from .talk import comes_to_hold, everything, hear, held, say, settled, tasks

PROMPT = "a red circle"


def whole(make_live: MakeLive, **options: Any) -> tuple[Live, EngineProcess]:
    engine = EngineProcess(Setup(fake=(0.005, 0.001, 4), sessions=512))
    live = make_live(engine=engine, **options)
    return live, engine


def status(live: Live, wanted: int, seconds: float) -> bool:
    return comes_to_hold(lambda: live.http.get("/readyz").status_code == wanted, seconds)


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_an_engine_that_dies_is_told_and_the_stream_goes_on(
    make_live: MakeLive, blow: signal.Signals
) -> None:
    live, engine = whole(make_live)
    assert status(live, 200, 10)
    heard: list[Any] = []

    async def work() -> None:
        async with AsyncStream(live.url, PROMPT) as stream:
            take = stream._take

            async def noted(data: str | bytes) -> None:
                if isinstance(data, str):
                    heard.append(protocol.decode_server(data))
                await take(data)

            stream._take = noted  # type: ignore[method-assign]
            numbers = []
            async for frame in stream:
                numbers.append(frame.number)
                if len(numbers) == 20:
                    assert engine.pid is not None
                    os.kill(engine.pid, blow)
                    assert await asyncio.to_thread(status, live, 503, 2.0)
                recovered = any(isinstance(said, protocol.Recovered) for said in heard)
                if recovered and len(numbers) > 60:
                    break
            assert numbers == sorted(set(numbers))

    asyncio.run(asyncio.wait_for(work(), 90))
    assert status(live, 200, 10)
    assert "livereel_engine_restarts 1.0" in live.http.get("/metrics").text


def test_a_stream_is_made_from_pictures_that_are_pushed(make_live: MakeLive) -> None:
    live, _ = whole(make_live)

    async def work() -> None:
        async with AsyncStream(live.url, PROMPT, strength=0.5, fps=48) as stream:

            async def film() -> None:
                for i in itertools.count():
                    level = 60 if i < 40 else 200
                    await stream.push(np.full((128, 128, 3), level, np.uint8))
                    await asyncio.sleep(0.02)

            filming = asyncio.create_task(film())
            with pytest.raises(Refused, match="steps is 900"):
                await stream.update(strength=0.8, steps=900)
            update = asyncio.create_task(stream.update(strength=0.8))
            seen = []
            async for frame in stream:
                seen.append(int(frame.pixels[-16:].mean()))
                if seen[-1] > 180:
                    break
            filming.cancel()
            assert abs(seen[0] - 60) < 10 and abs(seen[-1] - 200) < 20
            assert update.result().chunk <= frame.chunk

    asyncio.run(asyncio.wait_for(work(), 60))


def test_pictures_for_a_stream_that_takes_none_end_the_socket(make_live: MakeLive) -> None:
    live, _ = whole(make_live)

    async def work() -> None:
        async with connect(live.url.replace("http", "ws") + protocol.PATH) as ws:
            await say(ws, protocol.Create(event_id="c", prompt=PROMPT))
            await ws.send(b"a picture")
            said = [message async for message in everything(ws)]
            assert isinstance(said[-1], protocol.Error) and said[-1].code == "order"
            assert ws.close_code == protocol.Close.POLICY

    asyncio.run(asyncio.wait_for(work(), 60))


@pytest.mark.parametrize(
    "kills", [50, pytest.param(500, marks=pytest.mark.slow)], ids=["some", "many"]
)
def test_killed_clients_leave_nothing_behind(
    make_live: MakeLive, tmp_path: Path, kills: int
) -> None:
    limits = Limits(lease_s=0.2, streams=512)
    live, engine = whole(make_live, limits=limits, folder=tmp_path / "state")

    async def kill(i: int) -> None:
        async with connect(live.url.replace("http", "ws") + protocol.PATH) as ws:
            await say(ws, protocol.Create(event_id="c", prompt=PROMPT))
            for _ in range(i % 7):
                await hear(ws)
            raw = ws.transport.get_extra_info("socket")
            raw.setsockopt(sockets.SOL_SOCKET, sockets.SO_LINGER, struct.pack("ii", 1, 0))
            ws.transport.abort()

    async def kill_all(count: int) -> None:
        for i in range(count):
            await kill(i)

    def left() -> tuple[object, ...]:
        files = sorted(path.name for path in (tmp_path / "state").rglob("*"))
        return held(os.getpid()), held(engine.pid), files, live.call(tasks())

    asyncio.run(kill_all(2))
    assert settled(live, 0)
    before = left()
    asyncio.run(kill_all(kills))
    assert settled(live, 0)
    assert comes_to_hold(lambda: left() == before), f"{left()} is left, was {before}"
    assert live.server.streams.viewers == 0

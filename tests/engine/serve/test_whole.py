"""The server before an engine of its own process that has no model: what happens when it dies."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from typing import Any

import pytest

from livereel.engine.serve import protocol
from livereel.engine.serve.client import AsyncStream
from livereel.engine.serve.engine_process import EngineProcess
from livereel.engine.serve.worker import Setup

from .conftest import Live, MakeLive

PROMPT = "a red circle"


def whole(make_live: MakeLive) -> tuple[Live, EngineProcess]:
    engine = EngineProcess(Setup(fake=(0.005, 0.001, 4)))
    live = make_live(engine=engine)
    return live, engine


def status(live: Live, wanted: int, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if live.http.get("/readyz").status_code == wanted:
            return True
        time.sleep(0.02)
    return False


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

"""Talking to a live server, and what its process holds: what its tests share."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import numpy as np
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed
from websockets.protocol import State

from livereel.engine.serve import protocol
from livereel.engine.serve.client import AsyncStream, Frame
from livereel.engine.serve.fake import color_of

from .conftest import Live

RED = "a red circle moving right"


async def say(ws: ClientConnection, message: protocol.ClientMessage) -> None:
    await ws.send(protocol.encode(message))


async def hear(ws: ClientConnection) -> protocol.ServerMessage | protocol.Header:
    data = await ws.recv()
    return protocol.unpack(data)[0] if isinstance(data, bytes) else protocol.decode_server(data)


async def everything(
    ws: ClientConnection,
) -> AsyncIterator[protocol.ServerMessage | protocol.Header]:
    """All that comes until the server closes; frames are acknowledged."""
    with contextlib.suppress(ConnectionClosed):
        while True:
            message = await hear(ws)
            if isinstance(message, protocol.Header) and ws.state is State.OPEN:
                with contextlib.suppress(ConnectionClosed):
                    await say(ws, protocol.Ack(frame=message.frame))
            yield message


def comes_to_hold(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    """Whether it holds within so many seconds."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def settled(live: Live, streams: int) -> bool:
    """Whether within a while no more than so many streams are left, here and in the engine."""

    def left() -> bool:
        state = live.call(live.server.engine.state())
        return live.server.streams.count == len(state.sessions) == streams

    return comes_to_hold(left)


def held(pid: int | None) -> tuple[int, int]:
    """Open files of a process, and frame rings that are mapped into it."""
    maps = Path(f"/proc/{pid}/maps").read_text()
    return len(os.listdir(f"/proc/{pid}/fd")), maps.count("memfd:livereel")


async def tasks() -> int:
    """Of the loop that this runs in."""
    return len(asyncio.all_tasks())


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 60))


def shows(frame: Frame, prompt: str) -> bool:
    middle = frame.pixels[frame.pixels.shape[0] // 2, frame.pixels.shape[1] // 2]
    return bool(np.abs(middle.astype(int) - color_of(prompt)).max() < 12)


def aiter_(stream: AsyncStream) -> Any:
    return stream.__aiter__()


async def anext_(frames: Any) -> Frame:
    frame: Frame = await frames.__anext__()
    return frame

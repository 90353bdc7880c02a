"""One socket's way out: what waits for it is bounded, and it gets less rather than later."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from .encoder import LEVELS
from .protocol import ServerMessage, encode
from .quality import Quality

if TYPE_CHECKING:
    from .encoder import Packet

QUEUE_BYTES = 2 << 20
QUEUE_S = 1.0
"""Of frames that wait to be sent; beyond that the viewer skips to the next keyframe."""
QUEUE_TEXTS = 2_000
_POLL_S = 0.1


class Viewer:
    """Frames and messages in order to one socket, by a task of its own (`run`).

    `send` hands one text or binary frame to the socket; it may take its time.
    """

    def __init__(self, send: Callable[[str | bytes], Awaitable[None]]) -> None:
        self.quality = Quality(fps=1.0, lowest=len(LEVELS) - 1)
        self.level = 0
        self.dropped: Counter[str] = Counter()
        self._stream = 0
        self._send = send
        self._queue: deque[tuple[str | Packet, bool, bool, float]] = deque()
        self._bytes = 0
        self._texts = 0
        self._skipping = self._sending = self._gap = False
        self._wake = asyncio.Event()
        self._closing = False
        self._cut = asyncio.Event()

    def begin(self, stream: int, fps: float, level: int) -> None:
        """It watches a stream of this number and rate, at this level to begin with."""
        self._stream, self.level = stream, level
        self.quality = Quality(fps=fps, lowest=len(LEVELS) - 1, level=level)

    @property
    def queued_bytes(self) -> int:
        """Of frames that wait here."""
        return self._bytes

    @property
    def starved(self) -> bool:
        """Whether it waits for a keyframe, and could take one now."""
        return self._skipping and not self._bytes and not self._sending and self.quality.room

    def tell(self, message: ServerMessage) -> None:
        """Queue a text frame. Raises `OverflowError` for a viewer that has let too many pile up."""
        if self._texts >= QUEUE_TEXTS:
            raise OverflowError("the viewer does not read what it is told")
        self._texts += 1
        self._put(encode(message))

    def offer(self, packet: Packet, *, catch_up: bool = False) -> None:
        """Queue a frame, or drop it where it cannot arrive in time or cannot be decoded."""
        if self._skipping:
            if not packet.keyframe:
                self.dropped["slow"] += packet.span
                self._gap = True
                return
            self._skipping = False
        elif self._late():
            self._drop()
            if not packet.keyframe:
                self._skipping = True
                self.dropped["slow"] += packet.span
                return
        self._bytes += len(packet.data)
        self._put(packet, catch_up, self._gap)
        self._gap = False

    def finish(self) -> None:
        """Send what waits and let `run` return."""
        self._closing = True
        self._wake.set()

    def cut(self) -> None:
        """Have the socket closed now, as when its owner comes back by another one."""
        self._cut.set()

    async def wait_cut(self) -> None:
        """Until `cut` is called."""
        await self._cut.wait()

    async def run(self) -> None:
        """Send what is queued, frames only while they are acknowledged."""
        while True:
            while not self._queue:
                if self._closing:
                    return
                self._wake.clear()
                await self._wake.wait()
            item, catch_up, gap, _ = self._queue[0]
            if isinstance(item, str):
                self._queue.popleft()
                self._texts -= 1
                await self._send(item)
                continue
            if not self.quality.room:
                if self._closing:  # what was said last still has to go
                    self._drop()
                    continue
                self._wake.clear()
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), _POLL_S)
                continue
            self._queue.popleft()
            self._bytes -= len(item.data)
            self.quality.sent(item.frame, len(item.data), time.monotonic())
            self._sending = True
            await self._send(item.message(self._stream, catch_up=catch_up, gap=gap))
            self._sending = False

    def acked(self, frame: int, decode_queue: int) -> None:
        """The client has got all frames up to `frame`."""
        self.quality.acked(frame, decode_queue, time.monotonic())
        self._wake.set()

    def _put(self, item: str | Packet, catch_up: bool = False, gap: bool = False) -> None:
        self._queue.append((item, catch_up, gap, time.monotonic()))
        self._wake.set()

    def _late(self) -> bool:
        """Whether more waits than may."""
        if self._bytes >= QUEUE_BYTES:
            return True
        oldest = next((at for item, _, _, at in self._queue if not isinstance(item, str)), None)
        return oldest is not None and time.monotonic() - oldest > QUEUE_S

    def _drop(self) -> None:
        """Forget the frames that wait; messages stay."""
        frames = [item for item, *_ in self._queue if not isinstance(item, str)]
        self.dropped["slow"] += sum(packet.span for packet in frames)
        self._queue = deque(entry for entry in self._queue if isinstance(entry[0], str))
        self._bytes, self._gap = 0, True

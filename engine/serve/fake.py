"""An engine without a model: small pictures whose frame number can be read off them.

`FakeEngine` runs in the server's own process, for tests of what stands before the engine.

A frame of `width` x `height` shows its number as `BITS` squares in the uppermost rows, the lowest
bit leftmost, white for one; below them is one color, that of the prompt (`color_of`), so that a
test can tell at which frame a prompt took hold, and in it a white square where the stream's control
ends. The first frame of a stream or shot that begins with a picture shows that one instead.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
import zlib
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from msgspec.structs import replace

from ..errors import InputError
from .messages import (
    KINDS,
    Applied,
    ChunkReady,
    Control,
    Cut,
    DeadlineMissed,
    Ended,
    EngineState,
    Event,
    Failed,
    Health,
    ModelInfo,
    Opened,
    Pause,
    Resume,
    SessionState,
    Spec,
    Stats,
    Update,
)
from .worker_client import Busy, Gone, Rejected

if TYPE_CHECKING:
    from ..types import Frames

BITS = 16
MODEL = ModelInfo(
    name="fake", width=128, height=128, fps=16.0, steps=4, size_step=16, chunk_frames=12,
    first_chunk_frames=1, device="cpu", dtype="uint8", control=True, control_wraps=True,
)  # fmt: skip
_MAX_QUEUE = 100
_ROOM = 4
"""Chunks that may lie about unread."""
_SAVED = ("prompt", "chunk", "pts", "place")


def color_of(prompt: str) -> tuple[int, int, int]:
    """The color of a prompt's frames."""
    red, green, blue, _ = zlib.crc32(prompt.encode()).to_bytes(4, "big")
    return red, green, blue


def draw(
    prompt: str,
    first: int,
    count: int,
    width: int,
    height: int,
    place: tuple[float, float] | None = None,
) -> Frames:
    """Frames number `first` and following, uint8 `[count, height, width, 3]`, with the square at
    `place`, in shares of width and height."""
    frames = np.empty((count, height, width, 3), np.uint8)
    frames[:] = color_of(prompt)
    side = max(1, width // BITS)
    if place is not None:
        x, y = int(place[0] * width), int(place[1] * height)
        frames[:, max(0, y - side) : y + side, max(0, x - side) : x + side] = 255
    for i in range(count):
        for bit in range(BITS):
            white = (first + i) >> bit & 1
            frames[i, :side, bit * side : (bit + 1) * side] = 255 * white
    return frames


def number_of(frame: Frames) -> int:
    """The number that a frame shows, modulo `2 ** BITS`; it may have gone through a codec."""
    side = max(1, frame.shape[1] // BITS)
    squares = frame[:side, : side * BITS].reshape(side, BITS, side, 3)
    return int(
        sum(int(square.mean() > 127) << bit for bit, square in enumerate(squares.swapaxes(0, 1)))
    )


@dataclass
class _Stream:
    spec: Spec
    prompt: str
    width: int
    height: int
    fps: float
    chunk: int = 0
    pts: int = 0
    missed: int = 0
    paused: bool = False
    ended: bool = False
    place: tuple[float, float] | None = None
    picture: bytes | None = None
    opened: float = field(default_factory=time.monotonic)
    queue: deque[Control] = field(default_factory=deque)
    events: deque[Event] = field(default_factory=deque)
    unread: int = 0
    wake: asyncio.Condition = field(default_factory=asyncio.Condition)
    task: asyncio.Task[None] | None = None


class FakeEngine:
    """An `EngineClient` in this process. Its frames are those of `draw`.

    At most `limit` sessions are admitted. Each chunk takes `chunk_s` seconds; with `hurry` chunks
    come as fast as they are read rather than at the session's rate. Where it is not `led` it
    follows no control.
    """

    def __init__(
        self, *, limit: int = 4, chunk_s: float = 0.0, hurry: bool = False, led: bool = True
    ) -> None:
        self._limit, self._chunk_s, self._hurry = limit, chunk_s, hurry
        self._model = replace(MODEL, control=led, control_wraps=led)
        self._streams: dict[str, _Stream] = {}
        self._health: Health = "starting"
        self.restarts = 0

    async def start(self) -> ModelInfo:
        """Be ready."""
        self._health = "ready"
        return self._model

    @property
    def model(self) -> ModelInfo:
        """What it says that it is."""
        return self._model

    @property
    def health(self) -> Health:
        """How it is; tests may set it by `set_health`."""
        if self._health == "ready" and len(self._streams) >= self._limit:
            return "busy"
        return self._health

    def set_health(self, health: Health) -> None:
        """Be well or unwell."""
        self._health = health

    async def open(self, spec: Spec) -> Opened:
        """As `EngineClient.open`."""
        if self._health not in ("ready", "busy"):
            raise Busy(f"the engine is {self._health}", 1.0)
        if len(self._streams) >= self._limit:
            raise Busy(f"{self._limit} sessions are open already", 2.0)
        saved = {} if spec.snapshot is None else _load(spec.snapshot)
        prompt = saved.get("prompt", spec.prompt)
        if not isinstance(prompt, str) or not prompt.strip():
            raise InputError("the prompt is empty; say in a sentence what to show")
        width, height = spec.width or MODEL.width, spec.height or MODEL.height
        if width % MODEL.size_step or height % MODEL.size_step:
            raise InputError(f"the size is {width}x{height}; wanted multiples of {MODEL.size_step}")
        stream = _Stream(
            spec, prompt, width, height, spec.fps or MODEL.fps,
            chunk=int(saved.get("chunk", 0)), pts=int(saved.get("pts", 0)),
            place=saved.get("place"), picture=spec.image,
        )  # fmt: skip
        session = secrets.token_hex(16)
        self._streams[session] = stream
        stream.task = asyncio.create_task(self._run(session, stream))
        return Opened(
            session=session, width=width, height=height, fps=stream.fps, chunk=stream.chunk,
            pts=stream.pts, expected_s=self._chunk_s,
        )  # fmt: skip

    async def events(self, session: str) -> AsyncIterator[Event]:
        """As `EngineClient.events`."""
        stream = self._find(session)
        while True:
            async with stream.wake:
                await stream.wake.wait_for(lambda: stream.events)
                event = stream.events.popleft()
                if isinstance(event, ChunkReady):
                    stream.unread -= 1
                stream.wake.notify_all()
            yield event
            if isinstance(event, Ended):
                return

    async def control(self, session: str, event: Control) -> None:
        """As `EngineClient.control`."""
        stream = self._find(session)
        prompt = event.prompt if isinstance(event, (Update, Cut)) else None
        if prompt is not None and not prompt.strip():
            raise Rejected("the prompt is empty; say in a sentence what to show")
        if isinstance(event, Update) and (event.steps or 0) > MODEL.steps:
            raise Rejected(f"steps is {event.steps}; wanted a whole number from 1 to {MODEL.steps}")
        if isinstance(event, Update) and event.control is not None and not self._model.control:
            raise Rejected("this model follows no control")
        if len(stream.queue) >= _MAX_QUEUE:
            raise Rejected(f"{_MAX_QUEUE} controls wait already for the next chunk")
        async with stream.wake:
            stream.queue.append(event)
            stream.wake.notify_all()

    async def push(self, session: str, frames: bytes) -> None:
        """It takes none."""
        raise InputError("the session takes no frames; open it with a strength")

    async def snapshot(self, session: str, *, light: bool = True) -> bytes:
        """As `EngineClient.snapshot`."""
        return _save(self._find(session))

    def renew(self, session: str) -> None:
        """Nothing: it has no idle limit."""

    def shown(self, session: str, frame: int, at: float) -> None:
        """Nothing: it draws at a session's rate whatever is shown."""

    async def close(self, session: str) -> None:
        """As `EngineClient.close`."""
        if session in self._streams:
            await self._end(session, Ended(reason="closed"))

    async def state(self) -> EngineState:
        """As `EngineClient.state`."""
        now = time.monotonic()
        return EngineState(
            sessions=tuple(
                SessionState(
                    session=session, state="paused" if stream.paused else "running",
                    chunks=stream.chunk, missed=stream.missed, queued=len(stream.queue),
                    kv_bytes=0, age_s=now - stream.opened,
                )
                for session, stream in self._streams.items()
            ),
            load=len(self._streams) / self._limit,
            restarts=self.restarts,
        )  # fmt: skip

    async def drain(self, grace_s: float) -> None:
        """As `EngineClient.drain`."""
        self._health = "draining"
        for session, stream in list(self._streams.items()):
            await self._end(session, Ended(reason="draining", snapshot=_save(stream)))

    async def stop(self) -> None:
        """End all sessions."""
        self._health = "down"
        for session in list(self._streams):
            await self._end(session, Ended(reason="closed"))

    async def fail(self, session: str, *, ends: bool) -> None:
        """Let the session's stream tell that memory ran out, and end it if asked to."""
        stream = self._find(session)
        await self._tell(stream, Failed(code="memory", message="memory ran out", retryable=True))
        if ends:
            await self._end(session, Ended(reason="failed"))

    async def miss(self, session: str, *, chunk: int, late_s: float) -> None:
        """Let the session's stream tell that a chunk came late."""
        stream = self._find(session)
        stream.missed += 1
        await self._tell(stream, DeadlineMissed(chunk=chunk, late_s=late_s))

    def _find(self, session: str) -> _Stream:
        if session not in self._streams:
            raise Gone(f"there is no session {session!r:.40}")
        return self._streams[session]

    async def _tell(self, stream: _Stream, event: Event) -> None:
        async with stream.wake:
            stream.events.append(event)
            stream.wake.notify_all()

    async def _end(self, session: str, event: Ended) -> None:
        stream = self._streams.pop(session)
        task = stream.task
        if task is not None and task is not asyncio.current_task():
            task.cancel()
        await self._tell(stream, event)

    async def _run(self, session: str, stream: _Stream) -> None:
        due = time.monotonic()
        end = None if stream.spec.frames is None else stream.pts + stream.spec.frames
        while end is None or stream.pts < end:
            async with stream.wake:
                await stream.wake.wait_for(
                    lambda: stream.queue or (not stream.paused and stream.unread < _ROOM)
                )
                if not self._apply(stream) or stream.unread >= _ROOM:
                    continue
            await asyncio.sleep(max(self._chunk_s, 0 if self._hurry else due - time.monotonic()))
            count = MODEL.first_chunk_frames if stream.chunk == 0 else MODEL.chunk_frames
            count = count if end is None else min(count, end - stream.pts)
            async with stream.wake:
                if not self._apply(stream):
                    continue
                pixels = draw(
                    stream.prompt, stream.pts, count, stream.width, stream.height, stream.place
                )
                if stream.picture is not None:
                    shown = np.frombuffer(stream.picture, np.uint8).reshape(pixels.shape[1:])
                    side = max(1, stream.width // BITS)
                    pixels[0, side:], stream.picture = shown[side:], None
                pixels.flags.writeable = False
                now = time.monotonic()
                stats = Stats(dit_s=self._chunk_s, passes=5, decoder_calls=1, rate=stream.fps)
                chunk = ChunkReady(
                    chunk=stream.chunk, pts=stream.pts, made=now, stats=stats, pixels=pixels
                )
                stream.events.append(chunk)
                stream.unread += 1
                stream.chunk += 1
                stream.pts += count
                due = max(due, now) + count / stream.fps
                stream.wake.notify_all()
        await self._end(session, Ended(reason="finished"))

    @staticmethod
    def _apply(stream: _Stream) -> bool:
        """Let controls take hold; says whether chunks are made behind them."""
        while stream.queue:
            control = stream.queue.popleft()
            kind = KINDS[type(control)]
            if isinstance(control, (Update, Cut)) and control.prompt is not None:
                stream.prompt = control.prompt
            if isinstance(control, Cut):
                stream.picture = control.image
            if isinstance(control, Update) and control.control is not None:
                stream.place = control.control[-1] if control.control else None
            elif isinstance(control, (Pause, Resume)):
                stream.paused = isinstance(control, Pause)
            stream.events.append(
                Applied(
                    event_id=control.event_id,
                    kind=kind,
                    chunk=stream.chunk,
                    first_frame=stream.pts,
                )
            )
            stream.wake.notify_all()
        return not stream.paused


def _save(stream: _Stream) -> bytes:
    return json.dumps({name: getattr(stream, name) for name in _SAVED}).encode()


def _load(snapshot: bytes) -> dict[str, Any]:
    try:
        values: dict[str, Any] = json.loads(snapshot)
        if set(values) != set(_SAVED):
            raise ValueError
    except (ValueError, TypeError) as error:
        raise InputError("these bytes are no LiveReel snapshot, or a damaged one") from error
    return values

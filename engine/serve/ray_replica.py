"""One engine of many, as it runs inside a replica of Ray Serve.

A session is one streamed call, `play`, which holds the session's place in its replica for as long
as it lasts; so the calls under way are the sessions, and Serve's own count of them places new ones.
Nothing here imports Ray.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable
from typing import TYPE_CHECKING, Literal, TypeAlias

from msgspec import Struct

from ..errors import InputError, LiveReelError, ResourceError
from .messages import (
    ChunkReady,
    Control,
    DeadlineMissed,
    Event,
    Health,
    ModelInfo,
    Opened,
    Spec,
)
from .worker_client import Busy, Gone

if TYPE_CHECKING:
    from .worker_client import EngineClient

AHEAD = 2
"""Chunks of a session on their way to who watches it."""
_LOOK_S = 10.0
"""How often it is looked whether a session that nobody takes chunks of is still there."""
_SAVE_S = 2.0
_SMALL = 1 << 20
"""Bytes of a snapshot that is taken every `_SAVE_S` at most; larger and smaller ones in proportion.
"""


class Placed(Struct, frozen=True, kw_only=True):
    """The first thing that `play` tells: the session as its engine calls it, and where that is."""

    opened: Opened
    replica: str


class Kept(Struct, frozen=True, kw_only=True):
    """A light snapshot, taken in passing; the controls applied so far are in it."""

    snapshot: bytes


class Refusal(Struct, frozen=True, kw_only=True):
    """Why something was not done; "elsewhere" is another replica's answer to what was for one that
    Serve does not know any more."""

    code: Literal["busy", "elsewhere", "gone", "input", "resource"]
    message: str
    retry_after_s: float = 0.0

    @classmethod
    def of(cls, error: LiveReelError) -> Refusal:
        """What `error` says."""
        if isinstance(error, Busy):
            return cls(code="busy", message=str(error), retry_after_s=error.retry_after_s)
        if isinstance(error, Gone):
            return cls(code="gone", message=str(error))
        if isinstance(error, InputError):
            return cls(code="input", message=str(error))
        return cls(code="resource", message=str(error))

    @property
    def error(self) -> LiveReelError:
        """To be raised at the other end."""
        if self.code == "busy":
            return Busy(self.message, self.retry_after_s)
        kinds = {"elsewhere": Gone, "gone": Gone, "input": InputError, "resource": ResourceError}
        return kinds[self.code](self.message)


Item: TypeAlias = Placed | Kept | Refusal | Event
"""What `play` gives."""


class Replica:
    """Sessions of one engine for calls from afar. `name` is what Serve calls the replica."""

    def __init__(self, engine: EngineClient, name: str) -> None:
        self._engine, self._name = engine, name
        self._room: dict[str, asyncio.Semaphore] = {}
        self._chunks = self._late = self._refused = 0
        self._leaving = False

    async def start(self) -> None:
        """Start the engine. Raises `LiveReelError`."""
        await self._engine.start()

    async def stop(self) -> None:
        """End it."""
        await self._engine.stop()

    async def leave(self, grace_s: float) -> None:
        """End the sessions with what they can be gone on from elsewhere, those that have an end
        when most of the time is over; all that was made comes before, asked for or not."""
        self._leaving = True
        for room in self._room.values():
            room.release()
        await self._engine.drain(grace_s)

    async def name(self) -> str:
        """What Serve calls it."""
        return self._name

    async def about(self) -> tuple[ModelInfo, Health]:
        """What is running, and how it is."""
        return self._engine.model, self._engine.health

    def check_health(self) -> None:
        """Serve asks for this now and then, and replaces a replica that fails several times."""
        if self._engine.health == "down" or self._leaving:
            raise RuntimeError(f"the engine is {self._engine.health}")

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What the number of replicas hangs on: the sessions, and since it was last asked the share
        of chunks that were late and the sessions that were refused."""
        stats = {
            "sessions": float(len(self._room)),
            "late": self._late / max(1, self._chunks),
            "refused": float(self._refused),
        }
        self._chunks = self._late = self._refused = 0
        return stats

    async def play(self, spec: Spec) -> AsyncIterator[Item]:
        """Open a session and tell all that comes of it, `Ended` last; or a `Refusal` alone.

        No more than `AHEAD` chunks are told before `took` says that they were; all of them when
        the replica leaves.
        """
        try:
            opened = await self._engine.open(spec)
        except LiveReelError as error:
            self._refused += isinstance(error, Busy)
            yield Refusal.of(error)
            return
        session = opened.session
        room = self._room[session] = asyncio.Semaphore(AHEAD)
        saved, save_every = time.monotonic(), 0.0
        try:
            yield Placed(opened=opened, replica=self._name)
            async for event in self._engine.events(session):
                if not isinstance(event, ChunkReady):
                    self._late += isinstance(event, DeadlineMissed)
                    yield event
                    continue
                self._chunks += 1
                while not (self._leaving or await _within(room.acquire(), _LOOK_S)):
                    if await self._ended(session):  # nobody listens any more, so it was idle
                        return
                if session not in self._room:  # closed meanwhile
                    return
                yield ChunkReady(
                    chunk=event.chunk, pts=event.pts, made=event.made, stats=event.stats,
                    pixels=event.pixels.copy(),
                )  # fmt: skip
                del event  # its place in the ring is free again
                if time.monotonic() - saved >= save_every:
                    with contextlib.suppress(LiveReelError):  # ended meanwhile
                        snapshot = await self._engine.snapshot(session)
                        saved = time.monotonic()
                        save_every = _SAVE_S * len(snapshot) / _SMALL
                        yield Kept(snapshot=snapshot)
        finally:
            self._room.pop(session, None)
            await self._engine.close(session)

    async def _ended(self, session: str) -> bool:
        sessions = (await self._engine.state()).sessions
        return self._engine.health in ("ready", "busy") and session not in {
            known.session for known in sessions
        }

    # Of a session that was placed at the replica `name`

    async def took(self, name: str, session: str) -> Refusal | None:
        """A chunk has arrived: there is room for one more."""
        if name != self._name:
            return _ELSEWHERE
        if session in self._room:
            self._engine.renew(session)
            self._room[session].release()
        return None

    async def control(self, name: str, session: str, event: Control) -> Refusal | None:
        """As `EngineClient.control`."""
        if name != self._name:
            return _ELSEWHERE
        try:
            await self._engine.control(session, event)
        except LiveReelError as error:
            return Refusal.of(error)
        return None

    async def snapshot(self, name: str, session: str, light: bool) -> bytes | Refusal:
        """As `EngineClient.snapshot`."""
        if name != self._name:
            return _ELSEWHERE
        try:
            return await self._engine.snapshot(session, light=light)
        except LiveReelError as error:
            return Refusal.of(error)

    async def push(self, name: str, session: str, frames: bytes) -> Refusal | None:
        """As `EngineClient.push`."""
        if name != self._name:
            return _ELSEWHERE
        try:
            await self._engine.push(session, frames)
        except LiveReelError as error:
            return Refusal.of(error)
        return None

    async def shown(self, name: str, session: str, frame: int, ago_s: float) -> Refusal | None:
        """As `EngineClient.shown`; clocks of other machines are not this one's."""
        if name != self._name:
            return _ELSEWHERE
        self._engine.shown(session, frame, time.monotonic() - ago_s)
        return None

    async def renew(self, name: str, session: str) -> Refusal | None:
        """As `EngineClient.renew`."""
        if name != self._name:
            return _ELSEWHERE
        self._engine.renew(session)
        return None

    async def close(self, name: str, session: str) -> None:
        """As `EngineClient.close`; the session's `play` ends with it."""
        room = self._room.pop(session, None)
        if room is not None:
            room.release()
            await self._engine.close(session)


async def _within(work: Awaitable[object], seconds: float) -> bool:
    """Whether it is done by then."""
    try:
        await asyncio.wait_for(work, seconds)
    except asyncio.TimeoutError:
        return False
    return True


_ELSEWHERE = Refusal(code="elsewhere", message="the session's replica is gone")

__all__ = ["AHEAD", "Item", "Kept", "Placed", "Refusal", "Replica"]

"""Starts the engine's process, speaks to it, and starts it anew when it dies or hangs.

Sessions outlive their engine: each is opened once more from its last light snapshot, under the same
id and with chunk and frame numbers that go on, and the controls given since then are given again.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import secrets
import time
from collections.abc import AsyncIterator

import msgspec
import numpy as np

from ..errors import InputError, LiveReelError, ResourceError
from ..native import FrameRing
from . import wire
from .link import Link
from .messages import (
    Applied,
    ChunkMade,
    ChunkReady,
    Control,
    Ended,
    EngineEvent,
    EngineState,
    Event,
    Failed,
    Health,
    ModelInfo,
    Opened,
    Pause,
    Resume,
    Resumed,
    Spec,
)
from .watched import Watched
from .worker import BEAT_S, Setup
from .worker_client import Busy, Gone, Rejected

SILENT_BEATS = 4
"""Heartbeats missed after which the engine is not ready: one second."""
DEAD_BEATS = 16
"""And after which it is ended and started anew."""
HUNG_S, HUNG_TIMES = 60.0, 20.0
"""A pass that has run for so long, and so many times longer than it should, does not end any more.
"""
_START_S = 300.0
_RETRY_S = 2.0
_LONGEST_WAIT_S = 30.0
_LIVES, _LIVES_S = 3, 60.0
"""A session in whose passes the engine died more often in so many seconds is given up."""


class EngineProcess:
    """An `EngineClient` over a process of its own."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._sessions: dict[str, Watched] = {}
        self._requests = itertools.count()
        self._asked: dict[int, asyncio.Future[wire.Granted]] = {}
        self._opening: dict[str, Spec] = {}
        self._in_pass: set[str] = set()
        self._model: ModelInfo | None = None
        self._link: Link | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._draining = False
        self._health: Health = "starting"
        self._full = False
        self._hung: asyncio.Task[None] | None = None
        self._missed = 0
        self.restarts = 0

    async def start(self) -> ModelInfo:
        """As `EngineClient.start`."""
        link = self._link = await Link.open(self._setup, self._take)
        try:
            await asyncio.wait_for(link.ready, _START_S)
        except BaseException as error:
            self._link = None
            await link.kill()
            if isinstance(error, asyncio.TimeoutError):
                message = f"the model was not loaded within {_START_S:g} seconds"
                raise ResourceError(message) from None
            raise
        self._health = "ready"
        self._supervisor = asyncio.create_task(self._supervise())
        return self.model

    @property
    def model(self) -> ModelInfo:
        """What is running."""
        if self._model is None:
            raise ResourceError("the engine was not started yet")
        return self._model

    @property
    def health(self) -> Health:
        """How it is now."""
        if self._health != "ready":
            return self._health
        if self._draining:
            return "draining"
        if self._missed >= SILENT_BEATS:
            return "silent"
        return "busy" if self._full else "ready"

    @property
    def pid(self) -> int | None:
        """The engine's process, while there is one."""
        return None if self._link is None else self._link.process.pid

    async def open(self, spec: Spec) -> Opened:
        """As `EngineClient.open`."""
        if self.health not in ("ready", "busy"):
            raise Busy(f"the engine is {self.health}", _RETRY_S)
        session = secrets.token_hex(16)
        self._opening[session] = spec
        try:
            granted = await self._ask(wire.Open(next(self._requests), session, spec))
        finally:
            del self._opening[session]
        assert granted.opened is not None
        return granted.opened

    async def events(self, session: str) -> AsyncIterator[Event]:
        """As `EngineClient.events`."""
        found = self._find(session)
        while True:
            while not found.events:
                found.news.clear()
                await found.news.wait()
            event = found.events.popleft()
            last = isinstance(event, Ended)
            yield event
            del event  # the pixels are the reader's alone
            if last:
                return

    async def control(self, session: str, event: Control) -> None:
        """As `EngineClient.control`."""
        found = self._find(session)
        if not isinstance(event, (Pause, Resume)):
            found.given[event.event_id] = event  # a snapshot that knows of it may come at once
        try:
            await self._ask(wire.Steer(next(self._requests), session, event))
        except LiveReelError as error:
            found.given.pop(event.event_id, None)
            if isinstance(error, Gone):
                raise
            raise Rejected(str(error)) from error
        if isinstance(event, (Pause, Resume)):
            found.paused = event.event_id if isinstance(event, Pause) else None

    async def push(self, session: str, frames: bytes) -> None:
        """As `EngineClient.push`."""
        self._find(session)
        await self._ask(wire.Push(next(self._requests), session, frames))

    async def snapshot(self, session: str, *, light: bool = True) -> bytes:
        """As `EngineClient.snapshot`."""
        self._find(session)
        granted = await self._ask(wire.Save(next(self._requests), session, light))
        assert granted.snapshot is not None
        return granted.snapshot

    def renew(self, session: str) -> None:
        """As `EngineClient.renew`."""
        if session in self._sessions and self._link is not None:
            self._link.send(wire.Renew(session))

    def shown(self, session: str, frame: int, at: float) -> None:
        """As `EngineClient.shown`."""
        if session in self._sessions and self._link is not None:
            self._link.send(wire.Shown(session, frame, at))

    async def close(self, session: str) -> None:
        """As `EngineClient.close`."""
        found = self._sessions.pop(session, None)
        if found is not None:
            if self._link is not None:
                self._link.send(wire.Close(session))
            found.tell(Ended(reason="closed"))

    async def state(self) -> EngineState:
        """As `EngineClient.state`."""
        state = EngineState()
        with contextlib.suppress(Busy):
            granted = await self._ask(wire.Ask(next(self._requests)))
            assert granted.state is not None
            state = granted.state
        return msgspec.structs.replace(
            state, restarts=self.restarts, heartbeat_age_s=self._missed * BEAT_S
        )

    async def drain(self, grace_s: float) -> None:
        """As `EngineClient.drain`."""
        self._draining = True
        if self._link is not None:
            self._link.send(wire.Drain(grace_s))
        over = time.monotonic() + grace_s
        while self._sessions and time.monotonic() < over:
            await asyncio.sleep(0.02)
        for session in list(self._sessions):
            found = self._sessions.pop(session)
            found.tell(Ended(reason="draining", snapshot=found.snapshot))

    async def stop(self) -> None:
        """As `EngineClient.stop`."""
        self._health = "down"
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.gather(self._supervisor, return_exceptions=True)
        if self._link is not None:
            await self._link.stop()
            self._link = None
        self._fail_requests()
        for session in list(self._sessions):
            self._sessions.pop(session).tell(Ended(reason="closed"))

    # What the process says

    async def _ask(
        self, command: wire.Open | wire.Steer | wire.Save | wire.Push | wire.Ask
    ) -> wire.Granted:
        """Send a request and wait for its answer. Raises what the engine raised, and `Busy` when
        there is none or it is gone before it has answered."""
        if self._link is None or self._health != "ready":
            raise Busy(f"the engine is {self._health}", _RETRY_S)
        asked = asyncio.get_running_loop().create_future()
        self._asked[command.request] = asked
        try:
            self._link.send(command)
            granted: wire.Granted = await asked
            return granted
        finally:
            del self._asked[command.request]

    def _take(self, report: wire.Report, fd: int | None) -> None:
        """A report has come. Raises `ValueError` for one that cannot be."""
        ring = None
        if fd is not None:
            try:
                ring = FrameRing.attach(fd)
            finally:
                os.close(fd)
        if isinstance(report, wire.Beat):
            self._missed, self._full = 0, report.full
            hung = report.pass_s > max(HUNG_S, HUNG_TIMES * report.expected_s)
            if hung and self._link is not None and self._hung is None:
                self._hung = asyncio.get_running_loop().create_task(self._link.put_down())
        elif isinstance(report, wire.Ready):
            self._model = report.model
        elif isinstance(report, wire.Granted):
            if report.opened is not None and ring is not None:
                self._opened(report.opened, ring)
            asked = self._asked.get(report.request)
            if asked is not None and not asked.done():
                asked.set_result(report)
        elif isinstance(report, wire.Refused):
            asked = self._asked.get(report.request)
            if asked is not None and not asked.done():
                asked.set_exception(_refusal(report))
        elif isinstance(report, wire.Begun):
            self._in_pass = set(report.sessions)
        elif isinstance(report, wire.Told):
            if isinstance(report.event, (ChunkMade, Failed)):
                self._in_pass.discard(report.session)
            if report.session in self._sessions:
                self._event(report.session, self._sessions[report.session], report.event)
        elif isinstance(report, wire.Saved) and report.session in self._sessions:
            session = self._sessions[report.session]
            session.snapshot = report.snapshot
            for event_id in session.told:
                session.given.pop(event_id, None)
            session.told.clear()

    def _opened(self, opened: Opened, ring: FrameRing) -> None:
        """A session is open, for the first time or again; its events follow."""
        name = opened.session
        spec = self._opening.get(name)
        if name in self._sessions:
            self._sessions[name].ring = ring
        elif spec is not None:
            end = None if spec.frames is None else opened.pts + spec.frames
            self._sessions[name] = Watched(
                spec, opened, ring, end, opened.chunk, opened.pts, spec.snapshot
            )
        elif self._link is not None:  # whoever wanted it did not wait
            self._link.send(wire.Close(name))

    def _event(self, name: str, session: Watched, event: EngineEvent) -> None:
        if isinstance(event, ChunkMade):
            frame = None if session.ring is None else session.ring.read()
            if frame is None or frame.tag != event.chunk:
                raise ValueError(f"chunk {event.chunk} is not in its ring")
            session.chunk, session.pts = event.chunk + 1, event.pts + event.count
            session.tell(
                ChunkReady(
                    chunk=event.chunk, pts=event.pts, made=event.made, stats=event.stats,
                    pixels=np.asarray(frame),
                )
            )  # fmt: skip
            return
        if isinstance(event, Applied):
            if event.event_id in session.told or event.event_id == session.hushed:
                session.hushed = None
                return
            if event.event_id in session.given:
                session.took(event.event_id)
        if isinstance(event, Ended):
            del self._sessions[name]
        session.tell(event)

    def _find(self, session: str) -> Watched:
        if session not in self._sessions:
            raise Gone("there is no such session")
        return self._sessions[session]

    # Supervision

    async def _supervise(self) -> None:
        """Watch the process, and start it anew when it is gone."""
        while self._link is not None:
            self._missed += 1  # a count, not a clock: a server that was held up itself is no judge
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._link.gone.wait(), BEAT_S)
            if self._link.gone.is_set() or self._missed >= DEAD_BEATS:
                await self._restart()

    async def _restart(self) -> None:
        self._health, self._hung = "down", None
        if self._link is not None:
            await self._link.kill()
        self._fail_requests()
        now = time.monotonic()
        for name, session in self._sessions.items():
            session.ring = None
            session.blamed = [at for at in session.blamed if now - at < _LIVES_S]
            if name in self._in_pass:
                session.blamed.append(now)
        self._in_pass.clear()
        wait = 0.1
        while True:
            self._link = await Link.open(self._setup, self._take)
            try:
                await asyncio.wait_for(self._link.ready, _START_S)
                break
            except (LiveReelError, asyncio.TimeoutError) as error:
                await self._link.kill()
                for name in list(self._sessions):
                    self._give_up(name, str(error) or "the engine does not start any more")
            await asyncio.sleep(wait)
            wait = min(2 * wait, _LONGEST_WAIT_S)
        self.restarts += 1
        self._missed, self._health = 0, "ready"
        for name, session in list(self._sessions.items()):
            await self._revive(name, session)

    async def _revive(self, name: str, session: Watched) -> None:
        if len(session.blamed) > _LIVES:
            self._give_up(name, "the engine did not live through this session's chunks")
            return
        frames = None if session.end is None else session.end - session.pts
        spec = msgspec.structs.replace(session.spec, snapshot=session.snapshot, frames=frames)
        try:
            command = wire.Open(
                next(self._requests), name, spec, session.chunk, session.pts, bool(session.blamed)
            )
            await self._ask(command)
            session.tell(Resumed(chunk=session.chunk, pts=session.pts))
            for control in list(session.given.values()):
                await self._ask(wire.Steer(next(self._requests), name, control))
            if session.paused is not None:
                session.hushed = session.paused
                pause = Pause(event_id=session.paused)
                await self._ask(wire.Steer(next(self._requests), name, pause))
        except LiveReelError as error:
            if self._sessions.get(name) is session:
                self._give_up(name, str(error))

    def _give_up(self, name: str, reason: str) -> None:
        session = self._sessions.pop(name)
        session.tell(Failed(code="engine", message=reason, retryable=True))
        session.tell(Ended(reason="failed"))

    def _fail_requests(self) -> None:
        for asked in self._asked.values():
            if not asked.done():
                asked.set_exception(Busy("the engine is being started anew", _RETRY_S))


def _refusal(report: wire.Refused) -> LiveReelError:
    """What the engine raised."""
    if report.code == "busy":
        return Busy(report.message, report.retry_after_s)
    if report.code == "input":
        return InputError(report.message)
    if report.code == "gone":
        return Gone(report.message)
    return ResourceError(report.message)

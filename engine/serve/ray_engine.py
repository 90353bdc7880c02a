"""Many engines, in replicas of Ray Serve, as the one that the server is written against.

A session is pinned to the replica that it was opened on. When that one dies or is taken away, the
session goes on at another, from its last light snapshot and with chunk and frame numbers that go
on; the controls given since then are given again. A replica that is taken away tells all that it
has made and gives a snapshot of just then, so that the pictures go on where they were.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import AsyncIterator, Coroutine
from typing import Any, TypeVar

import msgspec

from ..errors import LiveReelError, ResourceError
from .logs import log
from .messages import (
    ChunkReady,
    Control,
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
)
from .ray_replica import Item, Placed, Refusal
from .ray_session import RaySession
from .watched import Watched
from .worker_client import Busy, Gone, Rejected

_T = TypeVar("_T")
_OPEN_S, _MOVE_S = 20.0, 300.0
"""How long a session waits for a replica that takes it, at its opening and when it has to move: one
more may have to be started."""
_RETRY_S = 2.0
_AGAIN_S = 0.5
_BEAT_S, _SILENT_S = 2.0, 6.0
_LAST_S = 5.0
"""How long is waited for a word of a replica that is taken away."""
_MOVES, _MOVES_S = 5, 60.0
"""A session that had to move more often in so many seconds is given up."""
_RENEW_S = 10.0


class RayEngine:
    """An `EngineClient` over a handle of the deployment whose replicas are `Replica`s."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self._sessions: dict[str, RaySession] = {}
        self._model: ModelInfo | None = None
        self._health: Health = "starting"
        self._heard = 0.0
        self._draining = False
        self._beat: asyncio.Task[None] | None = None
        self._sending: set[asyncio.Task[Any]] = set()
        self.moves = 0

    async def start(self) -> ModelInfo:
        """As `EngineClient.start`: when the first replica is there."""
        self._model, self._health = await self._handle.about.remote()
        self._heard = time.monotonic()
        self._beat = asyncio.create_task(self._listen())
        return self.model

    @property
    def model(self) -> ModelInfo:
        """What is running."""
        if self._model is None:
            raise ResourceError("no replica was heard of yet")
        return self._model

    @property
    def health(self) -> Health:
        """How it is now: that of a replica that would be given the next session."""
        if self._draining:
            return "draining"
        if self._model is not None and time.monotonic() - self._heard > _SILENT_S:
            return "silent"
        return self._health

    async def open(self, spec: Spec) -> Opened:
        """As `EngineClient.open`, on the replica with the fewest sessions."""
        if self._draining:
            raise Busy("the server is going down", _RETRY_S)
        try:
            stream, placed = await asyncio.wait_for(self._place(spec), _OPEN_S)
        except LiveReelError:
            raise
        except Exception as error:
            raise Busy("no replica answers", _RETRY_S) from error
        name, opened = secrets.token_hex(16), placed.opened
        end = None if spec.frames is None else opened.pts + spec.frames
        watched = Watched(spec, opened, None, end, opened.chunk, opened.pts, spec.snapshot)
        session = self._sessions[name] = RaySession(watched, stream, placed)
        session.there.set()
        session.task = asyncio.create_task(self._follow(name, session))
        return msgspec.structs.replace(opened, session=name)

    async def events(self, session: str) -> AsyncIterator[Event]:
        """As `EngineClient.events`."""
        found = self._find(session)
        watched = found.watched
        while True:
            while not watched.events:
                watched.news.clear()
                await watched.news.wait()
            event = watched.events.popleft()
            last, chunk = isinstance(event, Ended), isinstance(event, ChunkReady)
            yield event
            del event
            if last:
                return
            if chunk:
                self._send(self._call(found, "took"))

    async def control(self, session: str, event: Control) -> None:
        """As `EngineClient.control`; waits while the session moves."""
        found = self._find(session)
        watched = found.watched
        if not isinstance(event, (Pause, Resume)):
            watched.given[event.event_id] = event  # a snapshot that knows of it may come at once
        refusal = await self._reach(found, "control", event)
        if refusal is not None:
            watched.given.pop(event.event_id, None)
            raise refusal.error if refusal.code == "gone" else Rejected(refusal.message)
        if isinstance(event, (Pause, Resume)):
            watched.paused = event.event_id if isinstance(event, Pause) else None

    async def push(self, session: str, frames: bytes) -> None:
        """As `EngineClient.push`."""
        refusal = await self._reach(self._find(session), "push", frames)
        if refusal is not None:
            raise refusal.error

    def shown(self, session: str, frame: int, at: float) -> None:
        """As `EngineClient.shown`."""
        if (found := self._sessions.get(session)) is not None:
            ago_s = time.monotonic() - at
            self._send(self._call(found, "shown", frame - found.frames_off, ago_s))

    async def snapshot(self, session: str, *, light: bool = True) -> bytes:
        """As `EngineClient.snapshot`."""
        found = self._find(session)
        snapshot: bytes | Refusal = await self._reach(found, "snapshot", light)
        if isinstance(snapshot, Refusal):
            raise snapshot.error
        return snapshot

    def renew(self, session: str) -> None:
        """As `EngineClient.renew`."""
        found = self._sessions.get(session)
        if found is not None and time.monotonic() - found.renewed > _RENEW_S:
            found.renewed = time.monotonic()
            self._send(self._call(found, "renew"))

    async def close(self, session: str) -> None:
        """As `EngineClient.close`."""
        if session in self._sessions:
            self._end(session, Ended(reason="closed"))

    async def state(self) -> EngineState:
        """As `EngineClient.state`, of all replicas; their memory and load are Ray's to say."""
        now = time.monotonic()
        return EngineState(
            sessions=tuple(
                SessionState(
                    session=name, state="running" if s.watched.paused is None else "paused",
                    chunks=s.watched.chunk - s.watched.opened.chunk, missed=s.missed,
                    queued=len(s.watched.given), kv_bytes=0, age_s=now - s.opened,
                )
                for name, s in self._sessions.items()
            ),
            restarts=self.moves,
            heartbeat_age_s=now - self._heard,
        )  # fmt: skip

    async def drain(self, grace_s: float) -> None:
        """As `EngineClient.drain`."""
        self._draining = True
        over = time.monotonic() + grace_s
        endless = [name for name, s in self._sessions.items() if s.watched.end is None]
        await asyncio.gather(*(self._save(name, grace_s / 4) for name in endless))
        while self._sessions and time.monotonic() < over - grace_s / 4:
            await asyncio.sleep(0.02)
        await asyncio.gather(*(self._save(name, grace_s / 4) for name in list(self._sessions)))

    async def stop(self) -> None:
        """As `EngineClient.stop`; the replicas are Serve's."""
        self._health = "down"
        for name in list(self._sessions):
            self._end(name, Ended(reason="closed"))
        if self._beat is not None:
            self._beat.cancel()
        if self._sending:
            await asyncio.wait(self._sending, timeout=_RETRY_S)

    # Replicas

    async def _place(self, spec: Spec) -> tuple[Any, Placed]:
        """Open a session on the replica that has the fewest. Raises what that one raises."""
        stream = self._handle.options(stream=True).play.remote(spec)
        try:
            first: Item = await stream.__anext__()
        except BaseException:  # nobody would hear of a session that is opened yet
            with contextlib.suppress(Exception):
                stream.cancel()
            raise
        if isinstance(first, Refusal):
            raise first.error
        assert isinstance(first, Placed)
        return stream, first

    async def _call(self, session: RaySession, method: str, *values: object) -> Any:
        """Call the session's replica; when it cannot be had, the session has to leave."""
        placed = session.placed
        handle = self._handle.options(method_name=method, session_id=placed.replica)
        try:
            answer = await handle.remote(placed.replica, placed.opened.session, *values)
        except Exception as error:  # Ray has many names for a replica that is not there
            log("replica_unreachable", level=logging.WARNING, error=str(error))
            message = "the session's replica cannot be reached"
            answer = Refusal(code="elsewhere", message=message)
        if isinstance(answer, Refusal) and answer.code == "elsewhere" and session.placed is placed:
            session.there.clear()
            session.left.set()
        return answer

    async def _reach(self, session: RaySession, method: str, *values: object) -> Any:
        """The same, at the replica that the session moves to if it must."""
        answer: Any = None
        for _ in range(2):
            await session.there.wait()
            answer = Refusal(code="gone", message="the session has ended")
            if not session.watched.ended:
                answer = await self._call(session, method, *values)
            if not isinstance(answer, Refusal) or answer.code != "elsewhere":
                break
        return answer

    async def _listen(self) -> None:
        """Ask a replica how it is, again and again."""
        while True:
            await asyncio.sleep(_BEAT_S)
            with contextlib.suppress(Exception):
                self._model, self._health = await self._handle.about.remote()
                self._heard = time.monotonic()

    # Sessions

    async def _follow(self, name: str, session: RaySession) -> None:
        """Pass on what a session's replicas tell, one replica after the other."""
        while self._sessions.get(name) is session:
            left = asyncio.ensure_future(session.left.wait())
            try:
                while True:
                    item = asyncio.ensure_future(session.stream.__anext__())
                    item.add_done_callback(_let_go)
                    await asyncio.wait((item, left), return_when=asyncio.FIRST_COMPLETED)
                    if not item.done() and self._sessions.get(name) is session:
                        await asyncio.wait((item,), timeout=_LAST_S)
                    if not item.done():
                        item.cancel()
                        break
                    ended = session.take(item.result())
                    if ended is not None:
                        self._end(name, ended)
            except StopAsyncIteration:
                pass
            except (Exception, asyncio.CancelledError) as error:  # the call's: nobody cancels this
                log("replica_lost", level=logging.WARNING, session=name, error=str(error)[:200])
            finally:
                left.cancel()
            if self._sessions.get(name) is session:
                await self._move(name, session)

    async def _move(self, name: str, session: RaySession) -> None:
        """Go on at another replica, or end the session when none takes it."""
        session.there.clear()
        with contextlib.suppress(Exception):
            session.stream.cancel()
        watched, now = session.watched, time.monotonic()
        session.moves = [*(at for at in session.moves if now - at < _MOVES_S), now]
        if len(session.moves) > _MOVES:
            self._give_up(name, "its replicas died one after the other")
            return
        self.moves += 1
        frames = None if watched.end is None else watched.end - watched.pts
        if frames == 0:
            self._end(name, Ended(reason="finished"))
            return
        spec = msgspec.structs.replace(watched.spec, snapshot=watched.snapshot, frames=frames)
        try:
            stream, placed = await self._place_again(spec, now + _MOVE_S)
        except Exception as error:
            self._give_up(name, str(error))
            return
        if self._sessions.get(name) is not session:  # closed meanwhile
            with contextlib.suppress(Exception):
                stream.cancel()
            return
        session.arrive(stream, placed)
        log("session_moved", session=name, replica=session.placed.replica, frame=watched.pts)
        with contextlib.suppress(Exception):  # then it moves once more
            for control in list(watched.given.values()):
                await self._call(session, "control", control)
            if watched.paused is not None:
                watched.hushed = watched.paused
                await self._call(session, "control", Pause(event_id=watched.paused))
        session.there.set()

    async def _place_again(self, spec: Spec, until: float) -> tuple[Any, Placed]:
        while True:
            try:
                return await asyncio.wait_for(
                    self._place(spec), max(_AGAIN_S, until - time.monotonic())
                )
            except (ResourceError, Gone, Rejected):
                raise
            except Exception as error:
                if time.monotonic() > until:
                    raise Busy("no replica takes it", _RETRY_S) from error
                await asyncio.sleep(_AGAIN_S)

    async def _save(self, name: str, patience_s: float) -> None:
        """End a session with what it can be gone on from."""
        snapshot = None
        with contextlib.suppress(LiveReelError, asyncio.TimeoutError):
            snapshot = await asyncio.wait_for(self.snapshot(name), patience_s)
        if name in self._sessions:
            kept = self._sessions[name].watched.snapshot
            self._end(name, Ended(reason="draining", snapshot=snapshot or kept))

    def _give_up(self, name: str, reason: str) -> None:
        if name in self._sessions:
            failed = Failed(code="engine", message=reason, retryable=True)
            self._sessions[name].watched.tell(failed)
            self._end(name, Ended(reason="failed"))

    def _end(self, name: str, ended: Ended) -> None:
        session = self._sessions.pop(name)
        session.watched.tell(ended)
        session.there.set()  # for those who wait for it
        session.left.set()
        if ended.reason != "finished":
            self._send(self._call(session, "close"))

    def _find(self, session: str) -> RaySession:
        if session not in self._sessions:
            raise Gone("there is no such session")
        return self._sessions[session]

    def _send(self, work: Coroutine[Any, Any, _T]) -> None:
        """Do it in the background; nobody waits for it."""

        async def quietly() -> None:
            with contextlib.suppress(Exception):
                await work

        task = asyncio.create_task(quietly())
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)


def _let_go(task: asyncio.Future[Item]) -> None:
    """Nobody may ask any more how it ended."""
    if not task.cancelled():
        task.exception()

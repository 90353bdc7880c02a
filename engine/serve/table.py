"""All sessions of an engine: admitted, stepped in the scheduler's order, ended.

No clock is read and nothing is sent but through what is handed in, so that all of it can be tested
in no time.
"""

from __future__ import annotations

import math
import sys
import traceback
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import ResourceError
from ..native import FrameRing
from .admission import CAPACITY, Costs, Kind, load
from .messages import (
    KINDS,
    MEASURED,
    Applied,
    Change,
    ChunkMade,
    Control,
    DeadlineMissed,
    Ended,
    EngineState,
    Failed,
    Opened,
    Pause,
    Resume,
    SessionState,
    Spec,
    Stats,
)
from .scheduler import Scheduler, Turn
from .worker_client import Busy, Gone, Rejected

if TYPE_CHECKING:
    from ..types import Chunk
    from .backend import Backend, Stream
    from .messages import EngineEvent, Reason

SLOTS = 4
"""Chunks in a session's ring: one that is shown, one that waits, and room to work in."""
MAX_WAITING = 100
"""Controls that may wait for a session's next chunk."""
WARM_UP = "a red circle moving right on a black background"
_WARM_UPS, _WARM_UP_S = 4, 15.0
_TRIES = 3
"""Passes for a chunk that memory ran out in, before its session is given up."""
_AGAIN_S = 1.0
_SAVE_S = 2.0
_SMALL = 1 << 20
"""Bytes of a snapshot that are saved every `_SAVE_S`; larger ones are in proportion."""
_RETRY_S = 5.0
_POLL_S = 0.02
"""How soon it is seen that a ring has room again."""
_FINISH = 0.8
"""The share of a drain's time for streams that have an end to come to it."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How many sessions there may be, how long each unwatched, and how long at all."""

    sessions: int = 64
    idle_s: float = 120.0
    lifetime_s: float = 6 * 3600.0


@dataclass
class _Session:
    id: str
    stream: Stream
    ring: FrameRing
    turn: Turn
    end: float
    alone: bool
    opened: float
    renewed: float
    saved: float
    rate: float
    save_every: float = _SAVE_S
    waiting: list[Change] = field(default_factory=list)
    chunks: int = 0
    missed: int = 0
    failures: int = 0

    @property
    def able(self) -> bool:
        """Whether the next chunk has something to be made from, and a place to go to."""
        return self.stream.ready and self.ring.room > 0

    @property
    def key(self) -> Hashable:
        """Equal for sessions that can share a pass."""
        return self.id if self.alone else self.stream.key


class Table:
    """The sessions of one engine.

    `begin` hears of each pass before it runs; `tell` gets the events of the sessions' streams, and
    `keep` the light snapshots that are taken in passing.
    """

    def __init__(
        self,
        backend: Backend[Any],
        *,
        limits: Limits,
        begin: Callable[[tuple[str, ...]], None],
        tell: Callable[[str, EngineEvent], None],
        keep: Callable[[str, bytes], None],
        clock: Callable[[], float],
    ) -> None:
        self._backend, self._limits = backend, limits
        self._begin, self._tell, self._keep, self._clock = begin, tell, keep, clock
        self._sessions: dict[str, _Session] = {}
        self._costs = Costs(most=backend.most)
        self._scheduler = Scheduler(
            has_room=lambda session: self._sessions[session].able,
            batch_cost=self._costs.of,
            most=self._costs.most,
        )
        self._drained_by = math.inf
        self._draining = False
        self._made = self._batched = 0
        self.pass_began: float | None = None
        """When the pass that is running began."""
        self.pass_expected_s = 0.0
        """What it was reckoned to take."""

    def warm_up(self) -> None:
        """Make a few chunks of the model's own size: then it is known what a pass costs, alone and,
        if that does not take too long, for as many sessions as can be stepped together. Raises what
        a pass raises."""
        spec, began = Spec(prompt=WARM_UP), self._clock()
        self._backend.check(spec)
        streams: list[Stream] = []
        for count in sorted({1, self._backend.most}):
            if streams and self._costs.of(streams[0].kind, count) * _WARM_UPS > _WARM_UP_S:
                break
            while len(streams) < count:
                streams.append(self._backend.open(spec, chunk=None, pts=None))
            fastest = math.inf
            for _ in range(_WARM_UPS):
                start, full = self._clock(), all(stream.chunk > 0 for stream in streams)
                for made in self._backend.step(streams):
                    if isinstance(made, Exception):
                        raise made
                if full:
                    fastest = min(fastest, self._clock() - start)
                    if self._clock() - began > _WARM_UP_S:
                        break
            self._costs.note(streams[0].kind, count, fastest)
        for stream in streams:
            stream.close()

    # Commands

    def open(
        self,
        session: str,
        spec: Spec,
        *,
        chunk: int | None = None,
        pts: int | None = None,
        alone: bool = False,
    ) -> tuple[Opened, int]:
        """Admit a session, which numbers its next chunk and frame so, and shares no pass if it is
        to be stepped `alone`; gives the file descriptor of its ring, too. Raises `Busy`,
        `InputError`."""
        model, now = self._backend.model, self._clock()
        if self._draining:
            raise Busy("the server is going down", _RETRY_S)
        if len(self._sessions) >= self._limits.sessions:
            raise Busy(f"{self._limits.sessions} sessions are open already", self._retry_s(now))
        fps = spec.fps or model.fps
        kind = Kind(
            spec.width or model.width, spec.height or model.height, spec.steps or model.steps
        )
        again = pts is not None  # it was admitted by the engine before this one
        if spec.live and not again and self._crowded(kind, model.chunk_frames / fps):
            raise Busy("there is no time left for one more session", self._retry_s(now))
        try:
            self._backend.check(spec)
            stream = self._backend.open(spec, chunk=chunk, pts=pts)
            size = model.chunk_frames * stream.height * stream.width * 3
            ring = FrameRing.create(slots=SLOTS, slot_bytes=size, drop_oldest=False)
        except (ResourceError, RuntimeError) as error:
            raise Busy(str(error), self._retry_s(now)) from error
        chunk_s = model.chunk_frames / stream.fps
        turn = Turn(
            session,
            stream.kind,
            session if alone else stream.key,
            chunk_s,
            self._costs.of(stream.kind, 1),
            now,
            spec.live,
            self._costs.spread(stream.kind),
        )
        self._sessions[session] = _Session(
            session, stream, ring, turn, stream.pts + (spec.frames or math.inf), alone, now, now,
            now, stream.fps,
        )  # fmt: skip
        self._scheduler.add(turn)
        opened = Opened(
            session=session, width=stream.width, height=stream.height, fps=stream.fps,
            chunk=stream.chunk, pts=stream.pts, expected_s=turn.cost_s,
        )  # fmt: skip
        return opened, ring.fileno()

    def steer(self, session: str, control: Control) -> None:
        """Take a control in. Raises `Gone`, and `InputError` for one that cannot be."""
        found = self._find(session)
        found.renewed = self._clock()
        if isinstance(control, (Pause, Resume)):
            found.turn.pause(isinstance(control, Pause), self._clock())
            self._applied(found, control, found.stream.chunk, found.stream.pts)
            return
        if len(found.waiting) >= MAX_WAITING:
            raise Rejected(f"{MAX_WAITING} controls wait already for the next chunk")
        found.stream.update(control)
        found.waiting.append(control)
        found.turn.key = found.key

    def push(self, session: str, frames: bytes) -> None:
        """Give frames to a session that is made from such. Raises `Gone`, `InputError`."""
        found, now = self._find(session), self._clock()
        waited = not found.stream.ready
        found.stream.push(frames)
        if waited and found.stream.ready:  # it is not late for what has only come now
            found.turn.due = max(found.turn.due, now + found.turn.cost_s)

    def save(self, session: str, *, light: bool) -> bytes:
        """A session's snapshot. Raises `Gone`."""
        found = self._find(session)
        found.renewed = self._clock()
        return found.stream.snapshot(light=light)

    def renew(self, session: str) -> None:
        """Somebody watches."""
        if session in self._sessions:
            self._sessions[session].renewed = self._clock()

    def shown(self, session: str, frame: int, at: float) -> None:
        """Frame number `frame` is shown at the time `at`: the session's next chunk is due when all
        that was made has been shown, and not earlier, lest controls wait behind frames that do."""
        if session in self._sessions:
            found = self._sessions[session]
            found.turn.due = at + (found.stream.pts - frame) / found.rate

    def close(self, session: str) -> None:
        """End a session, if it is there."""
        if session in self._sessions:
            self._end(self._sessions[session], "closed")

    def drain(self, grace_s: float) -> None:
        """Admit nobody; end streams, but those that have an end have most of the time for it."""
        self._draining = True
        self._drained_by = self._clock() + _FINISH * grace_s
        for session in list(self._sessions.values()):
            if session.end == math.inf:
                self._end(session, "draining", session.stream.snapshot(light=True))

    def state(self) -> EngineState:
        """All of it in numbers, but for memory."""
        now = self._clock()
        return EngineState(
            sessions=tuple(
                SessionState(
                    session=s.id, state="paused" if s.turn.paused else "running", chunks=s.chunks,
                    missed=s.missed, queued=len(s.waiting), kv_bytes=s.stream.state_bytes,
                    age_s=now - s.opened,
                )
                for s in self._sessions.values()
            ),
            load=self._load(),
            chunks=self._made,
            batched=self._batched,
        )  # fmt: skip

    @property
    def full(self) -> bool:
        """Whether a session of the model's own size and rate would be refused."""
        model = self._backend.model
        kind = Kind(model.width, model.height, model.steps)
        taken = len(self._sessions) >= self._limits.sessions
        return taken or self._crowded(kind, model.chunk_frames / model.fps)

    # Work

    def patience(self) -> float:
        """Seconds in which there will be nothing to do, unless a command comes."""
        now = self._clock()
        wake = min(1.0, self._scheduler.wake(now))
        stuck = any(not s.turn.paused and not s.ring.room for s in self._sessions.values())
        return min(wake, _POLL_S) if stuck else wake

    def step(self) -> None:
        """End what has outlived its limits, and make the chunks that are due first."""
        now = self._clock()
        for session in list(self._sessions.values()):
            if now - session.opened > self._limits.lifetime_s:
                self._end(session, "lifetime")
            elif session.turn.live and now - session.renewed > self._limits.idle_s:
                self._end(session, "idle")
            elif now > self._drained_by:
                self._end(session, "draining", session.stream.snapshot(light=True))
        group = self._scheduler.pick(self._clock())
        if group:
            self._make([self._sessions[turn.session] for turn in group])

    def _make(self, group: Sequence[_Session]) -> None:
        start = self._clock()
        waits = [max(0.0, start - self._scheduler.release(s.turn)) for s in group]
        full = all(session.stream.chunk > 0 for session in group)
        self._begin(tuple(session.id for session in group))
        self.pass_began = start
        self.pass_expected_s = self._costs.of(group[0].turn.kind, len(group))
        chunks = self._backend.step([session.stream for session in group])
        self.pass_began = None
        took = self._clock() - start
        if full and not any(isinstance(chunk, Exception) for chunk in chunks):
            self._costs.note(group[0].turn.kind, len(group), took)
        self._batched += len(group) > 1
        for session, chunk, wait in zip(group, chunks, waits, strict=True):
            if not isinstance(chunk, Exception):
                self._send(session, chunk, wait if math.isfinite(wait) else 0.0, len(group))
            elif len(group) > 1:  # there may be room for it alone
                self._make([session])
            else:
                self._failed(session, chunk)

    def _send(self, session: _Session, chunk: Chunk, wait: float, batch: int) -> None:
        now, turn, stream = self._clock(), session.turn, session.stream
        frames = chunk.frames[: int(min(len(chunk.frames), session.end - chunk.pts))]
        session.failures = 0
        session.chunks += 1
        self._made += 1
        session.ring.write(frames, tag=chunk.index)
        turn.kind, turn.key = stream.kind, session.key
        turn.cost_s, turn.spread_s = self._costs.of(stream.kind, 1), self._costs.spread(stream.kind)
        session.rate = chunk.stats.rate / self._scheduler.stretch(turn)
        late = turn.made(now, len(frames) / session.rate)
        for control in session.waiting:
            self._applied(session, control, chunk.index, chunk.pts)
        session.waiting.clear()
        if late > 0:
            session.missed += 1
            self._tell(session.id, DeadlineMissed(chunk=chunk.index, late_s=late))
        measured = {name: getattr(chunk.stats, name) for name in MEASURED}
        measured["rate"] = session.rate
        stats = Stats(**measured, wait_s=wait, batch=batch)
        self._tell(
            session.id,
            ChunkMade(
                chunk=chunk.index, pts=chunk.pts, count=len(frames), made=now, stats=stats
            ),
        )  # fmt: skip
        if chunk.pts + len(frames) >= session.end:
            self._end(session, "finished")
        elif now - session.saved >= session.save_every:
            snapshot = stream.snapshot(light=True)
            session.saved = self._clock()
            session.save_every = _SAVE_S * max(1.0, len(snapshot) / _SMALL)
            self._keep(session.id, snapshot)

    def _failed(self, session: _Session, error: Exception) -> None:
        """A pass for this session alone raised."""
        session.failures += 1
        if not isinstance(error, ResourceError):
            traceback.print_exception(error, file=sys.stderr)
            failed = Failed(code="internal", message="the chunk could not be made", retryable=True)
            self._tell(session.id, failed)
            self._end(session, "failed")
            return
        self._tell(session.id, Failed(code="memory", message=str(error), retryable=True))
        session.turn.not_before = self._clock() + _AGAIN_S
        if session.failures >= _TRIES:
            self._end(session, "failed")

    def _applied(self, session: _Session, control: Control, chunk: int, frame: int) -> None:
        applied = Applied(
            event_id=control.event_id, kind=KINDS[type(control)], chunk=chunk, first_frame=frame
        )
        self._tell(session.id, applied)

    def _end(self, session: _Session, reason: Reason, snapshot: bytes | None = None) -> None:
        del self._sessions[session.id]
        self._scheduler.remove(session.id)
        session.stream.close()
        self._tell(session.id, Ended(reason=reason, snapshot=snapshot))

    def _find(self, session: str) -> _Session:
        if session not in self._sessions:
            raise Gone("there is no such session")
        return self._sessions[session]

    def _crowded(self, kind: Kind, chunk_s: float) -> bool:
        """Whether one more session would make others late; where there are none it cannot."""
        others = any(session.turn.live for session in self._sessions.values())
        return others and self._load((kind, chunk_s)) > CAPACITY

    def _load(self, *more: tuple[Kind, float]) -> float:
        open_: dict[Kind, list[float]] = {}
        running = [(s.turn.kind, s.turn.chunk_s) for s in self._sessions.values() if s.turn.live]
        for kind, chunk_s in [*running, *more]:
            open_.setdefault(kind, []).append(chunk_s)
        return load(self._costs, open_)

    def _retry_s(self, now: float) -> float:
        """When a session may have ended."""
        ends = [
            min(
                (session.end - session.stream.pts) / session.stream.fps,
                session.opened + self._limits.lifetime_s - now,
            )
            for session in self._sessions.values()
        ]
        return min(60.0, max(1.0, min(ends))) if ends and min(ends) < 60 else _RETRY_S

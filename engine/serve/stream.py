"""One live stream in front of the engine: its events become messages, its frames packets, for all
who watch."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TYPE_CHECKING

from ..errors import InputError
from . import messages, protocol
from .controls import kind_of, to_engine
from .feed import Feed
from .logs import log
from .renditions import Renditions
from .worker_client import Gone, Rejected

if TYPE_CHECKING:
    from .encoder import Packet
    from .images import Images
    from .limits import Limits
    from .messages import ChunkReady, Opened
    from .metrics import Metrics
    from .viewer import Viewer
    from .worker_client import EngineClient

MAX_VIEWERS = 64
MAX_REMEMBERED = 512
"""Controls whose answers are kept for a client that was cut off before it got them."""
FEED_CHUNKS = 2
"""As many chunks' pictures may wait in a stream that is fed."""
_BEHIND_S = 0.25
"""A frame that is later than this puts off all that follow."""
_OURS = "~"
"""Begins the event ids of controls that no client sent: `protocol.Id` allows none such."""


class Stream:
    """A session of the engine, and those who watch it.

    Frames leave at the stream's rate, not in bursts of a chunk, and each is encoded once for every
    level that somebody gets. While nobody watches, the engine is paused and frames wait.
    """

    def __init__(
        self,
        opened: Opened,
        engine: EngineClient,
        *,
        spec: messages.Spec,
        codec: str,
        resume_token: str,
        pool: Executor,
        metrics: Metrics,
        images: Images,
        limits: Limits,
        ended: Callable[[Stream, messages.Ended], None],
    ) -> None:
        self.spec = spec
        self.session = opened.session
        self.id = secrets.token_hex(8)
        self.resume_token = resume_token
        self.watch_token = secrets.token_urlsafe(16)
        self.owner: Viewer | None = None
        self.owner_left = time.monotonic()
        self._opened, self._engine, self._metrics, self._ended = opened, engine, metrics, ended
        self._images = images
        self._number = secrets.randbits(32)
        self._changes: dict[str, messages.Change] = {}
        self._begun: float | None = time.monotonic()
        self._viewers: list[Viewer] = []
        self._level = 0
        self._renditions = Renditions(opened, codec, pool, metrics)
        self._lock = asyncio.Lock()
        self._watched = asyncio.Event()
        self._paused = self._resting = False
        self._answers: OrderedDict[str, protocol.Applied | protocol.Rejected | None] = OrderedDict()
        self._asked: dict[str, tuple[str, float]] = {}
        self._awaited: list[tuple[int, str, float]] = []
        self._over = self._ended_already = False
        self._stopped_by: list[str] = []
        self._chunk = opened.chunk
        self._next = opened.pts
        self._pts = 0.0
        self._due: float | None = None
        self._sent: float | None = None
        self.feed: Feed | None = None
        if spec.strength is not None:
            room = FEED_CHUNKS * engine.model.chunk_frames
            self.feed = Feed(
                opened, engine, room=room, pool=pool, limits=limits, refused=self._no_picture
            )
        self._task = asyncio.create_task(self._run())

    @property
    def viewers(self) -> tuple[Viewer, ...]:
        """Those who watch."""
        return tuple(self._viewers)

    # Who watches

    async def join(
        self,
        viewer: Viewer,
        *,
        event_id: str,
        owner: bool,
        last_frame: int | None = None,
        lease_s: float,
    ) -> None:
        """Let a viewer in, tell it `session.created`, and bring it up to the newest frame; or, when
        it has those up to `last_frame`, go on behind that one. Raises `Gone` if it is too late."""
        async with self._lock:
            if self._ended_already:
                raise Gone("the stream has just ended")
            if owner:
                if self.owner is not None:
                    self.owner.cut()
                    self._remove(self.owner)
                self.owner = viewer
            viewer.begin(self._number, self._opened.fps, self._level if owner else 0)
            packets, following = self._lead(viewer.level, last_frame)
            viewer.tell(self._created(event_id, owner, following, last_frame, lease_s))
            for packet in packets:
                viewer.offer(packet, catch_up=packet.frame < following)
            self._viewers.append(viewer)
            self._watched.set()
        if self._resting:
            self._resting = False
            if not self._paused:
                await self._control_engine(messages.Resume(event_id=_OURS))

    async def leave(self, viewer: Viewer) -> None:
        """A viewer is gone; when it was the last one, the engine makes no further chunk."""
        self._remove(viewer)
        if viewer is self.owner:
            self.owner, self.owner_left, self._level = None, time.monotonic(), viewer.level
        if not self._viewers and not self._resting:
            self._resting = True
            self._watched.clear()
            if not self._paused:
                await self._control_engine(messages.Pause(event_id=_OURS))

    def _remove(self, viewer: Viewer) -> None:
        if viewer in self._viewers:
            self._viewers.remove(viewer)
            for reason, count in viewer.dropped.items():
                self._metrics.dropped.labels(reason).inc(count)

    def _lead(self, level: int, last_frame: int | None) -> tuple[list[Packet], int]:
        """The packets that a viewer starts with, and the first frame of them to be shown."""
        rendition = self._renditions.of(level)
        if last_frame is None:
            packets = rendition.latest()
            return packets, packets[-1].frame if packets else self._next
        packets = rendition.since(last_frame + 1)
        behind = [packet.frame for packet in packets if packet.frame > last_frame]
        return packets, behind[0] if behind else self._next

    def _created(
        self, event_id: str, owner: bool, following: int, last_frame: int | None, lease_s: float
    ) -> protocol.Created:
        model = self._engine.model
        return protocol.Created(
            event_id=event_id,
            session_id=self.id,
            resume_token=self.resume_token if owner else None,
            watch_token=self.watch_token,
            stream=self._number,
            codec="h264",
            width=self._opened.width,
            height=self._opened.height,
            fps=self._opened.fps,
            chunk_frames=model.chunk_frames,
            max_steps=model.steps,
            control=model.control,
            control_wraps=model.control_wraps,
            prompt=self.spec.prompt or "",
            paused=self._paused,
            next_frame=following,
            lost=0 if last_frame is None else max(0, following - last_frame - 1),
            lease_s=lease_s,
        )

    # Controls

    async def control(self, message: protocol.Control) -> None:
        """Pass on what the owner wants; it is answered once."""
        event_id = message.event_id
        if event_id in self._answers:
            self._tell_owner(
                protocol.Rejected(
                    event_id=event_id, code="duplicate", message="this event_id was used before"
                )
            )
            return
        self._answers[event_id] = None
        while len(self._answers) > MAX_REMEMBERED:
            old, _ = self._answers.popitem(last=False)
            self._asked.pop(old, None)
            self._changes.pop(old, None)
        if isinstance(message, protocol.Stop):
            self._stopped_by.append(event_id)
            await self.close()
            return
        self._asked[event_id] = kind_of(message), time.monotonic()
        try:
            control = to_engine(message, self._picture)
            if not isinstance(control, (messages.Pause, messages.Resume)):
                self._changes[event_id] = control
            await self._engine.control(self.session, control)
        except (InputError, Gone) as error:
            self._asked.pop(event_id, None)
            self._changes.pop(event_id, None)
            code = "gone" if isinstance(error, Gone) else "invalid"
            self._answer(protocol.Rejected(event_id=event_id, code=code, message=str(error)))

    def answer_again(self, event_ids: tuple[str, ...]) -> None:
        """Answer controls of which the owner did not hear before it was cut off."""
        for event_id in event_ids:
            if event_id not in self._answers:
                message = "it did not arrive; send it once more"
                self._tell_owner(protocol.Rejected(event_id=event_id, code="lost", message=message))
            elif (answer := self._answers[event_id]) is not None:
                self._tell_owner(answer)

    async def close(self) -> None:
        """End the stream, as when its owner does not come back."""
        self.let_go()
        await self._engine.close(self.session)

    def let_go(self) -> None:
        """Show no more of what the engine has made, so that the stream's end can be heard."""
        self._over = True
        self._watched.set()

    async def wait(self) -> None:
        """Until the stream has ended."""
        await asyncio.wait([self._task])

    def tell(self, message: protocol.ServerMessage) -> None:
        """Say something to all who watch; one who lets too much pile up is cut off."""
        for viewer in self.viewers:
            try:
                viewer.tell(message)
            except OverflowError:
                viewer.cut()

    def _picture(self, name: str) -> bytes:
        """The pixels of an uploaded picture. Raises `InputError`."""
        return self._images.get(name).fit(self._opened.width, self._opened.height)

    def _no_picture(self, reason: str) -> None:
        """A picture that was pushed could not be taken."""
        self._tell_owner(protocol.Error(code="picture", message=reason, retryable=True))

    async def _control_engine(self, control: messages.Control) -> None:
        with contextlib.suppress(Gone, Rejected):
            await self._engine.control(self.session, control)

    def _answer(self, answer: protocol.Applied | protocol.Rejected) -> None:
        self._answers[answer.event_id] = answer
        self._tell_owner(answer)

    def _tell_owner(self, message: protocol.ServerMessage) -> None:
        if self.owner is not None:
            try:
                self.owner.tell(message)
            except OverflowError:
                self.owner.cut()

    # What the engine makes

    async def _run(self) -> None:
        end = messages.Ended(reason="failed")
        try:
            async for event in self._engine.events(self.session):
                if isinstance(event, messages.Ended):
                    end = event
                    break
                if isinstance(event, messages.ChunkReady):
                    await self._show(event)
                else:
                    self._note(event)
                del event  # the pixels' place in the ring is free again
        except Exception:
            log("stream_failed", level=logging.ERROR, trace=True, session=self.id)
            self.tell(
                protocol.Error(
                    code="internal", message="the stream broke; open it anew", retryable=True
                )
            )
            await self._engine.close(self.session)
        finally:
            self._ended_already = True
            self._renditions.end()
            if self.feed is not None:
                self.feed.close()
            for event_id in self._stopped_by:
                self._answer(
                    protocol.Applied(event_id=event_id, chunk=self._chunk, first_frame=self._next)
                )
            reason = "stopped" if end.reason == "closed" else end.reason
            self.tell(protocol.Ended(reason=reason, frames=self._next))
            for viewer in self.viewers:
                viewer.finish()
            self._ended(self, end)

    def _note(self, event: messages.Event) -> None:
        """Pass on an event that is no chunk."""
        if isinstance(event, messages.Applied):
            if event.kind in ("pause", "resume") and not event.event_id.startswith(_OURS):
                self._paused = event.kind == "pause"
            if event.event_id in self._changes:
                self.spec = self.spec.after(self._changes.pop(event.event_id))
            if (asked := self._asked.pop(event.event_id, None)) is not None:
                self._awaited.append((event.first_frame, *asked))
                self._answer(
                    protocol.Applied(
                        event_id=event.event_id, chunk=event.chunk, first_frame=event.first_frame
                    )
                )
            if event.kind in ("pause", "resume"):
                self._due = self._sent = None
        elif isinstance(event, messages.DeadlineMissed):
            self._metrics.missed.inc()
            self.tell(protocol.DeadlineMissed(chunk=event.chunk, late_s=event.late_s))
        elif isinstance(event, messages.Failed):
            log("chunk_failed", level=logging.WARNING, session=self.id, code=event.code)
            self.tell(
                protocol.Error(code=event.code, message=event.message, retryable=event.retryable)
            )
        elif isinstance(event, messages.Resumed):
            log("stream_recovered", session=self.id, chunk=event.chunk)
            self._next = event.pts
            self.tell(protocol.Recovered(chunk=event.chunk, next_frame=event.pts))

    async def _show(self, chunk: ChunkReady) -> None:
        """Let a chunk's frames go, each when its time has come."""
        self._chunk = chunk.chunk
        self._metrics.take_chunk(chunk.stats)
        for viewer in self.viewers:
            self._tell_stats(viewer, chunk)
        rate = chunk.stats.rate or self._opened.fps
        for i in range(chunk.count):
            await self._watched.wait()
            if self._over:
                return
            now = time.monotonic()
            due = now if self._due is None or now - self._due > _BEHIND_S else self._due
            if i == 0 or due != self._due:
                self._engine.shown(self.session, chunk.pts + i, due)
            if due > now:
                await asyncio.sleep(due - now)
            async with self._lock:
                await self._encode(chunk, i)
            self._due = due + 1 / rate
            self._pts += 1e6 / rate
        self._chunk = chunk.chunk + 1

    async def _encode(self, chunk: ChunkReady, i: int) -> None:
        """Encode a frame at each level that is watched, and offer the packets."""
        frame = chunk.pts + i
        self._renditions.follow(self._viewers, self._level)
        packets = await self._renditions.encode(
            chunk.pixels[i], frame=frame, chunk=chunk.chunk, pts=int(self._pts)
        )
        self._next = frame + 1
        for viewer in self._viewers:
            if viewer.level in packets:
                viewer.offer(packets[viewer.level])
        self._measure(frame)

    def _measure(self, frame: int) -> None:
        now = time.monotonic()
        self._metrics.sent.inc()
        if self._begun is not None:
            self._metrics.first_frame.observe(now - self._begun)
            self._begun = None
        if self._sent is not None:
            self._metrics.frame_interval.observe(now - self._sent)
        self._sent = now
        while self._awaited and self._awaited[0][0] <= frame:
            _, kind, asked = self._awaited.pop(0)
            self._metrics.control.labels(kind).observe(now - asked)

    def _tell_stats(self, viewer: Viewer, chunk: ChunkReady) -> None:
        stats = chunk.stats
        dropped = sum(viewer.dropped.values())
        took = stats.text_s + stats.dit_s + stats.cache_s + stats.vae_s + stats.convert_s
        message = protocol.Stats(
            chunk=chunk.chunk,
            first_frame=chunk.pts,
            frames=chunk.count,
            text_s=stats.text_s,
            dit_s=stats.dit_s,
            cache_s=stats.cache_s,
            vae_s=stats.vae_s,
            convert_s=stats.convert_s,
            chunk_s=took,
            lead_s=stats.lead_s,
            steps=stats.steps,
            rate=stats.rate,
            skipped=stats.skipped,
            level=viewer.level,
            dropped=dropped,
            viewers=len(self._viewers),
        )
        with contextlib.suppress(OverflowError):
            viewer.tell(message)

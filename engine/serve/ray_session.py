"""A session in front of replicas: where it is, and what they tell of it as one stream."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from .messages import Applied, ChunkReady, DeadlineMissed, Ended, Resumed
from .ray_replica import Kept, Placed, Refusal

if TYPE_CHECKING:
    from .ray_replica import Item
    from .watched import Watched


@dataclass
class RaySession:
    """What outlives a replica of a session, and the call that streams from the one it is at."""

    watched: Watched
    stream: Any
    placed: Placed
    chunks_off: int = 0
    frames_off: int = 0
    """What is added to the numbers that the replica gives."""
    missed: int = 0
    left: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when it has to leave its replica, or has ended."""
    there: asyncio.Event = field(default_factory=asyncio.Event)
    """Set while it is at a replica."""
    moves: list[float] = field(default_factory=list)
    opened: float = field(default_factory=time.monotonic)
    renewed: float = field(default_factory=time.monotonic)
    task: asyncio.Task[None] | None = None

    def arrive(self, stream: Any, placed: Placed) -> None:
        """Count on from here at another replica."""
        self.stream, self.placed = stream, placed
        self.chunks_off = self.watched.chunk - placed.opened.chunk
        self.frames_off = self.watched.pts - placed.opened.pts
        self.left.clear()  # what was said to the one before may only now have failed
        self.watched.tell(Resumed(chunk=self.watched.chunk, pts=self.watched.pts))

    def take(self, item: Item) -> Ended | None:
        """Take in what the replica tells; gives the end when that is the session's own."""
        watched = self.watched
        if isinstance(item, Kept):
            self._keep(item.snapshot)
        elif isinstance(item, ChunkReady):
            item.chunk += self.chunks_off
            item.pts += self.frames_off
            item.made = time.monotonic()  # by this machine's clock
            watched.chunk, watched.pts = item.chunk + 1, item.pts + item.count
            watched.tell(item)
        elif isinstance(item, Applied):
            self._applied(item)
        elif isinstance(item, DeadlineMissed):
            self.missed += 1
            watched.tell(replace(item, chunk=item.chunk + self.chunks_off))
        elif isinstance(item, Resumed):
            watched.tell(Resumed(chunk=watched.chunk, pts=watched.pts))
        elif isinstance(item, Ended):
            if item.reason not in ("closed", "draining"):
                return item
            if item.snapshot is not None:
                self._keep(item.snapshot)
            self.left.set()  # its replica is going down
        elif not isinstance(item, (Placed, Refusal)):
            watched.tell(item)
        return None

    def _keep(self, snapshot: bytes) -> None:
        """Go on from here if need be; what took hold so far is in it."""
        self.watched.snapshot = snapshot
        for event_id in self.watched.told:
            self.watched.given.pop(event_id, None)
        self.watched.told.clear()

    def _applied(self, item: Applied) -> None:
        """Pass it on, but not a second time for a control that was given again."""
        watched = self.watched
        if item.event_id in watched.told or item.event_id == watched.hushed:
            watched.hushed = None
            return
        if item.event_id in watched.given:
            watched.took(item.event_id)
        frame = item.first_frame + self.frames_off
        watched.tell(replace(item, chunk=item.chunk + self.chunks_off, first_frame=frame))

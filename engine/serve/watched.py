"""A session as the server's process keeps it."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .messages import Ended

if TYPE_CHECKING:
    from ..native import FrameRing
    from .messages import Change, Event, Opened, Spec


@dataclass
class Watched:
    """What outlives the engine of a session, and the events that nobody has taken yet."""

    spec: Spec
    opened: Opened
    ring: FrameRing | None
    end: int | None
    chunk: int
    pts: int
    snapshot: bytes | None
    events: deque[Event] = field(default_factory=deque)
    news: asyncio.Event = field(default_factory=asyncio.Event)
    given: dict[str, Change] = field(default_factory=dict)
    """Controls that the snapshot does not know of, in order."""
    told: set[str] = field(default_factory=set)
    """Those of them whose `Applied` was passed on."""
    paused: str | None = None
    hushed: str | None = None
    """A pause that is given again: its `Applied` was passed on."""
    blamed: list[float] = field(default_factory=list)
    ended: bool = False

    def took(self, event_id: str) -> None:
        """A control that was given took hold."""
        self.told.add(event_id)
        self.spec = self.spec.after(self.given[event_id])

    def tell(self, event: Event) -> None:
        """Add to the stream; behind its end nothing comes."""
        if not self.ended:
            self.ended = isinstance(event, Ended)
            self.events.append(event)
            self.news.set()

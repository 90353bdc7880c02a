"""How much a viewer's network takes, told from its acknowledgements alone.

Pure logic: time is an argument, in seconds on any clock that does not go back.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

WINDOW_BYTES = 4 << 20
FIRST_BYTES = 128 << 10
WINDOW_S = 1.0
"""What may be on the way: as much as lately arrived in this time, and never more than
`WINDOW_BYTES`; `FIRST_BYTES` may in any case."""

_LATE_S = 0.25
"""A frame's ack takes at most this much longer than the quickest ones."""
_FALL_S = 0.5
_REST_S = 1.0
_BETTER = 0.95
"""What is on the way, or waits to be decoded, shrinks by itself when this share or less is left a
second later."""
_RISE_S = 4.0
_MOST_PATIENCE_S = 64.0
_QUICKEST_OF_S = 10.0
_QUEUE_S = 1.0


@dataclass
class Quality:
    """Picks a level, 0 being everything and `lowest` the least.

    A link that is too narrow shows in acks that take longer and longer. When they have been late
    for half a second the level goes one down, and again after each second in which that did not
    help; when they have been in time for four seconds it goes up by one. A rise that has to be
    undone at once doubles the time before the next is tried.
    """

    fps: float
    lowest: int
    level: int = 0
    _sent: deque[tuple[int, int, float]] = field(default_factory=deque)
    _bytes: int = 0
    _quickest: deque[tuple[float, float]] = field(default_factory=deque)
    _delay: float = 0.0
    _queue: int = 0
    _late_since: float | None = None
    _good_since: float | None = None
    _arrived: deque[tuple[float, int]] = field(default_factory=deque)
    _arrived_bytes: int = 0
    _looked: float = float("-inf")
    _mark: tuple[int, int] = (0, 0)
    _rose: float = float("-inf")
    _patience: float = _RISE_S

    def sent(self, frame: int, size: int, now: float) -> None:
        """A frame of `size` bytes went out."""
        self._sent.append((frame, size, now))
        self._bytes += size

    def acked(self, frame: int, decode_queue: int, now: float) -> None:
        """All frames up to `frame` have arrived, and `decode_queue` of them were not shown yet."""
        while self._sent and self._sent[0][0] <= frame:
            _, size, at = self._sent.popleft()
            self._bytes -= size
            self._arrived.append((now, size))
            self._arrived_bytes += size
            self._delay = now - at
            while self._quickest and self._quickest[-1][1] >= self._delay:
                self._quickest.pop()
            self._quickest.append((now, self._delay))
        while len(self._quickest) > 1 and self._quickest[0][0] < now - _QUICKEST_OF_S:
            self._quickest.popleft()
        while self._arrived and self._arrived[0][0] < now - WINDOW_S:
            self._arrived_bytes -= self._arrived.popleft()[1]
        self._queue = decode_queue

    def forget(self) -> None:
        """Frames on the way will not be acked, as behind a cut."""
        self._sent.clear()
        self._bytes = 0
        self._late_since = self._good_since = None

    @property
    def bytes_on_the_way(self) -> int:
        """Sent and not acked."""
        return self._bytes

    @property
    def room(self) -> bool:
        """Whether another frame may be sent."""
        if not self._sent:
            return True
        limit = max(FIRST_BYTES, 2 * self._arrived_bytes)
        return self._bytes < min(limit, WINDOW_BYTES)

    def update(self, now: float) -> int:
        """Look at how it goes, which should happen with every frame; gives the level."""
        late = max(self._delay if self._sent else 0.0, self._waiting(now)) - self._floor()
        late = max(late, self._queue / self.fps - _QUEUE_S)
        if late > _LATE_S:
            self._good_since = None
            self._late_since = now if self._late_since is None else self._late_since
            if now - self._late_since >= _FALL_S and now - self._looked >= _REST_S:
                heap = self._bytes, self._queue
                if all(now >= _BETTER * then for now, then in zip(heap, self._mark, strict=True)):
                    self._fall(now)
                self._looked, self._mark = now, heap
            return self.level
        self._late_since, self._mark = None, (0, 0)
        self._good_since = now if self._good_since is None else self._good_since
        if now - self._good_since >= self._patience and self.level > 0:
            if now - self._rose >= _MOST_PATIENCE_S:
                self._patience = _RISE_S
            self.level -= 1
            self._rose = self._good_since = now
        return self.level

    def _fall(self, now: float) -> None:
        if self.level < self.lowest:
            if now - self._rose < 2 * _RISE_S:
                self._patience = min(2 * self._patience, _MOST_PATIENCE_S)
            self.level += 1

    def _waiting(self, now: float) -> float:
        """How long the oldest frame without an ack is on the way."""
        return now - self._sent[0][2] if self._sent else 0.0

    def _floor(self) -> float:
        """How long an ack takes where nothing is in the way."""
        return self._quickest[0][1] if self._quickest else 0.0

"""Whose chunk is made next: the one that is due first, and with it those that share its pass.

A chunk is due when the frames before it have been played; a session's first is due at once. A chunk
may be begun when it is due so soon that waiting on would risk others' (`slack`), and never earlier
than a chunk's time ahead, so that controls are not late for frames that nobody has seen yet. A
session that is not live is never due: it takes what time the others leave.

Nothing here reads a clock: all times are seconds that the caller gives.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from .admission import Kind

FIRST_SLACK = 0.03
"""Seconds before a chunk is due at which it may be begun at the latest, beside what it costs."""
_SAFETY = 1.5


@dataclass
class Turn:
    """What the scheduler knows of a session.

    `kind` is what its passes cost hangs on, and `key` equal for sessions that can share one.
    `cost_s` is what a pass for this session alone is reckoned to take; `chunk_s` how long a chunk
    plays; `due` when the next one is.
    """

    session: str
    kind: Kind
    key: Hashable
    chunk_s: float
    cost_s: float
    due: float
    live: bool = True
    paused: bool = False
    begun: bool = False
    not_before: float = -math.inf
    last: float = -math.inf

    def pause(self, paused: bool, now: float) -> None:
        """Stop or go on. A stream that goes on is due at once, and late for nothing."""
        if self.paused and not paused:
            self.due, self.begun = max(self.due, now), False
        self.paused = paused

    def made(self, now: float, seconds: float) -> float:
        """A chunk that plays for `seconds` is ready; gives how late it came (0 if in time).

        The first is never late, nor is one behind a shorter one that came within the time that a
        chunk plays. Playing waits for a late one, and goes on from there.
        """
        late = 0.0
        if self.begun and self.live:
            late = max(0.0, now - max(self.due, self.last + self.chunk_s))
        self.due = max(self.due, now) + seconds
        self.begun, self.last = True, now
        return late


class Scheduler:
    """Picks by earliest deadline, without preemption: a chunk is a unit.

    `has_room` says whether a session's chunk has a place to go to; `batch_cost(kind, n)` what a
    pass over n sessions takes; `most(kind, n)` how many of n that are ready may share one because
    that is measured to be faster.
    """

    def __init__(
        self,
        *,
        has_room: Callable[[str], bool],
        batch_cost: Callable[[Kind, int], float],
        most: Callable[[Kind, int], int],
    ) -> None:
        self._has_room, self._batch_cost, self._most = has_room, batch_cost, most
        self._turns: dict[str, Turn] = {}

    def add(self, turn: Turn) -> None:
        """A session is there from now on."""
        self._turns[turn.session] = turn

    def remove(self, session: str) -> None:
        """A session is gone."""
        self._turns.pop(session, None)

    def pick(self, now: float) -> list[Turn]:
        """The sessions to step now, the most urgent first; none when all can wait."""
        able = [turn for turn in self._turns.values() if self._able(turn)]
        ready = [turn for turn in able if now >= self.release(turn)]
        if not ready:
            return []
        first = min(ready, key=_urgency)
        group = [first]
        mates = [
            turn
            for turn in able
            if turn is not first
            and turn.key == first.key
            and turn.live == first.live
            and now >= max(turn.not_before, turn.due - turn.chunk_s)
        ]
        most = self._most(first.kind, 1 + len(mates))
        for mate in sorted(mates, key=_urgency):
            if len(group) >= most or self._too_slow(first, len(group) + 1, now):
                break
            group.append(mate)
        return group

    def wake(self, now: float) -> float:
        """Seconds until a chunk may be begun, if nothing else happens; infinite for none."""
        times = [self.release(turn) for turn in self._turns.values() if self._able(turn)]
        return max(0.0, min(times, default=math.inf) - now)

    def release(self, turn: Turn) -> float:
        """When the session's next chunk may be begun."""
        if not turn.live or not turn.begun:
            return turn.not_before
        running = [other for other in self._turns.values() if not other.paused]
        busy = sum(other.cost_s for other in running if other.live)
        in_the_way = max((other.cost_s for other in running if not other.live), default=0.0)
        slack = FIRST_SLACK + _SAFETY * busy + in_the_way
        return max(turn.not_before, turn.due - min(slack, turn.chunk_s))

    def _able(self, turn: Turn) -> bool:
        return not turn.paused and self._has_room(turn.session)

    def _too_slow(self, first: Turn, count: int, now: float) -> bool:
        """Whether a pass of so many would make the first come late where it need not."""
        if not first.live or not first.begun:
            return False
        alone = now + self._batch_cost(first.kind, 1)
        return alone <= first.due < now + self._batch_cost(first.kind, count)


def _urgency(turn: Turn) -> tuple[bool, float, str]:
    return not turn.live, turn.due, turn.session

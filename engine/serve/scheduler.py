"""Whose chunk is made next: the one that is due first, and with it those that share its pass.

A chunk is due when the frames before it have been played; a session's first is due at once. A
control takes hold in the next chunk that is begun and waits behind all frames that were made
before, so that a chunk is begun as late as can be: when it has just the time left that it takes,
behind those that are due earlier and before those that are due next. From a control to its first
pixel it is then that time and a chunk's playing at most.

Where sessions' chunks would be due at about the same time, one would have to be made ahead of the
other; frames of one are played a little slower (`stretch`) until each has its own time. Only where
passes must be shared for want of time is a chunk made with another's and up to its playing time
ahead. A session that is not live is never due: it takes what time the others leave.

Nothing here reads a clock: all times are seconds that the caller gives.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from .admission import Kind

SLACK_S = 0.02
"""From when a chunk is made until its first frame can be shown."""
_SPREADS = 2.0
"""So many times the usual difference is left for a pass that takes longer than others."""
_CALM = 0.7
"""The share of the time that passes for one session each may take; beyond, they are shared."""
_STRETCH = 0.05
"""The share by which frames may be played slower."""
_AHEAD = 8
"""Chunks of each session that are planned."""


@dataclass
class Turn:
    """What the scheduler knows of a session.

    `kind` is what its passes cost hangs on, and `key` equal for sessions that can share one.
    `cost_s` is what a pass for this session alone is reckoned to take, and `spread_s` how far it is
    from that as a rule; `chunk_s` how long a chunk plays; `due` when the next one is.
    """

    session: str
    kind: Kind
    key: Hashable
    chunk_s: float
    cost_s: float
    due: float
    live: bool = True
    spread_s: float = 0.0
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
        releases = self._releases()
        able = [turn for turn in self._turns.values() if self._able(turn)]
        ready = [turn for turn in able if now >= releases[turn.session]]
        if not ready:
            return []
        first = min(ready, key=_urgency)
        group = [first]
        ahead = self._crowded()
        mates = [
            turn
            for turn in able
            if turn is not first
            and turn.key == first.key
            and turn.live == first.live
            and now >= (turn.due - turn.chunk_s if ahead else releases[turn.session])
            and now >= turn.not_before
        ]
        most = self._most(first.kind, 1 + len(mates))
        for mate in sorted(mates, key=_urgency):
            if len(group) >= most or self._too_slow(first, len(group) + 1, now):
                break
            group.append(mate)
        return group

    def wake(self, now: float) -> float:
        """Seconds until a chunk may be begun, if nothing else happens; infinite for none."""
        releases = self._releases()
        times = [releases[turn.session] for turn in self._turns.values() if self._able(turn)]
        return max(0.0, min(times, default=math.inf) - now)

    def release(self, turn: Turn) -> float:
        """When the session's next chunk may be begun."""
        return self._releases()[turn.session]

    def stretch(self, turn: Turn) -> float:
        """How many times as long as usual the session's next frames should be played, so that its
        chunks come to be due when no others are made, or, where passes are shared, with others."""
        alike = [t for t in self._timed() if abs(t.chunk_s - turn.chunk_s) < 1e-3 * turn.chunk_s]
        if turn not in alike:
            return 1.0
        mates = [other for other in alike if other.key == turn.key]
        if self._crowded() and self._most(turn.kind, len(mates)) > 1:
            # They gather at the one before the longest gap: none goes round for being just past it.
            phases = sorted((other.due - turn.due) % turn.chunk_s for other in mates)
            gaps = [b - a for a, b in zip(phases, [*phases[1:], turn.chunk_s], strict=True)]
            missing = phases[gaps.index(max(gaps))]
        elif sum(other.cost_s + _spare(other) for other in alike) < turn.chunk_s:
            behind = [(turn.due - other.due) % turn.chunk_s for other in alike if other is not turn]
            missing = turn.cost_s + _spare(turn) - min(behind, default=math.inf)
        else:
            return 1.0
        return 1 + min(_STRETCH, max(0.0, missing / turn.chunk_s))

    def _timed(self) -> list[Turn]:
        """Sessions whose chunks have a time by which they must be there."""
        return [t for t in self._turns.values() if t.live and t.begun and not t.paused]

    def _crowded(self) -> bool:
        """Whether passes for one session each would take too much of the time."""
        timed = self._timed()
        return sum((t.cost_s + _SPREADS * t.spread_s) / t.chunk_s for t in timed) > _CALM

    def _releases(self) -> dict[str, float]:
        """When each session's next chunk may be begun: the latest times at which all that are
        planned are begun in the order in which they are due, and none is late."""
        timed, crowded = self._timed(), self._crowded()
        alike = Counter(turn.key for turn in timed)
        passes = {}
        for turn in timed:
            count = max(1, self._most(turn.kind, alike[turn.key])) if crowded else 1
            whole = self._batch_cost(turn.kind, count) if crowded else turn.cost_s
            passes[turn.session] = whole, whole / count
        idle = [t.cost_s for t in self._turns.values() if not t.live and not t.paused]
        in_the_way = max(idle, default=0.0)
        plan = [(turn.due + i * turn.chunk_s, turn) for turn in timed for i in range(_AHEAD)]
        releases = {turn.session: turn.not_before for turn in self._turns.values()}
        begin = math.inf
        for due, turn in sorted(plan, key=lambda planned: planned[0], reverse=True):
            whole, part = passes[turn.session]
            begin = min(begin, due) - part
            latest = min(begin, due - whole) - in_the_way - _spare(turn)
            releases[turn.session] = max(turn.not_before, latest, due - turn.chunk_s)
        return releases

    def _able(self, turn: Turn) -> bool:
        return not turn.paused and self._has_room(turn.session)

    def _too_slow(self, first: Turn, count: int, now: float) -> bool:
        """Whether a pass of so many would make the first come late where it need not."""
        if not first.live or not first.begun:
            return False
        alone = now + self._batch_cost(first.kind, 1)
        return alone <= first.due < now + self._batch_cost(first.kind, count)


def _spare(turn: Turn) -> float:
    """Seconds to be left besides what the pass is reckoned to take."""
    return _SPREADS * turn.spread_s + SLACK_S


def _urgency(turn: Turn) -> tuple[bool, float, str]:
    return not turn.live, turn.due, turn.session

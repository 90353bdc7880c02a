"""What chunks cost, as measured, and whether one more session fits.

A kind of session (its size and steps) costs what its passes took lately, alone or with
others in one. The engine's load is the share of its time that all open sessions' rates take; a
session is admitted when the load with it stays below what may be promised.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

CAPACITY = 0.85
"""The share of the engine's time that may be promised."""
_NEW = 0.2
"""How much a new measurement counts."""
_UNKNOWN = 0.25
"""The share by which passes are taken to differ before that is measured."""
_NEAR = 1.03
"""More sessions in a pass are worth it when each then costs less by more than this factor."""
_PROBE_EVERY = 64
"""After so many chunks of a kind, a number of sessions that was slower is tried once more."""


class Kind(NamedTuple):
    """What a session's passes cost hangs on: its size in pixels and its steps."""

    width: int
    height: int
    steps: int

    @property
    def work(self) -> int:
        """Roughly in proportion to what a pass takes."""
        return self.width * self.height * (self.steps + 1)


@dataclass
class _Measured:
    seconds: float
    off: float
    at: int


class Costs:
    """Seconds of a pass by kind and number of sessions in it."""

    def __init__(self, *, most: int) -> None:
        """`most` sessions can share a pass at all."""
        self._most = most
        self._passes: dict[tuple[Kind, int], _Measured] = {}
        self._count: dict[Kind, int] = {}

    def note(self, kind: Kind, sessions: int, seconds: float) -> None:
        """A pass took so long. A slow one counts as others do: a kind's first, that has to load
        something, is forgotten over the next few."""
        self._count[kind] = self._count.get(kind, 0) + sessions
        old = self._passes.get((kind, sessions))
        if old is None:
            old = _Measured(seconds, _UNKNOWN * seconds, 0)
        self._passes[kind, sessions] = _Measured(
            old.seconds + _NEW * (seconds - old.seconds),
            old.off + _NEW * (abs(seconds - old.seconds) - old.off),
            self._count[kind],
        )

    def of(self, kind: Kind, sessions: int) -> float:
        """What a pass over so many takes: as measured, or by what was, be it of another kind; 0
        where nothing was measured yet."""
        kinds = {k for k, _ in self._passes}
        if not kinds:
            return 0.0
        like = kind if kind in kinds else min(kinds, key=lambda k: abs(k.work - kind.work))
        return self._between(like, sessions) * kind.work / like.work

    def spread(self, kind: Kind) -> float:
        """By how many seconds passes of a kind for one session differ from what `of` says."""
        found = self._passes.get((kind, 1))
        return _UNKNOWN * self.of(kind, 1) if found is None else found.off

    def most(self, kind: Kind, ready: int) -> int:
        """How many of the `ready` sessions to step together: as many as were measured to be worth
        it; one more where that was never tried, or not lately."""
        best = self._best(kind, ready)
        if best < min(ready, self._most):
            found = self._passes.get((kind, best + 1))
            if found is None or self._count[kind] - found.at >= _PROBE_EVERY:
                return best + 1
        return best

    def seconds_each(self, kind: Kind, sessions: int) -> float:
        """What one chunk costs when so many sessions of a kind are open: never more than with
        fewer, since passes need not be shared."""
        return min(self._each(kind, sessions).values())

    def _between(self, kind: Kind, sessions: int) -> float:
        """What a pass takes by the numbers of sessions that were measured; in proportion below and
        above them."""
        known = {n: self._passes[k, n].seconds for k, n in self._passes if k == kind}
        low = max((n for n in known if n <= sessions), default=min(known))
        high = min((n for n in known if n >= sessions), default=max(known))
        if low == high:
            return known[low] * sessions / low
        share = (sessions - low) / (high - low)
        return known[low] + share * (known[high] - known[low])

    def _best(self, kind: Kind, sessions: int) -> int:
        """The number in a pass, of so many sessions, at which each costs least as far as is known;
        the fewer where more gain next to nothing."""
        each = self._each(kind, sessions)
        return min(n for n in each if each[n] <= _NEAR * min(each.values()))

    def _each(self, kind: Kind, sessions: int) -> dict[int, float]:
        """What each of so many sessions costs, by how many share a pass."""
        return {n: self.of(kind, n) / n for n in range(1, min(sessions, self._most) + 1)}


def load(costs: Costs, open_: Mapping[Kind, Sequence[float]]) -> float:
    """The share of the engine's time that sessions take; `open_` has, for each kind, how long a
    chunk of each of them plays."""
    return sum(
        costs.seconds_each(kind, len(times)) / chunk_s
        for kind, times in open_.items()
        for chunk_s in times
    )

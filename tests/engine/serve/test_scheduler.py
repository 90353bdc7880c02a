"""Deadlines under a clock that only the test moves."""

from __future__ import annotations

import math
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from livereel.engine.serve.admission import CAPACITY, Kind
from livereel.engine.serve.scheduler import SLACK_S, Scheduler, Turn

SMALL = Kind(128, 128, 4)


def turn(name: str, *, due: float = 0.0, chunk_s: float = 1.0, cost_s: float = 0.1) -> Turn:
    return Turn(name, SMALL, SMALL, chunk_s, cost_s, due)


class Machine:
    """A machine on which a pass for n sessions takes `cost(n)`, and the sessions it serves."""

    def __init__(
        self, turns: list[Turn], *, most: int = 1, share: float = 1.0, jitter: float = 0.0
    ) -> None:
        self.turns, self.now = turns, 0.0
        self.jitter = Random(0), jitter
        self.full: set[str] = set()
        self.late: dict[str, list[float]] = {t.session: [] for t in turns}
        self.begun: dict[str, list[float]] = {t.session: [] for t in turns}
        self.shown: dict[str, list[float]] = {t.session: [] for t in turns}
        self.sizes: list[int] = []
        self.cost = lambda kind, n: turns[0].cost_s * (1 + share * (n - 1))
        self.scheduler = Scheduler(
            has_room=lambda name: name not in self.full,
            batch_cost=self.cost,
            most=lambda _kind, _ready: most,
        )
        for t in turns:
            self.scheduler.add(t)

    def run(self, until: float) -> None:
        while self.now < until:
            group = self.scheduler.pick(self.now)
            if not group:
                wake = self.scheduler.wake(self.now)
                assert wake > 0
                self.now += min(wake, until - self.now) + 1e-9
                continue
            self.sizes.append(len(group))
            for t in group:
                self.begun[t.session].append(self.now)
            first = group[0]
            self.now += first.cost_s if len(group) == 1 else self.cost(SMALL, len(group))
            for t in group:
                self.shown[t.session].append(max(self.now, t.due))
                stretched = t.chunk_s * self.scheduler.stretch(t)
                random, share = self.jitter
                stretched *= 1 + random.uniform(-share, share)
                self.late[t.session].append(t.made(self.now, stretched))

    def longest_wait(self, *, since: float) -> float:
        """From a control to the first frame that shows it, where it has just missed a chunk."""
        return max(
            shown - begun
            for name in self.begun
            for begun, shown in zip(self.begun[name], self.shown[name][1:], strict=False)
            if begun > since
        )


@settings(max_examples=60, deadline=None)
@given(
    sessions=st.lists(
        st.tuples(st.floats(0.3, 3.0), st.floats(0.01, 0.2), st.floats(0, 2.0)),
        min_size=1,
        max_size=6,
    )
)
def test_no_chunk_comes_late_where_there_is_time(
    sessions: list[tuple[float, float, float]],
) -> None:
    load = sum(cost / chunk for chunk, cost, _ in sessions)
    turns = [turn(str(i), due=d, chunk_s=c, cost_s=s) for i, (c, s, d) in enumerate(sessions)]
    # What EDF without preemption can promise: each has room for the longest pass of another.
    longest = max(cost for _, cost, _ in sessions)
    possible = load <= CAPACITY and all(
        longest + sum(t.cost_s for t in turns) <= t.chunk_s for t in turns
    )
    machine = Machine(turns)
    machine.run(20.0)
    for t in turns:
        assert len(machine.late[t.session]) >= 20 / t.chunk_s * (0.9 if possible else 0.2) - 2
        if possible:
            assert max(machine.late[t.session]) == 0


def test_the_first_due_goes_first_and_no_one_starves_under_overload() -> None:
    machine = Machine([turn(str(i), chunk_s=1.0, cost_s=0.5) for i in range(4)])
    machine.run(40.0)
    counts = [len(late) for late in machine.late.values()]
    assert max(counts) - min(counts) <= 1 and sum(counts) == 80


def test_a_chunk_is_not_made_long_before_it_is_due() -> None:
    machine = Machine([turn("a", chunk_s=2.0, cost_s=0.1)])
    machine.run(21.0)
    gaps = [b - a for a, b in zip(machine.begun["a"], machine.begun["a"][1:], strict=False)]
    assert gaps[1:] == pytest.approx([2.0] * (len(gaps) - 1), abs=0.01)
    assert machine.scheduler.release(machine.turns[0]) >= machine.turns[0].due - 0.2


@settings(max_examples=30, deadline=None)
@given(opened=st.lists(st.floats(0, 3.0), min_size=1, max_size=4))
def test_a_control_shows_within_a_chunk_and_its_making(opened: list[float]) -> None:
    turns = [turn(str(i), due=d, chunk_s=0.75, cost_s=0.13) for i, d in enumerate(opened)]
    machine = Machine(turns, most=4, share=0.5)
    machine.run(60.0)
    assert machine.longest_wait(since=30.0) <= 0.75 + 0.13 + SLACK_S + 1e-3
    assert all(max(late) == 0 for late in machine.late.values())
    assert all(machine.scheduler.stretch(t) == pytest.approx(1) for t in turns)


@pytest.mark.parametrize("jitter", [0.0, 1e-11, 1e-4])
@pytest.mark.parametrize("apart", [0.0, 0.1875, 0.3])
def test_where_passes_must_be_shared_a_control_waits_for_one_and_a_chunk(
    apart: float, jitter: float
) -> None:
    turns = [turn(str(i), due=apart * i, chunk_s=0.75, cost_s=0.3) for i in range(4)]
    machine = Machine(turns, most=4, share=0.2, jitter=jitter)
    machine.run(60.0)
    assert set(machine.sizes[-20:]) == {4}
    assert all(machine.scheduler.stretch(t) == pytest.approx(1, abs=1e-3) for t in turns)
    assert machine.longest_wait(since=30.0) <= 0.75 + 0.3 * 1.6 + SLACK_S + 1e-3
    assert all(max(late[10:]) == 0 for late in machine.late.values())


def test_sessions_of_a_shape_share_passes_where_that_is_faster() -> None:
    turns = [turn(str(i), due=0.2 * i, chunk_s=1.0, cost_s=0.3) for i in range(4)]
    machine = Machine(turns, most=4, share=0.3)  # four in 0.57 s rather than 1.2
    machine.run(30.0)
    assert max(machine.sizes) == 4
    assert all(max(late[2:]) == 0 for late in machine.late.values())
    alone = Machine([turn(str(i), chunk_s=1.0, cost_s=0.3) for i in range(4)])
    alone.run(30.0)
    assert any(max(late[2:]) > 0 for late in alone.late.values())


def test_a_mate_does_not_make_the_first_late() -> None:
    a, b = turn("a", due=1.0, cost_s=0.4), turn("b", due=1.5, cost_s=0.4)
    a.begun = b.begun = True
    machine = Machine([a, b], most=2, share=1.0)
    assert [t.session for t in machine.scheduler.pick(0.55)] == ["a"]
    machine = Machine([a, b], most=2, share=0.1)
    assert [t.session for t in machine.scheduler.pick(0.55)] == ["a", "b"]


def test_who_has_no_room_or_pauses_is_passed_over() -> None:
    machine = Machine([turn("a"), turn("b")])
    machine.full.add("a")
    machine.turns[1].pause(True, 0.0)
    assert machine.scheduler.pick(5.0) == [] and machine.scheduler.wake(5.0) == math.inf
    machine.turns[1].pause(False, 6.0)
    assert machine.scheduler.pick(6.0) == [machine.turns[1]]
    assert machine.turns[1].made(6.5, 1.0) == 0  # not late for the time it was paused


def test_what_is_not_live_takes_the_time_that_is_left() -> None:
    live, clip = turn("live", cost_s=0.3), turn("clip", cost_s=0.3)
    clip.live = False
    machine = Machine([live, clip])
    machine.run(30.0)
    assert len(machine.late["live"]) == pytest.approx(30, abs=2)
    assert max(machine.late["live"]) == 0 and len(machine.late["clip"]) > 30


def test_a_failed_chunk_is_not_tried_again_at_once() -> None:
    machine = Machine([turn("a")])
    machine.turns[0].not_before = 3.0
    assert machine.scheduler.pick(2.0) == [] and machine.scheduler.wake(2.0) == 1.0
    assert machine.scheduler.pick(3.0) == machine.turns

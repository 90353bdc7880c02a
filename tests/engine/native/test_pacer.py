"""The pacer under a clock that only the test moves, against its rules written out in Python."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from livereel.engine.native import Pace, Pacer

RATE, CHUNK, PASSES = 16.0, 12, 4
RUNGS = [(True, 4, 16.0), *((False, n, 16.0) for n in (4, 3, 2, 1))]
RUNGS += [(False, 1, rate) for rate in (12.0, 9.0, 8.0)]

seconds = st.floats(0, 3)


def as_tuple(pace: Pace) -> tuple[bool, int, float]:
    return pace.optional_work, pace.passes, pace.rate


@given(
    chunks=st.lists(st.tuples(seconds, seconds, st.integers(1, CHUNK)), min_size=2),
    origin=st.floats(-1e6, 1e6),
)
def test_deadlines_and_jitter(chunks: list[tuple[float, float, int]], origin: float) -> None:
    pacer = Pacer(rate=RATE, chunk=CHUNK, adapt=False)
    now, played, before, jitter = origin, None, None, 0.0
    for idle, making, frames in chunks:
        began, play = now + idle, frames / RATE
        assert as_tuple(pacer.begin(began, passes=PASSES)) == RUNGS[0]
        now = began + making
        timing = pacer.end(now, frames=frames)
        due = now if played is None else max(played, began + play)
        if played is not None and frames == CHUNK:
            spare = play - (now - began)
            if before is not None:
                jitter += (abs(spare - before) - jitter) / 16
            before = spare
        assert timing.lead == pytest.approx(due - now, abs=1e-6)
        assert timing.jitter == pytest.approx(jitter, abs=1e-6)
        if making <= play - 1e-6:
            assert timing.lead >= 0  # whatever the consumer did
        played = max(due, now) + play


@given(loads=st.lists(st.tuples(st.floats(0, 1), st.floats(0.01, 3))))
def test_rungs_are_taken_one_at_a_time(loads: list[tuple[float, float]]) -> None:
    """Down when the chunk could not be made again in time, up only after chunks with time to
    spare, and never more than one rung."""
    pacer = Pacer(rate=RATE, chunk=CHUNK, adapt=True)
    pacer.begin(0, passes=PASSES)
    now, rung, easy = 0.0, 0, 0
    pacer.end(now, frames=1)
    for idle, making in loads:
        pace = pacer.begin(now + idle, passes=PASSES)
        now += idle + making
        timing = pacer.end(now, frames=CHUNK)
        after = RUNGS.index(as_tuple(pacer.begin(now, passes=PASSES)))
        reserve = max(timing.lead, 0) + CHUNK / pace.rate - making
        assert RUNGS.index(as_tuple(pace)) == rung
        easy = easy + 1 if making <= 0.8 * CHUNK / RUNGS[max(rung - 1, 0)][2] + 1e-9 else 0
        if reserve < -1e-9:
            assert after == min(rung + 1, len(RUNGS) - 1)
        elif after < rung:
            assert after == rung - 1 and easy >= 4
        elif reserve > 1e-9:
            assert after == rung
        if after != rung or reserve < 0:
            easy = 0
        rung = after


@given(
    at=st.integers(0, len(RUNGS) - 1),
    passes=st.lists(st.integers(1, 50), min_size=1),
)
def test_wanted_passes_may_change_at_any_rung(at: int, passes: list[int]) -> None:
    pacer = Pacer(rate=RATE, chunk=CHUNK, adapt=True)
    now = 0.0
    for _ in range(at + 1):  # the first is not judged
        pacer.begin(now, passes=PASSES)
        now += 9
        pacer.end(now, frames=CHUNK)
    assert as_tuple(pacer.begin(now, passes=PASSES)) == RUNGS[at]
    for wanted in passes:
        pace = pacer.begin(now, passes=wanted)
        assert 1 <= pace.passes <= wanted and pace.optional_work == (at == 0)


def test_the_same_times_give_the_same_decisions() -> None:
    def run() -> list[tuple[bool, int, float]]:
        pacer, now, paces = Pacer(rate=RATE, chunk=CHUNK, adapt=True), 0.0, []
        for i in range(500):
            paces.append(as_tuple(pacer.begin(now, passes=PASSES)))
            now += 0.5 + 0.6 * math.sin(i / 20) ** 2
            pacer.end(now, frames=CHUNK)
        return paces

    assert run() == run()
    assert len(set(run())) > 3


def test_what_cannot_be_is_refused() -> None:
    for bad in ({"rate": 0.0}, {"rate": math.inf}, {"chunk": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(bad))} must be"):
            Pacer(**{"rate": RATE, "chunk": CHUNK, "adapt": True, **bad})  # type: ignore[arg-type]
    pacer = Pacer(rate=RATE, chunk=CHUNK, adapt=True)
    with pytest.raises(RuntimeError, match="no chunk was begun"):
        pacer.end(0, frames=1)
    with pytest.raises(ValueError, match="now must be finite"):
        pacer.begin(math.nan, passes=1)
    with pytest.raises(ValueError, match="passes must be at least 1"):
        pacer.begin(0, passes=0)
    pacer.begin(5, passes=1)
    with pytest.raises(ValueError, match="not be before the chunk's beginning, got 4"):
        pacer.end(4, frames=1)
    with pytest.raises(ValueError, match="frames must be at least 1"):
        pacer.end(6, frames=0)

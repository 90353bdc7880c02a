"""Costs as they are measured, and what they promise."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from livereel.engine.serve.admission import Costs, Kind, load

SMALL, LARGE = Kind(128, 128, 4), Kind(256, 256, 4)


def test_nothing_costs_nothing_before_it_was_measured() -> None:
    assert Costs(most=4).of(SMALL, 2) == 0


def test_what_was_not_measured_is_in_proportion() -> None:
    costs = Costs(most=4)
    costs.note(SMALL, 1, 0.1)
    assert costs.of(SMALL, 3) == pytest.approx(0.3)
    assert costs.of(LARGE, 1) == pytest.approx(0.4)
    assert costs.of(Kind(128, 128, 9), 1) == pytest.approx(0.2)


def test_costs_follow_the_machine() -> None:
    costs = Costs(most=1)
    costs.note(SMALL, 1, 5.0)  # the first pass loads things
    for _ in range(40):
        costs.note(SMALL, 1, 0.1)
    assert costs.of(SMALL, 1) == pytest.approx(0.1, rel=0.01)


def drive(costs: Costs, seconds: dict[int, float], passes: int) -> list[int]:
    taken = []
    for _ in range(passes):
        count = costs.most(SMALL, 4)
        taken.append(count)
        costs.note(SMALL, count, seconds[count])
    return taken


def test_each_number_is_tried_and_the_worthwhile_ones_kept() -> None:
    costs = Costs(most=4)
    taken = drive(costs, {1: 0.1, 2: 0.15, 3: 0.2, 4: 0.4}, 40)
    assert set(taken[:6]) == {1, 2, 3, 4} or set(taken) == {2, 3, 4}
    assert taken.count(3) > 25  # four are slower, and are tried only now and then
    assert costs.seconds_each(SMALL, 9) == pytest.approx(0.2 / 3)


def test_numbers_between_those_that_were_measured_are_in_between() -> None:
    costs = Costs(most=5)
    costs.note(SMALL, 1, 0.1)
    costs.note(SMALL, 5, 0.3)
    assert costs.of(SMALL, 3) == pytest.approx(0.2)
    assert costs.of(SMALL, 10) == pytest.approx(0.6)


def test_passes_are_not_shared_where_that_is_no_faster() -> None:
    costs = Costs(most=4)
    costs.note(SMALL, 1, 0.1)
    taken = drive(costs, {1: 0.1, 2: 0.2, 3: 0.3, 4: 0.4}, 200)
    assert taken[0] == 2 and 1 <= taken[1:].count(2) <= 4 and taken.count(1) > 190
    assert costs.seconds_each(SMALL, 4) == pytest.approx(0.1)


@given(
    st.lists(st.floats(0.01, 2.0), min_size=1, max_size=4, unique=True),
    st.lists(st.floats(0.1, 10.0), min_size=1, max_size=8),
)
def test_one_more_session_is_never_cheaper_alone(passes: list[float], chunks: list[float]) -> None:
    costs = Costs(most=4)
    for n, seconds in enumerate(sorted(passes), 1):
        costs.note(SMALL, n, seconds)
    each = [costs.seconds_each(SMALL, n) for n in range(1, 10)]
    assert each == sorted(each, reverse=True)
    total = load(costs, {SMALL: chunks})
    assert total == pytest.approx(sum(costs.seconds_each(SMALL, len(chunks)) / c for c in chunks))


def test_a_number_is_chosen_among_the_sessions_that_are_ready() -> None:
    costs = Costs(most=4)
    for n, seconds in enumerate((0.1, 0.3, 0.6, 0.2), 1):
        costs.note(SMALL, n, seconds)
    assert [costs.most(SMALL, ready) for ready in (1, 2, 3, 4, 9)] == [1, 1, 1, 4, 4]


def test_how_far_passes_differ_is_learned() -> None:
    costs = Costs(most=1)
    costs.note(SMALL, 1, 0.2)
    assert costs.spread(SMALL) == pytest.approx(0.04)  # next to nothing is known yet
    for _ in range(40):
        costs.note(SMALL, 1, 0.2)
    assert costs.spread(SMALL) < 0.001
    for i in range(60):
        costs.note(SMALL, 1, 0.1 if i % 2 else 0.3)
    assert 0.08 < costs.spread(SMALL) < 0.15

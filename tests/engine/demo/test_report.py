from __future__ import annotations

import pytest

from livereel.engine.demo.report import Minute, Score, Verdict, share, wilson


@pytest.mark.parametrize(
    ("rate", "count", "bounds"),
    # statsmodels.stats.proportion.proportion_confint(method="wilson")
    [
        (0.5, 10, (0.23659, 0.76341)),
        (0.97, 200, (0.93611, 0.98617)),
        (1.0, 8, (0.67559, 1.0)),
        (0.0, 100, (0.0, 0.03699)),
    ],
)
def test_wilson_bounds(rate: float, count: int, bounds: tuple[float, float]) -> None:
    assert wilson(rate, count) == pytest.approx(bounds, abs=1e-4)


def test_wilson_without_trials_says_nothing() -> None:
    assert wilson(0.0, 0) == (0.0, 1.0)


def test_share_counts_trials_rather_than_looks() -> None:
    many = share("color", "streams", [True] * 80 + [False] * 20, 75)
    few = share("color", "streams", [True] * 80 + [False] * 20, 75, count=5)
    assert many.value == few.value == 80
    assert (many.count, few.count) == (100, 5)
    assert many.low is not None and few.low is not None
    assert few.low < many.low < 80
    assert many.passed is True
    assert share("color", "clips", [], 75).passed is False


@pytest.mark.parametrize(
    ("value", "goal", "at_least", "passed"),
    [(3, 3, True, True), (2.9, 3, True, False), (3, 3, False, True), (3.1, 3, False, False)],
)
def test_goals_are_inclusive(value: float, goal: float, at_least: bool, passed: bool) -> None:
    score = Score(
        name="x", stage="y", value=value, unit="dB", goal=goal, at_least=at_least, count=1
    )
    assert score.passed is passed


def test_a_verdict_names_the_wrong_words_and_a_minute_counts_them() -> None:
    right = Verdict(
        color=True, shape=True, direction=True, motion=True, background=True, size=None, stray=0
    )
    bent = Verdict(
        color=True, shape=False, direction=True, motion=False, background=True, size=False, stray=9
    )
    assert right.wrong == ()
    assert bent.wrong == ("shape", "motion", "size")
    minute = Minute.of(3, [right, bent])
    assert (minute.color, minute.shape, minute.motion, minute.windows) == (100, 50, 50, 2)

"""The harness against a simulated engine: its clock moves only when simulated work is done."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from livereel.benchmarks.harness import (
    Case,
    Environment,
    Spread,
    Timing,
    fresh,
    measure,
    speedup,
    watch,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass
class FakeClock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now

    def pass_time(self, seconds: float) -> None:
        self.now += seconds


@dataclass
class FakeChunk:
    frames: list[int]


@dataclass
class FakeEngine:
    """Takes `text_s` once and `chunk_s` a chunk; the first chunk has 9 frames, later ones 12."""

    clock: FakeClock
    text_s: float = 0.5
    chunk_s: float = 0.25
    chunks: int = 100
    made: list[int] = field(default_factory=list)

    def open(self) -> Iterator[FakeChunk]:
        self.clock.pass_time(self.text_s)
        for index in range(self.chunks):
            self.clock.pass_time(self.chunk_s)
            self.made.append(index)
            yield FakeChunk([0] * (12 if index else 9))


@dataclass
class FakeJob:
    """Takes the next of `durations` at each run and logs its name."""

    clock: FakeClock
    name: str
    durations: list[float]
    log: list[str]
    frames: int = 32

    def __call__(self) -> int:
        self.clock.pass_time(self.durations.pop(0))
        self.log.append(self.name)
        return self.frames

    def case(self) -> Case:
        return Case(name=self.name, settings="fp32", run=self)


def test_measure_times_every_round_exactly_and_keeps_warm_up_apart() -> None:
    clock, log = FakeClock(), []
    ours = FakeJob(clock, "ours", [8.0, 1.0, 2.0, 4.0], log)
    theirs = FakeJob(clock, "theirs", [9.0, 4.0, 4.0, 8.0], log, frames=64)
    a, b = measure([ours.case(), theirs.case()], rounds=3, warmup=1, clock=clock)
    assert a == Timing(
        name="ours", settings="fp32", frames=32, warmup_s=(8.0,), seconds=(1.0, 2.0, 4.0)
    )
    assert b.seconds == (4.0, 4.0, 8.0)
    assert b.warmup_s == (9.0,)
    assert a.fps == Spread(median=16.0, low=12.0, high=24.0)


def test_cases_take_turns_and_the_order_turns_each_round() -> None:
    clock, log = FakeClock(), []
    cases = [FakeJob(clock, name, [1.0] * 4, log).case() for name in "abc"]
    measure(cases, rounds=3, warmup=1, clock=clock)
    assert "".join(log) == "abc" + "abc" + "bca" + "cab"


def test_speedup_is_the_median_of_the_rounds_ratios_for_the_same_frames() -> None:
    def timing(frames: int, seconds: tuple[float, ...]) -> Timing:
        return Timing(name="", settings="", frames=frames, warmup_s=(), seconds=seconds)

    # The machine is half as fast in the second round, which the ratios do not see.
    ours, theirs = timing(32, (1.0, 2.0, 1.0)), timing(32, (4.0, 8.0, 5.0))
    assert speedup(ours, theirs) == Spread(median=4.0, low=4.0, high=4.5)
    assert speedup(timing(32, (1.0,)), timing(64, (4.0,))).median == 2.0


def test_a_case_that_makes_fewer_frames_in_one_run_is_no_measurement() -> None:
    clock = FakeClock()
    counts = iter([32, 31])
    case = Case(name="lazy", settings="", run=lambda: next(counts))
    with pytest.raises(ValueError, match=r"lazy made \[31, 32\] frames"):
        measure([case], rounds=1, warmup=1, clock=clock)


def test_watch_gives_first_frame_and_steady_rate_exactly() -> None:
    clock = FakeClock()
    engine = FakeEngine(clock)
    stream = watch(engine.open, frames=40, clock=clock)
    assert stream.first_frame_s == 0.75  # the text and one chunk
    assert stream.chunks == 4
    assert stream.frames == 9 + 12 + 12 + 12
    assert stream.seconds == 0.5 + 4 * 0.25
    assert stream.fps == 36 / 0.75
    assert engine.made == [0, 1, 2, 3]  # nothing made that was not asked for


def test_watch_of_one_chunk_has_no_steady_rate() -> None:
    clock = FakeClock()
    stream = watch(FakeEngine(clock).open, frames=1, clock=clock)
    assert (stream.first_frame_s, stream.frames, stream.fps) == (0.75, 9, 0.0)


def test_watch_says_when_the_stream_ends_early() -> None:
    clock = FakeClock()
    with pytest.raises(ValueError, match="ended after 21 of 22 frames"):
        watch(FakeEngine(clock, chunks=2).open, frames=22, clock=clock)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([3.0], Spread(3.0, 3.0, 3.0)),
        ([1.0, 2.0], Spread(1.5, 1.25, 1.75)),
        ([5.0, 1.0, 4.0, 2.0, 3.0], Spread(3.0, 2.0, 4.0)),
    ],
)
def test_spread(values: list[float], expected: Spread) -> None:
    assert Spread.of(values) == expected


@pytest.mark.parametrize(
    ("value", "text"),
    [(137.26, "137"), (4.267, "4.27"), (0.01234, "0.0123"), (12345.6, "12346"), (9.999, "10.0")],
)
def test_spread_shows_three_digits_that_matter(value: float, text: str) -> None:
    assert str(Spread(value, value, 0.0)) == f"{text} [{text}, 0]"


def test_fresh_reads_the_last_line_of_a_new_process() -> None:
    program = "import os; print('chatter'); print('{\"pid\": %d}' % os.getpid())"
    first, second = fresh(["-c", program]), fresh(["-c", program])
    assert first["pid"] != second["pid"]


def test_fresh_shows_why_a_process_failed() -> None:
    with pytest.raises(RuntimeError, match="no such model"):
        fresh(["-c", "raise SystemExit('no such model')"])


def test_the_environment_names_machine_versions_and_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = Environment.capture(
        threads=3, packages=["pytest", "no-such-package"], repo=Path(__file__).parent
    )
    assert here.threads == 3
    assert here.versions == {"pytest": pytest.__version__, "no-such-package": "not installed"}
    assert here.python == sys.version.split()[0]
    assert here.cpu
    assert f"commit {here.commit}" in str(here)
    for told, commit in (("", "unknown"), ("abc", "abc")):
        monkeypatch.setenv("COMMIT", told)
        outside = Environment.capture(threads=1, packages=[], repo=tmp_path)
        assert outside.commit == commit

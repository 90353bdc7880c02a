"""A paced viewer under a clock of our own, exactly."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from livereel.benchmarks import bench_live
from livereel.benchmarks.bench_live import CONTROL, INTERVAL, Viewer
from livereel.benchmarks.subject import Subject
from livereel.engine.session import Session

FPS = 10.0


class Clock:
    """Stands still but for sleep and work, each of which is told."""

    now = 100.0

    def __call__(self) -> float:
        return self.now

    def pass_by(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds


def watched(subject: Subject, took: Callable[[int], float]) -> tuple[Any, list[int]]:
    """A stream of chunks of 8 frames; gives its section, and where prompts came."""
    clock, made, changed = Clock(), [0], []

    class Stream:
        def update(self, *, prompt: str) -> None:
            changed.append(made[0])

        def __next__(self) -> Any:
            clock.pass_by(took(made[0]))
            made[0] += 1
            return SimpleNamespace(frames=[None] * 8)

    section = bench_live.measure(
        subject, fps=FPS, seconds=60.0, clock=clock, sleep=clock.pass_by,
        session=cast(Session, Stream()),
    )  # fmt: skip
    return section, changed


def test_frames_come_evenly_and_controls_at_the_next_chunk(small: Callable[..., Subject]) -> None:
    subject = small("wan2.1-1.3b")
    section, changed = watched(subject, lambda chunk: 0.2)
    assert section.figures[INTERVAL].median == pytest.approx(1.0)
    # A chunk is begun 0.22 s before it is due, each 0.8 s: the wait is 0.22 s to 1.02 s.
    p50, p95 = (section.figures[name].median for name in (CONTROL.replace("95", "50"), CONTROL))
    assert 220 <= p50 <= p95 <= 1020
    assert len(changed) > 30 and " 0 chunks came late" in section.notes[0]
    assert section.setup["what"] == "live" and section.setup["fps"] == "10"

    slow, _ = watched(subject, lambda chunk: 1.6 if chunk % 10 == 0 else 0.2)
    assert slow.figures[INTERVAL].median > 1.5


def test_a_late_chunk_is_shown_when_it_is_there() -> None:
    viewer = Viewer(fps=10.0)
    viewer.show(2, begun=0.0, arrived=1.0, asked=[])
    assert viewer.due == pytest.approx(1.2) and viewer.begin == pytest.approx(0.1)
    viewer.show(2, begun=0.5, arrived=1.5, asked=[0.2, 0.4])
    assert viewer.intervals == pytest.approx([0.1, 0.4, 0.1]) and viewer.late == 1
    assert viewer.controls == pytest.approx([1.3, 1.1]) and viewer.due == pytest.approx(1.7)


def test_a_model_that_is_none_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_live.main(["--model", "no-such-model"]) == 2
    assert capsys.readouterr().err.startswith("bench_live: unknown model 'no-such-model'")

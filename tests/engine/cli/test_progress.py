from __future__ import annotations

import io
import re

import pytest

from livereel.engine.cli import progress
from livereel.engine.cli.progress import Progress, format_time


class Terminal(io.TextIOWrapper):
    """A stream that says it is a terminal and remembers what was written."""

    def __init__(self, encoding: str) -> None:
        super().__init__(io.BytesIO(), encoding=encoding, newline="")

    def isatty(self) -> bool:
        return True

    def text(self) -> str:
        self.flush()
        buffer = self.buffer
        assert isinstance(buffer, io.BytesIO)
        return buffer.getvalue().decode(self.encoding)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands until a test sets its only item."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    return now


def test_a_terminal_has_one_line_that_changes(clock: list[float]) -> None:
    out = Terminal("utf-8")
    bar = Progress(80, out=out)
    clock[0] += 1
    bar.update(20)
    bar.update(21)  # too soon to draw again
    clock[0] += 1
    bar.update(40)
    clock[0] += 2
    bar.update(80)
    lines = out.text().split("\r")
    assert [line.strip() for line in lines[1:]] == [
        "██████░░░░░░░░░░░░░░░░░░ 20/80 frames  20.0 fps  3 s left",
        "████████████░░░░░░░░░░░░ 40/80 frames  20.0 fps  2 s left",
        "████████████████████████ 80/80 frames  20.0 fps",
    ]
    bar.clear()
    assert out.text().endswith("\r")
    assert "\n" not in out.text()


def test_a_line_never_wraps(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    out = Terminal("ascii")
    bar = Progress(80, out=out)
    clock[0] += 1
    bar.update(20)
    assert out.text() == "\r######.................. 20/8"


def test_a_file_gets_plain_lines_now_and_then(clock: list[float]) -> None:
    out = io.StringIO()
    bar = Progress(1000, out=out)
    for done in range(10, 1001, 10):
        clock[0] += 0.125
        bar.update(done)
    bar.clear()
    lines = out.getvalue().splitlines()
    assert lines == [
        "400/1000 frames  80.0 fps  8 s left",
        "800/1000 frames  80.0 fps  2 s left",
        "1000/1000 frames  80.0 fps",
    ]
    assert not re.search("[\r█]", out.getvalue())


def test_other_things_can_be_counted(clock: list[float]) -> None:
    out = io.StringIO()
    bar = Progress(8, "clips", out)
    clock[0] += 6
    bar.update(2)
    assert out.getvalue() == "2/8 clips  18 s left\n"


def test_nothing_done_has_no_time_left(clock: list[float]) -> None:
    out = Terminal("utf-8")
    bar = Progress(80, out=out)
    clock[0] += 1
    bar.update(0)
    assert out.text().endswith("░ 0/80 frames  0.0 fps")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (125, "2 min 05 s"), (4020, "1 h 07 min")],
)
def test_times_read_well(seconds: float, text: str) -> None:
    assert format_time(seconds) == text

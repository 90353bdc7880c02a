"""A viewer gets less rather than later: the rules, over links that are simulated."""

from __future__ import annotations

import itertools
from collections import deque

import pytest

from livereel.engine.serve.encoder import LEVELS
from livereel.engine.serve.quality import FIRST_BYTES, Quality

FPS = 16.0
FRAME_BYTES = 24_000


class Link:
    """Carries bytes at `rate` a second, in order, `delay` each way; time is counted in frames."""

    def __init__(self, rate: float, delay: float = 0.02) -> None:
        self.rate, self.delay = rate, delay
        self.quality = Quality(fps=FPS, lowest=len(LEVELS) - 1)
        self.now = 0.0
        self.frame = 0
        self._free = 0.0
        self._acks: deque[tuple[float, int]] = deque()
        self.skipped = 0

    def run(self, seconds: float) -> list[int]:
        """The level at each frame."""
        levels = []
        for _ in range(round(seconds * FPS)):
            self.now += 1 / FPS
            while self._acks and self._acks[0][0] <= self.now:
                at, frame = self._acks.popleft()
                self.quality.acked(frame, 0, at)
            level = LEVELS[self.quality.update(self.now)]
            levels.append(self.quality.level)
            self.frame += 1
            if self.frame % level.every:
                continue
            if not self.quality.room:
                self.skipped += 1
                continue
            size = int(FRAME_BYTES * level.share * level.every)
            self.quality.sent(self.frame, size, self.now)
            self._free = max(self._free, self.now) + size / self.rate
            self._acks.append((self._free + 2 * self.delay, self.frame))
        return levels


def test_a_wide_link_gets_everything() -> None:
    assert set(Link(4 * FPS * FRAME_BYTES).run(60)) == {0}


def test_a_long_way_is_no_narrow_one() -> None:
    assert set(Link(4 * FPS * FRAME_BYTES, delay=0.15).run(60)) == {0}


@pytest.mark.parametrize(("share", "level"), [(0.6, 1), (0.3, 2), (0.18, 3), (0.1, 4), (0.05, 5)])
def test_a_narrow_link_gets_what_it_carries(share: float, level: int) -> None:
    link = Link(share * FPS * FRAME_BYTES)
    link.run(30)
    levels = link.run(120)
    assert sorted(levels)[len(levels) // 2] == level
    assert sum(found in (level - 1, level, level + 1) for found in levels) > 0.95 * len(levels)
    assert levels.count(level) > 0.8 * len(levels)


def test_it_rises_again_when_the_link_is_wide_again() -> None:
    link = Link(0.1 * FPS * FRAME_BYTES)
    assert link.run(40)[-1] >= 4
    link.rate = 4 * FPS * FRAME_BYTES
    assert link.run(180)[-1] == 0


def test_steps_come_one_by_one() -> None:
    link = Link(0.05 * FPS * FRAME_BYTES)
    levels = link.run(30)
    assert all(abs(a - b) <= 1 for a, b in itertools.pairwise(levels))


def test_a_viewer_that_says_nothing_is_sent_no_more_than_a_window() -> None:
    quality = Quality(fps=FPS, lowest=5)
    now, sent = 0.0, 0
    for frame in range(1000):
        now += 1 / FPS
        if quality.room:
            quality.sent(frame, FRAME_BYTES, now)
            sent += FRAME_BYTES
        quality.update(now)
    assert FIRST_BYTES <= sent == quality.bytes_on_the_way < FIRST_BYTES + FRAME_BYTES
    assert quality.level == 5


def test_a_viewer_that_cannot_decode_gets_less() -> None:
    quality = Quality(fps=FPS, lowest=5)
    now = 0.0
    for frame in range(100):
        now += 1 / FPS
        quality.sent(frame, FRAME_BYTES, now)
        quality.acked(frame, 40, now + 0.01)
        quality.update(now + 0.02)
    assert quality.level > 0

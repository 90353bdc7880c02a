"""A stream's frames at every level that one of its viewers gets, each level encoded once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import Executor
from functools import partial
from typing import TYPE_CHECKING

from .encoder import LEVELS, Packet, Rendition

if TYPE_CHECKING:
    from ..types import Frames
    from .messages import Opened
    from .metrics import Metrics
    from .viewer import Viewer


class Renditions:
    """Those of one stream. Encoders work in `pool`."""

    def __init__(self, opened: Opened, codec: str, pool: Executor, metrics: Metrics) -> None:
        self._opened, self._codec, self._pool, self._metrics = opened, codec, pool, metrics
        self._by_level: dict[int, Rendition] = {}

    def of(self, level: int) -> Rendition:
        """The one of this level; it begins if there is none."""
        if level not in self._by_level:
            opened = self._opened
            self._by_level[level] = Rendition(
                opened.width, opened.height, opened.fps, LEVELS[level], self._codec
            )
        return self._by_level[level]

    def follow(self, viewers: Sequence[Viewer], unwatched: int) -> None:
        """Give each viewer what its network takes, and end levels that nobody gets; `unwatched` is
        the one to go on with where nobody watches. A change begins with a keyframe."""
        now = time.monotonic()
        for viewer in viewers:
            level = viewer.quality.update(now)
            if level != viewer.level or viewer.starved:
                viewer.level = level
                self.of(level).want_keyframe()
        wanted = {viewer.level for viewer in viewers} or {unwatched}
        for level in wanted:
            self.of(level)
        for level in set(self._by_level) - wanted:
            del self._by_level[level]

    def end(self) -> None:
        """Let go of all encoders, which hold megabytes each."""
        self._by_level.clear()

    async def encode(
        self, pixels: Frames, *, frame: int, chunk: int, pts: int
    ) -> dict[int, Packet]:
        """The packets of frame number `frame`, uint8 `[H, W, 3]`, by level; a level that leaves it
        out has none."""
        work = partial(_timed, pixels=pixels, frame=frame, chunk=chunk, pts=pts)
        loop = asyncio.get_running_loop()
        levels = dict(self._by_level)
        made = await asyncio.gather(
            *(loop.run_in_executor(self._pool, work, rendition) for rendition in levels.values())
        )
        packets = {}
        for level, (packet, took) in zip(levels, made, strict=True):
            if packet is not None:
                self._metrics.encoder.labels(level).observe(took)
                packets[level] = packet
        return packets


def _timed(
    rendition: Rendition, *, pixels: Frames, frame: int, chunk: int, pts: int
) -> tuple[Packet | None, float]:
    """A frame's packet, and the seconds that it took."""
    start = time.perf_counter()
    packet = rendition.encode(pixels, frame=frame, chunk=chunk, pts=pts)
    return packet, time.perf_counter() - start

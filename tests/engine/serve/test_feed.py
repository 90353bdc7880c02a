"""Pictures on their way into a stream: bounded, the newest first to count, bad ones named."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from PIL import Image

from livereel.engine.serve.fake import FakeEngine
from livereel.engine.serve.feed import Feed
from livereel.engine.serve.limits import Limits
from livereel.engine.serve.messages import Opened

WIDTH, HEIGHT = 32, 16
OPENED = Opened(
    session="0" * 32, width=WIDTH, height=HEIGHT, fps=16.0, chunk=0, pts=0, expected_s=0.1
)


class Slow(FakeEngine):
    """Takes frames when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.got: list[int] = []
        self.takes = asyncio.Event()
        self.breaks = False

    async def push(self, session: str, frames: bytes) -> None:
        assert session == OPENED.session
        self.got += frames[:: WIDTH * HEIGHT * 3]
        await self.takes.wait()
        if self.breaks:
            self.breaks = False
            raise RuntimeError("something nobody thought of")


def gray(level: int, kind: str = "PNG", size: tuple[int, int] = (64, 32)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, (level, level, level)).save(out, kind)
    return out.getvalue()


def run(body: Callable[[Slow, Feed, list[str]], Any], **limits: int) -> None:
    async def work() -> None:
        engine, refused = Slow(), []
        with ThreadPoolExecutor(1) as pool:
            feed = Feed(
                OPENED, engine, room=4, pool=pool, limits=Limits(**limits), refused=refused.append
            )
            await asyncio.wait_for(body(engine, feed, refused), 20)
            feed.close()

    asyncio.run(work())


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


def test_while_the_engine_works_the_newest_wait() -> None:
    async def body(engine: Slow, feed: Feed, refused: list[str]) -> None:
        feed.push(gray(1))
        await until(lambda: engine.got == [1])
        for level in range(2, 12):
            feed.push(gray(level))
        engine.takes.set()
        await until(lambda: len(engine.got) == 5)
        assert engine.got == [1, 8, 9, 10, 11]
        assert refused == []

    run(body)


def test_what_is_no_picture_is_told_and_the_next_one_is_taken() -> None:
    async def body(engine: Slow, feed: Feed, refused: list[str]) -> None:
        engine.takes.set()
        for bad in (b"no picture", gray(3, size=(200, 100)), gray(3, "GIF")):
            feed.push(bad)
            count = len(refused)
            await until(lambda count=count: len(refused) > count)
        assert "at most 10,000 pixels" in refused[1]
        feed.push(gray(7, "WEBP"))
        await until(lambda: bool(engine.got))
        assert abs(engine.got[0] - 7) <= 2 and len(refused) == 3
        for picture in (gray(20), b"no picture", gray(40)):  # taken together
            feed.push(picture)
        await until(lambda: len(engine.got) == 3)
        assert engine.got[1:] == [20, 40] and len(refused) == 4

    run(body, pushed_pixels=10_000)


def test_what_breaks_in_the_engine_costs_the_pictures_on_their_way_alone() -> None:
    async def body(engine: Slow, feed: Feed, refused: list[str]) -> None:
        engine.breaks = True
        engine.takes.set()
        feed.push(gray(1))
        await until(lambda: not engine.breaks)
        feed.push(gray(2))
        await until(lambda: engine.got == [1, 2])
        assert refused == []

    run(body)

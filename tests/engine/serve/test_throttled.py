"""A viewer behind a narrow link, over real sockets: it gets less rather than later."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Callable

import numpy as np

from livereel.engine.serve.client import AsyncStream, Frame
from livereel.engine.serve.encoder import LEVELS
from livereel.engine.serve.fake import FakeEngine, number_of
from livereel.engine.serve.messages import ChunkReady, Event

from .conftest import MakeLive

SIDE = 256
BARCODE = SIDE // 16
COARSE = 16
NARROW = 9_000
"""Bytes a second: less than half the bit rate, more than a quarter frame rate at half the size."""
PIECE = 1024


class Restless(FakeEngine):
    """Its frames change all over, so that they have many bytes; they still show their number."""

    async def events(self, session: str) -> AsyncIterator[Event]:
        chance = np.random.default_rng(0)
        async for event in super().events(session):
            if isinstance(event, ChunkReady):
                event.pixels.flags.writeable = True
                for picture in event.pixels:
                    coarse = chance.integers(0, 256, (SIDE // COARSE, SIDE // COARSE, 3), np.uint8)
                    fine = coarse.repeat(COARSE, axis=0).repeat(COARSE, axis=1)
                    picture[BARCODE:] = fine[BARCODE:]
            yield event


class Link:
    """What lies between a server and its client; it carries `rate` bytes a second to the client."""

    rate = math.inf

    @contextlib.asynccontextmanager
    async def before(self, port: int) -> AsyncIterator[str]:
        """Where to reach the server of this port through it."""

        async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            beyond, to_it = await asyncio.open_connection("127.0.0.1", port, limit=PIECE)
            await asyncio.gather(
                self._pump(reader, to_it, slow=False), self._pump(beyond, writer, slow=True)
            )

        async with await asyncio.start_server(carry, "127.0.0.1", 0, limit=PIECE) as server:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, slow: bool
    ) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(PIECE):
                writer.write(data)
                await writer.drain()
                await asyncio.sleep(len(data) / self.rate if slow else 0)
        writer.close()


def test_a_narrow_link_gets_less_and_a_wide_one_everything_again(make_live: MakeLive) -> None:
    live = make_live(engine=Restless())

    async def work() -> None:
        link = Link()
        async with (
            link.before(live.port) as url,
            AsyncStream(url, "a crowd", width=SIDE, height=SIDE) as stream,
        ):
            frames = stream.__aiter__()
            seen: list[Frame] = []

            async def until(enough: Callable[[int, Frame], bool]) -> list[int]:
                """Watch until level and frame are as wanted; gives the levels on the way."""
                levels = []
                while not levels or not enough(levels[-1], seen[-1]):
                    seen.append(await frames.__anext__())
                    assert stream.stats is not None
                    levels.append(stream.stats.level)
                return levels

            assert set(await until(lambda level, frame: frame.number > 10)) == {0}
            link.rate = NARROW
            down = await until(lambda level, frame: frame.pixels.shape[0] < SIDE and level >= 4)
            assert down == sorted(down)
            link.rate = math.inf
            up = await until(lambda level, frame: frame.pixels.shape[0] == SIDE and level <= 3)
            assert up[up.index(max(up)) :] == sorted(up[up.index(max(up)) :], reverse=True)

            numbers = [frame.number for frame in seen]
            assert numbers == sorted(set(numbers))
            # Each could be decoded, so every change began with a keyframe.
            assert [number_of(frame.pixels) for frame in seen] == numbers
            assert {1, 2} <= {frame.span for frame in seen}
            assert {frame.pixels.shape[0] for frame in seen} == {SIDE, SIDE // LEVELS[4].shrink}

    asyncio.run(asyncio.wait_for(work(), 120))

"""`livereel batch` on many engines: clips from sessions that are not live, several at once."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..errors import ResourceError
from .messages import ChunkReady, Ended, Failed, Spec
from .worker_client import Busy

if TYPE_CHECKING:
    from ..orders import Order, Step
    from .worker_client import EngineClient


def clips_of(engine: EngineClient, orders: Sequence[Order], at_once: int) -> Iterator[Step]:
    """As `batch.make_clips`, by an engine that is not in this process."""
    loop = asyncio.new_event_loop()
    steps = _clips(engine, orders, at_once)
    try:
        while True:
            yield loop.run_until_complete(steps.__anext__())
    except StopAsyncIteration:
        return
    finally:
        tasks = asyncio.all_tasks(loop)  # some, if this was interrupted
        for task in tasks:
            task.cancel()
        if tasks:
            loop.run_until_complete(asyncio.wait(tasks))
        loop.run_until_complete(steps.aclose())
        loop.close()


async def _clips(
    engine: EngineClient, orders: Sequence[Order], at_once: int
) -> AsyncGenerator[Step, None]:
    await engine.start()
    waiting = deque(orders)
    steps: asyncio.Queue[Step | None] = asyncio.Queue(1)

    async def work() -> None:
        while waiting:
            order = waiting.popleft()
            try:
                await _make(engine, order, steps)
            except Exception as error:
                await steps.put((order, error))
            else:
                await steps.put((order, None))
        await steps.put(None)

    workers = [asyncio.create_task(work()) for _ in range(at_once)]
    try:
        working = len(workers)
        while working:
            step = await steps.get()
            if step is None:
                working -= 1
            else:
                yield step
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
        await engine.stop()


async def _make(engine: EngineClient, order: Order, steps: asyncio.Queue[Step | None]) -> None:
    spec = Spec(
        prompt=order.prompt, seed=order.seed, steps=order.steps, width=order.width,
        height=order.height, fps=order.fps, frames=order.frames, live=False,
    )  # fmt: skip
    while True:
        try:
            opened = await engine.open(spec)
            break
        except Busy as error:  # a replica may be on its way
            await asyncio.sleep(error.retry_after_s)
    done, reason = 0, "its stream ended"
    try:
        async for event in engine.events(opened.session):
            if isinstance(event, ChunkReady):
                await steps.put((order, np.array(event.pixels)))
                done += event.count
            elif isinstance(event, Failed):
                reason = event.message
            elif isinstance(event, Ended):
                break
            del event  # its place in the ring is free again
    finally:
        await engine.close(opened.session)
    if done < order.frames:
        raise ResourceError(f"{reason} after {done} of {order.frames} frames")

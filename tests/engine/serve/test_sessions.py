"""Four live streams of the demo model from an engine of its own process.

How evenly frames come is measured by `benchmarks/bench_sessions.py`; here it is seen that they all
come, while the engine is killed once.
"""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from livereel.engine.serve.engine_process import EngineProcess
from livereel.engine.serve.messages import Applied, ChunkReady, Resumed, Spec, Update
from livereel.engine.serve.worker import Setup

PROMPTS = [
    "a red circle moving right on a black background",
    "a blue star moving left on a white background",
    "a green square moving up on a gray background",
    "a pink triangle moving down on a brown background",
]


@pytest.mark.slow
def test_four_streams_of_the_demo_outlive_their_engine() -> None:
    async def watch(engine: EngineProcess, number: int, frames: int) -> tuple[list[int], list[str]]:
        opened = await engine.open(Spec(prompt=PROMPTS[number], seed=number, fps=4.0))
        numbers: list[int] = []
        heard: list[str] = []
        asked = killed = False
        async for event in engine.events(opened.session):
            if isinstance(event, Applied):
                heard.append(event.event_id)
            if isinstance(event, Resumed):
                heard.append("resumed")
            if isinstance(event, ChunkReady):
                assert event.pixels.shape[1:] == (128, 128, 3)
                numbers += range(event.pts, event.pts + event.count)
            if not asked and len(numbers) > 12:
                asked = True
                await engine.control(
                    opened.session, Update(event_id="1", prompt=PROMPTS[number - 1])
                )
            if not killed and number == 0 and len(numbers) > 36:
                killed = True
                assert engine.pid is not None
                os.kill(engine.pid, signal.SIGKILL)
            if len(numbers) >= frames and "resumed" in heard:
                break
        await engine.close(opened.session)
        return numbers, heard

    async def run() -> None:
        engine = EngineProcess(Setup())
        await engine.start()
        try:
            found = await asyncio.gather(*(watch(engine, number, 80) for number in range(4)))
        finally:
            await engine.stop()
        for numbers, heard in found:
            assert numbers == list(range(len(numbers))) and len(numbers) >= 80
            assert sorted(heard) == ["1", "resumed"]

    asyncio.run(asyncio.wait_for(run(), 600))

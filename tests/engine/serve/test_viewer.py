"""What waits for a socket is bounded; a viewer that falls behind goes on at a keyframe."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from livereel.engine.serve import protocol
from livereel.engine.serve.encoder import Packet
from livereel.engine.serve.protocol import Flag
from livereel.engine.serve.viewer import QUEUE_BYTES, QUEUE_TEXTS, Viewer


class Wire:
    """A socket that takes frames while `open`."""

    def __init__(self) -> None:
        self.got: list[str | bytes] = []
        self.open = asyncio.Event()
        self.open.set()

    async def send(self, frame: str | bytes) -> None:
        await self.open.wait()
        self.got.append(frame)

    def frames(self) -> list[protocol.Header]:
        return [protocol.unpack(data)[0] for data in self.got if isinstance(data, bytes)]


def packet(frame: int, *, keyframe: bool = False, size: int = 1000) -> Packet:
    return Packet(data=bytes(size), keyframe=keyframe, frame=frame, chunk=0, pts=0, span=1)


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 20))


async def soon() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def test_text_and_frames_keep_their_order() -> None:
    async def work() -> None:
        wire = Wire()
        viewer = Viewer(wire.send)
        viewer.begin(7, 16.0, 0)
        viewer.offer(packet(0, keyframe=True))
        viewer.tell(protocol.Applied(event_id="a", chunk=1, first_frame=1))
        viewer.offer(packet(1))
        viewer.finish()
        await viewer.run()
        assert [isinstance(data, bytes) for data in wire.got] == [True, False, True]
        assert {header.stream for header in wire.frames()} == {7}

    run(work())


def test_a_stuck_socket_skips_to_a_keyframe() -> None:
    async def work() -> None:
        wire = Wire()
        viewer = Viewer(wire.send)
        viewer.begin(1, 16.0, 0)
        task = asyncio.create_task(viewer.run())
        wire.open.clear()
        for frame in range(200):
            viewer.offer(packet(frame, keyframe=frame == 0, size=20_000))
            assert viewer.queued_bytes <= QUEUE_BYTES + 20_000
            await asyncio.sleep(0)
        assert viewer.dropped["slow"] > 50
        assert not viewer.starved  # what it was sent first is still on its way
        wire.open.set()
        await soon()
        viewer.acked(200, 0)
        await soon()
        assert viewer.starved
        viewer.offer(packet(200))
        viewer.offer(packet(201, keyframe=True))
        viewer.offer(packet(202))
        await soon()
        after = [header for header in wire.frames() if header.frame >= 200]
        assert [header.frame for header in after] == [201, 202]
        assert after[0].flags == Flag.KEYFRAME | Flag.GAP
        assert after[1].flags == 0
        task.cancel()

    run(work())


def test_frames_wait_for_acks_and_messages_at_the_end_do_not() -> None:
    async def work() -> None:
        wire = Wire()
        viewer = Viewer(wire.send)
        viewer.begin(1, 16.0, 0)
        task = asyncio.create_task(viewer.run())
        for frame in range(20):
            viewer.offer(packet(frame, keyframe=frame == 0, size=50_000))
        await soon()
        sent = len(wire.frames())
        assert 2 <= sent < 5
        viewer.acked(sent - 1, 0)
        await soon()
        assert len(wire.frames()) > sent
        viewer.tell(protocol.Ended(reason="stopped", frames=20))
        viewer.finish()
        await task
        assert isinstance(wire.got[-1], str)

    run(work())


def test_unread_messages_are_not_piled_up() -> None:
    async def work() -> None:
        viewer = Viewer(Wire().send)
        answer = protocol.Applied(event_id="a", chunk=1, first_frame=1)
        for _ in range(QUEUE_TEXTS):
            viewer.tell(answer)
        with pytest.raises(OverflowError, match="does not read"):
            viewer.tell(answer)

    run(work())

"""Controls from a client's side: each takes hold at the frame that its answer tells."""

from __future__ import annotations

import asyncio
import io

import numpy as np
import pytest
from PIL import Image, ImageColor
from websockets.asyncio.client import connect

from livereel.engine.serve import messages, protocol
from livereel.engine.serve.client import AsyncStream, Refused
from livereel.engine.serve.fake import FakeEngine, number_of

from .conftest import Live, MakeLive
from .talk import RED, aiter_, anext_, hear, run, say, shows


def test_frames_come_in_order_and_controls_at_the_frame_they_tell(live: Live) -> None:
    async def work() -> None:
        async with AsyncStream(live.url, RED) as stream:
            applied = None
            async for frame in stream:
                assert number_of(frame.pixels) == frame.number
                if frame.number == 14:
                    applied = await stream.update(prompt="blue")
                if applied is not None:
                    assert shows(frame, "blue" if frame.number >= applied.first_frame else RED)
                    if frame.number == applied.first_frame + 2:
                        break
            assert applied is not None
            assert applied.first_frame in (25, 37)

    run(work())


def test_pause_and_resume(live: Live) -> None:
    async def work() -> None:
        async with AsyncStream(live.url, RED) as stream:
            frames = aiter_(stream)
            number = (await anext_(frames)).number
            paused = await stream.pause()
            while number < paused.first_frame - 1:
                number = (await anext_(frames)).number
            late = asyncio.create_task(anext_(frames))
            await asyncio.sleep(0.5)
            assert not late.done()
            await stream.resume()
            assert (await late).number == paused.first_frame
            await asyncio.to_thread(live.call, frames_are_measured_but_for_pauses())

    async def frames_are_measured_but_for_pauses() -> None:
        (stream,) = live.server.streams._open.values()
        before = stream._sent
        told: tuple[tuple[messages.Kind, float | None], ...] = ("update", before), ("pause", None)
        for kind, sent in told:
            stream._note(messages.Applied(event_id="~", kind=kind, chunk=0, first_frame=0))
            assert stream._sent == sent
        assert before is not None

    run(work())


def test_a_new_shot_begins_with_a_picture_that_was_uploaded(live: Live) -> None:
    out = io.BytesIO()
    Image.new("RGB", (64, 64), "green").save(out, "PNG")
    image = live.http.post("/v1/images", content=out.getvalue()).json()["id"]

    async def work() -> None:
        async with AsyncStream(live.url, RED) as stream:
            frames = aiter_(stream)
            await anext_(frames)
            with pytest.raises(Refused, match="no uploaded image of this id"):
                await stream.shot("blue", image="nothing")
            applied = await stream.shot("blue", image=image)
            while (frame := await anext_(frames)).number < applied.first_frame:
                assert shows(frame, RED)
            assert np.abs(frame.pixels[64, 64].astype(int) - ImageColor.getrgb("green")).max() < 12
            assert shows(await anext_(frames), "blue")
            before = stream.created
            stream.cut()
            while stream.created is before:
                await anext_(frames)
            assert stream.created is not None and stream.created.prompt == "blue"

    run(work())


def test_the_object_is_led_and_let_go(live: Live) -> None:
    async def work() -> None:
        async with AsyncStream(live.url, RED) as stream:
            assert stream.created is not None and stream.created.control
            frames = aiter_(stream)
            for control, white in (((None, (0.25, 0.75)), True), ((), False)):
                applied = await stream.update(control=control)
                while (frame := await anext_(frames)).number < applied.first_frame:
                    pass
                assert (frame.pixels[96, 32].min() > 240) == white

    run(work())


def test_a_model_that_follows_no_control_says_so(make_live: MakeLive) -> None:
    live = make_live(engine=FakeEngine(led=False))

    async def work() -> None:
        async with AsyncStream(live.url, RED) as stream:
            assert stream.created is not None and not stream.created.control
            with pytest.raises(Refused, match="this model follows no control"):
                await stream.update(control=((0.5, 0.5),))

    run(work())


def test_every_control_is_answered_once(live: Live) -> None:
    async def work() -> None:
        async with connect(live.url.replace("http", "ws") + protocol.PATH) as ws:
            await say(ws, protocol.Create(event_id="c", prompt=RED))
            controls: list[protocol.Control] = [
                protocol.Update(event_id="u", prompt="blue"),
                protocol.NewSeed(event_id="s", seed=4),
                protocol.Update(event_id="bad", steps=900),
                protocol.Reset(event_id="r"),
                protocol.Update(event_id="u", prompt="again"),
                protocol.Pause(event_id="p"),
                protocol.Resume(event_id="g"),
            ]
            for control in controls:
                await say(ws, control)
            answers: list[tuple[str, str]] = []
            seen = -1
            while seen < 30:
                message = await hear(ws)
                if isinstance(message, protocol.Header):
                    seen = message.frame
                    await say(ws, protocol.Ack(frame=seen))
                elif isinstance(message, (protocol.Applied, protocol.Rejected)):
                    answers.append((message.event_id, type(message).__name__))
                    if isinstance(message, protocol.Applied):
                        assert message.first_frame > seen
            expected = [(name, "Applied") for name in ("u", "s", "r", "p", "g")]
            assert sorted(answers) == sorted([*expected, ("bad", "Rejected"), ("u", "Rejected")])

    run(work())

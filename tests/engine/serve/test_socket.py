"""The socket from a client's side: streams, controls, cuts, viewers, and those who misbehave."""

from __future__ import annotations

import asyncio
import gc
import json
import socket as sockets
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any, cast

import pytest
from websockets.asyncio.client import connect

from livereel.engine.errors import LiveReelError
from livereel.engine.serve import messages, protocol, socket
from livereel.engine.serve.client import AsyncStream, Refused, Stream
from livereel.engine.serve.fake import FakeEngine, number_of
from livereel.engine.serve.limits import Limits
from livereel.engine.serve.protocol import Close

from .conftest import Live, MakeLive
from .talk import RED, aiter_, anext_, comes_to_hold, everything, hear, run, say, settled, shows

if TYPE_CHECKING:
    from starlette.websockets import WebSocket


def test_the_stream_without_asyncio(live: Live) -> None:
    with Stream(live.url, RED) as stream:
        numbers = []
        for frame in stream:
            numbers.append(frame.number)
            if frame.number == 3:
                stopped = stream.stop()
        assert numbers == list(range(len(numbers)))
        assert stopped.result(5).first_frame == len(numbers)
    assert settled(live, 0)


def test_a_cut_loses_and_doubles_nothing(live: Live) -> None:
    async def work() -> None:
        async with AsyncStream(live.url, RED) as stream:
            numbers = []
            async for frame in stream:
                assert number_of(frame.pixels) == frame.number
                numbers.append(frame.number)
                if frame.number in (5, 20, 33):
                    stream.cut()
                if frame.number == 20:
                    applied = await stream.update(prompt="blue")
                if frame.number >= 50:
                    break
            assert numbers == list(range(51))
            assert stream.lost == 0
            assert applied.first_frame > 20

    run(work())


def test_frames_that_wait_in_the_client_outlive_a_cut(live: Live) -> None:
    async def work() -> None:
        async with AsyncStream(live.url, RED) as stream:
            frames = aiter_(stream)
            assert (await anext_(frames)).number == 0
            before = stream.created
            await asyncio.sleep(1.0)  # frames pile up here
            stream.cut()
            while stream.created is before:
                await asyncio.sleep(0.05)
            for number in range(1, 30):
                frame = await anext_(frames)
                assert frame.number == number_of(frame.pixels) == number

    run(work())


def test_an_owner_that_stays_away_loses_its_stream(make_live: MakeLive) -> None:
    live = make_live(limits=Limits(lease_s=0.5))

    async def work() -> None:
        async with AsyncStream(live.url, RED) as stream:
            assert stream.created is not None
            token = stream.created.resume_token
        assert await asyncio.to_thread(settled, live, 0)
        with pytest.raises(Refused) as refused:
            async with AsyncStream(live.url, resume=token, last_frame=0):
                pass
        assert refused.value.code == "gone"

    run(work())


def test_what_a_stream_held_goes_with_it(make_live: MakeLive) -> None:
    live = make_live(limits=Limits(lease_s=0.2))
    kept: list[weakref.ref[Any]] = []

    async def work(*, stops: bool) -> None:
        async with AsyncStream(live.url, RED) as stream:
            await anext_(aiter_(stream))
            (open_,) = live.server.streams._open.values()
            kept.extend((weakref.ref(open_), weakref.ref(open_._renditions.of(0))))
            if stops:
                await stream.stop()
            else:
                stream._done = True  # it does not come back
                stream.cut()

    gc.disable()
    try:
        for stops in (True, False):
            run(work(stops=stops))
        assert comes_to_hold(lambda: all(ref() is None for ref in kept))
    finally:
        gc.enable()


def test_work_stops_when_nobody_watches(live: Live) -> None:
    async def work() -> None:
        async with AsyncStream(live.url, RED) as stream:
            await anext_(aiter_(stream))
        await asyncio.sleep(0.3)
        (before,) = (await asyncio.to_thread(live.call, live.engine.state())).sessions
        await asyncio.sleep(1.0)
        (after,) = (await asyncio.to_thread(live.call, live.engine.state())).sessions
        assert after.state == "paused"
        assert after.chunks - before.chunks <= 1

    run(work())


def test_many_watch_one_encode_and_late_ones_see_at_once(live: Live) -> None:
    async def work() -> None:
        async with AsyncStream(live.url, RED) as stream:
            assert stream.created is not None
            frames = aiter_(stream)
            while (await anext_(frames)).number < 40:
                pass

            async def drain() -> None:
                async for _ in frames:
                    pass

            draining = asyncio.create_task(drain())
            token = stream.created.watch_token
            for _ in range(3):
                begin = time.monotonic()
                async with AsyncStream(live.url, watch=token) as viewer:
                    assert viewer.created is not None
                    assert viewer.created.resume_token is None
                    numbers = []
                    async for frame in viewer:
                        if not numbers:
                            assert time.monotonic() - begin < 0.5
                        assert number_of(frame.pixels) == frame.number
                        numbers.append(frame.number)
                        if len(numbers) == 5:
                            break
                    assert numbers == list(range(numbers[0], numbers[0] + 5))
                    assert numbers[0] >= 40
                    with pytest.raises(Refused, match="only watch"):
                        await viewer.update(prompt="mine")
            draining.cancel()
        encoded = live.http.get("/metrics").text
        (count,) = [
            float(line.split()[1])
            for line in encoded.splitlines()
            if line.startswith('livereel_encoder_seconds_count{level="0"}')
        ]
        (made,) = [
            float(line.split()[1])
            for line in encoded.splitlines()
            if line.startswith("livereel_frames_total")
        ]
        assert count == made

    run(work())


def test_too_many_streams_are_refused_with_a_time_to_retry(make_live: MakeLive) -> None:
    live = make_live(engine=FakeEngine(limit=1))

    async def work() -> None:
        async with AsyncStream(live.url, RED):
            with pytest.raises(Refused) as refused:
                async with AsyncStream(live.url, RED):
                    pass
            assert refused.value.retryable
            assert refused.value.retry_after_s == 2.0
            assert live.http.get("/readyz").json() == {"status": "busy"}

    run(work())


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("{}", Close.MALFORMED),
        ("\x00", Close.MALFORMED),
        ("[" * 20_000, Close.MALFORMED),
        ('{"type":"session.pause","event_id":"a"}', Close.POLICY),
        ('{"type":"session.create","event_id":"a"}', Close.POLICY),
        ('{"type":"session.create","event_id":"a","prompt":"x","width":24}', Close.POLICY),
        ('{"type":"session.create","event_id":"a","prompt":"x","image":"none"}', Close.POLICY),
        ('{"type":"session.create","event_id":"a","resume":"none"}', Close.POLICY),
        (json.dumps({"type": "session.create", "prompt": "x" * 70_000}), 1009),
    ],
)
def test_what_breaks_the_rules_ends_the_socket(live: Live, text: str, code: int) -> None:
    async def work() -> None:
        async with connect(live.url.replace("http", "ws") + protocol.PATH) as ws:
            await ws.send(text)
            said = [message async for message in everything(ws)]
            assert all(isinstance(message, protocol.Error) for message in said)
            assert ws.close_code == code

    run(work())
    assert settled(live, 0)


def test_a_picture_is_bounded_where_no_server_in_front_bounds_it() -> None:
    class Passed:
        async def receive(self) -> dict[str, Any]:
            most = protocol.MAX_PICTURE_BYTES
            return {"type": "websocket.receive", "bytes": bytes(most + 1)}

    with pytest.raises(socket._Refused, match="at most 1,048,576 bytes") as refused:
        asyncio.run(socket._receive(cast("WebSocket", Passed())))
    assert refused.value.code == Close.TOO_BIG


def test_a_socket_that_says_nothing_is_closed(make_live: MakeLive) -> None:
    live = make_live(limits=Limits(hello_s=0.2))

    async def work() -> None:
        async with connect(live.url.replace("http", "ws") + protocol.PATH) as ws:
            message = await hear(ws)
            assert isinstance(message, protocol.Error)
            assert message.code == "timeout"

    run(work())


def test_a_viewer_that_reads_nothing_costs_little_and_others_see_all(live: Live) -> None:
    async def work() -> None:
        async with AsyncStream(live.url, RED, width=512, height=512) as stream:
            assert stream.created is not None
            deaf = await asyncio.open_connection("127.0.0.1", live.port, limit=1024)
            await handshake(*deaf)
            request = protocol.Create(event_id="w", watch=stream.created.watch_token)
            deaf[1].write(masked(protocol.encode(request).encode()))
            await deaf[1].drain()
            numbers = []
            async for frame in stream:
                numbers.append(frame.number)
                if len(numbers) == 100:
                    break
            assert numbers == list(range(100))
            (owner,) = live.server.streams._open.values()
            silent = next(viewer for viewer in owner.viewers if viewer is not owner.owner)
            assert silent.queued_bytes <= 2 << 20
            assert silent.quality.bytes_on_the_way <= 1 << 20
            assert owner.owner is not None and not owner.owner.dropped
            deaf[1].transport.abort()

    run(work())


def test_an_engine_error_is_told_and_the_stream_goes_on_or_ends(live: Live) -> None:
    async def work() -> None:
        async with connect(live.url.replace("http", "ws") + protocol.PATH) as ws:
            await say(ws, protocol.Create(event_id="c", prompt=RED))
            assert isinstance(await hear(ws), protocol.Created)
            (session,) = live.engine._streams
            await asyncio.to_thread(live.call, live.engine.fail(session, ends=True))
            said = [message async for message in everything(ws)]
            error, end = said[-2:]
            assert isinstance(error, protocol.Error) and error.code == "memory" and error.retryable
            assert isinstance(end, protocol.Ended) and end.reason == "failed"

    run(work())


def test_draining_tells_a_token_that_opens_the_stream_again(make_live: MakeLive) -> None:
    live = make_live()

    async def first() -> tuple[str, int]:
        async with connect(live.url.replace("http", "ws") + protocol.PATH) as ws:
            await say(ws, protocol.Create(event_id="c", prompt=RED, fps=12.0))
            token, last, drain = "", -1, None
            async for message in everything(ws):
                if isinstance(message, protocol.Header):
                    last = message.frame
                    drain = drain or live.submit(live.server.drain())
                elif isinstance(message, protocol.Draining):
                    token = message.resume_token or ""
            assert ws.close_code == Close.DRAINING
            return token, last

    token, last = asyncio.run(first())
    assert live.http.get("/readyz").status_code == 503
    again = make_live(engine=(engine := Waiting()))

    async def second() -> None:
        async def meanwhile() -> None:
            await asyncio.to_thread(engine.asked.wait)
            with pytest.raises(Refused) as refused:
                async with AsyncStream(again.url, resume=token, last_frame=last):
                    pass
            assert refused.value.retryable
            engine.goes_on.set()

        twice = asyncio.create_task(meanwhile())
        async with AsyncStream(again.url, resume=token, last_frame=last) as stream:
            await twice
            frame = await anext_(aiter_(stream))
            assert stream.created is not None
            assert (stream.created.prompt, stream.created.fps) == (RED, 12.0)
            assert frame.number > last
            assert number_of(frame.pixels) == frame.number
            assert shows(frame, RED)
            assert again.server.streams.count == 1

    run(second())


def test_a_server_that_is_not_there() -> None:
    async def work() -> None:
        with pytest.raises(LiveReelError, match="cannot be reached"):
            async with AsyncStream("http://127.0.0.1:1", RED):
                pass

    run(work())


# What the tests above are made of


class Waiting(FakeEngine):
    """Opens a session when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.goes_on = threading.Event(), threading.Event()

    async def open(self, spec: messages.Spec) -> messages.Opened:
        self.asked.set()
        await asyncio.to_thread(self.goes_on.wait, 10)
        return await super().open(spec)


async def handshake(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Open a WebSocket by hand, to have one that nobody reads."""
    writer.get_extra_info("socket").setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, 4096)
    writer.write(
        f"GET {protocol.PATH} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\n"
        "Connection: Upgrade\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
        "Sec-WebSocket-Version: 13\r\n\r\n".encode()
    )
    await writer.drain()
    assert b"101" in await reader.readline()


def masked(payload: bytes) -> bytes:
    """One text frame from a client, under the mask of zeros."""
    short = len(payload) < 126
    length = bytes([0x80 | len(payload)]) if short else b"\xfe" + len(payload).to_bytes(2, "big")
    return b"\x81" + length + bytes(4) + payload

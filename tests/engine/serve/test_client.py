"""The Python client beyond what `test_socket` uses of it, and the example."""

from __future__ import annotations

import asyncio
from pathlib import Path

import av
import pytest
from websockets.asyncio.server import ServerConnection, serve

from livereel.engine.errors import InputError, LiveReelError
from livereel.engine.serve import example, protocol
from livereel.engine.serve.client import AsyncStream, Refused, Stream

from .conftest import Live, MakeLive


@pytest.mark.parametrize("url", ["", "127.0.0.1:8000", "ftp://x", "http://"])
def test_urls_are_checked(url: str) -> None:
    with pytest.raises(InputError, match="wanted one such as http"):
        AsyncStream(url, "a red circle")


def test_a_key_is_sent(make_live: MakeLive) -> None:
    live = make_live(key="sesame sesame")
    with pytest.raises(LiveReelError, match="status 401"), Stream(live.url, "a red circle"):
        pass
    with Stream(live.url, "a red circle", api_key="sesame sesame") as stream:
        assert next(iter(stream)).number == 0


def test_what_the_server_refuses_is_raised(live: Live) -> None:
    narrow = Stream(live.url, "a red circle", width=24)
    with pytest.raises(Refused, match="multiples of 16") as refused, narrow:
        pass
    assert not refused.value.retryable
    with Stream(live.url, "a red circle") as stream:
        answer = stream.update(steps=900)
        for _ in stream:
            if answer.done():
                break
        with pytest.raises(Refused, match="steps is 900"):
            answer.result()


CREATED = protocol.Created(
    event_id="c", session_id="s", resume_token="r", watch_token="w", stream=1, codec="h264",
    width=16, height=16, fps=16.0, chunk_frames=4, max_steps=4, control=False, control_wraps=False,
    prompt="", paused=False, next_frame=0, lost=0, lease_s=1.0,
)  # fmt: skip


@pytest.mark.parametrize(
    ("said", "wrong"),
    [
        ([b"no text"], "does not answer"),
        ([protocol.encode(protocol.Ended(reason="stopped", frames=0))], "does not answer"),
        ([protocol.encode(CREATED), b"too short"], "understood: a binary frame has at least"),
        ([protocol.encode(CREATED), "no JSON"], "understood"),
    ],
)
def test_words_that_nobody_understands_are_told_and_end_the_stream(
    said: list[str | bytes], wrong: str
) -> None:
    async def speak(ws: ServerConnection) -> None:
        await ws.recv()
        for message in said:
            await ws.send(message)
        await ws.wait_closed()

    async def watch(url: str) -> None:
        async with AsyncStream(url, "a red circle") as stream:
            async for _ in stream:
                pass

    async def work() -> None:
        async with serve(speak, "127.0.0.1", 0) as server:
            port = next(iter(server.sockets)).getsockname()[1]
            with pytest.raises(LiveReelError, match=wrong):
                await watch(f"http://127.0.0.1:{port}")

    asyncio.run(asyncio.wait_for(work(), 20))


def test_what_comes_in_a_burst_before_the_end_is_read_at_once() -> None:
    """Nothing is sent to a socket that closes: that would wait for its end, with all unread."""

    async def speak(ws: ServerConnection) -> None:
        await ws.recv()
        await ws.send(protocol.encode(CREATED))
        for i in range(60):
            header = protocol.Header(flags=0, stream=1, chunk=0, frame=i, pts=0)
            await ws.send(header.pack(b"a frame"))
        await ws.send(protocol.encode(protocol.Ended(reason="stopped", frames=60)))

    async def work() -> None:
        async with serve(speak, "127.0.0.1", 0) as server:
            port = next(iter(server.sockets)).getsockname()[1]
            async with AsyncStream(f"http://127.0.0.1:{port}", "a red circle") as stream:
                while stream.ended is None:
                    await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(work(), 5))


def test_a_control_after_the_end_hears_of_it_at_once(live: Live) -> None:
    with Stream(live.url, "a red circle") as stream:
        for frame in stream:
            if frame.number == 0:
                stream.stop()
        with pytest.raises(LiveReelError, match="the stream has ended"):
            stream.update(prompt="a blue star").result(5)


def test_the_example(live: Live, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(example, "EVERY", 8)
    example.main(live.url, str(tmp_path / "out.mp4"))
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 24

"""`/v1/stream`: one viewer's socket, from its first message to its close."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import msgspec
from starlette.websockets import WebSocket, WebSocketDisconnect

from ..errors import InputError, LiveReelError
from . import protocol
from .logs import log
from .protocol import Close
from .viewer import Viewer
from .worker_client import Busy, Gone

if TYPE_CHECKING:
    from .limits import Limits
    from .metrics import Metrics
    from .stream import Stream
    from .streams import Streams

_CLOSE_S = 2.0


class _Refused(Exception):
    """The client hears why, and the socket is closed."""

    def __init__(self, error: protocol.Error, code: Close) -> None:
        super().__init__(error.message)
        self.error, self.code = error, code


async def serve(socket: WebSocket, streams: Streams, metrics: Metrics, limits: Limits) -> None:
    """Serve one client until either side has had enough. It was let in already (`security`)."""
    await socket.accept()
    try:
        code, reason = await _talk(socket, streams, limits)
    except _Refused as refused:
        metrics.refused.labels(refused.error.code).inc()
        code, reason = refused.code, refused.error.code
        with contextlib.suppress(WebSocketDisconnect, RuntimeError, asyncio.TimeoutError):
            await asyncio.wait_for(socket.send_text(protocol.encode(refused.error)), _CLOSE_S)
    except WebSocketDisconnect:
        return
    with contextlib.suppress(WebSocketDisconnect, RuntimeError, asyncio.TimeoutError):
        await asyncio.wait_for(socket.close(code, reason), _CLOSE_S)


async def _talk(socket: WebSocket, streams: Streams, limits: Limits) -> tuple[Close, str]:
    try:
        first = await asyncio.wait_for(_receive(socket), limits.hello_s)
    except asyncio.TimeoutError:
        raise _refusal("timeout", "say session.create first", Close.POLICY) from None
    if not isinstance(first, protocol.Create):
        raise _refusal("order", "the first message is session.create", Close.POLICY)

    async def send(frame: str | bytes) -> None:
        if isinstance(frame, str):
            await socket.send_text(frame)
        else:
            await socket.send_bytes(frame)

    viewer = Viewer(send)
    stream, owner = await _enter(streams, first, viewer)
    log("viewer_joined", session=stream.id, owner=owner)
    sent = asyncio.create_task(viewer.run())
    heard = asyncio.create_task(_listen(socket, stream, viewer, owner))
    cut = asyncio.create_task(viewer.wait_cut())
    tasks = (sent, heard, cut)
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if heard.done():
            heard.result()  # raises what ended it
        if cut.done():
            return Close.POLICY, "cut off"
        if sent.done():
            sent.result()
        return (Close.DRAINING, "draining") if streams.draining else (Close.DONE, "ended")
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await stream.leave(viewer)
        log("viewer_left", session=stream.id, owner=owner, dropped=sum(viewer.dropped.values()))
        # What is raised here knows this frame: were it to know its task, both would stay, and the
        # stream with them, until Python looks for such circles.
        del tasks, sent, heard, cut


async def _enter(streams: Streams, request: protocol.Create, viewer: Viewer) -> tuple[Stream, bool]:
    try:
        return await streams.enter(request, viewer)
    except Busy as error:
        raise _refusal(
            "busy", str(error), Close.BUSY, request.event_id, retry_after_s=error.retry_after_s
        ) from None
    except Gone as error:
        raise _refusal("gone", str(error), Close.POLICY, request.event_id) from None
    except InputError as error:
        raise _refusal("invalid", str(error), Close.POLICY, request.event_id) from None
    except LiveReelError as error:
        raise _refusal("engine", str(error), Close.FAILED, request.event_id) from None


async def _listen(socket: WebSocket, stream: Stream, viewer: Viewer, owner: bool) -> None:
    """Take in what the client says, until it leaves or says what it may not."""
    while True:
        message = await _receive(socket)
        if isinstance(message, bytes):
            if not owner or stream.feed is None:
                raise _refusal(
                    "order", "pictures are for one's own stream with a strength", Close.POLICY
                )
            stream.feed.push(message)
        elif isinstance(message, protocol.Ack):
            viewer.acked(message.frame, message.decode_queue)
        elif isinstance(message, protocol.Create):
            raise _refusal("order", "a stream is open on this socket already", Close.POLICY)
        elif owner and stream.owner is viewer:
            await stream.control(message)
        else:
            rejected = protocol.Rejected(
                event_id=message.event_id, code="not_owner", message="you may only watch"
            )
            try:
                viewer.tell(rejected)
            except OverflowError:
                raise _refusal("slow", "answers pile up unread", Close.POLICY) from None


async def _receive(socket: WebSocket) -> protocol.ClientMessage | bytes:
    """A message, or a picture."""
    event = await socket.receive()
    if event["type"] != "websocket.receive":
        raise WebSocketDisconnect(event.get("code", 1006))
    text = event.get("text")
    if text is None:
        picture: bytes = event["bytes"]
        if len(picture) > protocol.MAX_PICTURE_BYTES:
            most = f"a picture has at most {protocol.MAX_PICTURE_BYTES:,} bytes"
            raise _refusal("too_big", most, Close.TOO_BIG)
        return picture
    if len(text.encode()) > protocol.MAX_TEXT_BYTES:
        most = f"a text frame has at most {protocol.MAX_TEXT_BYTES:,} bytes"
        raise _refusal("too_big", most, Close.TOO_BIG)
    try:
        return protocol.decode_client(text)
    except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
        raise _refusal("malformed", str(error)[:300], Close.MALFORMED) from None


def _refusal(
    code: str,
    message: str,
    close: Close,
    event_id: str | None = None,
    *,
    retry_after_s: float | None = None,
) -> _Refused:
    error = protocol.Error(
        code=code,
        message=message,
        retryable=close is Close.BUSY,
        event_id=event_id,
        retry_after_s=retry_after_s,
    )
    return _Refused(error, close)

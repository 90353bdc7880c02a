"""A stream of a live server as a program sees it that runs on asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import io
import secrets
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

import av
import msgspec
from av.video.codeccontext import VideoCodecContext
from PIL import Image
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI
from websockets.protocol import State

from ..errors import InputError, LiveReelError
from . import protocol
from .protocol import Flag

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..types import Frames

_ANSWER_S = 30.0
_MOST_WAITING = 64
"""Frames received and not iterated over; beyond that the server is not told of more."""
_QUALITY = 90
_BACKOFF_S = (0.1, 0.3, 1.0, 2.0, 3.0)


class Refused(LiveReelError):
    """The server said no; `code` and `retryable` are its own, `retry_after_s` when to ask again."""

    def __init__(self, error: protocol.Error | protocol.Rejected) -> None:
        super().__init__(error.message)
        self.code = error.code
        self.retryable = isinstance(error, protocol.Error) and error.retryable
        self.retry_after_s = error.retry_after_s if isinstance(error, protocol.Error) else None


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One picture, uint8 `[H, W, 3]`: its `number` in the stream, its chunk, and when it is shown,
    in seconds since the stream's start. `span` is how many frames it stands for."""

    number: int
    chunk: int
    pts: float
    span: int
    pixels: Frames


class Changes(TypedDict, total=False):
    """What `update` changes, in the words of `protocol.Update`."""

    prompt: str
    steps: int
    recache: bool
    strength: float
    loras: dict[str, float]
    control: protocol.Track


class AsyncStream:
    """A stream to iterate over in an `async for`; open it by `async with`.

    `options` are the fields of `session.create`, such as `seed`, `steps` or `watch`. Whoever
    iterates too slowly gets less rather than later, as the server learns what waits here.
    Raises `Refused` for what the server does not do, `LiveReelError` when it is not there.
    """

    def __init__(
        self, url: str, prompt: str | None = None, *, api_key: str | None = None, **options: Any
    ) -> None:
        scheme, _, rest = url.rstrip("/").partition("://")
        schemes = {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}
        if scheme not in schemes or not rest:
            raise InputError(f"url is {url!r:.80}; wanted one such as http://127.0.0.1:8000")
        self._url = f"{schemes[scheme]}://{rest}{protocol.PATH}"
        self._headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        self._request = protocol.Create(event_id=_new_id(), prompt=prompt, **options)
        self._socket: ClientConnection | None = None
        self._reader: asyncio.Task[None] | None = None
        self._frames: deque[tuple[protocol.Header, bytes, bool]] = deque()
        self._asked: dict[str, tuple[protocol.Control, asyncio.Future[protocol.Applied]]] = {}
        self._wake = asyncio.Event()
        self._fresh = True
        self._decoder = _new_decoder()
        self._last = self._newest = self._acked = -1
        self._failure: LiveReelError | None = None
        self._done = False
        self.created: protocol.Created | None = None
        self.stats: protocol.Stats | None = None
        self.ended: protocol.Ended | None = None
        self.lost = 0
        """Frames that could not be had any more after a cut."""

    async def __aenter__(self) -> AsyncStream:
        await self._open()
        self._reader = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._done = True
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
        if self._socket is not None:
            await self._socket.close()

    async def __aiter__(self) -> AsyncIterator[Frame]:
        while True:
            while not self._frames:
                if self._failure is not None:
                    raise self._failure
                if self._done:
                    return
                self._wake.clear()
                await self._wake.wait()
            header, data, fresh = self._frames.popleft()
            pixels = self._decode(header, data, fresh=fresh)
            await self._acknowledge()
            if pixels is not None:
                yield Frame(
                    number=header.frame,
                    chunk=header.chunk,
                    pts=header.pts / 1e6,
                    span=header.span,
                    pixels=pixels,
                )

    # Controls: each returns where it took hold

    async def update(self, **changes: Unpack[Changes]) -> protocol.Applied:
        """Another prompt, or other values of what `Changes` names."""
        return await self._ask(protocol.Update(event_id=_new_id(), **changes))

    async def shot(
        self, prompt: str | None = None, *, image: str | None = None
    ) -> protocol.Applied:
        """A new shot, with nothing of what was shown; `image` is the id of an uploaded picture."""
        return await self._ask(protocol.Cut(event_id=_new_id(), prompt=prompt, image=image))

    async def push(self, pixels: Frames) -> None:
        """A picture, uint8 `[H, W, 3]`, for a stream that was opened with a `strength` to be made
        from."""
        data = io.BytesIO()
        Image.fromarray(pixels).save(data, "JPEG", quality=_QUALITY)
        await self._send(data.getvalue())

    async def seed(self, seed: int) -> protocol.Applied:
        """Other noise."""
        return await self._ask(protocol.NewSeed(event_id=_new_id(), seed=seed))

    async def pause(self) -> protocol.Applied:
        """No further chunk."""
        return await self._ask(protocol.Pause(event_id=_new_id()))

    async def resume(self) -> protocol.Applied:
        """Go on."""
        return await self._ask(protocol.Resume(event_id=_new_id()))

    async def reset(self) -> protocol.Applied:
        """Start anew."""
        return await self._ask(protocol.Reset(event_id=_new_id()))

    async def stop(self) -> protocol.Applied:
        """End the stream."""
        return await self._ask(protocol.Stop(event_id=_new_id()))

    def cut(self) -> None:
        """Break the connection off, as a network does; the stream comes back by itself."""
        if self._socket is not None:
            self._socket.transport.abort()

    async def _ask(self, message: protocol.Control) -> protocol.Applied:
        if self._done:
            raise self._over
        answer: asyncio.Future[protocol.Applied] = asyncio.get_running_loop().create_future()
        self._asked[message.event_id] = message, answer
        try:
            await self._say(message)
            return await asyncio.wait_for(answer, _ANSWER_S)
        except asyncio.TimeoutError:
            raise LiveReelError("the server did not answer; is the stream being read?") from None
        finally:
            self._asked.pop(message.event_id, None)

    @property
    def _over(self) -> LiveReelError:
        """Why a control is not answered any more."""
        return self._failure or LiveReelError("the stream has ended")

    @property
    def _connected(self) -> ClientConnection:
        assert self._socket is not None, "open the stream by `async with`"
        return self._socket

    async def _say(self, message: protocol.ClientMessage) -> None:
        await self._send(protocol.encode(message))

    async def _send(self, data: str | bytes) -> None:
        # On a socket that closes it would wait for the end, which is not heard before all is read.
        if self._connected.state is State.OPEN:
            # What is lost in a cut is told again, or not needed, behind it.
            with contextlib.suppress(ConnectionClosed):
                await self._connected.send(data)

    async def _open(self) -> None:
        """Open a socket and wait for `session.created`."""
        try:
            self._socket = await connect(
                self._url, additional_headers=self._headers, compression=None, max_size=1 << 26
            )
            await self._socket.send(protocol.encode(self._request))
            data = await self._socket.recv()
        except InvalidStatus as error:
            status = error.response.status_code
            raise LiveReelError(f"{self._url} refused the socket with status {status}") from error
        except (OSError, InvalidHandshake, InvalidURI, ConnectionClosed) as error:
            raise LiveReelError(f"{self._url} cannot be reached: {error}") from error
        answer = None
        with contextlib.suppress(msgspec.MsgspecError):
            answer = protocol.decode_server(data)
        if not isinstance(answer, protocol.Created):
            await self._socket.close()
            if isinstance(answer, protocol.Error):
                raise Refused(answer)
            raise LiveReelError(f"{self._url} does not answer as a server of streams does")
        self.created = answer
        self.lost += answer.lost
        self._acked = -1
        self._fresh = True  # frames of the socket before may still wait for the decoder they began

    async def _read(self) -> None:
        """Take in all that comes; open another socket when this one is cut."""
        try:
            while not self._done:
                assert self._socket is not None
                try:
                    async for data in self._socket:
                        await self._take(data)
                        await self._acknowledge()
                except ConnectionClosed:
                    pass
                if self.ended is None and not self._done:
                    await self._return()
                else:
                    self._done = True
        except LiveReelError as error:
            self._failure = error
        except Exception as error:  # whatever reading it came upon
            self._failure = LiveReelError(f"the server sent what cannot be understood: {error}")
            self._failure.__cause__ = error
        finally:
            self._done = True
            for _, answer in self._asked.values():
                if not answer.done():
                    answer.set_exception(self._over)
            self._wake.set()

    async def _return(self) -> None:
        """Open the stream again where it stands."""
        assert self.created is not None
        request: dict[str, Any] = {"event_id": _new_id()}
        if self.created.resume_token is None:
            request["watch"] = self._request.watch
        else:
            last = self._frames[-1][0].frame if self._frames else self._last
            request |= {"resume": self.created.resume_token, "last_frame": last}
            request["pending"] = tuple(self._asked)
        self._request = protocol.Create(**request)
        for wait in _BACKOFF_S:
            await asyncio.sleep(wait)
            try:
                await self._open()
                return
            except Refused as error:
                if not error.retryable:
                    raise
            except LiveReelError:
                continue
        raise LiveReelError("the server cannot be reached any more")

    async def _acknowledge(self) -> None:
        """Tell what has arrived, unless too much of it waits here already."""
        if self._newest > self._acked and len(self._frames) <= _MOST_WAITING:
            self._acked = self._newest
            await self._say(protocol.Ack(frame=self._newest, decode_queue=len(self._frames)))

    async def _take(self, data: str | bytes) -> None:
        if isinstance(data, bytes):
            header, payload = protocol.unpack(data)
            self._frames.append((header, bytes(payload), self._fresh))
            self._fresh = False
            self._newest = header.frame
            self._wake.set()
            return
        try:
            message = protocol.decode_server(data)
        except msgspec.ValidationError:
            return  # of a newer server
        if isinstance(message, (protocol.Applied, protocol.Rejected)):
            await self._settle(message)
        elif isinstance(message, protocol.Stats):
            self.stats = message
        elif isinstance(message, protocol.Ended):
            self.ended = message
        elif isinstance(message, protocol.Error) and not message.retryable:
            self._failure = Refused(message)

    async def _settle(self, message: protocol.Applied | protocol.Rejected) -> None:
        """Hand an answer to who asked; what a cut swallowed is asked once more."""
        control, answer = self._asked.get(message.event_id, (None, None))
        if control is None or answer is None or answer.done():
            return
        if isinstance(message, protocol.Applied):
            answer.set_result(message)
        elif message.code == "lost":
            await self._say(control)
        else:
            answer.set_exception(Refused(message))

    def _decode(self, header: protocol.Header, data: bytes, *, fresh: bool) -> Frames | None:
        """The picture; None for one that only leads up to the next. A `fresh` one is its socket's
        first."""
        if fresh or (header.flags & Flag.GAP and header.flags & Flag.KEYFRAME):
            self._decoder = _new_decoder()
        decoded = self._decoder.decode(av.Packet(data))
        self._last = header.frame
        if header.flags & Flag.CATCH_UP or not decoded:
            return None
        pixels: Frames = decoded[-1].to_ndarray(format="rgb24")  # type: ignore[assignment]
        return pixels


def _new_id() -> str:
    return secrets.token_hex(8)


def _new_decoder() -> VideoCodecContext:
    decoder = av.CodecContext.create("h264", "r")
    assert isinstance(decoder, VideoCodecContext)
    decoder.thread_count = 1
    return decoder

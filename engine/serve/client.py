"""A Python client of the live server, for asyncio (`AsyncStream`) and without (`Stream`).

    from livereel.engine.serve.client import Stream

    with Stream("http://127.0.0.1:8000", "a red star moving up on a gray background") as stream:
        for frame in stream:
            show(frame.pixels)  # uint8 [H, W, 3]
            if frame.number == 100:
                stream.update(prompt="a blue star moving up on a white background")

A stream that is cut off goes on by itself where it stood, as long as the server keeps it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar

from . import protocol
from .async_stream import AsyncStream, Changes, Frame, Refused

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..types import Frames

_T = TypeVar("_T")


class Stream:
    """As `AsyncStream`, without asyncio: a stream to iterate over in a `for`; open it by `with`."""

    def __init__(
        self, url: str, prompt: str | None = None, *, api_key: str | None = None, **options: Any
    ) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._stream = AsyncStream(url, prompt, api_key=api_key, **options)
        self._frames = self._stream.__aiter__()

    def __enter__(self) -> Stream:
        self._thread.start()
        try:
            self._put(self._stream.__aenter__()).result()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._put(self._stream.__aexit__()).result()
        self._end()

    def __iter__(self) -> Iterator[Frame]:
        while (frame := self._put(_next(self._frames)).result()) is not None:
            yield frame

    @property
    def created(self) -> protocol.Created | None:
        """What the server said when it opened the stream."""
        return self._stream.created

    @property
    def stats(self) -> protocol.Stats | None:
        """The newest chunk's."""
        return self._stream.stats

    # Controls, as of `AsyncStream`; `result()` of what they give waits for the answer

    def update(self, **changes: Unpack[Changes]) -> Future[protocol.Applied]:
        """Another prompt, or other values of what `Changes` names."""
        return self._put(self._stream.update(**changes))

    def shot(
        self, prompt: str | None = None, *, image: str | None = None
    ) -> Future[protocol.Applied]:
        """A new shot."""
        return self._put(self._stream.shot(prompt, image=image))

    def push(self, pixels: Frames) -> Future[None]:
        """A picture for the stream to be made from."""
        return self._put(self._stream.push(pixels))

    def seed(self, seed: int) -> Future[protocol.Applied]:
        """Other noise."""
        return self._put(self._stream.seed(seed))

    def pause(self) -> Future[protocol.Applied]:
        """No further chunk."""
        return self._put(self._stream.pause())

    def resume(self) -> Future[protocol.Applied]:
        """Go on."""
        return self._put(self._stream.resume())

    def reset(self) -> Future[protocol.Applied]:
        """Start anew."""
        return self._put(self._stream.reset())

    def stop(self) -> Future[protocol.Applied]:
        """End the stream."""
        return self._put(self._stream.stop())

    def _put(self, work: Coroutine[Any, Any, _T]) -> Future[_T]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _next(frames: AsyncIterator[Frame]) -> Frame | None:
    """The next one; None at the end, since no future can hold a `StopAsyncIteration`."""
    async for frame in frames:
        return frame
    return None


__all__ = ["AsyncStream", "Frame", "Refused", "Stream"]

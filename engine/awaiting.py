"""Awaits in asyncio what is computed in a thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Condition
from typing import TYPE_CHECKING

from .errors import InputError

if TYPE_CHECKING:
    from .types import Chunk


class _NotBegun:
    """Stands for a chunk that was given up before it was begun, in a pause say."""


class AwaitedSteps:
    """Lets one task at a time await a session's chunks.

    Whoever awaits may give up, by a timeout say; the next one to await, be it in another event
    loop, gets the chunk that is then in the making.
    """

    def __init__(self, wake: Condition) -> None:
        self._wake = wake
        self._thread = ThreadPoolExecutor(1, "livereel")
        self._coming: Future[Chunk | _NotBegun | None] | None = None
        self._awaited = False

    async def next(
        self, step: Callable[[], Chunk | None], unblocked: Callable[[], bool]
    ) -> Chunk | None:
        """What `step` gives, a chunk or None behind the stream's end, called in a thread once
        `unblocked()`, which `wake` is notified of. Raises `InputError` while another task awaits.
        """
        with self._wake:
            if self._awaited:
                raise InputError("the session is awaited already; await it from one task at a time")
            self._awaited = True
        try:
            while True:
                if self._coming is None:
                    self._coming = self._thread.submit(self._try, step, unblocked)
                chunk = await self._outcome(self._coming)
                if not isinstance(chunk, _NotBegun):
                    return chunk
        finally:
            with self._wake:
                self._awaited = False
                self._wake.notify_all()

    async def _outcome(self, coming: Future[Chunk | _NotBegun | None]) -> Chunk | _NotBegun | None:
        """What `coming` gives; it is forgotten then, but not where waiting for it is cancelled."""
        here = asyncio.wrap_future(coming)
        try:
            await asyncio.wait([here])
        except asyncio.CancelledError:
            here.cancel()
            raise
        self._coming = None
        return _NotBegun() if here.cancelled() else here.result()

    def _try(
        self, step: Callable[[], Chunk | None], unblocked: Callable[[], bool]
    ) -> Chunk | _NotBegun | None:
        """`step`, unless in a pause nobody awaits it any more."""
        with self._wake:
            self._wake.wait_for(lambda: unblocked() or not self._awaited)
            if not unblocked():
                return _NotBegun()
        return step()

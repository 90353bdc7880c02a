"""Pictures that a client pushes into its stream, on their way to the engine: the newest win."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import replace
from typing import TYPE_CHECKING

from ..errors import InputError, LiveReelError
from . import images
from .logs import log

if TYPE_CHECKING:
    from .limits import Limits
    from .messages import Opened
    from .worker_client import EngineClient


class Feed:
    """Decodes what is pushed and hands it to the session `opened`, by a task of its own.

    At most `room` pictures wait, as they came; the oldest make way. `refused` hears why a picture
    was not taken.
    """

    def __init__(
        self,
        opened: Opened,
        engine: EngineClient,
        *,
        room: int,
        pool: Executor,
        limits: Limits,
        refused: Callable[[str], None],
    ) -> None:
        self._opened, self._engine = opened, engine
        self._pool, self._refused = pool, refused
        self._limits = replace(limits, image_pixels=limits.pushed_pixels)
        self._waiting: deque[bytes] = deque(maxlen=room)
        self._news = asyncio.Event()
        self._task = asyncio.create_task(self._run())

    def push(self, picture: bytes) -> None:
        """Take a picture, PNG, JPEG or WebP."""
        self._waiting.append(picture)
        self._news.set()

    def close(self) -> None:
        """Take no more."""
        self._task.cancel()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._news.wait()
            self._news.clear()
            pictures = list(self._waiting)
            self._waiting.clear()
            try:
                frames, bad = await loop.run_in_executor(self._pool, self._decode, pictures)
                for reason in bad:
                    self._refused(reason)
                if frames:  # answered between two passes; what comes meanwhile waits here
                    await self._engine.push(self._opened.session, frames)
            except LiveReelError as error:
                self._refused(str(error))
            except Exception:
                log("pictures_lost", level=logging.ERROR, trace=True)

    def _decode(self, pictures: list[bytes]) -> tuple[bytes, list[str]]:
        """The frames of those that can be read, and what is wrong with the others."""
        width, height = self._opened.width, self._opened.height
        frames, bad = [], []
        for picture in pictures:
            try:
                frames.append(images.fit(images.read(picture, self._limits), width, height))
            except InputError as error:
                bad.append(str(error))
        return b"".join(frames), bad

"""All streams of a server: opened, found again by their tokens, given up, drained."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import secrets
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from ..errors import InputError, LiveReelError
from . import messages, protocol
from .encoder import pick_codec
from .logs import log
from .stream import MAX_VIEWERS, Stream
from .viewer import Viewer
from .worker_client import Busy, Gone

if TYPE_CHECKING:
    from .images import Images
    from .limits import Limits
    from .metrics import Metrics
    from .worker_client import EngineClient

_TICK_S = 1.0
_SAVED_S = 3600.0


class Streams:
    """The server's streams. `folder` keeps, over a restart, what drained streams go on from."""

    def __init__(
        self, engine: EngineClient, metrics: Metrics, images: Images, limits: Limits, folder: Path
    ) -> None:
        self._engine, self._metrics, self._images = engine, metrics, images
        self._limits = limits
        self._folder = folder
        self._pool = ThreadPoolExecutor(max(2, (os.cpu_count() or 2) // 2), "livereel-encode")
        self._codec = "libx264"
        self._open: dict[str, Stream] = {}
        self._watchable: dict[str, Stream] = {}
        self._opening = 0
        self._recalling: set[str] = set()
        self._draining = False
        self._keeper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Find the encoder, throw away what is too old, begin to keep house."""
        loop = asyncio.get_running_loop()
        self._codec = await loop.run_in_executor(self._pool, pick_codec)
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._keeper = asyncio.create_task(self._keep_house())
        log("streams_ready", codec=self._codec)

    @property
    def viewers(self) -> int:
        """Of all streams."""
        return sum(len(stream.viewers) for stream in self._open.values())

    @property
    def count(self) -> int:
        """Streams that are open, also those that wait for their owner."""
        return len(self._open)

    @property
    def draining(self) -> bool:
        """Whether no stream is opened any more."""
        return self._draining

    async def enter(self, request: protocol.Create, viewer: Viewer) -> tuple[Stream, bool]:
        """Let a viewer into the stream that it asks for; gives that, and whether it is its owner's.

        Raises `Busy`, `Gone` for a stream that is not there any more, `InputError`.
        """
        if request.watch is not None:
            stream = self._watchable.get(request.watch)
            if stream is None:
                raise Gone("there is no stream of this watch token, or not any more")
            if len(stream.viewers) >= MAX_VIEWERS:
                raise Busy(f"{MAX_VIEWERS} viewers watch this stream already", 10.0)
            await self._join(stream, request, viewer, owner=False)
            return stream, False
        if request.resume is not None:
            stream = self._open.get(request.resume) or await self._recall(request.resume)
            await self._join(stream, request, viewer, owner=True)
            stream.answer_again(request.pending)
            return stream, True
        stream = await self._create(self._spec(request), secrets.token_urlsafe(24))
        await self._join(stream, request, viewer, owner=True)
        return stream, True

    async def drain(self) -> None:
        """Open nothing more; tell all that watch how to go on, and end the streams."""
        self._draining = True
        for stream in list(self._open.values()):
            if not stream.viewers:
                stream.let_go()
            for viewer in stream.viewers:
                token = stream.resume_token if viewer is stream.owner else None
                with contextlib.suppress(OverflowError):
                    viewer.tell(protocol.Draining(resume_token=token, grace_s=self._limits.grace_s))
        waiting = [asyncio.create_task(stream.wait()) for stream in self._open.values()]
        await self._engine.drain(self._limits.grace_s)
        if waiting:
            await asyncio.wait(waiting, timeout=self._limits.grace_s / 2)
            for stream in list(self._open.values()):  # what they have left takes too long to show
                stream.let_go()
            await asyncio.wait(waiting, timeout=self._limits.grace_s / 4)

    async def stop(self) -> None:
        """Let go of threads and tasks."""
        if self._keeper is not None:
            self._keeper.cancel()
        for stream in list(self._open.values()):
            await stream.close()
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _join(
        self, stream: Stream, request: protocol.Create, viewer: Viewer, *, owner: bool
    ) -> None:
        last = request.last_frame if request.resume is not None else -1
        await stream.join(
            viewer,
            event_id=request.event_id,
            owner=owner,
            last_frame=last if last >= 0 else None,
            lease_s=self._limits.lease_s,
        )

    def _spec(self, request: protocol.Create) -> messages.Spec:
        if request.prompt is None:
            raise InputError("session.create needs a prompt, or a token to resume or to watch with")
        model = self._engine.model
        width, height = request.width or model.width, request.height or model.height
        image = None
        if request.image is not None:
            image = self._images.get(request.image).fit(width, height)
        return messages.Spec(
            prompt=request.prompt,
            seed=request.seed,
            steps=request.steps,
            width=width,
            height=height,
            fps=request.fps,
            pace=request.strength is None,  # one that waits for pictures is not behind
            image=image,
            strength=request.strength,
            loras=request.loras,
        )

    async def _create(self, spec: messages.Spec, token: str) -> Stream:
        if self._draining:
            raise Busy("the server is going down", self._limits.grace_s)
        if len(self._open) + self._opening >= self._limits.streams:
            raise Busy(f"{self._limits.streams} streams are open already", 5.0)
        self._opening += 1
        try:
            opened = await self._engine.open(spec)
        finally:
            self._opening -= 1
        stream = Stream(
            opened,
            self._engine,
            spec=spec,
            codec=self._codec,
            resume_token=token,
            pool=self._pool,
            metrics=self._metrics,
            images=self._images,
            limits=self._limits,
            ended=self._forget,
        )
        self._open[token] = self._watchable[stream.watch_token] = stream
        log("stream_opened", session=stream.id, width=opened.width, height=opened.height)
        return stream

    def _forget(self, stream: Stream, end: messages.Ended) -> None:
        self._open.pop(stream.resume_token, None)
        self._watchable.pop(stream.watch_token, None)
        if end.snapshot is not None:
            self._save(stream.resume_token, replace(stream.spec, snapshot=end.snapshot, image=None))
        log("stream_ended", session=stream.id, reason=end.reason)

    # What a stream goes on from behind a restart. The token opens it, so only its hash is a name.

    def _path(self, token: str) -> Path:
        return self._folder / f"{hashlib.sha256(token.encode()).hexdigest()}.snapshot"

    def _save(self, token: str, spec: messages.Spec) -> None:
        path = self._path(token)
        part = path.with_suffix(".part")
        with contextlib.suppress(OSError):
            part.write_bytes(msgspec.msgpack.encode(spec))
            part.chmod(0o600)
            part.replace(path)

    async def _recall(self, token: str) -> Stream:
        if token in self._recalling:  # by a socket that was cut while it waited
            raise Busy("this stream is just being opened", _TICK_S)
        path = self._path(token)
        try:
            spec = msgspec.msgpack.decode(path.read_bytes(), type=messages.Spec)
        except (OSError, msgspec.MsgspecError) as error:
            raise Gone("there is no stream of this resume token, or not any more") from error
        self._recalling.add(token)
        try:
            stream = await self._create(spec, token)
        finally:
            self._recalling.discard(token)
        path.unlink(missing_ok=True)
        return stream

    async def _keep_house(self) -> None:
        while True:
            try:
                await self._tidy()
            except Exception:
                log("housekeeping_failed", level=logging.ERROR, trace=True)
            await asyncio.sleep(_TICK_S)

    async def _tidy(self) -> None:
        """Give up streams that nobody came back for, and old files; note numbers."""
        now = time.monotonic()
        for stream in list(self._open.values()):
            if stream.viewers:
                self._engine.renew(stream.session)
            elif now - stream.owner_left > self._limits.lease_s:
                log("lease_over", session=stream.id)
                await stream.close()
        self._images.expire()
        for path in self._folder.glob("*.snapshot"):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > _SAVED_S:
                    path.unlink()
        with contextlib.suppress(LiveReelError):  # while it is started anew
            self._metrics.take_state(await self._engine.state(), self.viewers)

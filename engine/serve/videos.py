"""Whole clips as jobs on disk: a folder each, with `job.json` and, when it is done, `video.mp4`."""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
import shutil
import time
from collections import deque
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from msgspec import Struct

from ..errors import InputError, LiveReelError, ResourceError
from ..media.writer import open_sink
from . import messages
from .logs import log
from .worker_client import Busy

if TYPE_CHECKING:
    from ..types import FrameSink
    from .limits import Limits
    from .worker_client import EngineClient

_ID = re.compile(r"video_[0-9a-f]{24}")
_PATIENCE_S = 600.0
"""A clip that finds no room in the engine waits this long."""


class Problem(Struct, frozen=True):
    """Why a clip was not made."""

    code: str
    message: str


class Job(Struct, frozen=True, kw_only=True):
    """One clip, with the fields that clients of the Videos API know."""

    id: str
    model: str
    prompt: str
    size: str
    seconds: str
    created_at: int
    object: Literal["video"] = "video"
    status: Literal["queued", "in_progress", "completed", "failed"] = "queued"
    progress: int = 0
    completed_at: int | None = None
    expires_at: int | None = None
    remixed_from_video_id: str | None = None
    error: Problem | None = None


class Order(Struct, frozen=True, kw_only=True):
    """What a clip is made from; `frames` at `fps`."""

    job: Job
    prompt: str
    seed: int
    steps: int | None
    width: int
    height: int
    fps: float
    frames: int
    image: bool


class Videos:
    """The clips of a server. One is made at a time, beside the live streams; those that wait are
    made after a restart, and so is one that a restart interrupted."""

    def __init__(self, engine: EngineClient, limits: Limits, folder: Path) -> None:
        self._engine, self._limits, self._folder = engine, limits, folder
        self._orders: dict[str, Order] = {}
        self._waiting: deque[str] = deque()
        self._current: str | None = None
        self._session: str | None = None
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Read what is on disk and go on."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = []
        for path in self._folder.iterdir():
            order = _read(path / "order.json") if _ID.fullmatch(path.name) else None
            if order is None or order.job.id != path.name:
                log("clip_unreadable", path=path.name)
            else:
                found.append(order)
        for order in sorted(found, key=lambda order: (order.job.created_at, order.job.id)):
            self._orders[order.job.id] = order
            if order.job.status in ("queued", "in_progress"):
                self._set(order, status="queued", progress=0)
                self._waiting.append(order.job.id)
        self._wake.set()
        self._task = asyncio.create_task(self._work())

    async def stop(self) -> None:
        """Stop working; what is not done is taken up at the next start."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    def create(self, order: Order, image: bytes | None) -> Job:
        """Queue a clip. Raises `Busy` when too many wait, `ResourceError` when the disk is full."""
        if len(self._waiting) >= self._limits.clips_waiting:
            raise Busy(f"{self._limits.clips_waiting} clips wait already", 30.0)
        if len(self._orders) >= self._limits.clips:
            raise Busy(f"{self._limits.clips} clips are kept already; delete some", 60.0)
        folder = self._folder / order.job.id
        try:
            folder.mkdir(mode=0o700)
            if image is not None:
                (folder / "image.rgb").write_bytes(image)
            _write(folder / "order.json", order)
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise ResourceError(f"the clip's order cannot be written: {error.strerror}") from error
        self._orders[order.job.id] = order
        self._waiting.append(order.job.id)
        self._wake.set()
        log("clip_queued", clip=order.job.id, frames=order.frames)
        return order.job

    def get(self, name: str) -> Job | None:
        """A clip, if it is known."""
        order = self._orders.get(name)
        return None if order is None else order.job

    def list(self) -> list[Job]:
        """All clips, the newest first."""
        return [order.job for order in reversed(self._orders.values())]

    def content(self, name: str) -> Path:
        """A finished clip's file."""
        return self._folder / name / "video.mp4"

    async def delete(self, name: str) -> None:
        """Forget a clip; when it is being made, stop that."""
        self._orders.pop(name, None)
        with contextlib.suppress(ValueError):
            self._waiting.remove(name)
        if name == self._current and self._session is not None:
            await self._engine.close(self._session)
        await asyncio.to_thread(shutil.rmtree, self._folder / name, ignore_errors=True)

    async def _work(self) -> None:
        while True:
            while not self._waiting:
                self._wake.clear()
                await self._wake.wait()
            self._current = self._waiting.popleft()
            order = self._orders[self._current]
            try:
                await self._make(order)
            except LiveReelError as error:
                code = "invalid" if isinstance(error, InputError) else "failed"
                self._fail(order, code, str(error))
            except Exception:
                log("clip_broke", clip=order.job.id, trace=True)
                self._fail(order, "internal", "the clip could not be made")
            finally:
                self._current = None

    def _fail(self, order: Order, code: str, message: str) -> None:
        if order.job.id in self._orders:
            self._set(order, status="failed", error=Problem(code, message))

    async def _make(self, order: Order) -> None:
        folder = self._folder / order.job.id
        image = (folder / "image.rgb").read_bytes() if order.image else None
        spec = messages.Spec(
            prompt=order.prompt, seed=order.seed, steps=order.steps, width=order.width,
            height=order.height, fps=order.fps, frames=order.frames, live=False, image=image,
        )  # fmt: skip
        opened = await self._open(spec)
        self._session = opened.session
        self._set(order, status="in_progress")
        sink: FrameSink | None = None
        try:
            sink = open_sink(folder / "video.mp4", fps=order.fps)
            await self._fill(order, sink)
            await asyncio.to_thread(sink.close)
            sink = None
            self._set(order, status="completed", progress=100, completed_at=int(time.time()))
            log("clip_done", clip=order.job.id)
        finally:
            self._session = None
            if sink is not None:
                sink.abort()
            await self._engine.close(opened.session)

    async def _fill(self, order: Order, sink: FrameSink) -> None:
        """Write all frames. Raises `ResourceError` when fewer come, with the engine's last word."""
        done, why = 0, ""
        events: AsyncIterator[messages.Event] = self._engine.events(self._session or "")
        async for event in events:
            if isinstance(event, messages.ChunkReady):
                await asyncio.to_thread(sink.write, event.pixels)
                done, why = done + event.count, ""
                self._set(order, status="in_progress", progress=min(99, 100 * done // order.frames))
            elif isinstance(event, messages.Failed):
                why = f": {event.message}"
                if not event.retryable:
                    break
            elif isinstance(event, messages.Ended):
                break
            del event  # its place in the ring is free again
        if done < order.frames:
            raise ResourceError(f"the clip ended after {done} of {order.frames} frames{why}")

    async def _open(self, spec: messages.Spec) -> messages.Opened:
        """A session for the clip, when there is room."""
        until = time.monotonic() + _PATIENCE_S
        while True:
            try:
                return await self._engine.open(spec)
            except Busy as error:
                if time.monotonic() + error.retry_after_s > until:
                    raise
                await asyncio.sleep(max(0.1, error.retry_after_s))

    def _set(self, order: Order, **changes: Any) -> None:
        """Change what the job says; on disk when its status changes."""
        known = self._orders.get(order.job.id)
        if known is None:  # deleted meanwhile
            return
        job = msgspec.structs.replace(known.job, **changes)
        self._orders[job.id] = msgspec.structs.replace(known, job=job)
        if job.status != known.job.status:
            with contextlib.suppress(OSError):
                _write(self._folder / job.id / "order.json", self._orders[job.id])


def new_id() -> str:
    """A name that nobody can guess."""
    return f"video_{secrets.token_hex(12)}"


def _write(path: Path, order: Order) -> None:
    part = path.with_suffix(".part")
    part.write_bytes(msgspec.json.encode(order))
    part.replace(path)


def _read(path: Path) -> Order | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Order)
    except (OSError, msgspec.MsgspecError):
        return None

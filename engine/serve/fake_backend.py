"""A backend without a model, for tests of the engine's process: the frames of `fake.draw`, of fed
streams with their lower half in the gray that the frames pushed have in their first corner.

What goes wrong is in the prompts: "out of memory" raises once as a pass does for want of it,
"broken" always as one with a mistake in it, "crash" ends the process, "hang" never comes back.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from ..errors import InputError, ResourceError
from ..types import Chunk, ChunkStats
from .admission import Kind
from .fake import MODEL, draw
from .messages import Change, Cut, ModelInfo, Spec, Update


@dataclass
class FakeStream:
    """A stream of drawn frames."""

    prompt: str
    width: int
    height: int
    fps: float
    steps: int
    chunk: int = 0
    pts: int = 0
    short: bool = False
    place: tuple[float, float] | None = None
    queue: list[Change] = field(default_factory=list)
    pushed: deque[int] | None = None
    """The first bytes of frames that wait, of a stream that is made from such."""
    state_bytes: int = 1000

    @property
    def kind(self) -> Kind:
        """Its shape."""
        return Kind(self.width, self.height, self.steps)

    @property
    def key(self) -> Hashable:
        """Streams of a shape go together, but for their first chunks."""
        return self.kind, self.chunk == 0

    @property
    def count(self) -> int:
        """Frames of its next chunk."""
        return MODEL.first_chunk_frames if self.chunk == 0 else MODEL.chunk_frames

    @property
    def ready(self) -> bool:
        """Whether it has frames enough."""
        return self.pushed is None or len(self.pushed) >= self.count

    def push(self, frames: bytes) -> None:
        """Take frames in."""
        if self.pushed is None:
            raise InputError("the session takes no frames; open it with a strength")
        self.pushed.extend(frames[:: self.width * self.height * 3])

    def update(self, control: Change) -> None:
        """Take a control in."""
        if isinstance(control, Update):
            if control.prompt is not None and not control.prompt.strip():
                raise InputError("the prompt is empty; say in a sentence what to show")
            if control.steps is not None and control.steps > MODEL.steps:
                raise InputError(f"steps is {control.steps}; wanted at most {MODEL.steps}")
        self.queue.append(control)

    def snapshot(self, *, light: bool) -> bytes:
        """All of it."""
        values = {"prompt": self.prompt, "chunk": self.chunk, "pts": self.pts}
        return json.dumps(values).encode()

    def close(self) -> None:
        """Nothing is held."""


class FakeBackend:
    """Draws frames; a pass takes `chunk_s` seconds for the first stream in it and `more_s` for each
    further one."""

    model: ModelInfo = MODEL

    def __init__(self, *, chunk_s: float, more_s: float, most: int) -> None:
        self.most = most
        self._chunk_s, self._more_s = chunk_s, more_s

    def check(self, spec: Spec) -> None:
        """Sizes are multiples of a step, and "huge" ones do not fit."""
        width, height = spec.width or MODEL.width, spec.height or MODEL.height
        if width % MODEL.size_step or height % MODEL.size_step:
            raise InputError(f"the size is {width}x{height}; wanted multiples of {MODEL.size_step}")
        if width * height > 1 << 24:
            raise ResourceError("too little memory")

    def open(self, spec: Spec, *, chunk: int | None, pts: int | None) -> FakeStream:
        """A stream at its beginning, or where a snapshot left off."""
        saved: dict[str, str | int] = {}
        if spec.snapshot is not None:
            try:
                saved = json.loads(spec.snapshot)
            except ValueError as error:
                raise InputError("these bytes are no LiveReel snapshot") from error
        prompt = str(saved.get("prompt", spec.prompt or ""))
        if not prompt.strip():
            raise InputError("the prompt is empty; say in a sentence what to show")
        return FakeStream(
            prompt,
            spec.width or MODEL.width,
            spec.height or MODEL.height,
            spec.fps or MODEL.fps,
            spec.steps or MODEL.steps,
            chunk=int(saved.get("chunk", 0)) if chunk is None else chunk,
            pts=int(saved.get("pts", 0)) if pts is None else pts,
            pushed=None if spec.strength is None else deque(maxlen=2 * MODEL.chunk_frames),
        )

    def step(self, streams: Sequence[FakeStream]) -> list[Chunk | Exception]:
        """Draw a chunk of each."""
        start = time.monotonic()
        time.sleep(self._chunk_s + self._more_s * (len(streams) - 1))
        chunks: list[Chunk | Exception] = []
        for stream in streams:
            try:
                self._go_wrong(stream)
                chunks.append(self._draw(stream, time.monotonic() - start))
            except (ResourceError, RuntimeError) as error:
                chunks.append(error)
        return chunks

    @staticmethod
    def _draw(stream: FakeStream, took: float) -> Chunk:
        for control in stream.queue:
            if isinstance(control, (Update, Cut)):
                stream.prompt = control.prompt or stream.prompt
            if isinstance(control, Update) and control.control is not None:
                stream.place = control.control[-1] if control.control else None
        stream.queue.clear()
        count = stream.count
        frames = draw(stream.prompt, stream.pts, count, stream.width, stream.height, stream.place)
        if stream.pushed is not None:
            for frame in frames:
                frame[stream.height // 2 :] = stream.pushed.popleft()
        stats = ChunkStats(
            text_s=0.0, dit_s=took, cache_s=0.0, vae_s=0.0, convert_s=0.0, passes=1,
            decoder_calls=1, fps=0.0, lead_s=0.0, deadline_met=True, jitter_s=0.0,
            steps=stream.steps, rate=stream.fps, skipped=(),
        )  # fmt: skip
        chunk = Chunk(frames=frames, index=stream.chunk, pts=stream.pts, stats=stats)
        stream.chunk += 1
        stream.pts += count
        return chunk

    @staticmethod
    def _go_wrong(stream: FakeStream) -> None:
        prompts = [c.prompt for c in stream.queue if isinstance(c, Update) and c.prompt]
        prompt = [stream.prompt, *prompts][-1]
        if prompt == "crash":
            os.kill(os.getpid(), signal.SIGKILL)
        if prompt == "hang":
            time.sleep(3600)
        if prompt == "broken":
            raise RuntimeError("a mistake")
        if prompt == "out of memory" and not stream.short:
            stream.short = True
            raise ResourceError("memory ran out")

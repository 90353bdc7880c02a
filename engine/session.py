"""One live stream: chunks on demand, controls that take hold at a chunk's edge, snapshots."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from .awaiting import AwaitedSteps
from .controls import (
    MAX_QUEUE,
    Update,
    check_at,
    check_loras,
    check_picture,
    check_prompt,
    check_seed,
    check_steps,
)
from .errors import InputError, ResourceError
from .generator import ChunkGenerator
from .media.feed import Feed
from .memory import shortage_told
from .native import Pacer
from .runners.watch import Watch
from .sampling import schedule
from .sampling.stream import fed_frames, given_chunk
from .sampling.track import read_track
from .state import fill_state, save_state
from .types import Chunk, ChunkStats

if TYPE_CHECKING:
    from torch import Tensor

    from .config import StreamConfig
    from .native import Pace
    from .runners.loras import Loras
    from .runners.runner import Runner
    from .sampling.stream import StreamState
    from .sampling.track import Position
    from .types import Frames

_FEED_CHUNKS = 2


class Session:
    """A stream to iterate over, in a `for` or an `async for`; made by `Engine.open`.

    Each step makes one chunk, and no later one is begun before it has left. Controls may be called
    from any thread; they are queued and take hold, in order, at the edge of the next chunk, which
    names them in `Chunk.applied`. Iterate from one thread, or await from one task, at a time.

    A chunk is made or it is not: when a step raises, as `ResourceError` for want of memory, the
    stream stands where it stood, the controls still wait, and the next step makes that chunk.

    A session that keeps pace does with less while chunks come late: first it skips a recache, then
    it takes fewer steps, one at a time, then it lowers the rate that its frames are due at, and it
    comes back the same way. Each chunk's stats say so. Its frames depend on how fast the machine
    is, where others are the same for the same seed and controls.

    A session that was opened with a strength is fed: it makes each chunk from frames that are
    pushed into it, and waits for them.
    """

    def __init__(
        self,
        runner: Runner,
        config: StreamConfig,
        state: StreamState,
        *,
        model: str,
        fps: float,
        frames: int | None = None,
        pace: bool = False,
        fed: bool = False,
        loras: Loras | None = None,
    ) -> None:
        self._runner = runner
        self._config = config
        self._state = state
        self._sampler = runner.sampler(config, state.width, state.height)
        self._generator = ChunkGenerator(runner, config, self._sampler, loras)
        self._model = model
        self._loras = loras
        chunk = config.chunk_latents * runner.vae.temporal_factor
        self._pacer = Pacer(rate=fps, chunk=chunk, adapt=pace)
        self._end = None if frames is None else state.pts + frames
        self._feed = Feed(state.height, state.width, _FEED_CHUNKS * chunk) if fed else None
        self._queue: list[Update] = []
        self._wake = threading.Condition()
        self._making = threading.Lock()
        self._paused = False
        self._closed = False
        self._awaited = AwaitedSteps(self._wake)
        self.fps = fps

    # Controls

    def update(
        self,
        *,
        prompt: str | None = None,
        seed: int | None = None,
        steps: int | None = None,
        recache: bool = False,
        strength: float | None = None,
        loras: Mapping[str, float] | None = None,
        control: Position | Sequence[Position] = None,
        at: int | None = None,
    ) -> None:
        """Change the prompt, the noise or the number of passes from the next chunk on, in a session
        that is fed frames the `strength` by which they are changed, and which `loras` of the
        engine's are used, by their strengths, in place of those before. `control` says where the
        object shall be, of a model that follows: (x, y) in shares of width and height, to which it
        goes evenly within one chunk, or such positions frame by frame (None leaves one open), of
        which the last holds on. An empty sequence lets go.

        With `at` it waits for the first chunk that begins with frame number `at` or a later one.
        `recache` runs the window once more under the new prompt, so that the old one's traces leave
        the cache (LongLive, 2025); a session that keeps pace skips it while it is behind. Raises
        `InputError` at once for a value that cannot be used, and `ResourceError` when `MAX_QUEUE`
        controls wait already.
        """
        if prompt is not None:
            check_prompt(prompt)
        if seed is not None:
            check_seed(seed)
        if steps is not None:
            check_steps(steps, self._config)
        if strength is not None:
            schedule.steps_left(1, strength)
            self._checked_feed()
        if loras is not None:
            check_loras(self._loras, loras)
            loras = dict(loras)
        track = None if control is None else self._read_track(control)
        check_at(at)
        self._put(Update(prompt, seed, steps, recache, strength, loras, track, at=at))

    def push(self, frames: Frames) -> int:
        """Give a fed session its next frames, uint8 `[F, H, W, 3]` of its size, of any number.

        They wait until a chunk takes them: the first one 1 frame and more, each later one as many
        as it has itself. There is room for two chunks; the oldest make way for newer ones. Gives
        how many were dropped. Raises `InputError` for frames of another shape, and for a session
        that takes none or is closed.
        """
        feed = self._checked_feed()
        with self._wake:
            if self._closed:
                raise InputError("the session is closed")
            dropped = feed.push(frames)
            self._wake.notify_all()
        return dropped

    def through(self, video: Frames) -> Iterator[Chunk]:
        """The chunks of a fed session that is given a whole `video`, uint8 `[F, H, W, 3]`; behind
        its end the last frame stands still."""
        at = 0
        while True:
            taken = video[at : at + self._wanted]
            missing = self._wanted - len(taken)
            at += len(taken)
            self.push(np.concatenate([taken, video[-1:].repeat(missing, axis=0)]))
            chunk = self._step()
            if chunk is None:
                return
            yield chunk

    def _read_track(self, control: Position | Sequence[Position]) -> Tensor:
        if not self._config.control_channels:
            raise InputError("this model follows no control")
        return read_track(control)

    def _checked_feed(self) -> Feed:
        if self._feed is None:
            raise InputError("the session takes no frames; open it with a strength")
        return self._feed

    def cut(
        self, prompt: str | None = None, *, image: Frames | None = None, at: int | None = None
    ) -> None:
        """Start a new shot: nothing of what was shown is seen any more, and the shot's first frames
        are what is kept of it for good, where the model keeps a stream's first ones (sinks).

        It begins with the picture `image`, uint8 `[H, W, 3]` of the stream's size, if there is one,
        and with frame number `at` exactly: a chunk that goes past it ends there. Without `at` it is
        the next chunk; a frame that is past counts as none. Raises `InputError` and `ResourceError`
        as `update` does.
        """
        if prompt is not None:
            check_prompt(prompt)
        if image is not None:
            check_picture(image[None], self._state.width, self._state.height)
            if self._feed is not None:
                raise InputError("a session that is fed frames starts a shot from these")
        check_at(at)
        self._put(Update(prompt, cut=True, image=image, at=at))

    def reset(self) -> None:
        """Start over from the next chunk: the frames of a new session with this prompt and seed.

        Chunk numbers and `pts` go on, so that a viewer's clock never jumps back.
        """
        self._put(Update(reset=True))

    def pause(self) -> None:
        """Hold the stream once the chunk in the making has left; iterating waits for `resume`."""
        with self._wake:
            self._paused = True

    def resume(self) -> None:
        """Go on after `pause`."""
        with self._wake:
            self._paused = False
            self._wake.notify_all()

    def close(self) -> None:
        """End the stream: iteration stops, also where it waits in a pause."""
        with self._wake:
            self._closed = True
            self._wake.notify_all()

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self._state.width, self._state.height

    @property
    def next_chunk(self) -> int:
        """The next chunk's number."""
        return self._state.index

    @property
    def next_frame(self) -> int:
        """The number of its first frame."""
        return self._state.pts

    @property
    def ready(self) -> bool:
        """Whether the next chunk can be begun: not in a pause, nor while frames are wanted."""
        waiting = self._feed is not None and len(self._feed) < self._wanted and not self._over
        return not self._paused and not waiting

    @property
    def steps(self) -> int:
        """Passes for each chunk, as last told and applied."""
        return self._state.steps

    def renumber(self, *, chunk: int, frame: int) -> None:
        """Number the next chunk and its first frame so, for viewers who have seen those before;
        what they show does not hang on it."""
        with self._making:
            self._state.index, self._state.pts = chunk, frame

    @property
    def state_bytes(self) -> int:
        """Memory that the stream's state takes: ring, caches, latents, text."""
        state = self._state
        tensors = [
            *(() if state.ring is None else (state.ring.k, state.ring.v)),
            *(state.caches or ()),
            *(state.encoder or ()),
            state.text, state.pending, state.recent, state.sinks, state.anchors, state.given,
            state.goal,
        ]  # fmt: skip
        return sum(x.numel() * x.element_size() for x in tensors if x is not None)

    def snapshot(self, *, light: bool = False) -> bytes:
        """The state between two chunks, for `Engine.restore`.

        Exact by default: what follows is bitwise what would have followed. `light` keeps the
        window's clean latents instead of the caches computed from them: far smaller, but the
        frames that follow are close, not equal. An exact one is taken for a light one where it is
        restored on another road, by which state is laid out otherwise. Queued controls are not part
        of it, nor are frames that were pushed; the encoder of a fed session starts anew. Waits for
        a chunk in the making.
        """
        with self._making:
            return save_state(
                self._state, model=self._model, layout=self._runner.layout, light=light
            )

    @shortage_told()
    @torch.inference_mode()
    def adopt(self, tensors: Mapping[str, Tensor], *, light: bool) -> None:
        """Take in the tensors that a snapshot holds beside the numbers this session started from.

        Raises `InputError` for what no session of this model could hold.
        """
        state = self._state
        check_prompt(state.prompt)
        check_steps(state.steps, self._config)
        fill_state(state, tensors, self._sampler, self._runner, light=light)
        self._generator.use_loras(state)
        if light and state.recent is not None:
            self._generator.rebuild(state)

    # Iteration

    def __iter__(self) -> Iterator[Chunk]:
        return self

    def __next__(self) -> Chunk:
        with self._wake:
            self._wake.wait_for(self._unblocked)
        chunk = self._step()
        if chunk is None:
            raise StopIteration
        return chunk

    def _step(self) -> Chunk | None:
        """The next chunk, or None behind the stream's end."""
        if self._closed:
            return None
        with self._making, torch.inference_mode(), shortage_told():
            if self._end is not None and self._state.pts >= self._end:
                return None
            with self._wake:
                pts = self._state.pts
                updates = tuple(u for u in self._queue if u.at is None or u.at <= pts)
                pushed = self._take()
            state = replace(self._state)
            try:
                chunk = self._make(state, updates, pushed)
            except BaseException:
                self._put_back(pushed)
                raise
            with self._wake:
                self._queue = [u for u in self._queue if not any(u is done for done in updates)]
                self._state = state
            return chunk

    def __aiter__(self) -> AsyncIterator[Chunk]:
        return self

    async def __anext__(self) -> Chunk:
        chunk = await self._awaited.next(self._step, self._unblocked)
        if chunk is None:
            raise StopAsyncIteration
        return chunk

    def _unblocked(self) -> bool:
        return self._closed or self.ready

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # One chunk

    @property
    def _over(self) -> bool:
        return self._end is not None and self._state.pts >= self._end

    @property
    def _wanted(self) -> int:
        """Frames that the next chunk is made from."""
        state, factor = self._state, self._runner.vae.temporal_factor
        if self._feed is None or given_chunk(self._config, state) is not None:
            return 0
        return fed_frames(self._config, state, factor)

    def _take(self) -> Frames | None:
        wanted = self._wanted
        return self._feed.take(wanted) if self._feed is not None and wanted else None

    def _put_back(self, pushed: Frames | None) -> None:
        if self._feed is not None and pushed is not None:
            with self._wake:
                self._feed.put_back(pushed)

    def _make(self, state: StreamState, updates: Sequence[Update], pushed: Frames | None) -> Chunk:
        """The next chunk, from frames that were `pushed` if it is fed; `state` becomes what follows
        it."""
        watch = Watch(self._runner.device)
        wanted = [update.steps for update in updates if update.steps is not None]
        pace = self._pacer.begin(watch.start, passes=[state.steps, *wanted][-1])
        frames, passes = self._generator.generate(
            state, updates, pushed, pace, watch, fed=self._feed is not None
        )
        return self._send(state, frames, watch, passes, pace, updates)

    def _send(
        self,
        state: StreamState,
        frames: Frames,
        watch: Watch,
        passes: int,
        pace: Pace,
        updates: Sequence[Update],
    ) -> Chunk:
        index, pts = state.index, state.pts
        with self._wake:
            cuts = [u.at for u in self._queue if u.cut and u.at is not None and u.at > pts]
        shown = frames[: min(cuts, default=pts + len(frames)) - pts]
        state.passed(len(shown) - len(frames))
        frames = shown
        state.index += 1
        state.pts += len(frames)
        if self._end is not None:
            frames = frames[: self._end - pts]
        timing = self._pacer.end(watch.last, frames=len(frames))
        recache = not pace.optional_work and any(update.recache for update in updates)
        stats = ChunkStats(
            **{f"{stage}_s": spent for stage, spent in watch.seconds.items()},
            passes=passes,
            decoder_calls=1,
            fps=len(frames) / (watch.last - watch.start),
            lead_s=timing.lead,
            deadline_met=timing.lead >= 0,
            jitter_s=timing.jitter,
            steps=pace.passes,
            rate=pace.rate,
            skipped=("recache",) if recache else (),
        )
        applied = tuple(update.name for update in updates)
        return Chunk(frames=frames, index=index, pts=pts, stats=stats, applied=applied)

    def _put(self, update: Update) -> None:
        with self._wake:
            if self._closed:
                raise InputError("the session is closed")
            if len(self._queue) >= MAX_QUEUE:
                raise ResourceError(f"{MAX_QUEUE} controls wait already for the next chunk")
            self._queue.append(update)

"""One live stream: chunks on demand, controls that take hold at a chunk's edge, snapshots."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from .errors import InputError
from .layers.pixels import to_uint8
from .sampling import schedule
from .sampling.noise import SEED_LIMIT
from .state import check_state, save_state
from .types import Chunk, ChunkStats

if TYPE_CHECKING:
    from .config import StreamConfig
    from .runners.torch import TorchRunner
    from .sampling.stream import StreamState
    from .types import KV, Frames


@dataclass(frozen=True)
class _Update:
    """A control in the queue; None leaves a value as it is."""

    prompt: str | None = None
    seed: int | None = None
    steps: int | None = None
    recache: bool = False
    reset: bool = False

    @property
    def name(self) -> str:
        return "reset" if self.reset else "update"


class _Watch:
    """Seconds by stage. On a GPU a reading waits for the work queued so far."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.seconds = {"text": 0.0, "dit": 0.0, "cache": 0.0, "vae": 0.0, "convert": 0.0}
        self._last = self._now()

    def lap(self, stage: str) -> None:
        """Book the time since the last lap on `stage`."""
        now = self._now()
        self.seconds[stage] += now - self._last
        self._last = now

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


class Session:
    """A stream to iterate over, in a `for` or an `async for`; made by `Engine.open`.

    Each step makes one chunk, and no later one is begun before it has left. Controls may be called
    from any thread; they are queued and take hold, in order, at the edge of the next chunk, which
    names them in `Chunk.applied`. Iterate from one thread at a time.
    """

    def __init__(
        self,
        runner: TorchRunner,
        config: StreamConfig,
        state: StreamState,
        *,
        model: str,
        fps: float,
        frames: int | None = None,
    ) -> None:
        self._runner = runner
        self._config = config
        self._state = state
        self._sampler = runner.sampler(config, state.width, state.height)
        self._model = model
        self._left = frames
        self._queue: list[_Update] = []
        self._wake = threading.Condition()
        self._making = threading.Lock()
        self._paused = False
        self._closed = False
        self._kv: KV | None = None
        self._negative: KV | None = None
        self.fps = fps

    # Controls

    def update(
        self,
        *,
        prompt: str | None = None,
        seed: int | None = None,
        steps: int | None = None,
        recache: bool = False,
    ) -> None:
        """Change the prompt, the noise or the number of passes from the next chunk on.

        `recache` runs the window once more under the new prompt, so that the old one's traces leave
        the cache (LongLive, 2025). Raises `InputError` at once for a value that cannot be used.
        """
        if prompt is not None:
            check_prompt(prompt)
        if seed is not None:
            check_seed(seed)
        if steps is not None:
            schedule.subset(self._config.timesteps, steps)
        self._put(_Update(prompt, seed, steps, recache))

    def reset(self) -> None:
        """Start over from the next chunk: the frames of a new session with this prompt and seed.

        Chunk numbers and `pts` go on, so that a viewer's clock never jumps back.
        """
        self._put(_Update(reset=True))

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

    def snapshot(self, *, light: bool = False) -> bytes:
        """The state between two chunks, for `Engine.restore`.

        Exact by default: what follows is bitwise what would have followed. `light` keeps the
        window's clean latents instead of the caches computed from them: far smaller, but the
        frames that follow are close, not equal. Queued controls are not part of it. Waits for a
        chunk in the making.
        """
        with self._making:
            return save_state(self._state, model=self._model, light=light)

    @torch.inference_mode()
    def adopt(self, *, light: bool) -> None:
        """Make a state that was just loaded ready to go on; a light one's caches are rebuilt.

        Raises `InputError` when the state's tensors are not those of this model.
        """
        text = self._text(_Watch(self._runner.device))
        check_state(self._state, self._sampler, self._runner, text)
        if light and self._state.recent is not None:
            self._sampler.rebuild(self._state, text)
            _, self._state.caches = self._runner.decode(self._state.recent)

    # Iteration

    def __iter__(self) -> Iterator[Chunk]:
        return self

    def __next__(self) -> Chunk:
        with self._wake:
            while self._paused and not self._closed:
                self._wake.wait()
            if self._closed or self._left == 0:
                raise StopIteration
            updates, self._queue = self._queue, []
        with self._making, torch.inference_mode():
            return self._make(updates)

    def __aiter__(self) -> AsyncIterator[Chunk]:
        return self

    async def __anext__(self) -> Chunk:
        chunk = await asyncio.to_thread(next, self, None)
        if chunk is None:
            raise StopAsyncIteration
        return chunk

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # One chunk

    def _make(self, updates: list[_Update]) -> Chunk:
        state, watch = self._state, _Watch(self._runner.device)
        passes = int(self._sampler.remember(state, self._text(watch)))
        watch.lap("cache")
        for update in updates:
            passes += self._apply(update, watch)
        text = self._text(watch)
        if state.chunk == 0 and state.picture is not None:
            latents = state.picture
        else:
            latents = self._sampler.sample(state, text, self._negative)
            passes += self._sampler.passes(state, self._negative)
        self._sampler.keep(state, latents)
        watch.lap("dit")
        decoded, state.caches = self._runner.decode(latents, state.caches)
        watch.lap("vae")
        frames = to_uint8(decoded)
        watch.lap("convert")
        return self._send(frames, watch.seconds, passes, updates)

    def _send(
        self, frames: Frames, seconds: dict[str, float], passes: int, updates: list[_Update]
    ) -> Chunk:
        state, total = self._state, sum(seconds.values())
        if self._left is not None:
            frames = frames[: self._left]
            self._left -= len(frames)
        stats = ChunkStats(
            **{f"{stage}_s": spent for stage, spent in seconds.items()},
            passes=passes,
            decoder_calls=1,
            fps=len(frames) / total,
            deadline_met=total <= len(frames) / self.fps,
        )
        applied = tuple(update.name for update in updates)
        chunk = Chunk(frames=frames, index=state.index, pts=state.pts, stats=stats, applied=applied)
        state.index += 1
        state.pts += len(frames)
        return chunk

    def _apply(self, update: _Update, watch: _Watch) -> int:
        """Let a control take hold; gives the passes that took."""
        state = self._state
        if update.reset:
            state.restart()
        if update.seed is not None:
            state.seed = update.seed
        if update.steps is not None:
            state.steps = update.steps
        if update.prompt is not None:
            state.prompt, state.text, self._kv = update.prompt, None, None
        if not update.recache:
            return 0
        text = self._text(watch)
        passes = self._sampler.rebuild(state, text)
        watch.lap("cache")
        return passes

    def _text(self, watch: _Watch) -> KV:
        """Keys and values of the present prompt (and of none at all, where guidance is on)."""
        state, config, runner = self._state, self._config, self._runner
        if self._kv is None:
            if state.text is None:
                state.text = runner.encode_text(state.prompt, config.max_sequence_length)
            self._kv = runner.transformer.text_kv(state.text)
        if self._negative is None and config.guidance_scale > 1:
            nothing = runner.encode_text("", config.max_sequence_length)
            self._negative = runner.transformer.text_kv(nothing)
        watch.lap("text")
        return self._kv

    def _put(self, update: _Update) -> None:
        with self._wake:
            if self._closed:
                raise InputError("the session is closed")
            self._queue.append(update)


def check_prompt(prompt: str) -> None:
    """Raise `InputError` for a prompt that says nothing."""
    if not isinstance(prompt, str) or not prompt.strip():
        raise InputError("the prompt is empty; say in a sentence what to show")


def check_seed(seed: int) -> None:
    """Raise `InputError` for a seed that is no unsigned 64-bit number."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < SEED_LIMIT:
        raise InputError(f"seed is {seed!r}; wanted a whole number from 0 to {SEED_LIMIT - 1}")

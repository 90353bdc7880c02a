"""Makes one chunk of a stream: controls take hold, then text, passes, decoding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .layers.pixels import to_float
from .runners.watch import Watch
from .sampling.stream import fed_frames, given_chunk
from .sampling.windowed import Windowed

if TYPE_CHECKING:
    from torch import Tensor

    from .config import StreamConfig
    from .controls import Update
    from .native import Pace
    from .runners.loras import Loras
    from .runners.runner import Runner
    from .sampling.stream import StreamSampler, StreamState
    from .types import KV, Frames


class ChunkGenerator:
    """Generates a session's chunks, each from the state before it; one at a time.

    Beside the state it holds only what can be computed again: the prompt's keys and values.
    """

    def __init__(
        self, runner: Runner, config: StreamConfig, sampler: StreamSampler, loras: Loras | None
    ) -> None:
        self._runner = runner
        self._config = config
        self._sampler = sampler
        self._loras = loras
        self._maker = runner.maker(sampler)
        self._kv: tuple[Tensor, KV] | None = None
        self._negative: KV | None = None

    def generate(
        self,
        state: StreamState,
        updates: Sequence[Update],
        pushed: Frames | None,
        pace: Pace,
        watch: Watch,
        *,
        fed: bool,
    ) -> tuple[Frames, int]:
        """The next chunk's frames `[F, H, W, 3]` and the passes they took; `state` becomes what
        follows, but for the numbers of chunk and frame.

        `updates` take hold first, in order. A chunk of a session that is `fed` is made from frames
        that were `pushed`. `pace` says how many steps there is time for, and whether for a recache.
        `watch` is stopped when the frames have arrived.
        """
        passes = 0
        self.use_loras(state)
        dropped = any(update.reset or update.cut for update in updates)
        alone = bool(updates) or given_chunk(self._config, state) is not None
        alone = alone or not self._sampler.denoiser.in_place
        if state.pending is not None and alone and not dropped:
            passes += self._run(self._sampler.remember(state, self._text(state, watch)))
            watch.lap("cache")
        passes += self._apply(state, updates, watch, recache=pace.optional_work)
        text = self._text(state, watch)
        given = given_chunk(self._config, state)
        if given is not None:
            latents = given
        else:
            if pushed is not None:
                self._encode(state, pushed)
            latents = self._maker.latents(state, text, self._negative, pace.passes)
            passes += self._sampler.passes(state, pace.passes, self._negative)
            state.source = None
        self._sampler.keep(state, latents)
        watch.lap("dit")
        arriving, state.caches = self._maker.frames(latents, state.caches, watch)
        if not fed and given_chunk(self._config, state) is None:
            self._maker.ahead(state, text, self._negative, pace.passes)
        frames = arriving()
        watch.stop()
        return frames, passes

    def use_loras(self, state: StreamState) -> None:
        """See that the DiT's weights are those that `state` wants."""
        if self._loras is not None and self._loras.use(state.loras):
            self._kv = self._negative = None

    def rebuild(self, state: StreamState) -> None:
        """Compute the caches again from the latents that `state` keeps."""
        assert state.recent is not None
        self._sampler.rebuild(state, self._text(state, Watch(self._runner.device)))
        latents = state.recent[:, : self._sampler.channels]
        _, state.caches = self._runner.decode(latents)

    def _apply(
        self, state: StreamState, updates: Sequence[Update], watch: Watch, *, recache: bool
    ) -> int:
        """Let controls take hold, in order, with or without a recache; gives the passes taken."""
        passes = 0
        for i, update in enumerate(updates):
            if update.reset:
                state.restart()
            if update.cut:
                self._cut(state, update.image)
            if update.seed is not None:
                state.seed = update.seed
            if update.steps is not None:
                state.steps = update.steps
            if update.strength is not None:
                state.strength = update.strength
            if update.loras is not None:
                state.loras = update.loras
                self.use_loras(state)
            if update.control is not None:
                self._sampler.lead(state, update.control)
            if update.prompt is not None:
                state.prompt, state.text = update.prompt, None
            # A later recache or reset would undo this one.
            undone = any(u.recache or u.reset or u.cut for u in updates[i + 1 :])
            if recache and update.recache and not undone:
                passes += self._run(self._sampler.rebuild(state, self._text(state, watch)))
                watch.lap("cache")
        return passes

    def _run(self, caching: int) -> int:
        """How many of the cache passes taken are forwards: windows keep latents, and run none."""
        return 0 if isinstance(self._sampler.denoiser, Windowed) else caching

    def _cut(self, state: StreamState, image: Frames | None) -> None:
        """Begin anew, with noise that has not been used."""
        state.noise_offset += state.chunk
        state.restart()
        state.given = None if image is None else self._runner.encode(to_float(image[None]))[0]

    def _encode(self, state: StreamState, pushed: Frames) -> None:
        """Make of frames the latents that the next chunk starts from. A reset since they were taken
        may leave some over: the newest count."""
        wanted = fed_frames(self._config, state, self._runner.vae.temporal_factor)
        frames = to_float(pushed[-wanted:])
        state.source, state.encoder = self._runner.encode(frames, state.encoder)

    def _text(self, state: StreamState, watch: Watch) -> KV:
        """Keys and values of the present prompt (and of none at all, where guidance is on)."""
        config, runner = self._config, self._runner
        if state.text is None:
            state.text = runner.encode_text(state.prompt, config.max_sequence_length)
        if self._kv is None or self._kv[0] is not state.text:
            self._kv = state.text, runner.transformer.text_kv(state.text)
        if self._negative is None and config.guidance_scale > 1:
            nothing = runner.encode_text("", config.max_sequence_length)
            self._negative = runner.transformer.text_kv(nothing)
        watch.lap("text")
        return self._kv[1]

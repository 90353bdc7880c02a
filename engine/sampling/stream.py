"""The streaming loop's step: from a stream's state to the clean latents of its next chunk.

Each chunk is denoised against the KV ring; one more pass over the clean result writes its keys and
values into the ring (Self-Forcing, Huang et al. 2025, arXiv 2506.08009). That pass is left open
until the next chunk is wanted, so that frames need not wait for it.

A step that fails, for want of memory say, has no effect if it was taken on a shallow copy of the
state: tensors are replaced, never changed, but for slots of the ring that the original does not
read.

Shapes: C channels, T latent frames, H W latent space, L text tokens, D text width; batch 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import schedule
from .chunk import cache_chunk, chunk_flow, denoise_chunk, past_of
from .noise import normal
from .solvers import SOLVERS, Solver
from .window import KVRing, WindowLayout

if TYPE_CHECKING:
    from ..config import StreamConfig
    from ..types import KV, CausalDenoiser, Past


@dataclass
class StreamState:
    """Everything that the next chunk depends on.

    `chunk` and `latent` count chunks and latent frames since the stream began or was reset; `index`
    and `pts` number the next chunk and its first frame for the viewer and never go back. `pending`
    are the clean latents of the chunk just made, whose keys and values are not in the ring yet.
    `recent` are the newest clean latents (normalized, `[1, C, T, H, W]`; the window's, and as many
    as a decoder needs to warm up) and `sinks` the first ones; `picture` is the latent frame of the
    image that the stream starts from, if any. `text` is the prompt's embedding `[1, L, D]`.
    """

    prompt: str
    seed: int
    steps: int
    width: int
    height: int
    noise_offset: int = 0
    chunk: int = 0
    latent: int = 0
    index: int = 0
    pts: int = 0
    text: Tensor | None = None
    pending: Tensor | None = None
    ring: KVRing | None = None
    caches: tuple[Tensor, ...] | None = None
    recent: Tensor | None = None
    sinks: Tensor | None = None
    picture: Tensor | None = None

    def restart(self) -> None:
        """Back to the first frame of the same prompt and seed; numbering for the viewer goes on."""
        self.chunk = self.latent = 0
        self.pending = self.ring = self.caches = self.recent = self.sinks = None


def first_size(config: StreamConfig, picture: Tensor | None) -> int:
    """Latent frames of a stream's first chunk, which may be a picture that was given."""
    return config.first_chunk_latents if picture is None else 1


@dataclass(frozen=True)
class StreamSampler:
    """Makes a stream's latents; all that changes is in the `StreamState` it is given.

    `size` is the latent's height and width, `dtype` what the denoiser is given. `warm_up` is how
    many of the newest clean latents a decoder needs to start anew from.
    """

    denoiser: CausalDenoiser
    config: StreamConfig
    channels: int
    size: tuple[int, int]
    device: torch.device
    dtype: torch.dtype
    warm_up: int

    @property
    def recent(self) -> int:
        """Clean latent frames that a state keeps, at the most, beside its sinks."""
        return max(self.config.window, self.warm_up)

    @property
    def layout(self) -> WindowLayout:
        """Of the ring."""
        config = self.config
        return WindowLayout(config.sinks, config.window, config.chunk_latents)

    def passes(self, state: StreamState, negative: KV | None) -> int:
        """Forwards of the DiT that `sample` takes."""
        return state.steps * (1 if negative is None else 2)

    def sample(self, state: StreamState, text: KV, negative: KV | None) -> Tensor:
        """Clean latents `[1, C, T, H, W]`, normalized, fp32, of the chunk after those in the ring.

        `negative` are the keys and values of the prompt that guidance moves away from, or None.
        """
        shape = (1, self.channels, self.config.chunk_size(state.chunk), *self.size)
        chunk = state.noise_offset + state.chunk

        def noise(step: int) -> Tensor:
            return normal(state.seed, chunk, step, shape).to(self.device)

        flow = chunk_flow(
            self.denoiser,
            text=text,
            negative=negative,
            past=self._past(state, self.layout.visible(state.latent)),
            scale=self.config.guidance_scale,
        )
        return denoise_chunk(flow, noise=noise, solver=self._solver(state.steps), dtype=self.dtype)

    def keep(self, state: StreamState, latents: Tensor) -> None:
        """Take a chunk's clean latents into the state, its cache pass still to be run."""
        recent = latents if state.recent is None else torch.cat([state.recent, latents], dim=2)
        state.recent = recent[:, :, -self.recent :].clone()
        room = self.config.sinks - (0 if state.sinks is None else state.sinks.shape[2])
        if room > 0:
            new = latents[:, :, :room]
            state.sinks = new if state.sinks is None else torch.cat([state.sinks, new], dim=2)
        state.pending = latents
        state.chunk += 1

    def remember(self, state: StreamState, text: KV) -> int:
        """Run the cache pass left open by the chunk before, if any; gives the passes taken."""
        if state.pending is None:
            return 0
        self._write(state, state.pending, state.latent, self.layout.visible(state.latent), text)
        state.latent += state.pending.shape[2]
        state.pending = None
        return 1

    def rebuild(self, state: StreamState, text: KV) -> int:
        """Compute the ring anew from the clean latents kept, under `text`; gives the passes taken.

        For a prompt's change with recache (LongLive, arXiv 2509.22622) and for light snapshots.
        Chunks are those that the latents were made in, and attend only to what has been rebuilt
        before them. There must be no open pass.
        """
        state.ring = None
        if state.recent is None:
            return 0
        window = state.recent[:, :, -self.config.window :]
        start = state.latent - window.shape[2]
        runs = [(start, window)]
        if state.sinks is not None and start > 0:
            runs.insert(0, (0, state.sinks[:, :, :start]))
        known: set[int] = set()
        passes = 0
        for first, latents in runs:
            for part in self._cut(latents, first, first_size(self.config, state.picture)):
                visible = [frame for frame in self.layout.visible(first) if frame in known]
                self._write(state, part, first, visible, text)
                known.update(range(first, first + part.shape[2]))
                first += part.shape[2]
                passes += 1
        return passes

    @property
    def ring_shape(self) -> tuple[int, ...]:
        """`[layers, S, n, h, d]` of the ring's keys and of its values."""
        layers, *rest = self.denoiser.kv_shape(*self.size)
        return (layers, self.layout.slots, *rest)

    def _write(
        self, state: StreamState, latents: Tensor, first: int, visible: list[int], text: KV
    ) -> None:
        kv = cache_chunk(
            self.denoiser,
            latents,
            text=text,
            past=self._past(state, visible),
            context_noise=self.config.context_noise,
            dtype=self.dtype,
        )
        if state.ring is None:
            state.ring = KVRing.empty(
                self.layout, self.ring_shape, device=self.device, dtype=self.dtype
            )
        state.ring.write(first, kv)

    def _cut(self, latents: Tensor, first: int, lead: int) -> Sequence[Tensor]:
        """Latent frames from number `first` on, cut where a stream's chunks meet after `lead`."""
        chunk = self.config.chunk_latents
        room = lead - first if first < lead else chunk - (first - lead) % chunk
        if latents.shape[2] <= room:
            return [latents]
        return [latents[:, :, :room], *torch.split(latents[:, :, room:], chunk, dim=2)]

    def _past(self, state: StreamState, visible: list[int]) -> Past | None:
        return past_of(self.denoiser, state.ring, visible, *self.size)

    def _solver(self, steps: int) -> Solver:
        timesteps = schedule.subset(self.config.timesteps, steps)
        return SOLVERS[self.config.solver](schedule.from_timesteps(timesteps))

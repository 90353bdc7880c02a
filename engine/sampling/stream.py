"""The streaming loop's step: from a stream's state to the clean latents of its next chunk.

Each chunk is denoised against the KV ring; one more pass over the clean result writes its keys and
values into the ring (Self-Forcing, Huang et al. 2025, arXiv 2506.08009). That pass is left open
until the next chunk is wanted, so that frames need not wait for it, and where the denoiser works in
the ring itself, it is one pass with the next chunk's first.

A step that fails, for want of memory say, has no effect if it was taken on a shallow copy of the
state: tensors are replaced, never changed, but for slots of the ring that the original does not
read.

Shapes: C channels, T latent frames, H W latent space, L text tokens, D text width; batch 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..transfer import to_device
from ..types import Place
from . import goal, schedule, track
from .chunk import ChunkPlan, Open
from .named import stream_solver
from .noise import normal
from .solvers import Solver
from .window import KVRing, window_of

if TYPE_CHECKING:
    from ..config import StreamConfig
    from ..native import Window
    from ..types import KV, Pass, StreamDenoiser


@dataclass
class StreamState:
    """Everything that the next chunk depends on.

    `chunk` and `latent` count chunks and latent frames since the stream began or was reset; `index`
    and `pts` number the next chunk and its first frame for the viewer and never go back. `pending`
    are the clean latents of the chunk just made, whose keys and values are not in the ring yet.
    `recent` are the newest clean latents (normalized, `[1, C, T, H, W]`; the window's, and as many
    as a decoder needs to warm up), `sinks` the first ones and `anchors` those of the anchors older
    than the window; `given` are the latents of the picture or clip that the stream starts from, if
    any. `encoder` are the conv caches of the encoder that a stream fed with frames has, and
    `source` the latents of the frames that the next chunk is made from, by the last `strength` of
    its steps. `loras` are the strengths of those that change the DiT. `text` is the prompt's
    embedding `[1, L, D]`.

    `track` `[F, 2]` on the host is where the object shall be, if that is told; row `track_at`, or
    the last, is for the next chunk's first frame, and the one before it was the frame's before (NaN
    where nothing was told). `goal` is the latent `[1, C, 1, H, W]` of a picture to arrive at,
    `goal_ahead` how many frames after the next chunk's first one. Clean latents (but for `given`
    and `goal`) have behind their own channels those that the DiT was told as they were made.
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
    anchors: Tensor | None = None
    given: Tensor | None = None
    encoder: tuple[Tensor, ...] | None = None
    source: Tensor | None = None
    strength: float = 1.0
    loras: Mapping[str, float] = field(default_factory=dict)
    track: Tensor | None = None
    track_at: int = 0
    goal: Tensor | None = None
    goal_ahead: int = 0

    def passed(self, frames: int) -> None:
        """Count frames, fewer than none where some are not to be shown after all, of which the DiT
        was told."""
        self.track_at += frames
        self.goal_ahead -= frames

    def restart(self) -> None:
        """Back to the first frame of the same prompt and seed; numbering for the viewer goes on."""
        self.chunk = self.latent = 0
        self.pending = self.ring = self.caches = self.encoder = None
        self.recent = self.sinks = self.anchors = None


def first_size(config: StreamConfig, given: Tensor | None) -> int:
    """Latent frames of a stream's first chunk. Of latents that were given it is as many as leave
    whole chunks."""
    if given is None:
        return config.first_chunk_latents
    return (given.shape[2] - 1) % config.chunk_latents + 1


def given_chunk(config: StreamConfig, state: StreamState) -> Tensor | None:
    """The next chunk's latents, where these were given."""
    if state.given is None:
        return None
    cuts = range(first_size(config, state.given), state.given.shape[2], config.chunk_latents)
    if state.chunk > len(cuts):
        return None
    return state.given.tensor_split(list(cuts), dim=2)[state.chunk]


def fed_frames(config: StreamConfig, state: StreamState, factor: int) -> int:
    """Frames, of which `factor` make a latent frame, that the next chunk of a fed stream takes: the
    first ones that its encoder sees begin with one that stands alone."""
    alone = factor - 1 if state.encoder is None else 0
    return factor * config.chunk_size(state.chunk) - alone


@dataclass(frozen=True)
class StreamSampler:
    """Makes a stream's latents; all that changes is in the `StreamState` it is given.

    `size` is the latent's height and width, `dtype` what the denoiser is given. `warm_up` is how
    many of the newest clean latents a decoder needs to start anew from.
    """

    denoiser: StreamDenoiser
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
    def kept_channels(self) -> int:
        """Channels of the clean latents that a state keeps, with what the DiT was told."""
        return self.channels + self.config.told_channels

    @cached_property
    def layout(self) -> Window:
        """What a chunk sees."""
        return window_of(self.config)

    @cached_property
    def ring_layout(self) -> Window:
        """The ring's slots. Passes that write into the ring leave what the chunk before has seen in
        place, as a pass over both must."""
        spare = self.config.chunk_latents if self.denoiser.in_place else 0
        return window_of(self.config, spare=spare)

    def old_anchors(self, total: int) -> list[int]:
        """Anchors older than the window once there are `total` latent frames: the state has the
        clean latents of these."""
        return self.layout.anchors_before(max(0, total - self.config.window))

    @staticmethod
    def passes(state: StreamState, steps: int, negative: KV | None) -> int:
        """Forwards of the DiT that `sample` takes."""
        left = steps if state.source is None else schedule.steps_left(steps, state.strength)
        return left * (1 if negative is None else 2)

    def sample(
        self, state: StreamState, text: KV, negative: KV | None, steps: int | None = None
    ) -> Tensor:
        """Clean latents `[1, C, T, H, W]`, normalized, fp32, of the chunk after those in the ring.

        `negative` are the keys and values of the prompt that guidance moves away from, or None. A
        cache pass left open, which only a denoiser that works in place may leave to this, is run
        together with the first pass. `steps` are the state's unless given.
        """
        plan = self.plan(state, text, negative, steps)
        self.close(state)
        return plan.rest(plan.first())

    def plan(
        self, state: StreamState, text: KV, negative: KV | None, steps: int | None = None
    ) -> ChunkPlan:
        """What `sample` computes from, made ready on the device."""
        steps = state.steps if steps is None else steps
        count = self.config.chunk_size(state.chunk)
        shape = (1, self.channels, count, *self.size)
        chunk = state.noise_offset + state.chunk
        solver = self._solver(steps, 1.0 if state.source is None else state.strength)
        taken = [True, *(solver.takes_noise(i) for i in range(len(solver.schedule)))]
        noise = tuple(
            to_device(normal(state.seed, chunk, step, shape), self.device) if needed else None
            for step, needed in enumerate(taken)
        )
        if state.source is not None and noise[0] is not None:
            noise = (solver.schedule.noised(state.source, noise[0]), *noise[1:])
        clean, latent = state.pending, state.latent
        place = self._place(latent + (0 if clean is None else clean.shape[2]), count)
        joined = None
        if clean is not None:
            both = self._at(state, self._place(latent, clean.shape[2]), place)
            joined = Open(both, clean, self.config.context_noise)
        return ChunkPlan(
            passes=self._at(state, place),
            text=text,
            negative=negative,
            scale=self.config.guidance_scale,
            noise=noise,
            solver=solver,
            dtype=self.dtype,
            open=joined,
            told=self._told(state, count),
        )

    @staticmethod
    def close(state: StreamState) -> None:
        """Count the chunk whose cache pass was open as being in the ring."""
        if state.pending is not None:
            state.latent += state.pending.shape[2]
            state.pending = None

    def lead(self, state: StreamState, path: Tensor) -> None:
        """Have the next chunk and those after it follow another track `path` `[F, 2]`: none where
        that is empty, and a way within one chunk to a single position."""
        held = torch.full((2,), math.nan, dtype=torch.float64)
        if state.track is not None:
            held = state.track[min(state.track_at, len(state.track)) - 1]
        if len(path) == 1:
            frames = self._frames(state, self.config.chunk_size(state.chunk))
            path = track.glide(held, path[0], frames, wraps=self.config.control_wraps)
        state.track = torch.cat([held.unsqueeze(0), path]) if len(path) else None
        state.track_at = 1

    def keep(self, state: StreamState, latents: Tensor) -> None:
        """Take a chunk's clean latents into the state, its cache pass still to be run."""
        count = latents.shape[2]
        told = self._told(state, count)
        if told is not None:
            latents = torch.cat([latents, told.to(latents)], dim=1)
            state.passed(self._frames(state, count))
        recent = latents if state.recent is None else torch.cat([state.recent, latents], dim=2)
        total = state.latent + latents.shape[2]
        if anchors := self.old_anchors(total):
            kept = self.old_anchors(state.latent)
            offset = recent.shape[2] - total
            left = recent[:, :, [frame + offset for frame in anchors if frame not in kept]]
            both = left if state.anchors is None else torch.cat([state.anchors, left], dim=2)
            state.anchors = both[:, :, -len(anchors) :].clone()
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
        self._write(state, state.pending, self._place(state.latent, state.pending.shape[2]), text)
        self.close(state)
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
        start = max(0, state.latent - self.config.window)
        frames = [*self.old_anchors(state.latent), *range(start, state.latent)]
        parts = [state.recent[:, :, start - state.latent :]]
        if state.anchors is not None:
            parts.insert(0, state.anchors)
        if state.sinks is not None and start > 0:
            first_ones = state.sinks[:, :, :start]
            frames = [*range(first_ones.shape[2]), *frames]
            parts.insert(0, first_ones)
        cuts = self._cuts(frames, first_size(self.config, state.given))
        known: set[int] = set()
        for at, part in zip([0, *cuts], torch.cat(parts, dim=2).tensor_split(cuts, 2), strict=True):
            visible = self.layout.visible(frames[at])
            seen = tuple(frame for frame in visible if frame in known)
            self._write(state, part, Place(frames[at], part.shape[2], seen), text)
            known.update(frames[at : at + part.shape[2]])
        return len(cuts) + 1

    @property
    def ring_shape(self) -> tuple[int, ...]:
        """`[layers, S, n, h, d]` of the ring's keys and of its values."""
        layers, *rest = self.denoiser.kv_shape(*self.size)
        return (layers, self.ring_layout.slots, *rest)

    def _write(self, state: StreamState, latents: Tensor, place: Place, text: KV) -> None:
        timestep = torch.full((1,), self.config.context_noise, device=latents.device)
        self._at(state, place).cache(latents.to(self.dtype), timestep, text)

    def _place(self, first: int, count: int) -> Place:
        return Place(first, count, tuple(self.layout.visible(first)))

    def _told(self, state: StreamState, count: int) -> Tensor | None:
        """What the DiT is told of the state's next chunk, of `count` latent frames, behind its
        latents: `[1, told_channels, T, H, W]`, control and goal; of a goal nothing while a track
        leads."""
        config = self.config
        if not config.told_channels:
            return None
        control, arrival = (
            torch.zeros(1, channels, count, *self.size, device=self.device)
            for channels in (config.control_channels, config.goal_channels)
        )
        if state.track is not None and config.control_channels:
            maps = track.draw(
                state.track[min(state.track_at, len(state.track) - 1) :], count, self.size,
                self._factor, first=state.chunk == 0, wraps=config.control_wraps,
            )  # fmt: skip
            control = to_device(maps, self.device)
        elif state.goal is not None and config.goal_channels:
            frames = self._frames(state, count)
            shares = goal.shares(frames, state.goal_ahead, first=state.chunk == 0)
            arrival = goal.draw(state.goal, to_device(shares, self.device), self._factor)
        return torch.cat([control, arrival.to(control)], dim=1)

    @property
    def _factor(self) -> int:
        """Frames of a latent frame, of a model that is told of frames."""
        config = self.config
        return config.control_channels or goal.factor_of(config.goal_channels, self.channels)

    def _frames(self, state: StreamState, count: int) -> int:
        """Frames of the state's next chunk, of `count` latent frames."""
        return track.frames_of(count, self._factor, first=state.chunk == 0)

    def _at(self, state: StreamState, *places: Place) -> Pass:
        if state.ring is None:
            state.ring = KVRing.empty(
                self.ring_layout, self.ring_shape, device=self.device, dtype=self.dtype
            )
        return self.denoiser.at(places, state.ring, *self.size)

    def _cuts(self, frames: Sequence[int], lead: int) -> list[int]:
        """Where in a list of latent frames there is a gap, or one of a stream's chunks begins of
        which the first has `lead` frames."""
        chunk = self.config.chunk_latents
        return [
            i
            for i in range(1, len(frames))
            if frames[i] != frames[i - 1] + 1
            or (frames[i] >= lead and (frames[i] - lead) % chunk == 0)
        ]

    def _solver(self, steps: int, strength: float) -> Solver:
        timesteps = schedule.subset(self.config.timesteps, steps)
        config = self.config
        return stream_solver(config.solver, timesteps, shift=config.shift, strength=strength)

"""A stream on several ranks: chunks flow from those that denoise to the one that decodes.

Each rank iterates over a session of its own, opened by the same call; controls must be the same,
too. None may keep pace, which goes by the clock, and none can be restored from a snapshot: each
has a part of the state alone. The ranks' sessions make the same chunks, but only rank 0's have
pictures; those of others are black.

Which work can go side by side, with the frames of one rank, is up to what a chunk depends on. Its
first pass sees the keys and values of the chunk before, made of its clean latents: that one's last
step must be over. So the steps of one stream come one by one on however many ranks, and a stage for
each step (as in StreamDiffusionV2) is for models whose chunks see others while these are noisy
still, or for several streams at once, for which a rank for each stream does as well. The cache pass
could run on a rank of its own, one layer ahead of the next chunk's first pass; on a GPU these two
are one pass as it is. What does not depend on one another is

- a chunk's decoding and all passes of later ones, since no pass looks at frames;
- the pass for the prompt and the one for the negative prompt, where the stream is guided.

With guidance two ranks denoise; rank 0 decodes, and is one of the two if there are no more. Those
who denoise are one chunk ahead: they hand it over when rank 0 is through with the one before.
Further ranks decode along with rank 0, a band of the picture each. Without bands the result is
bitwise that of one rank with as many threads; with them it is equal to 1e-5 before rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..runners.makers import Maker
from ..runners.torch import TorchRunner
from .banded import banded, can_band
from .group import Group
from .guidance import GuidedPass

if TYPE_CHECKING:
    from ..config import StreamConfig
    from ..layers.causal_conv import ConvCaches
    from ..runners.runner import Runner
    from ..runners.watch import Watch
    from ..sampling.stream import StreamSampler, StreamState
    from ..types import KV, Frames, Place, Ring


class PipelineRunner:
    """A `Runner` whose streams are made by all ranks of a group; all else is as in `runner`."""

    def __init__(self, runner: Runner, group: Group) -> None:
        self._runner, self._group = runner, group

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def sampler(self, config: StreamConfig, width: int, height: int) -> StreamSampler:
        """See `Runner`. Raises `InputError` for more ranks than have something to do."""
        sampler = self._runner.sampler(config, width, height)
        if self._group.rank in self._roles(config)[0]:
            return sampler
        return replace(sampler, denoiser=_Elsewhere())

    def maker(self, sampler: StreamSampler) -> Maker:
        """See `Runner`."""
        return PipelineMaker(self._runner, sampler, self._group, *self._roles(sampler.config))

    def _roles(self, config: StreamConfig) -> tuple[Sequence[int], Sequence[int]]:
        """The ranks that denoise, and those that decode."""
        guided = config.guidance_scale > 1 and not self._runner.denoiser.in_place
        size, most = self._group.size, 3 if guided else 2
        if size == 1 or (guided and size == 2):
            return range(size), (0,)
        if size > most and not can_band(self._runner.vae):
            raise InputError(f"a stream of this model is made on at most {most} devices")
        return range(1, most), (0, *range(most, size))


class PipelineMaker(Maker):
    """One rank's part of each chunk."""

    def __init__(
        self, runner: Runner, sampler: StreamSampler, group: Group, denoising: Sequence[int],
        decoding: Sequence[int],
    ) -> None:  # fmt: skip
        super().__init__(runner, sampler)
        self._alone = self._decoder = runner.maker(sampler)
        self._group, self._denoising, self._decoding = group, denoising, decoding
        bands = group.part(*decoding)
        if bands is not None and bands.size > 1:
            assert isinstance(runner, TorchRunner)  # graphs of packages decode whole pictures
            self._decoder = Maker(replace(runner, vae=banded(runner.vae, bands)), sampler)

    def latents(self, state: StreamState, text: KV, negative: KV | None, steps: int) -> Tensor:
        """Denoise, alone or with another rank, and hand on; or take what was handed on."""
        rank, first = self._group.rank, self._denoising[0]
        if rank not in self._denoising:
            self._sampler.close(state)
            count = self._sampler.config.chunk_size(state.chunk)
            shape = (1, self._sampler.channels, count, *self._sampler.size)
            latents = torch.empty(shape, device=self._sampler.device)
            self._group.exchange({}, {first: latents}).wait()
            return latents
        pair = self._group.part(*self._denoising)
        if negative is not None and pair is not None and pair.size == 2:
            plan = self._sampler.plan(state, text, negative, steps)
            self._sampler.close(state)
            passes = GuidedPass(plan.passes, negative, plan.scale, pair)
            plan = replace(plan, passes=passes, negative=None)
            latents = plan.rest(plan.first())
        else:
            latents = self._alone.latents(state, text, negative, steps)
        latents = latents.contiguous()
        if rank == first:
            others = [place for place in self._decoding if place not in self._denoising]
            self._group.exchange(dict.fromkeys(others, latents), {}).wait()
        return latents

    def frames(
        self, latents: Tensor, caches: ConvCaches | None, watch: Watch
    ) -> tuple[Callable[[], Frames], ConvCaches]:
        """Decode, alone or a band; ranks that denoise have black frames, as many."""
        if self._group.rank in self._decoding:
            return self._decoder.frames(latents, caches, watch)
        vae = self._runner.vae
        count = vae.temporal_factor * latents.shape[2]
        count -= vae.temporal_factor - 1 if caches is None else 0
        height, width = (side * vae.spatial_factor for side in latents.shape[3:])
        black = np.zeros((count, height, width, 3), np.uint8)
        return lambda: black, ()


@dataclass(frozen=True)
class _Elsewhere:
    """Stands for the denoiser on a rank that does not denoise: it keeps no past."""

    in_place: ClassVar[bool] = False

    def kv_shape(self, height: int, width: int) -> tuple[int, int, int, int]:
        return 0, 0, 0, 0

    def text_kv(self, text: Tensor) -> KV:
        return []

    def at(self, places: Sequence[Place], ring: Ring, height: int, width: int) -> _Nothing:
        return _Nothing()


class _Nothing:
    """The passes of a chunk that is denoised elsewhere: none is run but to be cached."""

    def flow(self, latents: Tensor, timestep: Tensor, text: KV) -> Tensor:
        return torch.zeros_like(latents)

    def cache(self, latents: Tensor, timestep: Tensor, text: KV) -> None:
        pass

"""One chunk of a stream: from noise to clean latents against the KV ring.

Self-Forcing (Huang et al. 2025, arXiv 2506.08009), section 3.3. Everything comes as an argument;
the loops over chunks and controls are the session's.

Shapes: C channels, T latent frames, H W latent space; batch 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .guidance import guide

if TYPE_CHECKING:
    from ..types import KV, Pass
    from .solvers import Solver


@dataclass(frozen=True)
class Open:
    """A cache pass to be run with the next chunk's first: `both` chunks' places, the `clean`
    latents of the one before, and the time that they are cached at."""

    both: Pass
    clean: Tensor
    time: float


@dataclass(frozen=True)
class ChunkPlan:
    """All that a chunk's latents are computed from: nothing more is asked of the host.

    `noise[0]` is the start and `noise[i + 1]` what step i mixes in, where the solver asks for it.
    `passes` are the chunk's; they are given latents of `dtype`, and what they are `told`, if
    anything, as channels behind them. With `negative`, flow is guided away from it by `scale`.
    """

    passes: Pass
    text: KV
    negative: KV | None
    scale: float
    noise: tuple[Tensor | None, ...]
    solver: Solver
    dtype: torch.dtype
    open: Open | None = None
    told: Tensor | None = None

    def first(self) -> Tensor:
        """The first step's flow. The cache pass left open, if there is one, is in it."""
        if self.open is None:
            return self._flow(self._start, 0)
        x = self._with_told(self._start)
        clean = self.open.clean.to(self.dtype)
        lead, own, time = clean.shape[2], x.shape[2], self._time(0, x)
        times = torch.cat([time.new_full((lead,), self.open.time), time.expand(own)]).unsqueeze(0)
        flow = self.open.both.flow(torch.cat([clean, x], dim=2), times, self.text)[:, :, lead:]
        return self._guided(flow, x, 0)

    def rest(self, flow: Tensor) -> Tensor:
        """Clean latents `[1, C, T, H, W]`, fp32, from the first step's flow on."""
        x, state = self._start, None
        for i in range(len(self.solver.schedule.timesteps)):
            if i > 0:
                flow = self._flow(x, i)
            x, state = self.solver.step(flow, x, i, state, self.noise[i + 1])
        return x

    @property
    def _start(self) -> Tensor:
        assert self.noise[0] is not None
        return self.noise[0]

    def _with_told(self, x: Tensor) -> Tensor:
        """What passes are given of latents."""
        x = x.to(self.dtype)
        return x if self.told is None else torch.cat([x, self.told.to(self.dtype)], dim=1)

    def _flow(self, latents: Tensor, i: int) -> Tensor:
        x = self._with_told(latents)
        return self._guided(self.passes.flow(x, self._time(i, x), self.text), x, i)

    def _guided(self, positive: Tensor, x: Tensor, i: int) -> Tensor:
        if self.negative is None:
            return positive.float()
        negative = self.passes.flow(x, self._time(i, x), self.negative).float()
        return guide(positive.float(), negative, self.scale)

    def _time(self, i: int, like: Tensor) -> Tensor:
        t = self.solver.schedule.timesteps[i]
        return torch.full((1,), t, dtype=torch.float32, device=like.device)

"""One chunk of a stream: from noise to clean latents against the KV ring.

Self-Forcing (Huang et al. 2025, arXiv 2506.08009), section 3.3. Everything comes as an argument;
the loops over chunks and controls are the session's.

Shapes: C channels, T latent frames, H W latent space; batch 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .guidance import guide

if TYPE_CHECKING:
    from ..types import KV, Pass
    from .solvers import Solver


@dataclass(frozen=True)
class ChunkFlow:
    """Flow as a function of (latents, timestep), guided away from `negative` unless it is None."""

    chunk: Pass
    text: KV
    negative: KV | None
    scale: float

    def __call__(self, x: Tensor, timestep: Tensor) -> Tensor:
        """Flow of the chunk at `x`."""
        return self._guided(self.chunk.flow(x, timestep, self.text), x, timestep)

    def joined(
        self, both: Pass, clean: Tensor, context_noise: float, x: Tensor, timestep: Tensor
    ) -> Tensor:
        """The same, in one pass with the cache pass over `clean`, the latents of the chunk before;
        `both` are the two chunks' places."""
        lead, own = clean.shape[2], x.shape[2]
        times = torch.cat([timestep.new_full((lead,), context_noise), timestep.expand(own)])
        latents = torch.cat([clean.to(x.dtype), x], dim=2)
        flow = both.flow(latents, times.unsqueeze(0), self.text)[:, :, lead:]
        return self._guided(flow, x, timestep)

    def _guided(self, positive: Tensor, x: Tensor, timestep: Tensor) -> Tensor:
        if self.negative is None:
            return positive.float()
        negative = self.chunk.flow(x, timestep, self.negative).float()
        return guide(positive.float(), negative, self.scale)


def denoise_chunk(
    flow: Callable[[Tensor, Tensor], Tensor],
    *,
    noise: Callable[[int], Tensor],
    solver: Solver,
    dtype: torch.dtype,
    first: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Tensor:
    """Walk the solver's schedule down to clean latents `[1, C, T, H, W]`, fp32.

    `noise(0)` is the start and `noise(i + 1)` what step i mixes in, where the solver asks for it;
    `dtype` is what `flow` is given, or `first` in its place at the first step.
    """
    x, state = noise(0), None
    for i, t in enumerate(solver.schedule.timesteps):
        timestep = torch.full((1,), t, dtype=torch.float32, device=x.device)
        fresh = noise(i + 1) if solver.takes_noise(i) else None
        at = first if first is not None and i == 0 else flow
        x, state = solver.step(at(x.to(dtype), timestep), x, i, state, fresh)
    return x

"""One chunk of a stream: from noise to clean latents against the KV ring, and into the ring.

Self-Forcing (Huang et al. 2025, arXiv 2506.08009), section 3.3. Everything comes as an argument;
the loops over chunks and controls are the session's.

Shapes: C channels, T latent frames, H W latent space; batch 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..types import KV, CausalDenoiser, Past
from .guidance import guide

if TYPE_CHECKING:
    from .solvers import Solver
    from .window import KVRing


def past_of(
    denoiser: CausalDenoiser, ring: KVRing | None, frames: Sequence[int], height: int, width: int
) -> Past | None:
    """The ring's keys and values of these latent frames, made ready; None when there are none."""
    if ring is None or not frames:
        return None
    return denoiser.past(len(frames), height, width, ring.read(frames))


def chunk_flow(
    denoiser: CausalDenoiser, *, text: KV, negative: KV | None, past: Past | None, scale: float
) -> Callable[[Tensor, Tensor], Tensor]:
    """Flow as a function of (latents, timestep), guided away from `negative` when that is given."""

    def flow(x: Tensor, timestep: Tensor) -> Tensor:
        positive = denoiser.chunk(x, timestep, text, past)[0].float()
        if negative is None:
            return positive
        other = denoiser.chunk(x, timestep, negative, past)[0].float()
        return guide(positive, other, scale)

    return flow


def denoise_chunk(
    flow: Callable[[Tensor, Tensor], Tensor],
    *,
    noise: Callable[[int], Tensor],
    solver: Solver,
    dtype: torch.dtype,
) -> Tensor:
    """Walk the solver's schedule down to clean latents `[1, C, T, H, W]`, fp32.

    `noise(0)` is the start and `noise(i + 1)` what step i mixes in, where the solver asks for it;
    `dtype` is what `flow` is given.
    """
    x, state = noise(0), None
    for i, t in enumerate(solver.schedule.timesteps):
        timestep = torch.full((1,), t, dtype=torch.float32, device=x.device)
        fresh = noise(i + 1) if solver.takes_noise(i) else None
        x, state = solver.step(flow(x.to(dtype), timestep), x, i, state, fresh)
    return x


def cache_chunk(
    denoiser: CausalDenoiser,
    latents: Tensor,
    *,
    text: KV,
    past: Past | None,
    context_noise: float,
    dtype: torch.dtype,
) -> KV:
    """The pass over clean latents whose keys and values later chunks attend to."""
    timestep = torch.full((1,), context_noise, dtype=torch.float32, device=latents.device)
    return denoiser.chunk(latents.to(dtype), timestep, text, past)[1]

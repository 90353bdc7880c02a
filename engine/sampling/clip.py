"""The whole-clip loop: every latent frame of a clip denoised together, as the models were trained.

The streaming loop is its counterpart for causal models. Both know only the protocols.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from ..errors import InputError
from .guidance import NO_GUIDANCE, Guidance, guided_flow
from .solvers import Timetable

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..types import Denoiser
    from .solvers import Solver


S = TypeVar("S", bound=Timetable)


@torch.no_grad()
def sample_clip(
    denoiser: Denoiser,
    *,
    noise: Tensor | Callable[[int], Tensor],
    text: Tensor,
    negative_text: Tensor | None = None,
    schedule: S,
    solver: Callable[[S], Solver],
    guidance: Guidance | Callable[[float], Guidance] = NO_GUIDANCE,
    start: Tensor | None = None,
    callback: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Denoise a clip from noise; gives fp32 latents `[B, C, T, H, W]`, normalized as in training.

    `noise` is a tensor of the latents' shape, or a function of the step (0 is the start, i + 1 the
    noise that step i mixes in) for solvers that renoise. `text` and `negative_text` are
    `[B, L, D]` in the model's dtype, which the latents are cast to for each pass. `solver` is a
    class such as `UniPC`. `guidance` may be a function of the timestep. `start` are clean latents
    that the first noise level is reached from (SDEdit, Meng et al. 2021); without them it counts as
    noise alone. `callback(i, latents)` is called after step i; an exception that it
    raises ends the loop.
    """
    solve = solver(schedule)
    x = noise(0) if callable(noise) else noise
    x, state = x.to(torch.promote_types(x.dtype, torch.float32)), None
    if start is not None:
        x = schedule.noised(start.to(x), x)
    for i, t in enumerate(schedule.timesteps):
        timestep = torch.full((x.shape[0],), t, dtype=torch.float32, device=x.device)
        guided = guidance if isinstance(guidance, Guidance) else guidance(t)
        flow = guided_flow(denoiser, x.to(text.dtype), timestep, text, negative_text, guided)
        x, state = solve.step(flow, x, i, state, _fresh(noise, i + 1, solve.takes_noise(i)))
        if callback is not None:
            callback(i, x)
    return x


def _fresh(noise: Tensor | Callable[[int], Tensor], i: int, needed: bool) -> Tensor | None:
    if not needed:
        return None
    if not callable(noise):
        raise InputError("this solver draws noise at every step: pass it as a function of the step")
    return noise(i)

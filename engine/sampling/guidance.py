"""Classifier-free guidance (Ho and Salimans 2022): push the flow away from a negative prompt's."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..types import Denoiser


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """How strongly the prompt is followed, and how the two flows are computed.

    `scale` 1 or less turns guidance off, as in diffusers: one pass, no negative prompt. `batched`
    runs [prompt, negative] as one forward of twice the batch; otherwise two forwards, which need
    less memory. Both give the same flow.
    """

    scale: float = 1.0
    batched: bool = True

    @property
    def enabled(self) -> bool:
        """Whether a negative prompt takes part."""
        return self.scale > 1.0


NO_GUIDANCE = Guidance()


def guide(positive: Tensor, negative: Tensor, scale: float) -> Tensor:
    """Two flows of one shape to `negative + scale * (positive - negative)`."""
    return negative + scale * (positive - negative)


def guided_flow(
    denoiser: Denoiser,
    latents: Tensor,
    timestep: Tensor,
    text: Tensor,
    negative_text: Tensor | None = None,
    guidance: Guidance = NO_GUIDANCE,
) -> Tensor:
    """Flow at `latents`, by `guide`.

    Latents `[B, C, T, H, W]`, timestep `[B]` or `[B, T]`, both texts `[B, L, D]`; gives the shape
    of the latents. Raises `InputError` when guidance is on and `negative_text` is missing or of
    another shape than `text`.
    """
    if not guidance.enabled:
        return _flow(denoiser, latents, timestep, text)
    if negative_text is None or negative_text.shape != text.shape:
        got = "none" if negative_text is None else f"shape {tuple(negative_text.shape)}"
        raise InputError(
            f"guidance scale {guidance.scale} needs a negative text of shape {tuple(text.shape)}, "
            f"got {got}"
        )
    if guidance.batched:
        both = _flow(
            denoiser,
            torch.cat([latents, latents]),
            torch.cat([timestep, timestep]),
            torch.cat([text, negative_text]),
        )
        positive, negative = both.chunk(2)
    else:
        positive = _flow(denoiser, latents, timestep, text)
        negative = _flow(denoiser, latents, timestep, negative_text)
    return guide(positive, negative, guidance.scale)


def _flow(denoiser: Denoiser, latents: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
    flow: Tensor = denoiser(latents, timestep, text)
    return flow


def dynamic(scale: float, steps: int) -> Callable[[float], Guidance]:
    """The scale that CogVideoX is advised to be guided with, a function of the timestep on 0..999.

    `1 + scale (1 - cos(pi ((steps - t) / steps) ** 5)) / 2`, as its authors and diffusers reckon
    it: with the timestep and not the number of the step, so that it goes up and down.
    """

    def at(timestep: float) -> Guidance:
        turn = math.pi * ((steps - timestep) / steps) ** 5
        return Guidance(scale=1.0 + scale * (1.0 - math.cos(turn)) / 2.0)

    return at

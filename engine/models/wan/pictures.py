"""What Wan's image-to-video DiTs are told of the pictures that a clip begins and ends with.

Beside each noisy latent frame lie a mask, one channel for each pixel frame that it stands for, and
the latent of a clip that holds the pictures and is gray between them. Wan Team (2025), section 5.1;
arranged as in diffusers' `WanImageToVideoPipeline`.

Shapes: C channels, T latent frames, F pixel frames, H W pixels, h w latent pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from ...types import Encode

_PART = 2
"""Latent frames that are encoded together."""


def condition(
    encode: Encode, first: Tensor, last: Tensor | None, latents: int, factor: int
) -> Tensor:
    """Mask and latents `[1, factor + C, T, h, w]`, T = `latents`, fp32.

    `first` and `last` are frames `[1, 3, 1, H, W]` in [-1, 1]; `factor` frames make a latent frame,
    of which the first stands for one. `encode` gives normalized latents, part by part.
    """
    parts, caches = [], None
    for start in range(0, latents, _PART):
        count = min(_PART, latents - start) * factor - (factor - 1 if start == 0 else 0)
        frames = first.new_zeros(1, 3, count, *first.shape[3:])
        if start == 0:
            frames[:, :, :1] = first
        if last is not None and start + _PART >= latents:
            frames[:, :, -1:] = last
        part, caches = encode(frames, caches)
        parts.append(part)
    clip = torch.cat(parts, dim=2)
    mask = clip.new_zeros(1, factor, *clip.shape[2:])
    mask[:, :, 0] = 1.0
    if last is not None:
        mask[:, -1, -1] = 1.0
    return torch.cat([mask, clip], dim=1)

"""Denoisers of whole clips that are given more than noise and text, or are two.

Each is a `Denoiser` made of others, for the clip at hand. Shapes: B batch, C channels, T latent
frames, H W latent space, M tokens of pictures, D their width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from ..types import ImageDenoiser


@dataclass(frozen=True)
class Experts:
    """Two DiTs that share the work by noise level: from timestep `boundary` on up the one for
    `high` noise, below it the one for `low` (Wan 2.2 A14B)."""

    high: ImageDenoiser
    low: ImageDenoiser
    boundary: float

    def __call__(
        self, latents: Tensor, timestep: Tensor, text: Tensor, image: Tensor | None = None
    ) -> Tensor:
        """Flow by the one whose turn it is."""
        high = float(timestep.max()) >= self.boundary
        return (self.high if high else self.low)(latents, timestep, text, image)


@dataclass(frozen=True)
class Conditioned:
    """A DiT that takes `channels` `[1, Cc, T, H, W]` behind the latents' own, and tokens `image`
    `[1, M, D]`, where there are any (Wan's image to video)."""

    denoiser: ImageDenoiser
    channels: Tensor | None
    image: Tensor | None

    def __call__(self, latents: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        """Flow of the latents alone."""
        batch, image = len(latents), None
        if self.channels is not None:
            own = self.channels.to(latents.dtype).expand(batch, -1, -1, -1, -1)
            latents = torch.cat([latents, own], dim=1)
        if self.image is not None:
            image = self.image.expand(batch, -1, -1)
        return self.denoiser(latents, timestep, text, image)


@dataclass(frozen=True)
class CleanStart:
    """A DiT whose clip begins with known latents `first` `[1, C, t, H, W]`: they stand in place of
    the noisy ones, at timestep 0 (Wan 2.2 TI2V)."""

    denoiser: ImageDenoiser
    first: Tensor

    def __call__(self, latents: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        """Flow; that of the known frames means nothing."""
        known, count = self.first.shape[2], latents.shape[2]
        times = timestep.unsqueeze(1).repeat(1, count)
        times[:, :known] = 0.0
        return self.denoiser(self.put(latents), times, text)

    def put(self, latents: Tensor) -> Tensor:
        """Latents with the known ones in their place."""
        first = self.first.to(latents.dtype).expand(len(latents), -1, -1, -1, -1)
        return torch.cat([first, latents[:, :, first.shape[2] :]], dim=2)

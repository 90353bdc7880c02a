"""Streaming a DiT that was trained on whole clips alone: by windows of time that overlap.

What a chunk sees of the past are clean latents, put before its own noisy ones as if all were one
clip, and told that they are clean by a timestep of 0; what comes out for them is dropped. Each pass
computes them anew. What the KV ring keeps for them is the latents themselves.

Mixing noise levels in one clip is what diffusion forcing trains for (Chen et al. 2024, arXiv
2407.01392); that models without such training bear it is what FIFO-Diffusion rests on (Kim et al.
2024, arXiv 2405.11473).

Shapes: C channels, T latent frames, P past ones, H W latent space, L text tokens; batch 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from ..errors import InputError
from ..types import LayerKV

if TYPE_CHECKING:
    from torch import Tensor

    from ..types import KV, ClipTransformer, Place, Ring


@dataclass(frozen=True)
class WindowPass:
    """Passes of the chunk whose first latent frame is number `first`, behind `past`
    `[1, C, P, H, W]`, if there is any."""

    denoiser: ClipTransformer
    past: Tensor | None
    ring: Ring
    first: int

    def flow(self, latents: Tensor, timestep: Tensor, text: KV) -> Tensor:
        """The chunk's own part of what the denoiser predicts."""
        words = text[0].k.squeeze(2)
        if self.past is None:
            return self.denoiser(latents, timestep, words)
        seen = self.past.shape[2]
        times = timestep.reshape(1, -1).expand(1, latents.shape[2])
        times = torch.cat([times.new_zeros(1, seen), times], dim=1)
        both = torch.cat([self.past.to(latents.dtype), latents], dim=2)
        return self.denoiser(both, times, words)[:, :, seen:]

    def cache(self, latents: Tensor, timestep: Tensor, text: KV) -> None:
        """Put the chunk's clean latents into the ring; no forward is needed."""
        rows = latents.permute(0, 2, 3, 4, 1).flatten(1, 3).unsqueeze(2)
        self.ring.write(self.first, [LayerKV(rows, rows)])


@dataclass(frozen=True)
class Windowed:
    """A DiT of whole clips made to stream."""

    denoiser: ClipTransformer
    in_place: ClassVar[bool] = False

    def kv_shape(self, height: int, width: int) -> tuple[int, int, int, int]:
        """One layer, a row for each latent pixel."""
        channels = self.denoiser.channels + self.denoiser.condition_channels
        return 1, height * width, 1, channels

    def text_kv(self, text: Tensor) -> KV:
        """The text as it is."""
        return self.denoiser.text_kv(text)

    def at(self, places: Sequence[Place], ring: Ring, height: int, width: int) -> WindowPass:
        """Passes over one chunk.

        Where chunk and past together are not what patches in time divide, the oldest frames are
        left out. Raises `InputError` where the chunk itself is too short for that.
        """
        (place,) = places
        patch = self.denoiser.temporal_patch
        over = (len(place.seen) + place.count) % patch
        if over > len(place.seen):
            raise InputError(
                f"this model's chunks must be a multiple of {patch} latent frames, or have a past; "
                f"got {place.count}"
            )
        seen = place.seen[over:]
        past: Tensor | None = None
        if seen:
            rows = ring.read(seen)[0].k
            past = rows.reshape(1, len(seen), height, width, -1).permute(0, 4, 1, 2, 3)
        return WindowPass(self.denoiser, past, ring, place.first)

"""Streaming over a past that is gathered from the KV ring: plain torch, on every device.

Each chunk's past is copied out of the ring in the order of time and its keys are rotated by their
place there, so that positions are as small as the window however long the stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from torch import Tensor

    from ..types import KV, CausalDenoiser, Past, Place, Ring


@dataclass(frozen=True)
class GatheredPass:
    """Passes of the chunk whose first latent frame is number `first`."""

    denoiser: CausalDenoiser
    past: Past | None
    ring: Ring
    first: int

    def flow(self, latents: Tensor, timestep: Tensor, text: KV) -> Tensor:
        """The chunk's flow."""
        return self.denoiser.chunk(latents, timestep, text, self.past)[0]

    def cache(self, latents: Tensor, timestep: Tensor, text: KV) -> None:
        """Write the chunk's keys, not rotated, and values to the ring."""
        own = self.denoiser.keys_values(latents, timestep, text, self.past)
        self.ring.write(self.first, own)


@dataclass
class Gathered:
    """A causal DiT made to stream; another with the same weights may take its place."""

    denoiser: CausalDenoiser
    in_place: ClassVar[bool] = False

    def kv_shape(self, height: int, width: int) -> tuple[int, int, int, int]:
        """`[layers, n, h, d]` of one latent frame's keys."""
        return self.denoiser.kv_shape(height, width)

    def text_kv(self, text: Tensor) -> KV:
        """The text's keys and values."""
        return self.denoiser.text_kv(text)

    def at(self, places: Sequence[Place], ring: Ring, height: int, width: int) -> GatheredPass:
        """Passes over one chunk."""
        (place,) = places
        past: Past | None = None
        if place.seen:
            past = self.denoiser.past(len(place.seen), height, width, ring.read(place.seen))
        return GatheredPass(self.denoiser, past, ring, place.first)

"""The pass with the prompt and the one without it, at the same time on different ranks.

Shapes: B batch, C channels, T latent frames, H W latent space.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from ..sampling.guidance import guide
from .group import Group, shares
from .sequence import Ulysses

if TYPE_CHECKING:
    from torch import Tensor

    from ..layers.share import TokenShare
    from ..types import KV, Pass


class SharedDenoiser(Protocol):
    """A DiT of whole clips that can share its tokens out."""

    def __call__(
        self, latents: Tensor, timestep: Tensor, text: Tensor, image: Tensor | None = None, *,
        share: TokenShare | None = None,
    ) -> Tensor:  # fmt: skip
        """As `ImageDenoiser`, on all ranks of `share` alike."""


@dataclass(frozen=True)
class SpreadDenoiser:
    """An `ImageDenoiser` over the ranks of `group`, which call it with the same arguments and all
    get the result.

    First the batch is shared out, as far as the ranks divide it: guidance has two clips in it, and
    such ranks have nothing to say to one another before the pass is over. Those left to one clip
    share its tokens.
    """

    denoiser: SharedDenoiser
    group: Group

    def __call__(
        self, latents: Tensor, timestep: Tensor, text: Tensor, image: Tensor | None = None
    ) -> Tensor:
        """See `ImageDenoiser`."""
        batch, size, rank = len(latents), self.group.size, self.group.rank
        teams = math.gcd(batch, size)
        team, seat = divmod(rank, size // teams)
        first = team * (size // teams)
        own = slice(team * (batch // teams), (team + 1) * (batch // teams))
        among = self.group.part(*range(first, first + size // teams))
        across = self.group.part(*range(seat, size, size // teams))
        assert among is not None
        assert across is not None
        flow = self.denoiser(
            latents[own], timestep[own], text[own], None if image is None else image[own],
            share=Ulysses(among) if among.size > 1 else None,
        )  # fmt: skip
        return across.gather(flow, 0, shares(batch, teams)) if teams > 1 else flow


@dataclass(frozen=True)
class GuidedPass:
    """A `Pass` of two ranks: the first one's flow is for the prompt, the other's for `negative`,
    and what both get is guided by `scale`. Each caches for itself."""

    passes: Pass
    negative: KV
    scale: float
    group: Group

    def flow(self, latents: Tensor, timestep: Tensor, text: KV) -> Tensor:
        """Guided flow, fp32."""
        words = self.negative if self.group.rank else text
        flow = self.passes.flow(latents, timestep, words).float()
        positive, negative = self.group.gather(flow, 0, [1, 1]).split(1)
        return guide(positive, negative, self.scale)

    def cache(self, latents: Tensor, timestep: Tensor, text: KV) -> None:
        """See `Pass`."""
        self.passes.cache(latents, timestep, text)

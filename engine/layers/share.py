"""What a DiT needs to compute some of a frame's tokens while other ranks compute the others.

Tokens are shared out along a frame, the same ones of each, so that what goes by the frame, as times
and positions do, is cut like them or not at all.

Shapes: B batch, T latent frames, n tokens a frame, h heads, d head width.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from .attention import attention
from .rope import RopeTable


class Attend(Protocol):
    """A way to compute attention."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
        """As `layers.attention.attention`."""


PLAIN: Attend = attention
"""All tokens are here."""


class TokenShare(Protocol):
    """This rank's share of the tokens."""

    def own(self, x: Tensor, dim: int) -> Tensor:
        """Its part of `x`, whose `dim` counts a frame's tokens."""

    def whole(self, x: Tensor, dim: int, tokens: int) -> Tensor:
        """The inverse: the parts of all ranks, `tokens` in all, on each of them."""

    def attend(self, frames: int, tokens: int, text: int = 0) -> Attend:
        """Attention of own queries to the keys of all, for `frames` of `tokens` each, before which
        there are so many of `text`, that every rank has. It takes no bias."""


def own_rotations(table: RopeTable, frames: int, share: TokenShare) -> RopeTable:
    """The rows of a table for `frames` that are for this rank's tokens."""

    def own(rows: Tensor) -> Tensor:
        return share.own(rows.unflatten(0, (frames, -1)), 1).flatten(0, 1)

    return RopeTable(own(table.cos), own(table.sin))

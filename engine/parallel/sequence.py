"""One pass of a DiT over a whole clip on several ranks, each with some of its tokens.

"DeepSpeed Ulysses" (Jacobs et al. 2023, arXiv 2309.14509): before attention tokens are traded for
heads, so that each rank has all tokens of some heads, and behind it heads for tokens. All else in
a DiT sees one token at a time. Neither tokens nor heads need divide by the ranks: parts differ by
one, and nothing is padded. Where heads do not divide, some ranks wait for others in attention,
of 12 heads on 8 ranks a quarter of its time; a pass has at most as many ranks as heads.

Shapes: B batch, T latent frames, n tokens a frame, L tokens of text, h heads, d head width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import InputError
from ..layers.attention import attention
from .group import Group, shares

if TYPE_CHECKING:
    from ..layers.share import Attend


@dataclass(frozen=True)
class Ulysses:
    """A `TokenShare` of the ranks of `group`."""

    group: Group

    def own(self, x: Tensor, dim: int) -> Tensor:
        """See `TokenShare`. Raises `InputError` where there are fewer tokens than ranks."""
        parts = self._parts(x.shape[dim], "tokens in a frame")
        mine: Tensor = x.split(parts, dim)[self.group.rank]
        return mine.contiguous()

    def whole(self, x: Tensor, dim: int, tokens: int) -> Tensor:
        """See `TokenShare`."""
        return self.group.gather(x, dim, shares(tokens, self.group.size))

    def attend(self, frames: int, tokens: int, text: int = 0) -> Attend:
        """See `TokenShare`. Raises `InputError` where there are fewer heads than ranks."""
        rank = self.group.rank
        rows = shares(tokens, self.group.size)

        def run(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
            heads = self._parts(q.shape[2], "heads")
            batch, _, _, width = q.shape
            x = torch.stack([q, k, v])
            words, video = x[:, :, :text], x[:, :, text:].unflatten(2, (frames, rows[rank]))
            lead = (3, batch, frames)
            came = self.group.all_to_all(
                video.split(heads, dim=4), [(*lead, part, heads[rank], width) for part in rows]
            )
            mine = words.split(heads, dim=3)[rank]
            y = attention(*torch.cat([mine, torch.cat(came, dim=3).flatten(2, 3)], dim=2))
            words, video = y[:, :text], y[:, text:].unflatten(1, (frames, tokens))
            back = self.group.all_to_all(
                [torch.cat([words, part.flatten(1, 2)], 1) for part in video.split(rows, dim=2)],
                [(batch, text + frames * rows[rank], part, width) for part in heads],
            )
            return torch.cat(back, dim=2)

        return run

    def _parts(self, whole: int, what: str) -> list[int]:
        if whole < self.group.size:
            raise InputError(
                f"{self.group.size} ranks share a pass; this one has {whole} {what}, and wants as "
                "many at least"
            )
        return shares(whole, self.group.size)

"""The KV ring: which latent frames a chunk can see, and in which slot each one lies.

A chunk attends to the newest `window` latent frames, itself included, and to the stream's first
`sinks` (Xiao et al., "Efficient Streaming Language Models with Attention Sinks", 2023; LongLive,
2025). Frames are written over the oldest in place; nothing is shifted.

Shapes: S slots, n tokens a frame, h heads, d head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..types import KV, LayerKV


@dataclass(frozen=True)
class WindowLayout:
    """The ring's arithmetic: `sinks` slots that are written once, then `recent` used in turn."""

    sinks: int
    recent: int

    @property
    def slots(self) -> int:
        """How many latent frames the ring holds."""
        return self.sinks + self.recent

    def slot(self, frame: int) -> int | None:
        """Where latent frame `frame` of a stream lies while it is kept; None if it never is."""
        if frame < self.sinks:
            return frame
        return self.sinks + (frame - self.sinks) % self.recent if self.recent else None

    def visible(self, first: int) -> list[int]:
        """Latent frames that a chunk starting at frame `first` sees, the oldest first."""
        sinks = range(min(self.sinks, first))
        return [*sinks, *range(max(self.sinks, first - self.recent), first)]


@dataclass
class KVRing:
    """Keys (not rotated) and values of all layers, `[layers, S, n, h, d]`; batch 1."""

    layout: WindowLayout
    k: Tensor
    v: Tensor

    @classmethod
    def like(cls, layout: WindowLayout, kv: KV, frames: int) -> KVRing:
        """An empty ring for keys and values such as `kv`, which hold `frames` latent frames."""
        _, tokens, heads, width = kv[0].k.shape
        shape = (len(kv), layout.slots, tokens // frames, heads, width)
        return cls(layout, kv[0].k.new_zeros(shape), kv[0].v.new_zeros(shape))

    def write(self, first: int, kv: KV) -> None:
        """Store a chunk's keys and values, its first latent frame being number `first`."""
        tokens = self.k.shape[2]
        count = kv[0].k.shape[1] // tokens
        for i in range(count):
            # Of a chunk longer than the ring only the newest frames are kept.
            if i < count - self.layout.recent and first + i >= self.layout.sinks:
                continue
            slot = self.layout.slot(first + i)
            if slot is None:
                continue
            rows = slice(i * tokens, (i + 1) * tokens)
            for layer, own in enumerate(kv):
                self.k[layer, slot] = own.k[0, rows]
                self.v[layer, slot] = own.v[0, rows]

    def read(self, frames: Sequence[int]) -> KV:
        """Keys and values of these latent frames, which must be in the ring, in this order."""
        slots = [self.layout.slot(frame) for frame in frames]
        index = torch.tensor(slots, device=self.k.device)
        k = self.k.index_select(1, index).flatten(1, 2).unsqueeze(1)
        v = self.v.index_select(1, index).flatten(1, 2).unsqueeze(1)
        return [LayerKV(*pair) for pair in zip(k, v, strict=True)]

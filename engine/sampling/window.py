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
    """The ring's arithmetic: `sinks` slots that are written once, then `window` used in turn.

    Chunks have at most `chunk` frames. As there are slots for a whole window, writing a chunk
    leaves in place what that chunk has seen: a pass that was cut short can be run again.
    """

    sinks: int
    window: int
    chunk: int

    @property
    def slots(self) -> int:
        """How many latent frames the ring holds."""
        return self.sinks + self.window

    def slot(self, frame: int) -> int:
        """Where latent frame `frame` of a stream lies while it is kept."""
        return frame if frame < self.sinks else self.sinks + (frame - self.sinks) % self.window

    def visible(self, first: int) -> list[int]:
        """Latent frames that a chunk starting at frame `first` sees, the oldest first."""
        newest = first - (self.window - self.chunk)
        return [*range(min(self.sinks, first)), *range(max(self.sinks, newest), first)]


@dataclass
class KVRing:
    """Keys (not rotated) and values of all layers, `[layers, S, n, h, d]`; batch 1."""

    layout: WindowLayout
    k: Tensor
    v: Tensor

    @classmethod
    def empty(
        cls,
        layout: WindowLayout,
        shape: tuple[int, ...],
        *,
        device: torch.device,
        dtype: torch.dtype,
    ) -> KVRing:
        """A ring with nothing in it, its keys and values of `shape` each."""
        k = torch.zeros(shape, device=device, dtype=dtype)
        return cls(layout, k, torch.zeros_like(k))

    def write(self, first: int, kv: KV) -> None:
        """Store a chunk's keys and values, its first latent frame being number `first`."""
        tokens = self.k.shape[2]
        for i in range(kv[0].k.shape[1] // tokens):
            slot, rows = self.layout.slot(first + i), slice(i * tokens, (i + 1) * tokens)
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

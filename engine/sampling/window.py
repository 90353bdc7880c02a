"""The KV ring: what later chunks attend to, the keys and values of earlier latent frames.

A chunk attends to the newest `window` latent frames, itself included, to the stream's first
`sinks` (Xiao et al., "Efficient Streaming Language Models with Attention Sinks", 2023; LongLive,
2025), and to `anchors`, frames at even distances in the past between the two. Frames are written
over the oldest in place; nothing is shifted. Which frames a chunk sees and where they lie is
reckoned in C++ (`csrc/window.h`).

Shapes: S slots, n tokens a frame, h heads, d head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..native import Window
from ..types import KV, LayerKV

if TYPE_CHECKING:
    from ..config import StreamConfig

LATENT_LIMIT = 2**61
"""Latent frames that a restored stream may count; it has as many still to go."""


def window_of(config: StreamConfig, *, spare: int = 0) -> Window:
    """The arithmetic of a stream's ring, in which `spare` frames have room beside the window."""
    return Window(
        sinks=config.sinks,
        window=config.window + spare,
        chunk=config.chunk_latents,
        anchors=config.anchors,
        anchor_every=config.anchor_every,
    )


@dataclass
class KVRing:
    """Keys and values of all layers, `[layers, S, n, h, d]`; batch 1."""

    layout: Window
    k: Tensor
    v: Tensor

    @classmethod
    def empty(
        cls,
        layout: Window,
        shape: tuple[int, ...],
        *,
        device: torch.device,
        dtype: torch.dtype,
    ) -> KVRing:
        """A ring with nothing in it, its keys and values of `shape` each."""
        k = torch.zeros(shape, device=device, dtype=dtype)
        return cls(layout, k, torch.zeros_like(k))

    def slot(self, frame: int) -> int:
        """Where latent frame number `frame` lies while it is kept."""
        return self.layout.slot(frame)

    def write(self, first: int, kv: KV) -> None:
        """Store a chunk's keys and values, its first latent frame being number `first`."""
        tokens = self.k.shape[2]
        for i in range(kv[0].k.shape[1] // tokens):
            slot, rows = self.slot(first + i), slice(i * tokens, (i + 1) * tokens)
            for layer, own in enumerate(kv):
                self.k[layer, slot] = own.k[0, rows]
                self.v[layer, slot] = own.v[0, rows]

    def read(self, frames: Sequence[int]) -> KV:
        """Keys and values of these latent frames, which must be in the ring, in this order."""
        slots = [self.slot(frame) for frame in frames]
        index = torch.tensor(slots, device=self.k.device)
        k = self.k.index_select(1, index).flatten(1, 2).unsqueeze(1)
        v = self.v.index_select(1, index).flatten(1, 2).unsqueeze(1)
        return [LayerKV(*pair) for pair in zip(k, v, strict=True)]

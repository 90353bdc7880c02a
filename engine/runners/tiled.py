"""Encoder and decoder on tiles of the picture that overlap, their seams blended: less memory.

As diffusers does it for CogVideoX's VAE: each tile goes through all of the clip by itself, and its
upper and left edges fade over from the tiles above and to the left. The result is near that of the
whole picture, not equal to it, since a tile does not see past its edges.

Shapes: B batch, C channels, T frames, H W space.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import TILE_HEIGHT, TILE_WIDTH
from ..layers.causal_conv import ConvCaches

Step = Callable[[Tensor, ConvCaches | None], tuple[Tensor, ConvCaches]]
"""An encoder or decoder: frames and caches to frames and caches."""


@dataclass(frozen=True, kw_only=True)
class Tile:
    """A tile's sides in pixels, and the share of each that lies over the next tile."""

    height: int = TILE_HEIGHT
    width: int = TILE_WIDTH
    overlap_height: float = 1 / 6
    overlap_width: float = 1 / 5

    def cut(self, factor: int) -> tuple[_Side, _Side]:
        """Down and across, in latent pixels of `factor` pixels each."""
        return (
            _Side.of(self.height // factor, self.overlap_height),
            _Side.of(self.width // factor, self.overlap_width),
        )


@dataclass(frozen=True)
class _Side:
    """A tile's length along one side, and how far apart tiles begin."""

    length: int
    stride: int

    @classmethod
    def of(cls, length: int, overlap: float) -> _Side:
        length = max(2, length)
        return cls(length, max(1, int(length * (1 - overlap))))


def decode_tiled(
    step: Step, latents: Tensor, parts: Sequence[int], *, factor: int, tile: Tile
) -> Tensor:
    """Frames of all `latents` `[B, C, T, H, W]`, of which `parts` go through the decoder `step` at
    a time."""
    down, across = tile.cut(factor)
    return _tiled(step, latents, parts, down, across, 1, factor)


def encode_tiled(
    step: Step, frames: Tensor, parts: Sequence[int], *, factor: int, tile: Tile
) -> Tensor:
    """Latents of all `frames`; otherwise as `decode_tiled`."""
    down, across = tile.cut(factor)
    return _tiled(step, frames, parts, down, across, factor, 1)


def _tiled(
    step: Step, x: Tensor, parts: Sequence[int], down: _Side, across: _Side, inside: int,
    outside: int,
) -> Tensor:  # fmt: skip
    """`inside` and `outside` are what a latent pixel measures in `x` and in the result."""
    above: list[Tensor] = []
    rows: list[Tensor] = []
    for top in range(0, x.shape[3], down.stride * inside):
        row: list[Tensor] = []
        for left in range(0, x.shape[4], across.stride * inside):
            part = x[..., top : top + down.length * inside, left : left + across.length * inside]
            tile = _through(step, part, parts)
            if above:
                _fade(above[len(row)], tile, (down.length - down.stride) * outside, 3)
            if row:
                _fade(row[-1], tile, (across.length - across.stride) * outside, 4)
            row.append(tile)
        kept = [tile[..., : down.stride * outside, : across.stride * outside] for tile in row]
        rows.append(torch.cat(kept, dim=4))
        above = row
    return torch.cat(rows, dim=3)


def _through(step: Step, x: Tensor, parts: Sequence[int]) -> Tensor:
    caches: ConvCaches | None = None
    out = []
    for part in x.split(list(parts), dim=2):
        y, caches = step(part, caches)
        out.append(y)
    return torch.cat(out, dim=2)


def _fade(before: Tensor, tile: Tensor, extent: int, dim: int) -> None:
    """Let the end of `before` fade into the beginning of `tile`, in place."""
    extent = min(before.shape[dim], tile.shape[dim], extent)
    ramp = torch.arange(extent, device=tile.device, dtype=torch.float32) / max(1, extent)
    ramp = ramp.to(tile.dtype).view(-1, *[1] * (tile.ndim - 1 - dim))
    end = before.narrow(dim, before.shape[dim] - extent, extent)
    begin = tile.narrow(dim, 0, extent)
    begin.copy_(end * (1 - ramp) + begin * ramp)

"""Rotary position embedding over time, height and width, in real arithmetic.

Su et al., "RoFormer" (2021), split over three axes as Wan does: of a head's width d, height and
width take 2 (d // 6) each and time the rest; pairs are interleaved. Tables are computed in fp64
from positions and never run out.

Shapes: B batch, N tokens, h heads, d head width.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor


@dataclass(frozen=True)
class RopeTable:
    """Cosines and sines `[N, 1, d]` that rotate N tokens; sines carry the sign of their pair."""

    cos: Tensor
    sin: Tensor


@lru_cache(maxsize=32)
def rope_table(
    first: int, frames: int, height: int, width: int, head_dim: int, *, device: torch.device
) -> RopeTable:
    """The table of tokens in (time, row, column) order, time counting from `first`.

    The newest few are kept: a stream in its steady state asks for the same two again and again.
    """
    with torch.inference_mode(False):  # what is kept may be used under autograd later
        return _table(first, frames, height, width, head_dim, device)


def _table(
    first: int, frames: int, height: int, width: int, head_dim: int, device: torch.device
) -> RopeTable:
    dim_s = 2 * (head_dim // 6)
    dim_t = head_dim - 2 * dim_s
    grids = (
        _angles(torch.arange(first, first + frames), dim_t)[:, None, None].expand(
            frames, height, width, -1
        ),
        _angles(torch.arange(height), dim_s)[None, :, None].expand(frames, height, width, -1),
        _angles(torch.arange(width), dim_s)[None, None, :].expand(frames, height, width, -1),
    )
    angles = torch.cat(grids, dim=-1).reshape(frames * height * width, 1, head_dim // 2)
    cos, sin = angles.cos(), angles.sin()
    return RopeTable(
        cos.repeat_interleave(2, dim=-1).float().to(device),
        torch.stack((-sin, sin), dim=-1).flatten(-2).float().to(device),
    )


def _angles(positions: Tensor, dim: int) -> Tensor:
    rates = 10000.0 ** -(torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    return positions.double()[:, None] * rates


def rotate(x: Tensor, table: RopeTable) -> Tensor:
    """Rotate `x` `[B, N, h, d]`, in fp32, and give it back in its own dtype."""
    swapped = x.reshape(*x.shape[:-1], -1, 2).flip(-1).flatten(-2)
    return (x * table.cos + swapped * table.sin).to(x.dtype)

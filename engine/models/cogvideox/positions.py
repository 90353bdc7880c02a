"""Where CogVideoX's video tokens stand: rotations of keys and queries, or waves that are added.

Tables are computed in float64 from positions, for any length and size, and the newest few are kept.

Shapes: t patches along time, n tokens of one, N = t n, D hidden width, d head width.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from ...layers.rope import RopeTable
from .config import CogVideoXTransformerConfig


@lru_cache(maxsize=8)
def rotations(
    config: CogVideoXTransformerConfig, t: int, rows: int, columns: int, *, device: torch.device
) -> RopeTable:
    """Of a head's width a quarter turns with time and three eighths each with row and column.

    1.0 stretches a picture's grid over that of its training size, keeping its shape; 1.5 counts.
    """
    d = config.attention_head_dim
    down, across = _grid(config, rows, columns)
    angles = _outer(
        _angles(torch.arange(t).double(), d // 4),
        _angles(down, d // 8 * 3),
        _angles(across, d // 8 * 3),
    ).reshape(t * rows * columns, 1, d // 2)
    cos, sin = angles.cos(), angles.sin()
    with torch.inference_mode(False):
        return RopeTable(
            cos.repeat_interleave(2, dim=-1).float().to(device),
            torch.stack((-sin, sin), dim=-1).flatten(-2).float().to(device),
        )


@lru_cache(maxsize=8)
def waves(
    config: CogVideoXTransformerConfig, t: int, rows: int, columns: int, *, device: torch.device
) -> Tensor:
    """`[t, n, D]`: sines and cosines, a quarter of time, then as much each of column and row."""
    width = config.width
    space = 3 * width // 8
    grids = _outer(
        _sines(torch.arange(t).double() / config.temporal_interpolation_scale, width // 4),
        _sines(torch.arange(rows).double() / config.spatial_interpolation_scale, space),
        _sines(torch.arange(columns).double() / config.spatial_interpolation_scale, space),
    )
    time, down, across = grids.split([width // 4, space, space], dim=-1)
    with torch.inference_mode(False):
        return torch.cat([time, across, down], dim=-1).flatten(1, 2).float().to(device)


def _grid(config: CogVideoXTransformerConfig, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Rows' and columns' positions."""
    if config.patch_size_t is not None:
        return torch.arange(rows).double(), torch.arange(columns).double()
    tall, wide = config.sample_height // config.patch_size, config.sample_width // config.patch_size
    if rows / columns > tall / wide:
        high, broad = tall, round(tall / rows * columns)
    else:
        high, broad = round(wide / columns * rows), wide
    top, left = round((tall - high) / 2.0), round((wide - broad) / 2.0)
    return _evenly(top, top + high, rows), _evenly(left, left + broad, columns)


def _evenly(start: int, stop: int, count: int) -> Tensor:
    return torch.linspace(start, stop * (count - 1) / count, count, dtype=torch.float64)


def _angles(positions: Tensor, dim: int) -> Tensor:
    rates = 10000.0 ** -(torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    return positions[:, None] * rates


def _sines(positions: Tensor, dim: int) -> Tensor:
    angles = _angles(positions, dim)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def _outer(time: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """What belongs to time, row and column side by side, `[t, rows, columns, all widths]`."""
    t, rows, columns = len(time), len(down), len(across)
    return torch.cat(
        [
            time[:, None, None].expand(t, rows, columns, -1),
            down[None, :, None].expand(t, rows, columns, -1),
            across[None, None].expand(t, rows, columns, -1),
        ],
        dim=-1,
    )

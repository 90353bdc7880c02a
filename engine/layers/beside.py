"""Layers that look beyond the rows at hand, where a picture's rows are spread over ranks in bands.

Shapes: B batch, C channels, T frames, H W space.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn


class Beside(Protocol):
    """Who has the other rows."""

    def widen(self, x: Tensor, above: int, below: int) -> Tensor:
        """`[B, C, T, H, W]` with so many rows more on either side: those of the bands there, and
        zeros beyond the picture."""

    def gather(self, x: Tensor, dim: int) -> Tensor:
        """All bands' `x`, from the top down, along `dim`, which counts rows or pixels."""

    def stack(self, x: Tensor) -> Tensor:
        """All bands' `x`, of one shape, along a new first dim."""


def with_rows(
    layer: Callable[[Tensor], Tensor], x: Tensor, beside: Beside | None, *, above: int = 1,
    scale: int = 1,
) -> Tensor:  # fmt: skip
    """`layer` of `[B, C, T, H, W]`, which looks at the row below and so many above, and makes
    `scale` rows of each; or, with none above, one row of two and itself pads the last."""
    if beside is None:
        return layer(x)
    y = layer(beside.widen(x, above, 1))
    over = above * scale
    return y[..., over : y.shape[3] - over, :]


def group_norm(x: Tensor, norm: nn.GroupNorm, beside: Beside | None) -> Tensor:
    """`norm` of `[B, C, T, H, W]`, its statistics those of all rows."""
    if beside is None:
        y: Tensor = norm(x)
        return y
    groups = x.float().unflatten(1, (norm.num_groups, -1)).flatten(2)
    count = torch.full_like(groups[..., 0], groups.shape[2])
    own = torch.stack([count, groups.mean(2), groups.var(2, correction=0)])
    counts, means, variances = beside.stack(own).unbind(1)
    share = counts / counts.sum(0)
    mean = (share * means).sum(0)
    variance = (share * (variances + (means - mean).square())).sum(0)
    scale = (variance + norm.eps).rsqrt()
    per_channel = (t.repeat_interleave(x.shape[1] // norm.num_groups, 1) for t in (scale, mean))
    scale, mean = (t.view(*x.shape[:2], 1, 1, 1) for t in per_channel)
    weight, bias = (t.view(-1, 1, 1, 1) for t in (norm.weight, norm.bias))
    return ((x - mean) * (scale * weight) + bias).to(x.dtype)

"""Normalization layers that torch has no module for."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class ChannelRMSNorm(nn.Module):
    """L2-normalize over channels (dim 1), times sqrt(C) and a learned gain.

    Runs in fp32 and returns the input's dtype. `spatial_dims` is the number of dims behind the
    channels, which fixes the shape of `gamma` in checkpoints.
    """

    def __init__(self, channels: int, spatial_dims: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, *([1] * spatial_dims)))
        self.scale = math.sqrt(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize `x` `[B, C, ...]`."""
        x32 = x.float()
        norm = x32.square().sum(dim=1, keepdim=True).sqrt().clamp_min(1e-12)
        return (x32 * (self.scale / norm) * self.gamma.float()).to(x.dtype)

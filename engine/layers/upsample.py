"""Nearest 2x upsampling and a 3x3 convolution as four 2x2 convolutions of the small picture.

An output pixel sees each input pixel through the sum of the taps that fall on it, so the larger
picture need not exist and 16 multiplications do the work of 36.

Shapes: B batch, C channels, H W space of the input.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Upsample2xConv(nn.Conv2d):
    """`Conv2d(3x3, padding 1)` of the nearest 2x upsampling of its input."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` to `[B, C', 2H, 2W]`, channels last in memory where `x` is."""
        b, _, h, w = x.shape
        kernels = phase_kernels(self.weight)
        out = x.new_empty(b, h, 2, w, 2, self.out_channels)
        for phase, kernel in enumerate(kernels):
            down, right = divmod(phase, 2)
            y = F.conv2d(x, kernel.to(x.dtype), self.bias, padding=1)
            y = y[:, :, down : down + h, right : right + w]
            out[:, :, down, :, right] = y.permute(0, 2, 3, 1)
        return out.reshape(b, 2 * h, 2 * w, self.out_channels).permute(0, 3, 1, 2)


def phase_kernels(weight: Tensor) -> list[Tensor]:
    """The kernels, fp32, of the output's four phases: even and odd rows, and columns in each."""
    halves = _fold(weight.float(), 2)
    return [kernel for half in halves for kernel in _fold(half, 3)]


def _fold(kernel: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Three taps along `dim` to the two that even, and the two that odd output pixels see."""
    before, here, after = kernel.split(1, dim)
    return torch.cat([before, here + after], dim), torch.cat([before + here, after], dim)

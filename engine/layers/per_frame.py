"""2D layers on video.

Shapes: B batch, C channels, T frames, H W space.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


def per_frame(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Run a 2D layer on each frame of `[B, C, T, H, W]`."""
    b, c, t, h, w = x.shape
    y = layer(x.transpose(1, 2).reshape(b * t, c, h, w))
    return y.reshape(b, t, *y.shape[1:]).transpose(1, 2)

"""Between the VAE's floats and pictures.

Shapes: B batch, F pixel frames, H W space.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from livereel.kernels.to_pixels import to_pixels_reference

if TYPE_CHECKING:
    from ..types import Frames


def to_uint8(frames: Tensor) -> Frames:
    """`[1, 3, F, H, W]` in [-1, 1] to uint8 `[F, H, W, 3]` on the host, rounded to nearest."""
    return to_pixels_reference(frames)[0].cpu().numpy()


def to_float(frames: Frames) -> Tensor:
    """uint8 `[F, H, W, 3]` to fp32 `[1, 3, F, H, W]` in [-1, 1]."""
    x = torch.from_numpy(frames).permute(3, 0, 1, 2).unsqueeze(0)
    return x.float().div_(127.5).sub_(1.0)

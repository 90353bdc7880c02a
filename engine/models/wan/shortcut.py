"""The shortcuts of Wan 2.2's VAE: a picture resampled without weights, past a level's layers.

Pixels of a block move into channels and are averaged on the way down, and channels are repeated and
move into pixels on the way up. Neither needs a state: a stream's first frame stands alone in time,
on the way down beside a black one, on the way up without its first copy.

Shapes: B batch, C channels, T frames, H W space.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from ...errors import CheckpointError


def check_groups(numbers: int, groups: int) -> None:
    """Raise `CheckpointError` unless a shortcut's numbers fall into so many equal groups."""
    if numbers % groups:
        raise CheckpointError(f"a shortcut cannot split {numbers} numbers into {groups} groups")


def shrink(x: Tensor, channels: int, *, time: int, space: int) -> Tensor:
    """`[B, C, T, H, W]` to `[B, channels, T/time, H/space, W/space]`.

    A block's numbers, in the order (C, time, row, column), are averaged in `channels` equal groups.
    T is rounded up with zeros in front.
    """
    b, c, t, h, w = x.shape
    x = F.pad(x, (0, 0, 0, 0, -t % time, 0))
    x = x.reshape(b, c, -1, time, h // space, space, w // space, space)
    x = x.permute(0, 1, 3, 5, 7, 2, 4, 6)
    return x.reshape(b, channels, -1, *x.shape[-3:]).mean(2)


def grow(x: Tensor, channels: int, *, time: int, first: bool) -> Tensor:
    """`[B, C, T, H, W]` to `[B, channels, time T, 2 H, 2 W]`, each channel repeated as needed.

    At a stream's start (`first`) the first frame comes once.
    """
    b, c, t, h, w = x.shape
    x = x.repeat_interleave(channels * time * 4 // c, dim=1)
    x = x.reshape(b, channels, time, 2, 2, t, h, w).permute(0, 1, 5, 2, 6, 3, 7, 4)
    x = x.reshape(b, channels, t * time, 2 * h, 2 * w)
    return x[:, :, time - 1 :] if first else x

"""Causal 3D convolution whose past is an explicit input and output.

Shapes: B batch, C channels, T frames, H W space; tensors are `[B, C, T, H, W]`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ConvCaches = tuple[Tensor, ...]
"""The last frames that each stateful convolution has seen, in the order in which they run."""


class CacheTape:
    """Hands each stateful layer its cache of the call before and gathers the new ones.

    Layers run in a fixed order, so position on the tape is identity. `first` says that the stream
    starts here: there are no caches, and the past counts as zeros.
    """

    def __init__(self, caches: ConvCaches | None) -> None:
        self.first = caches is None
        self._old = iter(caches or ())
        self._new: list[Tensor] = []

    def take(self) -> Tensor | None:
        """The next layer's cache, or None at the start of a stream."""
        return None if self.first else next(self._old)

    def put(self, cache: Tensor) -> None:
        """Keep a layer's frames for the next call."""
        self._new.append(cache)

    def caches(self) -> ConvCaches:
        """What to pass to the next call."""
        return tuple(self._new)


def with_past(x: Tensor, past: Tensor | None, length: int) -> Tensor:
    """Put `length` frames before `x`: those of `past`, or zeros where the stream starts."""
    if length == 0:
        return x
    if past is None:
        return F.pad(x, (0, 0, 0, 0, length, 0))
    return torch.cat([past, x], dim=2)


def newest(x: Tensor, length: int) -> Tensor:
    """The last `length` frames in storage of their own, so that the rest of `x` can be freed."""
    return x[:, :, x.shape[2] - length :].clone()


class CausalConv3d(nn.Conv3d):
    """A convolution that sees `kernel_t - 1` earlier frames and none that are yet to come.

    Space is padded with zeros to keep its size (odd kernels); time is continued from the tape.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: Sequence[int]) -> None:
        kernel_t, kernel_h, kernel_w = kernel
        super().__init__(
            in_channels,
            out_channels,
            (kernel_t, kernel_h, kernel_w),
            padding=(0, kernel_h // 2, kernel_w // 2),
        )
        self.history = kernel_t - 1

    def step(self, x: Tensor, tape: CacheTape) -> Tensor:
        """Convolve `x` `[B, C, T, H, W]` after what the tape holds of its past; T stays."""
        return self.after_past(with_past(x, tape.take(), self.history), tape)

    def after_past(self, x: Tensor, tape: CacheTape) -> Tensor:
        """Convolve `x`, whose first `history` frames are its past, and keep its newest."""
        tape.put(newest(x, self.history))
        y: Tensor = self(x)
        return y

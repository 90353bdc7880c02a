"""Causal 3D convolution whose past is an explicit input and output.

Shapes: B batch, C channels, T frames, H W space; tensors are `[B, C, T, H, W]`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .beside import Beside, with_rows

ConvCaches = tuple[Tensor, ...]
"""The last frames that each stateful convolution has seen, in the order in which they run."""


class Neighbor(Protocol):
    """Who has the frames just before those at hand, at the same time as these: another rank."""

    def swap(self, x: Tensor, length: int) -> Callable[[], Tensor]:
        """Begin to send on the newest `length` frames of `x` and to receive the neighbor's.

        What is returned waits for these and gives them: the layer's cache.
        """


class CacheTape:
    """Hands each stateful layer its cache of the call before and gathers the new ones.

    Layers run in a fixed order, so position on the tape is identity. `first` says that the stream
    starts here: there are no caches, and the past counts as zeros. Where there is a `neighbor`, a
    layer swaps with it rather than takes and puts; `beside` has the rows that are not at hand, and
    caches then have those that a layer sees.
    """

    beside: Beside | None = None

    def __init__(self, caches: ConvCaches | None) -> None:
        self.first = caches is None
        self._old = iter(caches or ())
        self._new: list[Tensor] = []

    @property
    def neighbor(self) -> Neighbor | None:
        """Who has the frames before those at hand, if that is not this tape."""
        return None

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


_PIECE = 4
"""Frames that `convolve_late` convolves at a time: enough to work well, few to hold twice."""


def edge_frames(history: int, stride: int = 1) -> int:
    """How many of the first frames a convolution takes together with its past of `history` frames,
    so that all that is behind them sees frames at hand alone."""
    return -(-history // stride) * stride


def convolve_late(
    conv: Callable[[Tensor], Tensor], x: Tensor, neighbor: Neighbor, history: int, stride: int = 1
) -> Tensor:
    """Convolve `x` after a past that is still on its way: first what does not see it.

    `stride` is the convolution's in time, of which T is a multiple. The result is what
    `conv(with_past(x, past, history))` would be.
    """
    past = neighbor.swap(x, history)
    edge = edge_frames(history, stride)
    total, y = x.shape[2], None
    for start in range(edge, total, _PIECE * stride):
        stop = min(start + _PIECE * stride, total)
        piece = conv(x[:, :, start - history : stop])
        y = _room(piece, total // stride) if y is None else y
        y[:, :, start // stride : stop // stride] = piece
    head = conv(with_past(x[:, :, :edge], past(), history))
    if y is None:
        return head
    y[:, :, : edge // stride] = head
    return y


def _room(like: Tensor, frames: int) -> Tensor:
    """Memory for so many frames, laid out as those of `like`."""
    last = like.is_contiguous(memory_format=torch.channels_last_3d)
    layout = torch.channels_last_3d if last else torch.contiguous_format
    shape = (*like.shape[:2], frames, *like.shape[3:])
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=layout)


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

        def convolve(x: Tensor) -> Tensor:
            if tape.neighbor is not None:
                return convolve_late(self, x, tape.neighbor, self.history)
            return self.after_past(with_past(x, tape.take(), self.history), tape)

        return with_rows(convolve, x, tape.beside if self.padding[1] else None)

    def after_past(self, x: Tensor, tape: CacheTape) -> Tensor:
        """Convolve `x`, whose first `history` frames are its past, and keep its newest."""
        tape.put(newest(x, self.history))
        y: Tensor = self(x)
        return y

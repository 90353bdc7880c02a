"""Channel RMS norm and SiLU, written straight behind the past that a causal convolution reads.

On a CPU the C++ core does both in one pass, where torch would make six and as many temporaries.

Shapes: B batch, C channels, T frames, H W space.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..native import rms_norm_silu
from .causal_conv import with_past
from .norm import ChannelRMSNorm

if TYPE_CHECKING:
    import numpy.typing as npt

_MOST_THREADS = 4
"""The core's loop runs in one thread; with more than these, torch spreads its passes over them. It
was tried on two; where the two roads break even has not been measured."""


def norm_silu_with_past(
    x: Tensor, norm: ChannelRMSNorm, past: Tensor | None, length: int
) -> Tensor:
    """`silu(norm(x))` of `[B, C, T, H, W]` behind `length` frames: those of `past`, or zeros."""
    if not _native(x, norm):
        return with_past(F.silu(norm(x)), past, length)
    b, c, t, h, w = x.shape
    out = torch.empty((b, c, length + t, h, w), dtype=x.dtype, memory_format=torch.channels_last_3d)
    if past is None:
        out[:, :, :length].zero_()
    else:
        out[:, :, :length] = past
    gain = (norm.gamma.detach().float().flatten() * norm.scale).numpy()
    for clip, target in zip(x, out[:, :, length:], strict=True):
        rms_norm_silu(_rows(clip), gain, _rows(target))
    return out


def _native(x: Tensor, norm: ChannelRMSNorm) -> bool:
    """Whether the core can take `x` as it lies in memory, and nothing must be recorded of it."""
    recorded = torch.is_grad_enabled() and (x.requires_grad or norm.gamma.requires_grad)
    return (
        x.device.type == "cpu"
        and x.dtype in (torch.bfloat16, torch.float32)
        and x.is_contiguous(memory_format=torch.channels_last_3d)
        and torch.get_num_threads() <= _MOST_THREADS
        and not (recorded or torch.compiler.is_compiling())
    )


def _rows(x: Tensor) -> npt.NDArray[Any]:
    """`[C, T, H, W]`, channels last in memory, as a `[T H W, C]` view; bfloat16 as uint16."""
    rows = x.permute(1, 2, 3, 0).reshape(-1, x.shape[0])
    rows = rows.view(torch.uint16) if rows.dtype == torch.bfloat16 else rows
    view: npt.NDArray[Any] = rows.detach().numpy()
    return view

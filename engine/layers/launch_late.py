"""A kernel's causal convolution whose past is still on its way.

Shapes: B batch, T frames, H W space, C channels; activations are channels last, `[B, T, H, W, C]`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .causal_conv import Neighbor, edge_frames

Launched = tuple[Tensor, Tensor, Tensor]
"""What a convolution's launch gives: its result, that normed, and the next cache."""


def launch_late(
    launch: Callable[[Tensor, Tensor, Tensor | None], Launched], x: Tensor,
    residual: Tensor | None, neighbor: Neighbor, history: int, *, stride: int = 1,
    frames_out: int = 1,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Launch a convolution of `x` `[B, T, H, W, C]`, its past and what is added: first on what does
    not see the neighbor's frames, whose past is in `x` itself, then on the `edge_frames`, whose
    cache is what the neighbor sent. Gives the result and that normed."""
    past = neighbor.swap(x, history)
    edge = edge_frames(history, stride)
    edge_out = edge // stride * frames_out
    parts = []
    if x.shape[1] > edge:
        behind = None if residual is None else residual[:, edge_out:].contiguous()
        parts.append(launch(x[:, edge:], x[:, edge - history : edge], behind))
    before = None if residual is None else residual[:, :edge_out].contiguous()
    parts.append(launch(x[:, :edge], past(), before))
    y, normed, _ = zip(*reversed(parts), strict=True)
    return _joined(y), _joined(normed)


def _joined(parts: tuple[Tensor, ...]) -> Tensor:
    """Along T; what was not asked for is empty, and has no frames."""
    return torch.cat(parts, dim=1 if parts[0].ndim > 1 else 0)

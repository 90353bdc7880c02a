"""AdaLN: a LayerNorm and a residual sum whose gains come from the timestep (Peebles and Xie,
"Scalable Diffusion Models with Transformers", 2023).

Shapes: B batch, T latent frames, n tokens a frame, D hidden width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """LayerNorm over the last dim, computed in fp32, given back in the dtype of `x`."""
    if x.device.type == "cpu":  # this kernel takes a half-precision x with fp32 gains as it is
        return F.layer_norm(x, x.shape[-1:], weight, bias, eps)
    return F.layer_norm(x.float(), x.shape[-1:], weight, bias, eps).to(x.dtype)


def norm_modulate(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
    """`LayerNorm(x) (1 + scale) + shift` in the dtype of `x`.

    `x` `[B, T, n, D]`, `scale` and `shift` fp32 `[B, 1 or T, 1, D]`.
    """
    if scale[..., 0].numel() == 1:  # one timestep for all: they are the norm's own gain and bias
        return layer_norm(x, 1 + scale.flatten(), shift.flatten(), eps)
    normed = F.layer_norm(x.float(), x.shape[-1:], eps=eps)
    return torch.addcmul(shift, normed, 1 + scale).to(x.dtype)


def gate_residual(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    """`x + gate y` in the dtype of `x`; `gate` fp32 `[B, 1 or T, 1, D]`."""
    return torch.addcmul(x, y, gate.to(x.dtype))

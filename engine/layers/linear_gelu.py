"""A linear layer and the GELU behind it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from livereel.kernels.linear_fp8 import Rows


def linear_gelu(layer: nn.Module, x: Tensor | Rows) -> Tensor:
    """GELU, by its tanh approximation, of what a linear `layer` gives.

    In half precision on a GPU cuBLAS takes it of each sum before that is rounded, and spares a trip
    through memory of the widest tensor of a DiT. Not where the layer's own result is to be seen, by
    a hook or for a gradient.
    """
    if (
        isinstance(x, Tensor)
        and x.device.type == "cuda"
        and x.dtype in (torch.bfloat16, torch.float16)
        and isinstance(layer, nn.Linear)
        and layer.bias is not None
        and not (torch.is_grad_enabled() or torch.compiler.is_compiling())
        and not layer._forward_hooks
    ):
        rows = x.reshape(-1, x.shape[-1])
        y = torch._addmm_activation(layer.bias, rows, layer.weight.mT, use_gelu=True)
        return y.view(*x.shape[:-1], -1)
    return F.gelu(layer(x), approximate="tanh")

"""AdaLN in plain torch: a LayerNorm and a residual sum whose gains come from the timestep.

`norm_modulate` and `gate_residual` are the references of the kernels of these names.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from livereel.kernels.gate_residual import gate_residual_reference as gate_residual
from livereel.kernels.norm_modulate import norm_modulate_reference as norm_modulate

__all__ = ["gate_residual", "layer_norm", "norm_modulate"]


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """LayerNorm over the last dim, computed in fp32, given back in the dtype of `x`."""
    # This kernel takes a half-precision x with fp32 gains as it is; graphs for others must not.
    if x.device.type == "cpu" and not torch.compiler.is_exporting():
        return F.layer_norm(x, x.shape[-1:], weight, bias, eps)
    return F.layer_norm(x.float(), x.shape[-1:], weight, bias, eps).to(x.dtype)

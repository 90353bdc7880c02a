"""Unmasked attention by the road that is fastest for its shape and device.

Shapes: B batch, N queries, M keys, h heads, d head width.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

SMALL = 1 << 18
"""Scores a head up to which two matmuls and a softmax are used in place of torch's fused CPU
kernel. It was slower in a trial on two cores at 192 x 384, in its backward above all; the bound
itself has not been measured."""

_BY_SPEED = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
"""On Hopper and after. FlashAttention-2, which torch tries first, reaches 370 TFLOP/s on an H100 at
8,192 tokens and heads of 128, where cuDNN reaches 600 (Shah et al., "FlashAttention-3", 2024,
arXiv:2407.08608)."""


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """`softmax(q k^T / sqrt(d) + bias) v` of `[B, N, h, d]` over `[B, M, h, d]`, without mask but
    for a bias `[M]`; gives `[B, N, h, d]`."""
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    if q.device.type == "cpu" and q.shape[2] * k.shape[2] <= SMALL:
        scores = q / math.sqrt(q.shape[-1]) @ k.transpose(-1, -2)
        if bias is not None:
            scores = scores + bias
        return (scores.softmax(-1) @ v).transpose(1, 2)
    mask = None if bias is None else bias.expand(1, 1, q.shape[2], -1)
    by_torch = bias is not None or q.device.type != "cuda" or torch.compiler.is_compiling()
    if not by_torch and _is_hopper(q.device):
        with sdpa_kernel(_BY_SPEED, set_priority=True):
            return F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2)
    return F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2)


@lru_cache(maxsize=16)
def _is_hopper(device: torch.device) -> bool:
    """Whether it is that, or the B200 after it."""
    return torch.cuda.get_device_capability(device)[0] in (9, 10)

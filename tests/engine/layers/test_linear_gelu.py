from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from livereel.engine.layers.linear_fp8 import LinearFP8
from livereel.engine.layers.linear_gelu import linear_gelu


@torch.no_grad()
def test_is_the_layer_and_then_gelu() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(16, 32).bfloat16(), torch.randn(2, 3, 16).bfloat16()
    for one in (layer, LinearFP8.of(layer)):
        assert torch.equal(linear_gelu(one, x), F.gelu(one(x), approximate="tanh"))

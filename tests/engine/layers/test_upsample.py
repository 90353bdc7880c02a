"""Four small convolutions against upsampling and one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from livereel.engine.layers.upsample import Upsample2xConv


@pytest.mark.parametrize(("height", "width"), [(1, 1), (4, 4), (5, 3)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_equals_upsampling_and_a_convolution(
    height: int, width: int, layout: torch.memory_format
) -> None:
    torch.manual_seed(0)
    ours = Upsample2xConv(6, 5)
    theirs = nn.Conv2d(6, 5, 3, padding=1)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 6, height, width).contiguous(memory_format=layout)
    expected = theirs(nn.Upsample(scale_factor=2.0, mode="nearest-exact")(x))
    out = ours(x)
    assert out.shape == expected.shape
    assert (out - expected).abs().max() <= 1e-5


def test_gradients_reach_the_weight() -> None:
    ours = Upsample2xConv(2, 3)
    ours(torch.randn(1, 2, 4, 4)).square().sum().backward()
    assert ours.weight.grad is not None and ours.weight.grad.abs().min() > 0

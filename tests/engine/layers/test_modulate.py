"""AdaLN's parts against the formulas in fp64."""

from __future__ import annotations

import pytest
import torch

from livereel.engine.layers.modulate import gate_residual, layer_norm, norm_modulate

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 4e-2}


def formula(x: torch.Tensor, eps: float) -> torch.Tensor:
    x = x.double()
    centered = x - x.mean(-1, keepdim=True)
    return centered / (centered.square().mean(-1, keepdim=True) + eps).sqrt()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("batch", "frames", "times"), [(1, 3, 1), (1, 3, 3), (2, 1, 1), (2, 3, 3)])
def test_norm_and_gate(dtype: torch.dtype, batch: int, frames: int, times: int) -> None:
    torch.manual_seed(0)
    x = (torch.randn(batch, frames, 5, 24) * 2 + 1).to(dtype)
    y = torch.randn(batch, frames, 5, 24).to(dtype)
    scale, shift, gate = torch.randn(3, batch, times, 1, 24) * 0.5
    modulated = norm_modulate(x, scale, shift, 1e-6)
    expected = formula(x, 1e-6) * (1 + scale.double()) + shift.double()
    assert modulated.dtype == dtype
    assert (modulated.double() - expected).abs().max() <= TOLERANCE[dtype] * expected.abs().max()
    summed = gate_residual(x, y, gate)
    expected = x.double() + gate.double() * y.double()
    assert summed.dtype == dtype
    assert (summed.double() - expected).abs().max() <= TOLERANCE[dtype] * expected.abs().max()


def test_layer_norm_keeps_half_precision_with_fp32_gains() -> None:
    x = torch.randn(4, 24).bfloat16()
    weight, bias = torch.randn(2, 24)
    out = layer_norm(x, weight, bias, 1e-6)
    expected = formula(x, 1e-6) * weight.double() + bias.double()
    assert out.dtype == torch.bfloat16
    assert (out.double() - expected).abs().max() <= 4e-2 * expected.abs().max()

from __future__ import annotations

import pytest
import torch

from livereel.engine.layers.norm import ChannelRMSNorm


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_equals_the_formula_in_fp64(spatial_dims: int) -> None:
    torch.manual_seed(0)
    norm = ChannelRMSNorm(6, spatial_dims)
    torch.nn.init.normal_(norm.gamma)
    assert norm.gamma.shape == (6, *[1] * spatial_dims)
    x = torch.randn(2, 6, *[3] * spatial_dims)
    x64 = x.double()
    expected = x64 / x64.square().mean(dim=1, keepdim=True).sqrt() * norm.gamma.double()
    assert torch.allclose(norm(x).double(), expected, atol=1e-6)


def test_zeros_stay_zeros_and_dtypes_stay() -> None:
    norm = ChannelRMSNorm(4, 3)
    zeros = torch.zeros(1, 4, 2, 2, 2, dtype=torch.bfloat16)
    out = norm(zeros)
    assert out.dtype == torch.bfloat16 and torch.equal(out, zeros)

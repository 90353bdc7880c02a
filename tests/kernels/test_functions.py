from __future__ import annotations

import pytest
import torch

from livereel.kernels.functions import parts, silu
from livereel.kernels.jit import jit, tl


@jit
def _silu_kernel(p_x: tl.tensor, p_out: tl.tensor, SIZE: tl.constexpr) -> None:
    i = tl.arange(0, SIZE)
    tl.store(p_out + i, silu(tl.load(p_x + i)))


@pytest.mark.parametrize(
    ("width", "block", "count"),
    [
        (96, 32, 3), (192, 64, 3), (384, 128, 3), (512, 512, 1), (1536, 512, 3), (5120, 1024, 5),
        (20, 32, 1), (1, 1, 1), (97, 128, 1), (16 * 9, 256, 1),
    ],
)  # fmt: skip
def test_rows_are_cut_without_waste_where_few_blocks_can(
    width: int, block: int, count: int
) -> None:
    assert parts(width) == (block, count)


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")
@pytest.mark.interpreter
@pytest.mark.parametrize("size", [4, pytest.param(1024, marks=pytest.mark.gpu)])
def test_silu(size: int, device: torch.device) -> None:
    x = torch.linspace(-100, 100, size, device=device)
    out = torch.empty_like(x)
    _silu_kernel[(1,)](x, out, SIZE=size)
    expected = x.double() * torch.sigmoid(x.double())
    assert torch.allclose(out.double(), expected, rtol=1e-5, atol=1e-30)

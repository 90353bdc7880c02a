"""The gated residual sum: the reference and the kernel against the formula in fp64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from livereel.kernels.gate_residual import gate_residual, gate_residual_reference
from livereel.kernels.tuning import forced

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
WAN = [pytest.param(1, 3, 1560, width, marks=pytest.mark.gpu) for width in (1536, 3072, 5120)]
SHAPES = [(1, 1, 1, 1), (2, 3, 5, 24), (1, 2, 17, 192), (1, 2, 3, 520), *WAN]


def formula(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    return x.double() + gate.double() * y.double()


def make(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, *, each: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """The stream, a block's output, and a gate sliced from a table as blocks do."""
    batch, frames, _, width = shape
    rng = torch.Generator(device).manual_seed(0)
    x, y = (torch.randn(shape, generator=rng, device=device).to(dtype) for _ in "xy")
    table = (batch, frames, 6, width) if each else (1, 1, 6, width)
    gate = torch.randn(table, generator=rng, device=device).unsqueeze(3).unbind(2)[2]
    return x, y, gate


@pytest.mark.parametrize("each", [True, False])
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
def test_reference(dtype: torch.dtype, each: bool) -> None:
    x, y, gate = make((2, 3, 5, 24), dtype, torch.device("cpu"), each=each)
    out = gate_residual_reference(x, y, gate)
    assert out.dtype == dtype
    error = (out.double() - formula(x, y, gate)).abs()
    assert error.max() <= 4 * torch.finfo(dtype).eps * out.double().abs().max()


@pytest.mark.interpreter
@pytest.mark.parametrize("each", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("batch", "frames", "tokens", "width"), SHAPES)
def test_kernel(
    batch: int, frames: int, tokens: int, width: int, dtype: torch.dtype, each: bool,
    device: torch.device, assert_rounded: Callable[[Tensor, Tensor], None],
) -> None:  # fmt: skip
    x, y, gate = make((batch, frames, tokens, width), dtype, device, each=each)
    out = gate_residual(x, y, gate)
    assert out.dtype == dtype
    assert_rounded(out, formula(x, y, gate))


@pytest.mark.interpreter
@pytest.mark.parametrize("config", [(16, 1), (64, 2), (128, 8)])
def test_other_configurations(
    config: tuple[int, int], assert_rounded: Callable[[Tensor, Tensor], None]
) -> None:
    x, y, gate = make((1, 2, 5, 72), torch.float32, torch.device("cpu"))
    block, rows = config
    with forced("gate_residual", {"block": block, "rows": rows, "num_warps": 4}):
        assert_rounded(gate_residual(x, y, gate), formula(x, y, gate))


@pytest.mark.interpreter
def test_nothing_in_nothing_out() -> None:
    x, y, gate = make((1, 2, 0, 24), torch.float32, torch.device("cpu"))
    assert gate_residual(x, y, gate).shape == (1, 2, 0, 24)


@pytest.mark.interpreter
def test_passes_torchs_checks_of_custom_ops() -> None:
    torch.library.opcheck(gate_residual, make((1, 2, 3, 24), torch.float32, torch.device("cpu")))


@pytest.mark.interpreter
def test_refuses_what_it_cannot_take() -> None:
    x, y, gate = make((2, 3, 5, 24), torch.float32, torch.device("cpu"))
    with pytest.raises(ValueError, match=r"x contiguous \[B, T, n, D\].*got float32 \[6, 5, 24\]"):
        gate_residual(x.flatten(0, 1), y, gate)
    with pytest.raises(ValueError, match=r"y contiguous, as float32 .*got bfloat16"):
        gate_residual(x, y.bfloat16(), gate)
    with pytest.raises(ValueError, match=r"gate fp32 \[2 or 1, 3 or 1, 1, 24\].*got float16"):
        gate_residual(x, y, gate.half())

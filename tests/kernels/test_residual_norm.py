"""A residual sum and its LayerNorm: the reference and the kernel against the formula in fp64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from livereel.kernels.norm_modulate import MOST_WIDTH
from livereel.kernels.residual_norm import residual_norm, residual_norm_reference
from livereel.kernels.tuning import forced

EPS = 1e-6
WAN = [pytest.param(1, 3, 1560, width, marks=pytest.mark.gpu) for width in (1536, 3072, 5120)]
SHAPES = [(1, 1, 1, 1), (2, 3, 5, 24), (1, 2, 17, 96), (1, 1, 3, 520), *WAN]

Check = Callable[[Tensor, Tensor], None]


def make(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, *, gated: bool = True
) -> tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor]:
    """Activations far from zero mean, and gains sliced from a table as blocks do."""
    batch, frames, _, width = shape
    rng = torch.Generator(device).manual_seed(0)

    def draw(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=rng, device=device)

    x, y = (draw(*shape) * 2 + 5).to(dtype), draw(*shape).to(dtype)
    shift, scale, gate = (draw(batch, frames, 3, width) * 0.5).unsqueeze(3).unbind(2)
    return x, y, gate if gated else None, scale, shift


def check(
    outs: tuple[Tensor, Tensor], given: tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor],
    assert_rounded: Check, base: float = 1.0,
) -> None:  # fmt: skip
    """The sum is that of the exact numbers, the norm that of the sum as it was rounded."""
    x, y, gate, scale, shift = given
    total = x.double() + (y.double() if gate is None else gate.double() * y.double())
    assert_rounded(outs[0], total)
    normed = F.layer_norm(outs[0].double(), x.shape[-1:], eps=EPS)
    assert_rounded(outs[1], normed * (base + scale.double()) + shift.double())


def test_reference(assert_rounded: Check) -> None:
    for gated in (True, False):
        given = make((2, 3, 5, 24), torch.float32, torch.device("cpu"), gated=gated)
        check(residual_norm_reference(*given, EPS), given, assert_rounded)


@pytest.mark.interpreter
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("batch", "frames", "tokens", "width"), SHAPES)
def test_kernel(
    batch: int, frames: int, tokens: int, width: int, dtype: torch.dtype, gated: bool,
    device: torch.device, assert_rounded: Check,
) -> None:  # fmt: skip
    given = make((batch, frames, tokens, width), dtype, device, gated=gated)
    check(residual_norm(*given, EPS), given, assert_rounded)


@pytest.mark.interpreter
def test_an_ordinary_layer_norm_and_other_configurations(assert_rounded: Check) -> None:
    given = make((1, 2, 5, 40), torch.float32, torch.device("cpu"))
    for rows in (1, 8):
        with forced("residual_norm", {"rows": rows, "num_warps": 4}):
            check(residual_norm(*given, EPS, 0.0), given, assert_rounded, base=0.0)


@pytest.mark.interpreter
def test_keeps_the_rules_of_custom_ops_and_takes_no_rows() -> None:
    given = make((1, 2, 3, 24), torch.float32, torch.device("cpu"))
    torch.library.opcheck(residual_norm, (*given, EPS))
    none = make((1, 2, 0, 24), torch.float32, torch.device("cpu"))
    assert [out.shape for out in residual_norm(*none, EPS)] == [(1, 2, 0, 24)] * 2


@pytest.mark.interpreter
def test_refuses_what_it_cannot_take() -> None:
    x, y, gate, scale, shift = make((2, 3, 5, 24), torch.float32, torch.device("cpu"))
    with pytest.raises(ValueError, match=r"y contiguous, as float32 \[2, 3, 5, 24\]"):
        residual_norm(x, y.bfloat16(), gate, scale, shift, EPS)
    with pytest.raises(ValueError, match=r"gate fp32 .*got float32 \[2, 2, 1, 24\]"):
        residual_norm(x, y, scale[:, :2], scale, shift, EPS)
    wide = torch.zeros(1, 1, 1, MOST_WIDTH + 1)
    with pytest.raises(ValueError, match=rf"up to {MOST_WIDTH}; got {MOST_WIDTH + 1}"):
        residual_norm(wide, wide, None, wide, wide, EPS)

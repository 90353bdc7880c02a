"""Group norm over a chunk and SiLU: the reference and the kernels against the formula in fp64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from livereel.kernels.group_norm_silu import (
    group_norm_silu,
    group_norm_silu_reference,
    group_statistics,
)
from livereel.kernels.tuning import forced

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
COGVIDEOX = [
    pytest.param((1, 8, 480, 720, 128), 32, marks=pytest.mark.gpu),
    pytest.param((1, 8, 240, 360, 256), 32, marks=pytest.mark.gpu),
    pytest.param((1, 2, 60, 90, 512), 32, marks=pytest.mark.gpu),
]
SHAPES = [
    ((1, 1, 1, 1, 4), 2),
    ((2, 3, 5, 7, 12), 4),  # groups of 3 channels, batches with their own statistics
    ((1, 2, 9, 11, 96), 8),  # more slabs than one
    ((1, 1, 2, 3, 520), 8),  # more channels than a block
    *COGVIDEOX,
]
SMALL = {"block": 16, "rows": 2, "num_warps": 4, "slabs": 3}


def formula(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
    batch, _, _, _, channels = x.shape
    x64 = x.double().reshape(batch, -1, groups, channels // groups)
    mean = x64.mean((1, 3), keepdim=True)
    variance = (x64 - mean).square().mean((1, 3), keepdim=True)
    y = ((x64 - mean) / (variance + eps).sqrt()).reshape(x.shape)
    y = y * weight.double() + bias.double()
    return y * torch.sigmoid(y)


def make(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator(device).manual_seed(0)
    x = torch.randn(shape, generator=rng, device=device) * 2 + 3
    weight, bias = torch.randn(2, shape[-1], generator=rng, device=device).to(dtype)
    return x.to(dtype), weight, bias


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
def test_reference(dtype: torch.dtype, assert_rounded: Callable[[Tensor, Tensor], None]) -> None:
    x, weight, bias = make((2, 3, 5, 7, 12), dtype, torch.device("cpu"))
    out = group_norm_silu_reference(x, weight, bias, 4, 1e-6)
    assert out.is_contiguous()
    assert_rounded(out, formula(x, weight, bias, 4, 1e-6))


@pytest.mark.interpreter
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "groups"), SHAPES)
def test_kernels(
    shape: tuple[int, ...], groups: int, dtype: torch.dtype, device: torch.device,
    assert_rounded: Callable[[Tensor, Tensor], None],
) -> None:  # fmt: skip
    x, weight, bias = make(shape, dtype, device)
    out = group_norm_silu(x, weight, bias, groups, 1e-6)
    assert out.dtype == dtype
    assert_rounded(out, formula(x, weight, bias, groups, 1e-6))


@pytest.mark.interpreter
@pytest.mark.parametrize("config", [SMALL, {**SMALL, "rows": 8, "slabs": 1}])
def test_other_configurations(
    config: dict[str, int], assert_rounded: Callable[[Tensor, Tensor], None]
) -> None:
    x, weight, bias = make((2, 2, 3, 5, 24), torch.float32, torch.device("cpu"))
    apply = {name: n for name, n in config.items() if name != "slabs"}
    with forced("group_statistics", config), forced("group_norm_silu", apply):
        out = group_norm_silu(x, weight, bias, 4, 1e-6)
    assert_rounded(out, formula(x, weight, bias, 4, 1e-6))


@pytest.mark.interpreter
@pytest.mark.parametrize("slabs", [1, 7, 30])
def test_a_gutter_does_not_count_and_stays_zero(
    slabs: int, assert_rounded: Callable[[Tensor, Tensor], None]
) -> None:
    x, weight, bias = make((2, 2, 3, 5, 12), torch.float32, torch.device("cpu"))
    x[..., -1, :] = 100.0
    truth = formula(x[..., :-1, :], weight, bias, 4, 1e-6)
    outs = [group_norm_silu_reference(x, weight, bias, 4, 1e-6, gutter=True)]
    small = {"block": 16, "rows": 1, "num_warps": 4, "slabs": slabs}
    with forced("group_statistics", small):  # a slab may be a gutter's pixel alone
        outs.append(group_norm_silu(x, weight, bias, 4, 1e-6, gutter=True))
    for out in outs:
        assert out.shape == x.shape and not out[..., -1, :].any()
        assert_rounded(out[..., :-1, :], truth)


@pytest.mark.interpreter
def test_a_mean_far_from_zero_costs_no_digits() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 1, 8, 16, 8) + 1000
    x64 = x.double().reshape(-1, 2, 4)
    with forced("group_statistics", {**SMALL, "slabs": 4}):
        mean, rstd = group_statistics(x, 2, 1e-6)[0].double()
    deviation = x64.var((0, 2), correction=0).sqrt()
    assert torch.allclose(mean, x64.mean((0, 2)), rtol=1e-6)
    assert torch.allclose(rstd, 1 / deviation, rtol=1e-4)


@pytest.mark.interpreter
def test_nothing_in_nothing_out() -> None:
    x, weight, bias = make((1, 0, 3, 5, 8), torch.float32, torch.device("cpu"))
    assert group_norm_silu(x, weight, bias, 2, 1e-6).shape == (1, 0, 3, 5, 8)


@pytest.mark.interpreter
def test_passes_torchs_checks_of_custom_ops() -> None:
    arguments = (*make((1, 2, 1, 3, 8), torch.float32, torch.device("cpu")), 2, 1e-6)
    torch.library.opcheck(group_norm_silu, arguments)


@pytest.mark.interpreter
def test_refuses_what_it_cannot_take() -> None:
    x, weight, bias = make((1, 2, 3, 5, 8), torch.float32, torch.device("cpu"))
    with pytest.raises(ValueError, match=r"x contiguous \[B, T, H, W, C\]"):
        group_norm_silu(x.movedim(1, -1), weight, bias, 2, 1e-6)
    with pytest.raises(ValueError, match=r"weight contiguous \[8\].*got float32 \[4\]"):
        group_norm_silu(x, weight[:4], bias, 2, 1e-6)
    with pytest.raises(ValueError, match=r"bias contiguous \[8\].*got float64"):
        group_norm_silu(x, weight, bias.double(), 2, 1e-6)
    for groups in (3, 0):
        with pytest.raises(ValueError, match=rf"groups that divide 8 channels; got {groups}"):
            group_norm_silu(x, weight, bias, groups, 1e-6)

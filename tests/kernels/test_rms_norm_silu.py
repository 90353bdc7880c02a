"""Channel RMS norm and SiLU: the reference and the kernel against the formula in fp64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from livereel.kernels.rms_norm_silu import MOST_CHANNELS, rms_norm_silu, rms_norm_silu_reference
from livereel.kernels.tuning import forced

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
WAN = [
    pytest.param((1, 4, 480, 832, 96), marks=pytest.mark.gpu),
    pytest.param((1, 4, 240, 416, 192), marks=pytest.mark.gpu),
    pytest.param((1, 1, 60, 104, 384), marks=pytest.mark.gpu),
]
SHAPES = [(1, 1), (2, 3, 5, 7, 20), (1, 1, 3, 11, 96), (1, 2, 1, 5, 260), *WAN]


def formula(x: Tensor, gain: Tensor) -> Tensor:
    x = x.double()
    y = x / x.square().mean(-1, keepdim=True).sqrt().clamp_min(1e-12) * gain.double()
    return y * torch.sigmoid(y)


def make(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    rng = torch.Generator(device).manual_seed(0)
    x = torch.randn(shape, generator=rng, device=device) * 3 + 1
    return x.to(dtype), torch.randn(shape[-1], generator=rng, device=device).to(dtype)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
def test_reference(dtype: torch.dtype, assert_rounded: Callable[[Tensor, Tensor], None]) -> None:
    x, gain = make((2, 3, 5, 7, 20), dtype, torch.device("cpu"))
    assert_rounded(rms_norm_silu_reference(x, gain), formula(x, gain))


@pytest.mark.interpreter
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_kernel(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device,
    assert_rounded: Callable[[Tensor, Tensor], None],
) -> None:  # fmt: skip
    x, gain = make(shape, dtype, device)
    out = rms_norm_silu(x, gain)
    assert out.dtype == dtype
    assert_rounded(out, formula(x, gain))


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")
@pytest.mark.interpreter
def test_zeros_and_huge_values(assert_rounded: Callable[[Tensor, Tensor], None]) -> None:
    x, gain = make((3, 24), torch.float32, torch.device("cpu"))
    x[0] = 0
    x[1] *= 1e4
    assert_rounded(rms_norm_silu(x, gain), formula(x, gain))
    x[2] *= 1e-4
    assert torch.equal(rms_norm_silu(x[:1], gain), torch.zeros(1, 24))
    assert rms_norm_silu(x[:, None], gain * 1000).isfinite().all()


@pytest.mark.interpreter
@pytest.mark.parametrize("rows", [1, 2, 64])
def test_other_configurations(rows: int, assert_rounded: Callable[[Tensor, Tensor], None]) -> None:
    x, gain = make((3, 5, 24), torch.float32, torch.device("cpu"))
    with forced("rms_norm_silu", {"rows": rows, "num_warps": 4}):
        assert_rounded(rms_norm_silu(x, gain), formula(x, gain))


@pytest.mark.interpreter
def test_nothing_in_nothing_out() -> None:
    x, gain = make((0, 24), torch.float32, torch.device("cpu"))
    assert rms_norm_silu(x, gain).shape == (0, 24)


@pytest.mark.interpreter
def test_passes_torchs_checks_of_custom_ops() -> None:
    torch.library.opcheck(rms_norm_silu, make((2, 3, 24), torch.float32, torch.device("cpu")))


@pytest.mark.interpreter
def test_refuses_what_it_cannot_take() -> None:
    x, gain = make((2, 3, 24), torch.float32, torch.device("cpu"))
    with pytest.raises(ValueError, match=r"x contiguous \[\.\.\., C\].*got float32 \[2, 24, 3\]"):
        rms_norm_silu(x.transpose(1, 2), gain)
    with pytest.raises(ValueError, match=r"gain contiguous \[24\].*got float32 \[1, 24\]"):
        rms_norm_silu(x, gain[None])
    wide = torch.zeros(1, MOST_CHANNELS + 1)
    with pytest.raises(ValueError, match=rf"{MOST_CHANNELS} channels; got {MOST_CHANNELS + 1}"):
        rms_norm_silu(wide, wide[0])

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from livereel.engine.layers.linear_fp8 import LinearFP8, norm_modulate_rows
from livereel.kernels.linear_fp8 import (
    FP8,
    Rows,
    linear_fp8,
    linear_fp8_reference,
    norm_modulate_fp8,
    norm_modulate_fp8_reference,
    quantize_rows,
    quantize_rows_reference,
)

EPS = 1e-6


class Recorded(TorchDispatchMode):
    """The names of the project's own ops that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "livereel":
            self.names.append(func._opname)
        return func(*args, **(kwargs or {}))


def assert_rounded(rows: Rows, truth: Tensor, *, close: float) -> None:
    """Scales bring each row's largest to 448, and each number is the nearest that e4m3 has.

    `truth` is fp64; `close` allows for how far what was rounded may be from it, relative to the
    row's largest.
    """
    assert rows.data.dtype == FP8 and rows.scale.dtype == torch.float32
    largest = truth.abs().amax(-1, keepdim=True).clamp_min(1e-12)
    torch.testing.assert_close(rows.scale.double(), largest / 448, rtol=2e-6 + close, atol=0)
    scaled = truth / rows.scale.double()
    step = 2.0 ** (scaled.abs().clamp_min(2.0**-6).log2().floor() - 3)
    error = (rows.data.double() - scaled).abs()
    assert ((error - step / 2) <= 1e-4 * step + close * 448).all()


def inputs(size: tuple[int, ...], dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
    """Rows of very different magnitude, one of them zeros."""
    draw = torch.Generator().manual_seed(len(size) + size[-1])
    x = torch.randn(size, generator=draw, dtype=torch.float64)
    x = x * 10.0 ** torch.randint(-4, 4, (*size[:-1], 1), generator=draw)
    x.flatten(0, -2)[-1] = 0.0
    return x.to(device, dtype)


def modulation(width: int, frames: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Scale and shift, slices of one tensor, for one batch."""
    draw = torch.Generator().manual_seed(width)
    table = torch.randn(1, frames, 1, 2, width, generator=draw)
    scale, shift = table.to(device).unbind(3)
    return scale, shift


CASES = [
    pytest.param((1, 1, 1, 16), torch.float32, id="tiny"),
    pytest.param((2, 3, 5, 33), torch.float32, id="odd"),
    pytest.param((1, 2, 3, 96), torch.bfloat16, id="bf16"),
    pytest.param((1, 1, 2, 5120), torch.float16, id="wide"),
]
REAL = [
    pytest.param((1, 3, 1560, 1536), torch.bfloat16, id="wan-1.3b"),
    pytest.param((2, 3, 3600, 5120), torch.bfloat16, id="wan-14b"),
    pytest.param((1, 3, 1560, 13824), torch.bfloat16, id="wan-14b-inner"),
    pytest.param((1, 1, 7, 130), torch.float16, id="odd"),
]
SIZES = [
    pytest.param(*case.values, id=case.id, marks=mark)
    for mark, cases in ((pytest.mark.interpreter, CASES), (pytest.mark.gpu, REAL))
    for case in cases
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_references_round_to_the_nearest(dtype: torch.dtype) -> None:
    x = inputs((1, 2, 5, 24), dtype)
    assert_rounded(quantize_rows_reference(x), x.double(), close=0)
    scale, shift = modulation(24, 2, x.device)
    truth = F.layer_norm(x.double(), (24,), eps=EPS) * (1 + scale) + shift
    assert_rounded(norm_modulate_fp8_reference(x, scale, shift, EPS), truth, close=1e-6)


@pytest.mark.parametrize(("size", "dtype"), SIZES)
def test_quantizes_rows(size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    x = inputs(size, dtype, device)
    assert_rounded(Rows(*quantize_rows(x)), x.double(), close=0)


@pytest.mark.parametrize(("size", "dtype"), SIZES)
def test_quantizes_what_it_normed(
    size: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> None:
    x = inputs(size, dtype, device)
    scale, shift = modulation(size[-1], size[1], device)
    truth = F.layer_norm(x.double(), size[-1:], eps=EPS) * (1 + scale.double()) + shift.double()
    rows = Rows(*norm_modulate_fp8(x, scale, shift, EPS))
    assert_rounded(rows, truth, close=2e-6)


def test_product_is_that_of_the_rounded_rows() -> None:
    x, w = inputs((2, 5, 32), torch.bfloat16), inputs((48, 32), torch.bfloat16)
    bias = torch.randn(48).bfloat16()
    rows, weight = quantize_rows_reference(x), quantize_rows_reference(w)
    for b in (None, bias):
        wide = [Rows(r.data, r.scale.double()) for r in (rows, weight)]
        truth = linear_fp8_reference(*wide, b, torch.float64)
        out = linear_fp8(rows, weight, b, torch.bfloat16)
        assert out.shape == (2, 5, 48)
        torch.testing.assert_close(out.double(), truth, rtol=8e-3, atol=8e-3 * truth.abs().max())


@pytest.mark.gpu
@pytest.mark.parametrize(("m", "k", "n"), [(4680, 1536, 8960), (10800, 5120, 5120), (1, 16, 16)])
def test_product_on_the_gpu(m: int, k: int, n: int, device: torch.device) -> None:
    x, w = torch.randn(m, k, device=device), torch.randn(n, k, device=device)
    rows, weight = quantize_rows_reference(x.bfloat16()), quantize_rows_reference(w.bfloat16())
    bias = torch.randn(n, device=device).bfloat16()
    truth = linear_fp8_reference(rows, weight, bias, torch.float32)
    out = linear_fp8(rows, weight, bias, torch.bfloat16).float()
    assert (out - truth).norm() <= 1e-2 * truth.norm()  # sums are kept in some 14 bits


@pytest.mark.parametrize(
    "road",
    [pytest.param("reference"), pytest.param("triton", marks=pytest.mark.interpreter),
     pytest.param("triton", marks=pytest.mark.gpu)],
)  # fmt: skip
@torch.inference_mode()
def test_layers_take_the_road_they_are_given(road: Any, device: torch.device) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(32, 48).bfloat16().to(device)
    x = torch.randn(1, 2, 3, 32).bfloat16().to(device)
    scale, shift = modulation(32, 2, device)
    layer, reference = LinearFP8.of(linear, road), LinearFP8.of(linear)
    with Recorded() as ran:
        outs = layer(x), layer(norm_modulate_rows(x, scale, shift, EPS, 1.0, road))
    assert ran.names == (["quantize_rows", "norm_modulate_fp8"] if road == "triton" else [])
    rows = norm_modulate_rows(x, scale, shift, EPS, 1.0, "reference")
    wanted = reference(x), reference(rows)
    for out, want in zip(outs, wanted, strict=True):
        torch.testing.assert_close(out, want, rtol=2e-2, atol=2e-2)


@pytest.mark.interpreter
def test_keep_the_rules_of_custom_ops() -> None:
    x = inputs((1, 2, 3, 24), torch.float32)
    torch.library.opcheck(quantize_rows, (x,))
    torch.library.opcheck(norm_modulate_fp8, (x, *modulation(24, 2, x.device), EPS))


@pytest.mark.interpreter
def test_take_no_rows_and_refuse_what_they_cannot_run() -> None:
    assert quantize_rows(torch.zeros(0, 16))[1].shape == (0, 1)
    x = torch.zeros(1, 2, 3, 32)
    with pytest.raises(ValueError, match=r"wants x contiguous \[..., K\] in bf16"):
        quantize_rows(x.mT)
    with pytest.raises(ValueError, match=r"quantize_rows takes widths up to 16384; got .*16400"):
        quantize_rows(torch.zeros(1, 16400))
    with pytest.raises(ValueError, match=r"norm_modulate_fp8 wants scale fp32"):
        norm_modulate_fp8(x, x, x, EPS)

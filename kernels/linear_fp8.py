"""Linear layers in fp8 (e4m3): each row of the input and of the weight has a scale of its own.

The input is quantized as it comes, by the largest magnitude in each row, in one pass over memory
or, with `norm_modulate_fp8`, in the pass of the AdaLN norm before it. The product is the library's
(`torch._scaled_mm`): its row-wise kernels reach what ours would have to.

Shapes: M rows, K inputs, N outputs, B batch, T latent frames, n tokens a frame, D hidden width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .checks import check_activations, check_device, check_modulation, describe, modulation_strides
from .compile import Shipped
from .functions import parts
from .jit import custom_op, jit, launch, tl, triton
from .norm_modulate import MOST_WIDTH, norm_modulate_reference
from .tuning import Config, Tunable, configuration

FP8 = torch.float8_e4m3fn
LARGEST: tl.constexpr = tl.constexpr(448.0)
"""The largest e4m3 number."""
SMALLEST: tl.constexpr = tl.constexpr(1e-12)
"""Rows of zeros are scaled as if they had this."""


class Rows(NamedTuple):
    """`data` (fp8, `[..., K]`) times `scale` (fp32, `[..., 1]`)."""

    data: Tensor
    scale: Tensor


def quantize_rows_reference(x: Tensor) -> Rows:
    """What `quantize_rows` does, in plain torch."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    scale = wide.abs().amax(-1, keepdim=True).clamp_min(1e-12) / 448.0
    return Rows((wide / scale).to(FP8), scale.float())


def norm_modulate_fp8_reference(
    x: Tensor, scale: Tensor, shift: Tensor, eps: float, base: float = 1.0
) -> Rows:
    """What `norm_modulate_fp8` does, in plain torch."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return quantize_rows_reference(norm_modulate_reference(wide, scale, shift, eps, base))


def linear_fp8_reference(x: Rows, weight: Rows, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """What `linear_fp8` does, in plain torch, in fp32; fp64 scales are computed in fp64."""
    wide = torch.promote_types(x.scale.dtype, torch.float32)
    y = (x.data.to(wide) * x.scale) @ (weight.data.to(wide) * weight.scale).mT
    return (y if bias is None else y + bias.to(wide)).to(dtype)


@jit
def _quantize_rows_kernel(
    p_x: tl.tensor, p_gain: tl.tensor, p_shift: tl.tensor, p_out: tl.tensor, p_scale: tl.tensor,
    tokens: int, frames: int, gain_batch: int, gain_frame: int, shift_batch: int,
    shift_frame: int, eps: float, NORM: tl.constexpr, BASE: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK: tl.constexpr, ROWS: tl.constexpr,
) -> None:  # fmt: skip
    """ROWS tokens of one frame: normed and modulated first if NORM, then scaled and rounded."""
    eps = tl.cast(eps, tl.float32)  # AOTInductor passes on floats as fp64
    PARTS: tl.constexpr = (WIDTH + BLOCK - 1) // BLOCK
    i_frame = tl.program_id(0)
    i_batch, i_time = i_frame // frames, i_frame % frames
    i_row, i_col = tl.program_id(1) * ROWS + tl.arange(0, ROWS), tl.arange(0, BLOCK)
    row = i_frame.to(tl.int64) * tokens + i_row
    at = row[:, None] * WIDTH + i_col[None, :]
    inside = (i_col < WIDTH)[None, :]
    mask = (i_row < tokens)[:, None] & inside

    b_parts = tl.tuple(())
    for i in tl.static_range(PARTS):
        b_parts += (tl.load(p_x + at + i * BLOCK, mask=mask, other=0.0).to(tl.float32),)
    if NORM:
        p_gain += i_batch.to(tl.int64) * gain_batch + i_time * gain_frame + i_col[None, :]
        p_shift += i_batch.to(tl.int64) * shift_batch + i_time * shift_frame + i_col[None, :]
        b_sums = tl.zeros([ROWS, BLOCK], tl.float32)
        for i in tl.static_range(PARTS):
            b_sums += b_parts[i]
        b_mean = tl.sum(b_sums, 1)[:, None] / WIDTH
        b_squares = tl.zeros([ROWS, BLOCK], tl.float32)
        for i in tl.static_range(PARTS):
            b_x = tl.where(inside, b_parts[i] - b_mean, 0.0)
            b_squares += b_x * b_x
        b_rstd = tl.rsqrt(tl.sum(b_squares, 1)[:, None] / WIDTH + eps)
        b_normed = tl.tuple(())
        for i in tl.static_range(PARTS):
            b_gain = BASE + tl.load(p_gain + i * BLOCK, mask=inside, other=0.0)
            b_shift = tl.load(p_shift + i * BLOCK, mask=inside, other=0.0)
            b_x = (b_parts[i] - b_mean) * b_rstd * b_gain + b_shift
            b_normed += (tl.where(inside, b_x, 0.0),)
        b_parts = b_normed
    b_largest = tl.full([ROWS, BLOCK], SMALLEST, tl.float32)
    for i in tl.static_range(PARTS):
        b_largest = tl.maximum(b_largest, tl.abs(b_parts[i]))
    b_scale = tl.max(b_largest, 1) / LARGEST
    tl.store(p_scale + row, b_scale, mask=i_row < tokens)
    b_inverse = (1.0 / b_scale)[:, None]
    for i in tl.static_range(PARTS):
        tl.store(p_out + at + i * BLOCK, (b_parts[i] * b_inverse).to(tl.float8e4nv), mask=mask)


@custom_op("quantize_rows")
def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Scale each row of `x` `[..., K]` to e4m3's range and round; gives fp8 `[..., K]` and fp32
    scales `[..., 1]`, to be taken as `Rows`.

    `x` is contiguous, bf16, fp16 or fp32. Raises `ValueError` for anything else.
    """
    op = "quantize_rows"
    check_device(op, x)
    check_activations(op, "x", x, "[..., K]")
    _check_width(op, x)
    return _launch(op, x, None, None, (x.numel() // x.shape[-1], 1, 1), 0.0, 0.0)


@quantize_rows.register_fake
def _(x: Tensor) -> tuple[Tensor, Tensor]:
    return _empty(x)


@custom_op("norm_modulate_fp8")
def norm_modulate_fp8(
    x: Tensor, scale: Tensor, shift: Tensor, eps: float, base: float = 1.0
) -> tuple[Tensor, Tensor]:
    """`norm_modulate`, its result quantized as by `quantize_rows` without a trip through memory.

    Arguments as in `norm_modulate`. Raises `ValueError` for anything else.
    """
    op = "norm_modulate_fp8"
    check_device(op, x, scale, shift)
    check_activations(op, "x", x, "[B, T, n, D]")
    check_modulation(op, "scale", scale, x)
    check_modulation(op, "shift", shift, x)
    _check_width(op, x)
    batch, frames, tokens, _ = x.shape
    return _launch(op, x, scale, shift, (tokens, frames, batch), eps, base)


@norm_modulate_fp8.register_fake
def _(
    x: Tensor, scale: Tensor, shift: Tensor, eps: float, base: float = 1.0
) -> tuple[Tensor, Tensor]:
    return _empty(x)


def linear_fp8(x: Rows, weight: Rows, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """`x` `[..., K]` times `weight` `[N, K]`, transposed, plus `bias` `[N]`, in `dtype`.

    K and N are multiples of 16; on CUDA `dtype` is bf16, which every version of the library takes,
    and the chip Hopper or newer.
    """
    k, n = weight.data.shape[1], weight.data.shape[0]
    y = torch._scaled_mm(
        x.data.reshape(-1, k), weight.data.mT, x.scale.reshape(-1, 1), weight.scale.mT,
        bias=bias, out_dtype=dtype, use_fast_accum=True,
    )  # fmt: skip
    return y.reshape(*x.data.shape[:-1], n)


def _launch(
    op: str, x: Tensor, gain: Tensor | None, shift: Tensor | None, size: tuple[int, int, int],
    eps: float, base: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`size` is tokens a frame, frames and batch."""
    tokens, frames, batch = size
    data, scales = _empty(x)
    if x.numel() == 0:
        return data, scales
    width = x.shape[-1]
    config = configuration(op, f"D{width}", _default(width), x.device)
    rows = config["rows"]
    launch(
        _quantize_rows_kernel, (batch * frames, triton.cdiv(tokens, rows)),
        x, gain, shift, data, scales, tokens, frames,
        *((0, 0) if gain is None else modulation_strides(gain)),
        *((0, 0) if shift is None else modulation_strides(shift)),
        eps, NORM=gain is not None, BASE=base, WIDTH=width, BLOCK=parts(width)[0], ROWS=rows,
        num_warps=config["num_warps"],
    )  # fmt: skip
    return data, scales


def _empty(x: Tensor) -> tuple[Tensor, Tensor]:
    data = torch.empty(x.shape, dtype=FP8, device=x.device)
    return data, torch.empty(*x.shape[:-1], 1, dtype=torch.float32, device=x.device)


def _check_width(op: str, x: Tensor) -> None:
    if x.shape[-1] > MOST_WIDTH:
        raise ValueError(f"{op} takes widths up to {MOST_WIDTH}; got {describe(x)}")


def _default(width: int) -> Config:
    """As many rows as stay in registers, some 32 to 64 values a thread."""
    rows = 1 << min(4, (4096 // width or 1).bit_length() - 1)
    return {"rows": rows, "num_warps": 8 if rows * width > 6144 else 4}


_NORMED = (1536, 5120)
_PLAIN = (8960, 13824)
"""Hidden and inner widths of Wan 1.3B and 14B."""


def _shipped(width: int, norm: bool) -> Shipped:
    config = _default(width)
    strides = ("gain_batch", "gain_frame", "shift_batch", "shift_frame")
    return Shipped(
        name=f"{'norm' if norm else 'plain'}-D{width}",
        kernel=_quantize_rows_kernel,
        signature={"p_x": "*bf16:16", "p_out": "*fp8e4nv:16", "tokens": "i32", "frames": "i32",
                   **dict.fromkeys(("p_gain", "p_shift", "p_scale"), "*fp32:16"),
                   **dict.fromkeys(strides, "i32:16"), "eps": "fp32"},
        constants={"NORM": norm, "BASE": 1.0, "WIDTH": width, "BLOCK": parts(width)[0],
                   "ROWS": config["rows"]},
        num_warps=config["num_warps"],
        sms=(90, 100, 120),  # an A100 has no fp8
    )  # fmt: skip


SHIPPED = (
    *(_shipped(width, norm=True) for width in _NORMED),
    *(_shipped(width, norm=False) for width in _PLAIN),
)


def _tunable(width: int, norm: bool) -> Tunable:
    def prepare(device: torch.device) -> Callable[[], Tensor]:
        x = torch.randn(1, 3, 1560, width, device=device).bfloat16()
        shift, scale = torch.randn(2, 1, 1, 1, width, device=device)
        if norm:
            return lambda: norm_modulate_fp8(x, scale, shift, 1e-6)[0]
        return lambda: quantize_rows(x)[0]

    candidates = tuple(
        {"rows": rows, "num_warps": warps} for rows in (1, 2, 4) for warps in (2, 4, 8, 16)
    )
    op = "norm_modulate_fp8" if norm else "quantize_rows"
    return Tunable(op=op, key=f"D{width}", candidates=candidates, prepare=prepare)


TUNABLE = (
    *(_tunable(width, norm=True) for width in _NORMED),
    *(_tunable(width, norm=False) for width in _PLAIN),
)

"""LayerNorm whose gain and bias come from the timestep (AdaLN), in one pass over memory.

Peebles and Xie, "Scalable Diffusion Models with Transformers" (2023).

Shapes: B batch, T latent frames, n tokens a frame, D hidden width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from .checks import check_activations, check_device, check_modulation, modulation_strides
from .compile import Shipped
from .functions import parts
from .jit import custom_op, jit, launch, tl, triton
from .tuning import Config, Tunable, configuration

MOST_WIDTH = 16384
"""A program holds whole rows in registers."""

_WIDTHS = (1536, 3072, 5120)
"""Those of Wan 1.3B, 5B and 14B."""


def norm_modulate_reference(
    x: Tensor, scale: Tensor, shift: Tensor, eps: float, base: float = 1.0
) -> Tensor:
    """`LayerNorm(x) (base + scale) + shift` in the dtype of `x`, as `norm_modulate`."""
    wide = torch.promote_types(x.dtype, torch.float32)
    if scale[..., 0].numel() == 1:  # one timestep for all: they are the norm's own gain and bias
        gain, bias = (base + scale).flatten(), shift.flatten()
        # This kernel takes a half-precision x with fp32 gains as it is; exported graphs must not.
        if x.device.type == "cpu" and not torch.compiler.is_exporting():
            return F.layer_norm(x, x.shape[-1:], gain, bias, eps)
        return F.layer_norm(x.to(wide), x.shape[-1:], gain, bias, eps).to(x.dtype)
    normed = F.layer_norm(x.to(wide), x.shape[-1:], eps=eps)
    return torch.addcmul(shift, normed, base + scale).to(x.dtype)


@jit
def _norm_modulate_kernel(
    p_x: tl.tensor,
    p_scale: tl.tensor,
    p_shift: tl.tensor,
    p_out: tl.tensor,
    tokens: int,
    frames: int,
    scale_batch: int,
    scale_frame: int,
    shift_batch: int,
    shift_frame: int,
    eps: float,
    BASE: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    """A program takes `ROWS` tokens of one frame, so that gains are read once for all of them."""
    eps = tl.cast(eps, tl.float32)  # AOTInductor passes on floats as fp64
    PARTS: tl.constexpr = (WIDTH + BLOCK - 1) // BLOCK
    i_frame = tl.program_id(0)
    i_first = tl.program_id(1) * ROWS
    i_batch, i_time = i_frame // frames, i_frame % frames
    i_row, i_col = tl.arange(0, ROWS), tl.arange(0, BLOCK)
    at = i_row[:, None] * WIDTH + i_col[None, :]
    inside = i_col < WIDTH
    mask = (i_first + i_row < tokens)[:, None]
    if PARTS * BLOCK != WIDTH:
        mask = mask & inside[None, :]
    start = (i_frame.to(tl.int64) * tokens + i_first) * WIDTH
    p_x += start
    p_out += start
    p_scale += i_batch.to(tl.int64) * scale_batch + i_time * scale_frame
    p_shift += i_batch.to(tl.int64) * shift_batch + i_time * shift_frame

    b_parts = tl.tuple(())
    b_sums = tl.zeros([ROWS, BLOCK], tl.float32)
    for i in tl.static_range(PARTS):
        b_x = tl.load(p_x + at + i * BLOCK, mask=mask, other=0.0).to(tl.float32)
        b_parts += (b_x,)
        b_sums += b_x
    b_mean = tl.sum(b_sums, axis=1) / WIDTH
    b_squares = tl.zeros([ROWS, BLOCK], tl.float32)
    for i in tl.static_range(PARTS):
        b_x = b_parts[i] - b_mean[:, None]
        b_squares += tl.where(inside[None, :], b_x * b_x, 0.0)
    b_rstd = tl.rsqrt(tl.sum(b_squares, axis=1) / WIDTH + eps)
    for i in tl.static_range(PARTS):
        b_gain = BASE + tl.load(p_scale + i * BLOCK + i_col, mask=inside, other=0.0)
        b_shift = tl.load(p_shift + i * BLOCK + i_col, mask=inside, other=0.0)
        b_x = (b_parts[i] - b_mean[:, None]) * b_rstd[:, None]
        b_out = b_x * b_gain[None, :] + b_shift[None, :]
        tl.store(p_out + at + i * BLOCK, b_out.to(p_out.dtype.element_ty), mask=mask)


@custom_op("norm_modulate")
def norm_modulate(x: Tensor, scale: Tensor, shift: Tensor, eps: float, base: float = 1.0) -> Tensor:
    """`LayerNorm(x) (base + scale) + shift` in the dtype of `x`, on CUDA.

    `x` `[B, T, n, D]`, contiguous, bf16, fp16 or fp32; `scale` and `shift` fp32
    `[B or 1, T or 1, 1, D]`, unit stride over D. With `base` 0, `scale` is an ordinary LayerNorm's
    weight. Raises `ValueError` for anything else.
    """
    check_device("norm_modulate", x, scale, shift)
    check_activations("norm_modulate", "x", x, "[B, T, n, D]")
    check_modulation("norm_modulate", "scale", scale, x)
    check_modulation("norm_modulate", "shift", shift, x)
    batch, frames, tokens, width = x.shape
    if width > MOST_WIDTH:
        raise ValueError(f"norm_modulate takes widths up to {MOST_WIDTH}; got {width}")
    out = torch.empty_like(x)
    if x.numel() == 0:
        return out
    config = configuration("norm_modulate", f"D{width}", _default(width), x.device)
    rows = config["rows"]
    launch(
        _norm_modulate_kernel,
        (batch * frames, triton.cdiv(tokens, rows)),
        x,
        scale,
        shift,
        out,
        tokens,
        frames,
        *modulation_strides(scale),
        *modulation_strides(shift),
        eps,
        BASE=base,
        WIDTH=width,
        BLOCK=parts(width)[0],
        ROWS=rows,
        num_warps=config["num_warps"],
    )
    return out


@norm_modulate.register_fake
def _(x: Tensor, scale: Tensor, shift: Tensor, eps: float, base: float = 1.0) -> Tensor:
    return torch.empty_like(x)


def _default(width: int) -> Config:
    """As many rows as share gains well and stay in registers, some 48 values a thread."""
    rows = min(16, max(1, 2048 // parts(width)[0]))
    return {"rows": rows, "num_warps": 8 if rows * width > 8192 else 4}


def _shipped(width: int) -> Shipped:
    config = _default(width)
    modulation = dict.fromkeys(
        ("scale_batch", "scale_frame", "shift_batch", "shift_frame"), "i32:16"
    )
    pointers = {
        "p_x": "*bf16:16",
        "p_scale": "*fp32:16",
        "p_shift": "*fp32:16",
        "p_out": "*bf16:16",
    }
    return Shipped(
        name=f"bf16-D{width}",
        kernel=_norm_modulate_kernel,
        signature={**pointers, "tokens": "i32", "frames": "i32", **modulation, "eps": "fp32"},
        constants={
            "BASE": 1.0,
            "WIDTH": width,
            "BLOCK": parts(width)[0],
            "ROWS": config["rows"],
        },
        num_warps=config["num_warps"],
    )


SHIPPED = tuple(_shipped(width) for width in _WIDTHS)


def _tunable(width: int) -> Tunable:
    def prepare(device: torch.device) -> Callable[[], Tensor]:
        x = torch.randn(1, 3, 1560, width, device=device).bfloat16()
        shift, scale = torch.randn(2, 1, 1, 1, width, device=device)
        return lambda: norm_modulate(x, scale, shift, 1e-6)

    candidates = tuple(
        {"rows": rows, "num_warps": warps} for rows in (1, 2, 4, 8) for warps in (2, 4, 8, 16)
    )
    return Tunable(op="norm_modulate", key=f"D{width}", candidates=candidates, prepare=prepare)


TUNABLE = tuple(_tunable(width) for width in _WIDTHS)

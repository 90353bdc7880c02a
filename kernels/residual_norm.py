"""A residual sum and the LayerNorm that follows it, each with gains from the timestep (AdaLN), in
one pass over memory: what a transformer does between any two of its layers.

Peebles and Xie, "Scalable Diffusion Models with Transformers" (2023).

Shapes: B batch, T latent frames, n tokens a frame, D hidden width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .checks import (
    check_activations,
    check_device,
    check_like,
    check_modulation,
    modulation_strides,
)
from .compile import CHIPS, Shipped
from .functions import parts
from .gate_residual import gate_residual_reference
from .jit import custom_op, jit, launch, tl, triton
from .norm_modulate import MOST_WIDTH, norm_modulate_reference
from .tuning import Config, Tunable, configuration

_WIDTHS = (1536, 3072, 5120)
"""Those of Wan 1.3B, 5B and 14B."""


def residual_norm_reference(
    x: Tensor, y: Tensor, gate: Tensor | None, scale: Tensor, shift: Tensor, eps: float,
    base: float = 1.0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """What `residual_norm` does, in plain torch."""
    total = x + y if gate is None else gate_residual_reference(x, y, gate)
    return total, norm_modulate_reference(total, scale, shift, eps, base)


@jit
def _residual_norm_kernel(
    p_x: tl.tensor, p_y: tl.tensor, p_gate: tl.tensor, p_scale: tl.tensor, p_shift: tl.tensor,
    p_sum: tl.tensor, p_out: tl.tensor, tokens: int, frames: int, gate_batch: int, gate_frame: int,
    scale_batch: int, scale_frame: int, shift_batch: int, shift_frame: int, eps: float,
    BASE: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
) -> None:  # fmt: skip
    """A program takes `ROWS` tokens of one frame, so that gains are read once for all of them.

    The norm is that of the sum as it is stored, rounded.
    """
    eps = tl.cast(eps, tl.float32)  # AOTInductor passes on floats as fp64
    PARTS: tl.constexpr = (WIDTH + BLOCK - 1) // BLOCK
    i_frame = tl.program_id(0)
    i_first = tl.program_id(1) * ROWS
    i_batch, i_time = (i_frame // frames).to(tl.int64), i_frame % frames
    i_row, i_col = tl.arange(0, ROWS), tl.arange(0, BLOCK)
    inside = i_col < WIDTH
    mask = (i_first + i_row < tokens)[:, None] & inside[None, :]
    at = (i_frame.to(tl.int64) * tokens + i_first) * WIDTH
    at += i_row[:, None] * WIDTH + i_col[None, :]
    p_scale += i_batch * scale_batch + i_time * scale_frame + i_col
    p_shift += i_batch * shift_batch + i_time * shift_frame + i_col
    if p_gate is not None:
        p_gate += i_batch * gate_batch + i_time * gate_frame + i_col

    b_parts = tl.tuple(())
    b_sums = tl.zeros([ROWS, BLOCK], tl.float32)
    for i in tl.static_range(PARTS):
        b_x = tl.load(p_x + at + i * BLOCK, mask=mask, other=0.0).to(tl.float32)
        b_y = tl.load(p_y + at + i * BLOCK, mask=mask, other=0.0).to(tl.float32)
        if p_gate is not None:
            b_y *= tl.load(p_gate + i * BLOCK, mask=inside, other=0.0)[None, :]
        b_rounded = (b_x + b_y).to(p_sum.dtype.element_ty)
        tl.store(p_sum + at + i * BLOCK, b_rounded, mask=mask)
        b_x = b_rounded.to(tl.float32)
        b_parts += (b_x,)
        b_sums += b_x
    b_mean = tl.sum(b_sums, axis=1) / WIDTH
    b_squares = tl.zeros([ROWS, BLOCK], tl.float32)
    for i in tl.static_range(PARTS):
        b_x = b_parts[i] - b_mean[:, None]
        b_squares += tl.where(inside[None, :], b_x * b_x, 0.0)
    b_rstd = tl.rsqrt(tl.sum(b_squares, axis=1) / WIDTH + eps)
    for i in tl.static_range(PARTS):
        b_gain = BASE + tl.load(p_scale + i * BLOCK, mask=inside, other=0.0)
        b_shift = tl.load(p_shift + i * BLOCK, mask=inside, other=0.0)
        b_x = (b_parts[i] - b_mean[:, None]) * b_rstd[:, None]
        b_out = b_x * b_gain[None, :] + b_shift[None, :]
        tl.store(p_out + at + i * BLOCK, b_out.to(p_out.dtype.element_ty), mask=mask)


@custom_op("residual_norm")
def residual_norm(
    x: Tensor, y: Tensor, gate: Tensor | None, scale: Tensor, shift: Tensor, eps: float,
    base: float = 1.0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`x + gate y`, and `LayerNorm` of that times `base + scale`, plus `shift`, on CUDA.

    `x` and `y` `[B, T, n, D]`, contiguous, in one dtype, bf16, fp16 or fp32, which both results
    have; `gate`, 1 if None, `scale` and `shift` fp32 `[B or 1, T or 1, 1, D]`, unit stride over D.
    The results are those of `gate_residual` and `norm_modulate` in turn. Raises `ValueError` for
    anything else.
    """
    op = "residual_norm"
    check_device(op, x, y, gate, scale, shift)
    check_activations(op, "x", x, "[B, T, n, D]")
    check_like(op, "y", y, x)
    for name, modulation in (("gate", gate), ("scale", scale), ("shift", shift)):
        if modulation is not None:
            check_modulation(op, name, modulation, x)
    batch, frames, tokens, width = x.shape
    if width > MOST_WIDTH:
        raise ValueError(f"{op} takes widths up to {MOST_WIDTH}; got {width}")
    total, out = torch.empty_like(x), torch.empty_like(x)
    if x.numel() == 0:
        return total, out
    config = configuration(op, f"D{width}", _default(width), x.device)
    rows = config["rows"]
    launch(
        _residual_norm_kernel, (batch * frames, triton.cdiv(tokens, rows)),
        x, y, gate, scale, shift, total, out, tokens, frames,
        *((0, 0) if gate is None else modulation_strides(gate)), *modulation_strides(scale),
        *modulation_strides(shift), eps, BASE=base, WIDTH=width, BLOCK=parts(width)[0],
        ROWS=rows, num_warps=config["num_warps"],
    )  # fmt: skip
    return total, out


@residual_norm.register_fake
def _(
    x: Tensor, y: Tensor, gate: Tensor | None, scale: Tensor, shift: Tensor, eps: float,
    base: float = 1.0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return torch.empty_like(x), torch.empty_like(x)


def _default(width: int) -> Config:
    """As many rows as share gains well and stay in registers, some 24 to 48 values a thread."""
    rows = min(16, max(1, 2048 // parts(width)[0]))
    return {"rows": rows, "num_warps": 8 if rows * width > 4096 else 4}


def _shipped(width: int, *, gated: bool, sms: tuple[int, ...]) -> Shipped:
    config = _default(width)
    strides = ("gate_batch", "gate_frame", "scale_batch", "scale_frame", "shift_batch",
               "shift_frame")  # fmt: skip
    gate = {"p_gate": "*fp32:16"} if gated else {}
    return Shipped(
        name=f"bf16-D{width}" + ("-gated" if gated else ""),
        kernel=_residual_norm_kernel,
        signature={
            **dict.fromkeys(("p_x", "p_y", "p_sum", "p_out"), "*bf16:16"),
            **dict.fromkeys(("p_scale", "p_shift"), "*fp32:16"), **gate,
            **dict.fromkeys(strides, "i32:16"), "tokens": "i32", "frames": "i32", "eps": "fp32",
        },
        constants={
            **({} if gated else {"p_gate": None}), "BASE": 1.0, "WIDTH": width,
            "BLOCK": parts(width)[0], "ROWS": config["rows"],
        },
        num_warps=config["num_warps"],
        sms=sms,
    )  # fmt: skip


SHIPPED = (
    *(_shipped(width, gated=True, sms=tuple(CHIPS)) for width in (1536, 5120)),
    _shipped(1536, gated=False, sms=(90,)),
)


def _tunable(width: int) -> Tunable:
    def prepare(device: torch.device) -> Callable[[], Tensor]:
        x, y = torch.randn(2, 1, 3, 1560, width, device=device).bfloat16()
        gate, shift, scale = torch.randn(3, 1, 1, 1, width, device=device)
        return lambda: residual_norm(x, y, gate, scale, shift, 1e-6)[1]

    candidates = tuple(
        {"rows": rows, "num_warps": warps} for rows in (1, 2, 4, 8) for warps in (2, 4, 8, 16)
    )
    return Tunable(op="residual_norm", key=f"D{width}", candidates=candidates, prepare=prepare)


TUNABLE = tuple(_tunable(width) for width in _WIDTHS)

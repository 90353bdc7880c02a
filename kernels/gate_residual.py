"""A residual sum whose gain comes from the timestep (AdaLN), in one pass over memory.

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
from .compile import Shipped
from .jit import custom_op, jit, launch, tl, triton
from .tuning import Config, Tunable, configuration

_WIDTHS = (1536, 3072, 5120)
"""Those of Wan 1.3B, 5B and 14B."""


def gate_residual_reference(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    """`x + gate y` in the dtype of `x`; arguments as in `gate_residual`."""
    return torch.addcmul(x, y, gate.to(x.dtype))


@jit
def _gate_residual_kernel(
    p_x: tl.tensor,
    p_y: tl.tensor,
    p_gate: tl.tensor,
    p_out: tl.tensor,
    tokens: int,
    frames: int,
    gate_batch: int,
    gate_frame: int,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    """A program takes `BLOCK` of the channels of `ROWS` tokens of one frame."""
    i_frame = tl.program_id(0)
    i_first = tl.program_id(1) * ROWS
    i_batch, i_time = i_frame // frames, i_frame % frames
    i_row = tl.arange(0, ROWS)
    i_col = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    inside = i_col < WIDTH
    start = (i_frame.to(tl.int64) * tokens + i_first) * WIDTH
    at = i_row[:, None] * WIDTH + i_col[None, :]
    mask = (i_first + i_row < tokens)[:, None] & inside[None, :]

    p_gate += i_batch.to(tl.int64) * gate_batch + i_time * gate_frame
    b_gate = tl.load(p_gate + i_col, mask=inside, other=0.0)
    b_x = tl.load(p_x + start + at, mask=mask, other=0.0).to(tl.float32)
    b_y = tl.load(p_y + start + at, mask=mask, other=0.0).to(tl.float32)
    b_out = b_x + b_gate[None, :] * b_y
    tl.store(p_out + start + at, b_out.to(p_out.dtype.element_ty), mask=mask)


@custom_op("gate_residual")
def gate_residual(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    """`x + gate y` in the dtype of `x`, computed in fp32 and rounded once, on CUDA.

    `x` and `y` `[B, T, n, D]`, contiguous, in one dtype, bf16, fp16 or fp32; `gate` fp32
    `[B or 1, T or 1, 1, D]`, unit stride over D. Raises `ValueError` for anything else.
    """
    check_device("gate_residual", x, y, gate)
    check_activations("gate_residual", "x", x, "[B, T, n, D]")
    check_like("gate_residual", "y", y, x)
    check_modulation("gate_residual", "gate", gate, x)
    batch, frames, tokens, width = x.shape
    out = torch.empty_like(x)
    if x.numel() == 0:
        return out
    config = configuration("gate_residual", f"D{width}", _default(width), x.device)
    block = config["block"]
    grid = (batch * frames, triton.cdiv(tokens, config["rows"]), triton.cdiv(width, block))
    launch(
        _gate_residual_kernel,
        grid,
        x,
        y,
        gate,
        out,
        tokens,
        frames,
        *modulation_strides(gate),
        WIDTH=width,
        BLOCK=block,
        ROWS=config["rows"],
        num_warps=config["num_warps"],
    )
    return out


@gate_residual.register_fake
def _(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    return torch.empty_like(x)


def _default(width: int) -> Config:
    """The widest block up to 512 that tiles the width; some 4,000 values a program."""
    block = min(512, width & -width) if width % 64 == 0 else min(512, _power(width))
    return {"block": block, "rows": min(16, 4096 // block), "num_warps": 4}


def _power(n: int) -> int:
    return 1 << (n - 1).bit_length()


def _shipped(width: int) -> Shipped:
    config = _default(width)
    pointers = dict.fromkeys(("p_x", "p_y", "p_out"), "*bf16:16")
    numbers = {"tokens": "i32", "frames": "i32", "gate_batch": "i32:16", "gate_frame": "i32:16"}
    return Shipped(
        name=f"bf16-D{width}",
        kernel=_gate_residual_kernel,
        signature={**pointers, "p_gate": "*fp32:16", **numbers},
        constants={"WIDTH": width, "BLOCK": config["block"], "ROWS": config["rows"]},
        num_warps=config["num_warps"],
    )


SHIPPED = tuple(_shipped(width) for width in _WIDTHS)


def _tunable(width: int) -> Tunable:
    def prepare(device: torch.device) -> Callable[[], Tensor]:
        x, y = torch.randn(2, 1, 3, 1560, width, device=device).bfloat16()
        gate = torch.randn(1, 1, 1, width, device=device)
        return lambda: gate_residual(x, y, gate)

    candidates = tuple(
        {"block": block, "rows": rows, "num_warps": warps}
        for block in (128, 256, 512)
        for rows in (4, 8, 16)
        for warps in (2, 4, 8)
    )
    return Tunable(op="gate_residual", key=f"D{width}", candidates=candidates, prepare=prepare)


TUNABLE = tuple(_tunable(width) for width in _WIDTHS)

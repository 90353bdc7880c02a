"""Channel RMS norm and SiLU, channels last, in one pass over memory.

The norm of Wan's VAE, which divides by the L2 norm over channels and multiplies by sqrt(C); between
its convolutions it is always followed by SiLU. Wan Team, "Wan: Open and Advanced Large-Scale Video
Generative Models" (2025).

Shapes: C channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from .checks import check_activations, check_device, check_vector
from .compile import Shipped
from .functions import parts, silu
from .jit import custom_op, jit, launch, tl, triton
from .tuning import Config, Tunable, configuration

MOST_CHANNELS = 8192
"""A program holds all channels of a pixel in registers."""

_CHANNELS = (96, 192, 384)
"""Those of the decoder of Wan 2.1."""


def rms_norm_silu_reference(x: Tensor, gain: Tensor) -> Tensor:
    """`silu(x sqrt(C) / |x| gain)` over the last dim, as `rms_norm_silu`."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).clamp_min(1e-12)
    return F.silu(wide * (math.sqrt(x.shape[-1]) / length) * gain).to(x.dtype)


@jit
def _rms_norm_silu_kernel(
    p_x: tl.tensor,
    p_gain: tl.tensor,
    p_out: tl.tensor,
    pixels: int,
    ROOT: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    """A program takes `ROWS` pixels, their channels in blocks; `ROOT` is sqrt(C)."""
    PARTS: tl.constexpr = (CHANNELS + BLOCK - 1) // BLOCK
    i_first = tl.program_id(0).to(tl.int64) * ROWS
    i_row, i_col = tl.arange(0, ROWS), tl.arange(0, BLOCK)
    at = i_row[:, None] * CHANNELS + i_col[None, :]
    inside = i_col < CHANNELS
    mask = (i_first + i_row < pixels)[:, None]
    if PARTS * BLOCK != CHANNELS:
        mask = mask & inside[None, :]
    p_x += i_first * CHANNELS
    p_out += i_first * CHANNELS

    b_parts = tl.tuple(())
    b_squares = tl.zeros([ROWS, BLOCK], tl.float32)
    for i in tl.static_range(PARTS):
        b_x = tl.load(p_x + at + i * BLOCK, mask=mask, other=0.0).to(tl.float32)
        b_parts += (b_x,)
        b_squares += b_x * b_x
    b_rstd = ROOT / tl.maximum(tl.sqrt(tl.sum(b_squares, axis=1)), 1e-12)
    for i in tl.static_range(PARTS):
        b_gain = tl.load(p_gain + i * BLOCK + i_col, mask=inside, other=0.0).to(tl.float32)
        b_out = silu(b_parts[i] * b_rstd[:, None] * b_gain[None, :])
        tl.store(p_out + at + i * BLOCK, b_out.to(p_out.dtype.element_ty), mask=mask)


@custom_op("rms_norm_silu")
def rms_norm_silu(x: Tensor, gain: Tensor) -> Tensor:
    """`silu(x sqrt(C) / |x| gain)` in the dtype of `x`, |x| being at least 1e-12, on CUDA.

    `x` `[..., C]`, contiguous, bf16, fp16 or fp32; `gain` `[C]`, one of these. Raises `ValueError`
    for anything else.
    """
    return launch_rms_norm_silu(x, gain)


@rms_norm_silu.register_fake
def _(x: Tensor, gain: Tensor) -> Tensor:
    return torch.empty_like(x)


def launch_rms_norm_silu(x: Tensor, gain: Tensor) -> Tensor:
    """What `rms_norm_silu` does, for ops that end in it."""
    check_device("rms_norm_silu", x, gain)
    check_activations("rms_norm_silu", "x", x, "[..., C]")
    channels = x.shape[-1]
    check_vector("rms_norm_silu", "gain", gain, channels)
    if channels > MOST_CHANNELS:
        raise ValueError(f"rms_norm_silu takes up to {MOST_CHANNELS} channels; got {channels}")
    out = torch.empty_like(x)
    if x.numel() == 0:
        return out
    pixels = x.numel() // channels
    config = configuration("rms_norm_silu", f"C{channels}", _default(channels), x.device)
    launch(
        _rms_norm_silu_kernel,
        (triton.cdiv(pixels, config["rows"]),),
        x,
        gain,
        out,
        pixels,
        ROOT=math.sqrt(channels),
        CHANNELS=channels,
        BLOCK=parts(channels)[0],
        ROWS=config["rows"],
        num_warps=config["num_warps"],
    )
    return out


def _default(channels: int) -> Config:
    """Some 6,000 values a program, 48 a thread, where the channels are three blocks."""
    return {"rows": min(64, max(1, 2048 // parts(channels)[0])), "num_warps": 4}


def _shipped(channels: int) -> Shipped:
    config = _default(channels)
    pointers = dict.fromkeys(("p_x", "p_gain", "p_out"), "*bf16:16")
    return Shipped(
        name=f"bf16-C{channels}",
        kernel=_rms_norm_silu_kernel,
        signature={**pointers, "pixels": "i32"},
        constants={
            "ROOT": math.sqrt(channels),
            "CHANNELS": channels,
            "BLOCK": parts(channels)[0],
            "ROWS": config["rows"],
        },
        num_warps=config["num_warps"],
    )


SHIPPED = tuple(_shipped(channels) for channels in _CHANNELS)


def _tunable(channels: int) -> Tunable:
    def prepare(device: torch.device) -> Callable[[], Tensor]:
        scale = 384 // channels  # narrower layers run at higher resolutions
        x = torch.randn(4, 120 * scale, 208 * scale, channels, device=device).bfloat16()
        gain = torch.randn(channels, device=device).bfloat16()
        return lambda: rms_norm_silu(x, gain)

    candidates = tuple(
        {"rows": rows, "num_warps": warps} for rows in (4, 8, 16, 32, 64) for warps in (2, 4, 8)
    )
    return Tunable(op="rms_norm_silu", key=f"C{channels}", candidates=candidates, prepare=prepare)


TUNABLE = tuple(_tunable(channels) for channels in _CHANNELS)

"""A decoder's floats to bytes: RGB pictures, or the YUV planes that video encoders take.

Shapes: B batch, F pixel frames, H W space.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .checks import FLOATS, check_device, describe
from .compile import Shipped
from .jit import custom_op, jit, launch, tl, triton
from .tuning import Config, Tunable, configuration


def to_pixels_reference(x: Tensor) -> Tensor:
    """`[B, 3, F, H, W]` in [-1, 1] to uint8 `[B, F, H, W, 3]`, as `to_pixels`."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    scaled = wide.add(1.0).mul_(127.5).round_().clamp_(0, 255)
    return scaled.to(torch.uint8).permute(0, 2, 3, 4, 1).contiguous()


def to_yuv420_reference(x: Tensor) -> Tensor:
    """`[B, 3, F, H, W]` in [-1, 1] to uint8 `[B, F, 3/2 H, W]`, as `to_yuv420`."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    red, green, blue = wide.add(1.0).mul_(0.5).clamp_(0, 1).unbind(1)
    light = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    b, f, h, w = light.shape
    luma = 16 + 219 * light
    planes = [luma.reshape(b, f, -1)]
    for color, reach in ((blue, 1.8556), (red, 1.5748)):
        chroma = (color - light).reshape(b, f, h // 2, 2, w // 2, 2).mean((3, 5))
        planes.append((128 + 224 / reach * chroma).reshape(b, f, -1))
    return torch.cat(planes, dim=-1).round_().to(torch.uint8).reshape(b, f, h // 2 * 3, w)


@jit
def _byte(b_x: tl.tensor) -> tl.tensor:
    """fp32 in 0..255 to the nearest whole number, halves to the even one.

    A sum with 1.5 2^23 has no room for digits behind the point and is rounded to nearest even.
    """
    ROOM: tl.constexpr = 12582912.0
    return ((b_x + ROOM) - ROOM).to(tl.uint8)


@jit
def _to_pixels_kernel(
    p_x: tl.tensor,
    p_out: tl.tensor,
    frames: int,
    width: int,
    by_batch: int,
    by_color: int,
    by_frame: int,
    by_row: int,
    by_column: int,
    INTERLEAVED: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """A program takes `BLOCK` bytes of one picture row; `by_*` are the strides of `x`.

    `INTERLEAVED` says that colors and columns of `x` lie in memory as those of the result.
    """
    i_row, i_frame = tl.program_id(1), tl.program_id(2)
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = i < width * 3
    p_x += (i_frame // frames).to(tl.int64) * by_batch + (i_frame % frames).to(tl.int64) * by_frame
    p_x += i_row.to(tl.int64) * by_row
    at = i if INTERLEAVED else (i % 3).to(tl.int64) * by_color + i // 3 * by_column
    b_x = tl.load(p_x + at, mask=mask, other=0.0).to(tl.float32)
    b_x = tl.minimum(tl.maximum((b_x + 1.0) * 127.5, 0.0), 255.0)
    p_out += (i_frame.to(tl.int64) * tl.num_programs(1) + i_row) * width * 3
    tl.store(p_out + i, _byte(b_x), mask=mask)


@jit
def _unit(p_x: tl.tensor, mask: tl.tensor) -> tl.tensor:
    """A color in [-1, 1] to [0, 1]."""
    b_x = tl.load(p_x, mask=mask, other=0.0).to(tl.float32)
    return tl.minimum(tl.maximum((b_x + 1.0) * 0.5, 0.0), 1.0)


@jit
def _to_yuv420_kernel(
    p_x: tl.tensor,
    p_out: tl.tensor,
    frames: int,
    width: int,
    by_batch: int,
    by_color: int,
    by_frame: int,
    by_row: int,
    by_column: int,
    BLOCK: tl.constexpr,
) -> None:
    """A program takes `BLOCK` squares of 2x2 pixels side by side; `by_*` are the strides of `x`."""
    i_row, i_frame = tl.program_id(1), tl.program_id(2)
    half, rows = width // 2, tl.num_programs(1)
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = i < half
    p_x += (i_frame // frames).to(tl.int64) * by_batch + (i_frame % frames).to(tl.int64) * by_frame
    p_x += i_row.to(tl.int64) * 2 * by_row
    p_out += i_frame.to(tl.int64) * rows * half * 6
    b_red = tl.zeros([BLOCK], tl.float32)
    b_blue = tl.zeros([BLOCK], tl.float32)
    b_light = tl.zeros([BLOCK], tl.float32)
    i_pixel = tl.arange(0, 2 * BLOCK) + tl.program_id(0) * 2 * BLOCK
    for y in tl.static_range(2):
        b_pair = tl.tuple(())
        for x in tl.static_range(2):
            p_pixel = p_x + y * by_row + (i * 2 + x) * by_column
            b_r = _unit(p_pixel, mask)
            b_g = _unit(p_pixel + by_color, mask)
            b_b = _unit(p_pixel + by_color + by_color, mask)
            b_y = 0.2126 * b_r + 0.7152 * b_g + 0.0722 * b_b
            b_pair += (_byte(16.0 + 219.0 * b_y),)
            b_red += b_r
            b_blue += b_b
            b_light += b_y
        b_luma = tl.interleave(b_pair[0], b_pair[1])
        tl.store(p_out + (i_row * 2 + y) * width + i_pixel, b_luma, mask=i_pixel < width)
    p_u = p_out + rows * half * 4 + i_row * half
    b_u = 128.0 + 224.0 / 1.8556 / 4.0 * (b_blue - b_light)
    b_v = 128.0 + 224.0 / 1.5748 / 4.0 * (b_red - b_light)
    tl.store(p_u + i, _byte(b_u), mask=mask)
    tl.store(p_u + rows * half + i, _byte(b_v), mask=mask)


@custom_op("to_pixels")
def to_pixels(x: Tensor) -> Tensor:
    """`[B, 3, F, H, W]` in [-1, 1] to uint8 `[B, F, H, W, 3]`, on CUDA.

    Rounded to nearest, what lies outside clamped. `x` is bf16, fp16 or fp32 with any strides; it is
    read fastest when channels are last in memory. Raises `ValueError` for anything else.
    """
    check_device("to_pixels", x)
    _check_frames("to_pixels", x)
    batch, _, frames, height, width = x.shape
    out = torch.empty(batch, frames, height, width, 3, dtype=torch.uint8, device=x.device)
    if x.numel() == 0:
        return out
    interleaved = x.stride(1) == 1 and x.stride(4) == 3
    config = configuration("to_pixels", "interleaved" if interleaved else "other", _WIDE, x.device)
    grid = (triton.cdiv(width * 3, config["block"]), height, batch * frames)
    launch(
        _to_pixels_kernel,
        grid,
        x,
        out,
        frames,
        width,
        *x.stride(),
        INTERLEAVED=interleaved,
        BLOCK=config["block"],
        num_warps=config["num_warps"],
    )
    return out


@to_pixels.register_fake
def _(x: Tensor) -> Tensor:
    batch, _, frames, height, width = x.shape
    return x.new_empty((batch, frames, height, width, 3), dtype=torch.uint8)


@custom_op("to_yuv420")
def to_yuv420(x: Tensor) -> Tensor:
    """`[B, 3, F, H, W]` in [-1, 1] to planar YUV 4:2:0, uint8 `[B, F, 3/2 H, W]`, on CUDA.

    BT.709 in limited range (ITU-R BT.709-6), computed from the floats and rounded once. A frame is
    the H rows of Y, then U, then V, each W/2 wide, as encoders call it yuv420p or I420; chroma is
    the mean of 2x2 pixels. `x` is bf16, fp16 or fp32 with any strides, H and W even. Raises
    `ValueError` for anything else.
    """
    check_device("to_yuv420", x)
    _check_frames("to_yuv420", x)
    batch, _, frames, height, width = x.shape
    if height % 2 or width % 2:
        raise ValueError(f"to_yuv420 wants H and W even; got {height} and {width}")
    out = torch.empty(batch, frames, height // 2 * 3, width, dtype=torch.uint8, device=x.device)
    if x.numel() == 0:
        return out
    config = configuration("to_yuv420", "any", _SQUARES, x.device)
    grid = (triton.cdiv(width // 2, config["block"]), height // 2, batch * frames)
    launch(
        _to_yuv420_kernel,
        grid,
        x,
        out,
        frames,
        width,
        *x.stride(),
        BLOCK=config["block"],
        num_warps=config["num_warps"],
    )
    return out


@to_yuv420.register_fake
def _(x: Tensor) -> Tensor:
    batch, _, frames, height, width = x.shape
    return x.new_empty((batch, frames, height // 2 * 3, width), dtype=torch.uint8)


def _check_frames(op: str, x: Tensor) -> None:
    if x.ndim != 5 or x.shape[1] != 3 or x.dtype not in FLOATS:
        raise ValueError(f"{op} wants x [B, 3, F, H, W] in bf16, fp16 or fp32; got {describe(x)}")


_WIDE: Config = {"block": 1024, "num_warps": 4}
_SQUARES: Config = {"block": 256, "num_warps": 4}

_POINTERS = {"p_x": "*bf16:16", "p_out": "*u8:16"}
_SIZES = {
    "frames": "i32", "width": "i32:16", "by_batch": "i32:16", "by_frame": "i32:16",
    "by_row": "i32:16", "by_column": "i32",
}  # fmt: skip

SHIPPED = (
    Shipped(
        name="rgb-interleaved-bf16",
        kernel=_to_pixels_kernel,
        signature={**_POINTERS, **_SIZES, "by_color": "i32"},
        constants={"INTERLEAVED": True, "BLOCK": _WIDE["block"]},
        num_warps=_WIDE["num_warps"],
    ),
    Shipped(
        name="rgb-planes-bf16",
        kernel=_to_pixels_kernel,
        signature={**_POINTERS, **_SIZES, "by_color": "i32:16"},
        constants={"INTERLEAVED": False, "BLOCK": _WIDE["block"]},
        num_warps=_WIDE["num_warps"],
    ),
    Shipped(
        name="yuv420-bf16",
        kernel=_to_yuv420_kernel,
        signature={**_POINTERS, **_SIZES, "by_color": "i32"},
        constants={"BLOCK": _SQUARES["block"]},
        num_warps=_SQUARES["num_warps"],
    ),
)


def _tunable(op: Callable[[Tensor], Tensor], name: str, key: str, *, last: bool) -> Tunable:
    def prepare(device: torch.device) -> Callable[[], Tensor]:
        x = torch.rand(1, 3, 12, 480, 832, device=device).bfloat16() * 2 - 1
        if last:
            x = x.contiguous(memory_format=torch.channels_last_3d)
        return lambda: op(x)

    candidates = tuple(
        {"block": block, "num_warps": warps}
        for block in (128, 256, 512, 1024, 2048)
        for warps in (1, 2, 4, 8)
    )
    return Tunable(op=name, key=key, candidates=candidates, prepare=prepare)


TUNABLE = (
    _tunable(to_pixels, "to_pixels", "interleaved", last=True),
    _tunable(to_pixels, "to_pixels", "other", last=False),
    _tunable(to_yuv420, "to_yuv420", "any", last=True),
)

"""Nearest 2x upsampling and a 3x3 convolution in one launch, with no larger picture in memory.

An output pixel sees each input pixel through the sum of the taps that fall on it, so a convolution
of the upsampled picture is four convolutions of the small one, 2x2 each: one for output pixels of
even row and even column, one for even and odd, and so on. 16 multiplications do the work of 36.

What follows (bias, and the channel RMS norm and SiLU of the residual block behind it), the gutter,
and how the work is cut are those of `causal_conv3d`.

Shapes: B batch, T frames, H W space of the input, C channels in, C' out.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from .causal_conv3d import add_gutter
from .checks import FLOATS, check_activations, check_device, check_vector, describe, is_aligned
from .compile import Shipped
from .conv_call import conv_config, depth_for, launch_options
from .conv_tile import (
    block_for,
    block_of,
    finish,
    frames_in_runs,
    piece_of,
    scratch,
    sum_pixels,
    sum_runs,
    weight_in_blocks,
    zero_sums,
)
from .jit import custom_op, jit, launch, tl, triton
from .rms_norm_silu import launch_rms_norm_silu, rms_norm_silu_reference
from .tuning import Config, Tunable, configuration


def fold_upsampled(weight: Tensor) -> Tensor:
    """The taps `[4, C', 2, 2, C]` of `weight` `[C', C, 3, 3]`, by row's and column's parity.

    Summed in fp32 and rounded once. To be done when a model is loaded.
    """
    if weight.ndim != 4 or weight.shape[2:] != (3, 3):
        raise ValueError(f"fold_upsampled wants weight [C', C, 3, 3]; got {describe(weight)}")
    wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
    halves = _folded(wide, 2)
    phases = torch.stack([phase for half in halves for phase in _folded(half, 3)])
    return phases.permute(0, 1, 3, 4, 2).contiguous().to(weight.dtype)


def _folded(weight: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Three taps along `dim` to the two that even, and the two that odd output pixels see."""
    before, here, after = weight.split(1, dim)
    return torch.cat([before, here + after], dim), torch.cat([before + here, after], dim)


def upsample2x_conv_reference(
    x: Tensor, phases: Tensor, bias: Tensor | None = None, gain: Tensor | None = None,
    gutter: bool = False, keep_y: bool = True,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """What `upsample2x_conv` does, in plain torch and the dtype of `x`."""
    pictures = (x[..., :-1, :] if gutter else x).flatten(0, 1).permute(0, 3, 1, 2)
    n, _, h, w = pictures.shape
    out = x.new_empty(n, h, 2, w, 2, phases.shape[1])
    for phase, taps in enumerate(phases):
        down, right = divmod(phase, 2)
        y = F.conv2d(pictures, taps.permute(0, 3, 1, 2), bias, padding=1)
        y = y[:, :, down : down + h, right : right + w]
        out[:, :, down, :, right] = y.permute(0, 2, 3, 1)
    y = out.view(*x.shape[:2], 2 * h, 2 * w, -1)
    if gutter:
        y = add_gutter(y)
    none = x.new_empty(0)
    return y if keep_y else none, none if gain is None else rms_norm_silu_reference(y, gain)


@jit
def _upsample2x_conv_kernel(
    p_x: tl.tensor, p_weight: tl.tensor, p_bias: tl.tensor, p_gain: tl.tensor, p_y: tl.tensor,
    p_activated: tl.tensor, H: int, W: int, x_frame: int, y_frame: int,
    C_IN: tl.constexpr, C_OUT: tl.constexpr, GUTTER: tl.constexpr, B_M: tl.constexpr,
    B_N: tl.constexpr, B_REST: tl.constexpr, PIECE: tl.constexpr, B_K: tl.constexpr,
    TILES: tl.constexpr, TMA: tl.constexpr,
) -> None:  # fmt: skip
    """A program takes one frame's output pixels of one parity and a block of channels; of input
    pixels, every so many tiles of `B_M`, as there are programs to share them.
    """
    BLOCKS: tl.constexpr = (C_OUT + B_N + B_REST - 1) // (B_N + B_REST)
    EVEN: tl.constexpr = C_IN % B_K == 0 and C_OUT % (B_N + B_REST) == 0
    i_n = tl.program_id(0) % BLOCKS * (B_N + B_REST)
    i_phase = tl.program_id(0) // BLOCKS % 4
    i_frame = tl.program_id(1).to(tl.int64)
    i_down, i_right = i_phase // 2, i_phase % 2
    P = W + GUTTER

    p_weight += i_phase * (C_OUT * 4 * C_IN)
    if TMA:
        d_x = frames_in_runs(p_x, tl.num_programs(1), H * P, x_frame, C_IN, B_M, B_K)
        d_weight = weight_in_blocks(p_weight, C_OUT, 4 * C_IN, B_N, B_REST, B_K)

    first = tl.program_id(0) // (BLOCKS * 4)
    for i in tl.range(0, TILES):
        i_tile = first + i * (tl.num_programs(0) // (BLOCKS * 4))
        b_row = i_tile * B_M + tl.arange(0, B_M)
        b_h, b_w = b_row // P, b_row % P
        b_inside = b_row < H * P
        b_real = b_inside & (b_w < W)
        if TMA:
            b_sums = sum_runs(
                zero_sums(1, B_M, B_N, B_REST), d_x, d_weight, tl.program_id(1), i_n,
                i_tile * B_M + (i_down - 1) * P + i_right - 1, P, 0, 4, C_IN, 2, 2, B_M, B_N, B_K,
            )  # fmt: skip
        else:
            b_sums = sum_pixels(
                (p_x + i_frame * x_frame,), p_weight, i_n, b_h + i_down - 1, b_w + i_right - 1,
                b_real, H, W, P, C_IN, C_OUT, 1, 2, 2, B_M, B_N, B_REST, B_K, EVEN,
            )  # fmt: skip
        # The gutter's pixel of the input stands for that of the output and none beside it.
        b_stored = b_inside & (b_w * 2 + i_right < 2 * W + GUTTER)
        b_out = (b_h * 2 + i_down) * (2 * W + GUTTER) + b_w * 2 + i_right
        at = i_frame * y_frame
        finish(
            b_sums, p_bias, None, p_gain, None if p_y is None else p_y + at,
            None if p_activated is None else p_activated + at, i_n, 0, 0, b_out, b_stored, b_real,
            C_OUT, B_M, B_N, PIECE, False,
        )  # fmt: skip


@custom_op("upsample2x_conv")
def upsample2x_conv(
    x: Tensor, phases: Tensor, bias: Tensor | None = None, gain: Tensor | None = None,
    gutter: bool = False, keep_y: bool = True,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Double `x` `[B, T, H, W, C]` and convolve it; gives y and the next norm of it.

    `phases` are the weights by `fold_upsampled`, `bias` `[C']`. y is `[B, T, 2H, 2W, C']`, the 3x3
    convolution (padding 1, zeros) of the nearest 2x upsampling of `x`; with `gain` `[C']` the
    second result is `silu(y sqrt(C') / |y| gain)` over channels, else it is empty; with `keep_y`
    False the first is. With `gutter`, `x` and the results have one more column, of zeros. All
    contiguous and of one dtype, bf16, fp16 or fp32; sums are fp32. Raises `ValueError` for anything
    else.
    """
    y, activated = _results(x, phases, gain, gutter)
    _check(x, phases, bias, gain)
    b, t, h, columns, c_in = x.shape
    c_out, w = phases.shape[1], columns - gutter
    key = f"C{c_in}-{c_out}" + ("_gutter" if gutter else "") + ("" if gain is None else "_normed")
    config = configuration("upsample2x_conv", key, _default(x, c_out, gutter), x.device)
    if config["tma"] and not gutter:
        raise ValueError("upsample2x_conv loads runs (tma) only with a gutter")
    fused = gain is not None and config["channels"] >= c_out
    written = keep_y or not fused
    runs = triton.cdiv(h * columns, config["pixels"] * config["tiles"])
    blocks = triton.cdiv(c_out, config["channels"])
    if config["tma"]:
        triton.set_allocator(scratch)
    launch(
        _upsample2x_conv_kernel, (runs * blocks * 4, b * t),
        x, phases, bias, gain if fused else None, y if written else None,
        activated if fused else None, h, w, x[0, 0].numel(), y[0, 0].numel(),
        **_constants(c_in, c_out, gutter, config), **launch_options(config),
    )  # fmt: skip
    if gain is not None and not fused:
        activated = launch_rms_norm_silu(y, gain)
    return y if keep_y else x.new_empty(0), activated


@upsample2x_conv.register_fake
def _(
    x: Tensor, phases: Tensor, bias: Tensor | None = None, gain: Tensor | None = None,
    gutter: bool = False, keep_y: bool = True,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    y, activated = _results(x, phases, gain, gutter)
    return y if keep_y else x.new_empty(0), activated


def _results(x: Tensor, phases: Tensor, gain: Tensor | None, gutter: bool) -> tuple[Tensor, Tensor]:
    fits = x.ndim == 5 and phases.ndim == 5 and phases.shape[2:] == (2, 2, x.shape[-1])
    if not fits or phases.shape[0] != 4 or min(*x.shape[:3], x.shape[3] - gutter) < 1:
        raise ValueError(
            "upsample2x_conv wants x [B, T, H, W, C] with pixels and phases [4, C', 2, 2, C]; "
            f"got {describe(x)} and {describe(phases)}"
        )
    b, t, h, columns, _ = x.shape
    y = x.new_empty(b, t, 2 * h, 2 * columns - gutter, phases.shape[1])
    return y, x.new_empty(0) if gain is None else torch.empty_like(y)


def _check(x: Tensor, phases: Tensor, bias: Tensor | None, gain: Tensor | None) -> None:
    op = "upsample2x_conv"
    check_device(op, x, phases, bias, gain)
    check_activations(op, "x", x, "[B, T, H, W, C]")
    if phases.dtype != x.dtype or x.dtype not in FLOATS or not phases.is_contiguous():
        raise ValueError(f"{op} wants phases contiguous in the dtype of x; got {describe(phases)}")
    for name, vector in (("bias", bias), ("gain", gain)):
        if vector is not None:
            check_vector(op, name, vector, phases.shape[1])
    if 4 * x[0, 0].numel() // x.shape[4] * max(phases.shape[1], x.shape[4]) >= 2**31:
        raise ValueError(f"{op} makes frames of less than 2^31 numbers; got {describe(x)}")


def _constants(c_in: int, c_out: int, gutter: bool, config: Config) -> dict[str, int]:
    widest, rest = block_of(config["channels"])
    return dict(
        C_IN=c_in, C_OUT=c_out, GUTTER=int(gutter), B_M=config["pixels"], B_N=widest, B_REST=rest,
        PIECE=piece_of(config["channels"], config["pixels"]), B_K=config["depth"],
        TILES=config["tiles"], TMA=config["tma"],
    )  # fmt: skip


def _default(x: Tensor, c_out: int, gutter: bool) -> Config:
    """As `causal_conv3d`: runs on Hopper, else pixels; fp32 right rather than fast."""
    if x.dtype == torch.float32:
        return conv_config(min(64, block_for(c_out)), pixels=32, depth=16, warps=4, stages=2)
    runs = (
        gutter
        and x.device.type == "cuda"
        and torch.cuda.get_device_capability(x.device)[0] == 9
        and x.shape[-1] % 8 == 0
        and min(x.shape[-1], c_out) >= 32
        and is_aligned(x)
    )
    return _runs(c_out) if runs else _pixels(x.shape[-1], c_out)


def _runs(c_out: int) -> Config:
    return conv_config(block_for(c_out), depth=64, tma=1, tiles=8)


def _pixels(c_in: int, c_out: int) -> Config:
    channels = block_for(c_out)
    return conv_config(channels, depth=depth_for(c_in, channels))


def _shipped(c_in: int, c_out: int, config: Config, sms: tuple[int, ...]) -> Shipped:
    pointers = ("p_x", "p_weight", "p_bias", "p_gain", "p_y", "p_activated")
    return Shipped(
        name=f"C{c_in}-{c_out}" + ("-runs" if config["tma"] else "-pixels"),
        kernel=_upsample2x_conv_kernel,
        signature={
            **dict.fromkeys(pointers, "*bf16:16"),
            **dict.fromkeys(("H", "W"), "i32"),
            **dict.fromkeys(("x_frame", "y_frame"), "i32:16"),
        },
        constants=_constants(c_in, c_out, True, config),
        num_warps=config["num_warps"],
        num_stages=config["num_stages"],
        maxnreg=config["maxnreg"] or None,
        sms=sms,
    )


_LAYERS = ((384, 192), (192, 96))
"""Channels of the decoder of Wan 2.1."""

SHIPPED = (
    *(_shipped(*layer, _runs(layer[1]), (90,)) for layer in (*_LAYERS, (256, 256))),
    _shipped(192, 96, _pixels(192, 96), (80, 100, 120)),
)


def _tunable(c_in: int, c_out: int) -> Tunable:
    def prepare(device: torch.device) -> Callable[[], Tensor]:
        scale = 384 // c_in * 2
        x = add_gutter(torch.randn(1, 6, 60 * scale, 104 * scale, c_in, device=device).bfloat16())
        phases = fold_upsampled(torch.randn(c_out, c_in, 3, 3, device=device).bfloat16())
        gain = torch.randn(c_out, device=device).bfloat16()
        return lambda: upsample2x_conv(x, phases, None, gain, gutter=True)[0]

    channels = block_for(c_out)
    candidates = tuple(
        conv_config(
            channels, pixels=pixels, depth=depth, tma=tma, warps=pixels // 16, stages=stages
        )
        for pixels in (64, 128)
        for depth in (32, 64)
        for tma in (0, 1)
        for stages in (2, 3, 4)
    )
    key = f"C{c_in}-{c_out}_gutter_normed"
    return Tunable(op="upsample2x_conv", key=key, candidates=candidates, prepare=prepare)


TUNABLE = tuple(_tunable(*layer) for layer in _LAYERS)

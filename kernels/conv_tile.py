"""What the convolution kernels share: one tile of an implicit matrix product, and what follows it.

A tile is `B_M` output pixels of `FRAMES` frames by a block of output channels. Its inputs are never
gathered into a matrix: a tap of the convolution is the same run of pixels, shifted. Frames that
several output frames see are loaded once for all of them.

A block of channels is `B_N` wide and `B_REST` more where that is not 0: blocks are powers of two,
and 96 or 192 channels would else be computed as 128 or 256.

Shapes: H W space of the input, C channels; P pixels from one row's start to the next's (W, or
W + 1 with a gutter, see `causal_conv3d`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .functions import silu
from .jit import jit, tl

_BLOCKS = (16, 32, 48, 64, 96, 128, 160, 192)
"""Widths that are a power of two or two of them, each at least 16."""


@jit
def replaced(values: tl.tuple, index: tl.constexpr, value: tl.tensor) -> tl.tuple:
    """`values` with another `value` at `index`."""
    out = tl.tuple(())
    for j in tl.static_range(len(values)):
        if j == index:
            out += (value,)
        else:
            out += (values[j],)
    return out


@jit
def zero_sums(
    FRAMES: tl.constexpr, B_M: tl.constexpr, B_N: tl.constexpr, B_REST: tl.constexpr
) -> tl.tuple:
    """`[B_M, B_N]` and, unless `B_REST` is 0, `[B_M, B_REST]`, for each frame in turn."""
    b_sums = tl.tuple(())
    for _ in tl.static_range(FRAMES):
        b_sums += (tl.zeros([B_M, B_N], tl.float32),)
        if B_REST > 0:
            b_sums += (tl.zeros([B_M, B_REST], tl.float32),)
    return b_sums


@jit
def sum_runs(
    p_frames: tl.tuple, p_weight: tl.tensor, i_n: int, i_row: int, size: int, P: int,
    C_IN: tl.constexpr, C_OUT: tl.constexpr, K_T: tl.constexpr, K_H: tl.constexpr,
    K_W: tl.constexpr, FRAMES: tl.constexpr, B_M: tl.constexpr, B_N: tl.constexpr,
    B_REST: tl.constexpr, B_K: tl.constexpr,
) -> tl.tuple:  # fmt: skip
    """A tile whose taps are runs of pixels, loaded by the tensor memory accelerator (TMA).

    Wants a gutter and strides of 1. `p_frames` has the `FRAMES + K_T - 1` input frames `[size, C]`
    that the tile sees, `p_weight` `[C', K_T, K_H, K_W, C]`, of which channels from `i_n` on are
    computed. The first tap's run begins at pixel `i_row`; pixels before and behind a frame read as
    zeros, and so do channels behind the last, whence blocks need not divide anything.

    A step of the loop takes all taps in time at once: a frame that two output frames see is loaded
    once for both, and each output pixel's sum is in the same order whichever frame of the tile it
    is in.
    """
    TAPS: tl.constexpr = K_H * K_W
    K: tl.constexpr = K_T * TAPS * C_IN
    BLOCKS: tl.constexpr = (C_IN + B_K - 1) // B_K
    PARTS: tl.constexpr = 2 if B_REST > 0 else 1
    d_frames = tl.tuple(())
    for f in tl.static_range(FRAMES + K_T - 1):
        d_frames += (tl.make_tensor_descriptor(p_frames[f], [size, C_IN], [C_IN, 1], [B_M, B_K]),)
    d_weight = tl.tuple((tl.make_tensor_descriptor(p_weight, [C_OUT, K], [K, 1], [B_N, B_K]),))
    if B_REST > 0:
        d_weight += (tl.make_tensor_descriptor(p_weight, [C_OUT, K], [K, 1], [B_REST, B_K]),)
    b_sums = zero_sums(FRAMES, B_M, B_N, B_REST)

    for i in tl.range(0, TAPS * BLOCKS):
        tap = i // BLOCKS
        i_c = (i % BLOCKS) * B_K
        b_inputs = tl.tuple(())
        for f in tl.static_range(FRAMES + K_T - 1):
            b_inputs += (d_frames[f].load([i_row + tap // K_W * P + tap % K_W, i_c]),)
        b_weights = tl.tuple(())
        for j in tl.static_range(K_T):
            i_k = (j * TAPS + tap) * C_IN + i_c
            for part in tl.static_range(PARTS):
                b_weights += (d_weight[part].load([i_n + part * B_N, i_k]).T,)
        for f in tl.static_range(FRAMES):
            for j in tl.static_range(K_T):
                for part in tl.static_range(PARTS):
                    b_sum = tl.dot(
                        b_inputs[f + j],
                        b_weights[j * PARTS + part],
                        b_sums[f * PARTS + part],
                        input_precision="ieee",
                    )
                    b_sums = replaced(b_sums, f * PARTS + part, b_sum)
    return b_sums


@jit
def sum_pixels(
    p_frames: tl.tuple, p_weight: tl.tensor, i_n: int, b_h: tl.tensor, b_w: tl.tensor,
    b_real: tl.tensor, H: int, W: int, P: int,
    C_IN: tl.constexpr, C_OUT: tl.constexpr, K_T: tl.constexpr, K_H: tl.constexpr,
    K_W: tl.constexpr, B_M: tl.constexpr, B_N: tl.constexpr, B_REST: tl.constexpr,
    B_K: tl.constexpr, EVEN: tl.constexpr,
) -> tl.tuple:  # fmt: skip
    """A tile of one frame, loaded pixel by pixel: any stride, with or without a gutter, any chip.

    `p_frames` has the `K_T` input frames `[H, P, C]`; the first tap of each output pixel is at
    `b_h`, `b_w`. What lies outside the picture, or is not `b_real`, counts as zero and is not
    loaded. `EVEN` promises that blocks divide the channels on both sides.
    """
    TAPS: tl.constexpr = K_H * K_W
    K: tl.constexpr = K_T * TAPS * C_IN
    BLOCKS: tl.constexpr = (C_IN + B_K - 1) // B_K
    PARTS: tl.constexpr = 2 if B_REST > 0 else 1
    b_k = tl.arange(0, B_K)
    b_columns = tl.tuple((i_n + tl.arange(0, B_N),))
    if B_REST > 0:
        b_columns += (i_n + B_N + tl.arange(0, B_REST),)
    b_sums = zero_sums(1, B_M, B_N, B_REST)

    for i in tl.range(0, K_T * TAPS * BLOCKS):
        tap = i // BLOCKS
        b_c = (i % BLOCKS) * B_K + b_k
        p_frame = p_frames[0]
        for j in tl.static_range(1, K_T):
            p_frame = tl.where(tap >= j * TAPS, p_frames[j], p_frame)
        b_y = b_h + tap % TAPS // K_W
        b_x = b_w + tap % K_W
        inside = (b_real & (b_y >= 0) & (b_y < H) & (b_x >= 0) & (b_x < W))[:, None]
        if not EVEN:
            inside = inside & (b_c < C_IN)[None, :]
        offsets = (b_y * P + b_x)[:, None] * C_IN + b_c[None, :]
        b_input = tl.load(p_frame + offsets, mask=inside, other=0.0)
        for part in tl.static_range(PARTS):
            b_n = b_columns[part]
            p_taps = p_weight + b_n[None, :] * K + (tap * C_IN + b_c)[:, None]
            if EVEN:
                b_weight = tl.load(p_taps)
            else:
                known = (b_n < C_OUT)[None, :] & (b_c < C_IN)[:, None]
                b_weight = tl.load(p_taps, mask=known, other=0.0)
            b_sum = tl.dot(b_input, b_weight, b_sums[part], input_precision="ieee")
            b_sums = replaced(b_sums, part, b_sum)
    return b_sums


@jit
def finish(
    b_sums: tl.tuple, p_bias: tl.tensor, p_residual: tl.tensor, p_gain: tl.tensor,
    p_y: tl.tensor, p_activated: tl.tensor, i_n: int, i_end: int, b_row: tl.tensor,
    b_stored: tl.tensor, b_real: tl.tensor, C: tl.constexpr,
) -> None:  # fmt: skip
    """Add bias and residual and store; norm over channels, SiLU, and store again. Of one frame.

    Channels from `i_n` up to `i_end` come from `p_residual` and go to `p_y` and `p_activated` (any
    of which may be None), at pixel `b_row` of a frame `[.., C]` where `b_stored`; pixels that are
    not `b_real` are stored as zeros. Where `p_activated` is given, the sums hold all channels.
    """
    # Wide blocks are cut in two, so that fewer registers are between memory and the sums.
    WIDTH: tl.constexpr = b_sums[0].shape[1]
    if WIDTH > 64:
        halves = tl.reshape(b_sums[0], [b_row.shape[0], 2, WIDTH // 2])
        b_left, b_right = tl.split(tl.permute(halves, [0, 2, 1]))
        b_parts = tl.tuple((b_left, b_right)) + b_sums[1:]
    else:
        b_parts = b_sums
    STEP: tl.constexpr = b_parts[0].shape[1]
    b_squares = tl.zeros([b_row.shape[0], 1], tl.float32)
    b_outs = tl.tuple(())
    for part in tl.static_range(len(b_parts)):
        b_n = i_n + part * STEP + tl.arange(0, b_parts[part].shape[1])
        known = b_n < i_end
        at = b_row[:, None] * C + b_n[None, :]
        mask = b_stored[:, None] & known[None, :]
        b_out = b_parts[part]
        if p_bias is not None:
            b_out += tl.load(p_bias + b_n, mask=known, other=0.0).to(tl.float32)[None, :]
        if p_residual is not None:
            b_out += tl.load(p_residual + at, mask=mask, other=0.0).to(tl.float32)
        b_out = tl.where(b_real[:, None], b_out, 0.0)
        if p_y is not None:
            tl.store(p_y + at, b_out.to(p_y.dtype.element_ty), mask=mask)
        if p_activated is not None:
            b_squares += tl.sum(b_out * b_out, 1, keep_dims=True)
        b_outs += (b_out,)
    if p_activated is not None:
        ROOT: tl.constexpr = C**0.5
        b_scale = ROOT / tl.maximum(tl.sqrt(b_squares), 1e-12)
        for part in tl.static_range(len(b_parts)):
            b_n = i_n + part * STEP + tl.arange(0, b_parts[part].shape[1])
            known = b_n < i_end
            b_gain = tl.load(p_gain + b_n, mask=known, other=0.0).to(tl.float32)
            b_out = silu(b_outs[part] * b_scale * b_gain[None, :])
            at = b_row[:, None] * C + b_n[None, :]
            mask = b_stored[:, None] & known[None, :]
            tl.store(p_activated + at, b_out.to(p_activated.dtype.element_ty), mask=mask)


def block_of(channels: int) -> tuple[int, int]:
    """`B_N` and `B_REST` of a block: the widest power of two in it, and what is left."""
    widest = 1 << (channels.bit_length() - 1)
    return widest, channels - widest


def block_for(channels: int) -> int:
    """How wide a block to compute `channels` in: all at once, or as evenly as may be."""
    for width in _BLOCKS:
        if width >= channels:
            return width
    return min((w for w in _BLOCKS if w >= 64), key=lambda w: (-channels % w, -w))


def scratch(size: int, alignment: int, stream: int | None) -> Tensor:
    """Memory for Triton to lay out the descriptors that kernels make (`triton.set_allocator`)."""
    return torch.empty(size, dtype=torch.int8, device="cuda")

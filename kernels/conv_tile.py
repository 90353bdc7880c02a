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
def weight_in_blocks(
    p_weight: tl.tensor, C_OUT: tl.constexpr, K: tl.constexpr, B_N: tl.constexpr,
    B_REST: tl.constexpr, B_K: tl.constexpr,
) -> tl.tuple:  # fmt: skip
    """Descriptors by which `sum_runs` and `sum_pairs` load weights `[C', K]`."""
    d_weight = tl.tuple((tl.make_tensor_descriptor(p_weight, [C_OUT, K], [K, 1], [B_N, B_K]),))
    if B_REST > 0:
        d_weight += (tl.make_tensor_descriptor(p_weight, [C_OUT, K], [K, 1], [B_REST, B_K]),)
    return d_weight


@jit
def frames_in_runs(
    p: tl.tensor, frames: int, size: int, stride: int, C: tl.constexpr, B_M: tl.constexpr,
    B_C: tl.constexpr,
) -> tl.tensor_descriptor:  # fmt: skip
    """A descriptor by which to reach `B_M` pixels and `B_C` channels of frames `[size, C]`."""
    return tl.make_tensor_descriptor(p, [frames, size, C], [stride, C, 1], [1, B_M, B_C])


@jit
def sum_runs(
    b_sums: tl.tuple, d_frames: tl.tensor_descriptor, d_weight: tl.tuple, i_frame: int, i_n: int,
    i_row: int, P: int, first: int, last: int,
    C_IN: tl.constexpr, K_H: tl.constexpr, K_W: tl.constexpr, B_M: tl.constexpr,
    B_N: tl.constexpr, B_K: tl.constexpr,
) -> tl.tuple:  # fmt: skip
    """Add to a tile of one frame what its taps from `first` to `last` give.

    A tap is a run of pixels, which the tensor memory accelerator (TMA) loads by itself. Wants a
    gutter and strides of 1. `d_frames` (by `frames_in_runs`) has the frame of the first of all taps
    at `i_frame`, where it need not have begun, and `d_weight` `[C', K_T, K_H, K_W, C]`, of which
    channels from `i_n` on are computed. The first tap's run begins at pixel `i_row`; pixels before
    and behind a frame read as zeros, and so do channels behind the last, whence blocks need not
    divide anything.
    """
    TAPS: tl.constexpr = K_H * K_W
    BLOCKS: tl.constexpr = (C_IN + B_K - 1) // B_K
    for i in tl.range(first * BLOCKS, last * BLOCKS):
        tap = i // BLOCKS
        i_c = (i % BLOCKS) * B_K
        at = i_row + tap % TAPS // K_W * P + tap % K_W
        b_input = d_frames.load([i_frame + tap // TAPS, at, i_c]).reshape(B_M, B_K)
        for part in tl.static_range(len(d_weight)):
            b_weight = d_weight[part].load([i_n + part * B_N, tap * C_IN + i_c]).T
            b_sum = tl.dot(b_input, b_weight, b_sums[part], input_precision="ieee")
            b_sums = replaced(b_sums, part, b_sum)
    return b_sums


@jit
def sum_pairs(
    p_frames: tl.tuple, d_weight: tl.tuple, i_n: int, i_row: int, size: int, P: int,
    C_IN: tl.constexpr, K_T: tl.constexpr, K_H: tl.constexpr, K_W: tl.constexpr,
    FRAMES: tl.constexpr, B_M: tl.constexpr, B_N: tl.constexpr, B_REST: tl.constexpr,
    B_K: tl.constexpr,
) -> tl.tuple:  # fmt: skip
    """A tile of `FRAMES` frames: as `sum_runs`, but one step takes all taps in time at once.

    A frame that two output frames see is loaded once for both, and so are weights: a third less to
    load for a product, while each waits for the one before it. `p_frames` has the
    `FRAMES + K_T - 1` input frames `[size, C]` that the tile sees.
    """
    TAPS: tl.constexpr = K_H * K_W
    BLOCKS: tl.constexpr = (C_IN + B_K - 1) // B_K
    PARTS: tl.constexpr = 2 if B_REST > 0 else 1
    d_frames = tl.tuple(())
    for f in tl.static_range(FRAMES + K_T - 1):
        d_frames += (tl.make_tensor_descriptor(p_frames[f], [size, C_IN], [C_IN, 1], [B_M, B_K]),)
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
def halves(b: tl.tensor, M: tl.constexpr, N: tl.constexpr) -> tl.tuple:
    """The left and the right half of `[M, N]`."""
    b_left, b_right = tl.split(tl.permute(tl.reshape(b, [M, 2, N // 2]), [0, 2, 1]))
    return b_left, b_right


@jit
def cut(b: tl.tensor, M: tl.constexpr, N: tl.constexpr, PIECE: tl.constexpr) -> tl.tuple:
    """`[M, N]` in pieces `[M, PIECE]`: one, two, four or eight."""
    b_pieces = tl.tuple((b,))
    if N > PIECE:
        b_left, b_right = halves(b, M, N)
        b_pieces = tl.tuple((b_left, b_right))
        if N > 2 * PIECE:
            b_pieces = cut(b_left, M, N // 2, PIECE) + cut(b_right, M, N // 2, PIECE)
    return b_pieces


@jit
def finish(
    b_sums: tl.tuple, p_bias: tl.tensor, residual: tl.tensor, p_gain: tl.tensor, y: tl.tensor,
    activated: tl.tensor, i_c: int, i_frame: int, i_row: int, b_row: tl.tensor,
    b_stored: tl.tensor, b_real: tl.tensor, C: tl.constexpr, B_M: tl.constexpr,
    B_N: tl.constexpr, PIECE: tl.constexpr, TMA: tl.constexpr,
) -> None:  # fmt: skip
    """Add bias and residual and store; norm over channels, SiLU, and store again. Of one frame.

    The sums are of channels `i_c` and on, up to `C`, to which `p_bias` and `p_gain` point, too.
    With `TMA`, `residual`, `y` and `activated` are descriptors by `frames_in_runs` and the pixels
    are those from `i_row` on of frame `i_frame`; without, they point to the frame, and pixels
    `b_row` are reached where `b_stored`. Any of them may be None. Pixels that are not `b_real` are
    stored as zeros. Where `activated` is given, the sums hold all channels.
    """
    b_pieces = cut(b_sums[0], B_M, B_N, PIECE)
    if len(b_sums) > 1:
        b_pieces += cut(b_sums[1], B_M, b_sums[1].shape[1], PIECE)
    b_squares = tl.zeros([B_M, 1], tl.float32)
    b_outs = tl.tuple(())
    for i in tl.static_range(len(b_pieces)):
        b_c = i_c + i * PIECE + tl.arange(0, PIECE)
        b_at = b_row[:, None] * C + b_c[None, :]
        mask = b_stored[:, None] & (b_c < C)[None, :]
        b_out = b_pieces[i]
        if p_bias is not None:
            b_out += tl.load(p_bias + b_c, mask=b_c < C, other=0.0).to(tl.float32)[None, :]
        if residual is not None:
            if TMA:
                b_residual = residual.load([i_frame, i_row, i_c + i * PIECE]).reshape(B_M, PIECE)
            else:
                b_residual = tl.load(residual + b_at, mask=mask, other=0.0)
            b_out += b_residual.to(tl.float32)
        b_out = tl.where(b_real[:, None], b_out, 0.0)
        if y is not None:
            if TMA:
                b_rounded = b_out.to(y.dtype).reshape(1, B_M, PIECE)
                y.store([i_frame, i_row, i_c + i * PIECE], b_rounded)
            else:
                tl.store(y + b_at, b_out.to(y.dtype.element_ty), mask=mask)
        if activated is not None:
            b_squares += tl.sum(b_out * b_out, 1, keep_dims=True)
        b_outs += (b_out,)
    if activated is not None:
        ROOT: tl.constexpr = C**0.5
        b_scale = ROOT / tl.maximum(tl.sqrt(b_squares), 1e-12)
        for i in tl.static_range(len(b_pieces)):
            b_c = i_c + i * PIECE + tl.arange(0, PIECE)
            b_gain = tl.load(p_gain + b_c, mask=b_c < C, other=0.0).to(tl.float32)
            b_out = silu(b_outs[i] * b_scale * b_gain[None, :])
            if TMA:
                b_rounded = b_out.to(activated.dtype).reshape(1, B_M, PIECE)
                activated.store([i_frame, i_row, i_c + i * PIECE], b_rounded)
            else:
                b_at = b_row[:, None] * C + b_c[None, :]
                mask = b_stored[:, None] & (b_c < C)[None, :]
                tl.store(activated + b_at, b_out.to(activated.dtype.element_ty), mask=mask)


def piece_of(channels: int, pixels: int) -> int:
    """How many channels of a block are between sums and memory at a time."""
    widest, rest = block_of(channels)
    return max(16, min(rest or widest, 8192 // pixels))


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

"""Causal 3D convolution for video VAEs, channels last, with its past as an input and an output.

An implicit matrix product: nothing is gathered, concatenated or padded in memory. A launch reads
its input and, for the frames before it, a cache; adds a bias and a residual; and can apply the
channel RMS norm and SiLU that the next convolution wants.

**Memory.** Activations are `[B, T, H, W, C]`, or with a *gutter* `[B, T, H, W + 1, C]`: behind each
row one column of zeros, which is the border to the right of that row and to the left of the next.
Then each tap of the convolution is an unbroken run of pixels, which Hopper's tensor memory
accelerator loads by itself: no mask, no address per pixel; above and below a frame it reads zeros.
The op keeps the gutter zero in what it writes, and so do ops that work on single pixels and map
zero to zero (`rms_norm_silu`); those that look at a whole frame must leave it out. `add_gutter`
makes one; `x[..., :-1, :]` is the picture without.

**A whole Wan decoder.** Its residual blocks are norm, SiLU, conv, norm, SiLU, conv, plus shortcut.
Each norm with its SiLU belongs to the launch before it, so that a block is two launches (three
where channels change) and no norm reads memory of its own. With `a` for `silu(norm(x))`::

    _, h, cache_1 = causal_conv3d(a, cache_1, conv1, gain=norm2.gamma, keep_y=False)
    shortcut      = x, or causal_conv3d(x, None, conv_shortcut)[0]
    x, a, cache_2 = causal_conv3d(h, cache_2, conv2, residual=shortcut, gain=<next norm1.gamma>)

The caches are those of the model (the last two frames that each convolution read, after norm and
SiLU), in the same order. `conv_in` and `upsample2x_conv` take the gain of the first norm behind
them, and the last block's second convolution that of `norm_out`. Before attention and upsampling
there is no such norm, and no gain is given. `Upsample.time_conv` makes two frames of each:
`frames_out=2` writes the halves of its channels as successive frames. A stream's first frame goes
round that (slice it off: frames may be strided); with no cache yet, the past is zeros, and what
else a model wants there (CogVideoX repeats the first frame) can be passed as a cache, expanded.
`tests/kernels/test_vae_blocks.py` has all of this in code.

Where a block of output channels cannot hold all of them (more than 192), the norm is a launch of
`rms_norm_silu`.

Shapes: B batch, T frames, H W space, C channels in, C' out; k_t k_h k_w the kernel; T' H' W' the
output's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from .compile import Shipped
from .conv_call import ConvCall, conv_config, launch_options
from .conv_tile import (
    finish,
    frames_in_runs,
    scratch,
    sum_pairs,
    sum_pixels,
    sum_runs,
    weight_in_blocks,
    zero_sums,
)
from .jit import custom_op, jit, launch, tl, triton
from .rms_norm_silu import launch_rms_norm_silu, rms_norm_silu_reference
from .tuning import Config, Tunable, configuration


def add_gutter(x: Tensor) -> Tensor:
    """`[..., W, C]` with a column of zeros behind each row, `[..., W + 1, C]`."""
    return F.pad(x, (0, 0, 0, 1))


def causal_conv3d_reference(
    x: Tensor, cache: Tensor | None, weight: Tensor, bias: Tensor | None = None,
    residual: Tensor | None = None, gain: Tensor | None = None, stride_t: int = 1, stride: int = 1,
    frames_out: int = 1, gutter: bool = False, keep_y: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """What `causal_conv3d` does, in plain torch and the dtype of `x`."""
    history = weight.shape[2] - stride_t
    seen = torch.cat([_past(x, cache, history), x], dim=1)
    z = (seen[..., :-1, :] if gutter else seen).permute(0, 4, 1, 2, 3)
    over_h, over_w = weight.shape[3] // 2, weight.shape[4] // 2
    before = (over_w, over_h) if stride == 1 else (0, 0)
    z = F.pad(z, (before[0], over_w, before[1], over_h))
    y = F.conv3d(z, weight, bias, (stride_t, stride, stride)).permute(0, 2, 3, 4, 1)
    y = y.unflatten(4, (frames_out, -1)).permute(0, 1, 4, 2, 3, 5).flatten(1, 2)
    if gutter:
        y = add_gutter(y)
    if residual is not None:
        y = y + residual
    none = x.new_empty(0)
    activated = none if gain is None else rms_norm_silu_reference(y, gain)
    return y.contiguous() if keep_y else none, activated, _newest(x, cache, history)


@jit
def _causal_conv3d_kernel(
    p_x: tl.tensor, p_cache: tl.tensor, p_weight: tl.tensor, p_bias: tl.tensor,
    p_residual: tl.tensor, p_gain: tl.tensor, p_y: tl.tensor, p_activated: tl.tensor,
    T: int, H: int, W: int, H_out: int, W_out: int, x_batch: int, x_frame: int,
    cache_batch: int, cache_frame: int, y_frame: int,
    C_IN: tl.constexpr, C_OUT: tl.constexpr, K_T: tl.constexpr, K_H: tl.constexpr,
    K_W: tl.constexpr, STRIDE_T: tl.constexpr, STRIDE: tl.constexpr, FRAMES_OUT: tl.constexpr,
    GUTTER: tl.constexpr, FRAMES: tl.constexpr, B_M: tl.constexpr, B_N: tl.constexpr,
    B_REST: tl.constexpr, PIECE: tl.constexpr, B_K: tl.constexpr, TILES: tl.constexpr,
    TMA: tl.constexpr,
) -> None:  # fmt: skip
    """A program takes `FRAMES` output frames and a block of channels; of pixels, every so many
    tiles of `B_M`, as there are programs to share them.

    Programs that differ only in their channels are neighbors, and so are those of neighboring
    pixels, so that they find their input in the cache. `T` counts output frames before
    `FRAMES_OUT` are made of each.
    """
    HISTORY: tl.constexpr = K_T - STRIDE_T
    PAD_H: tl.constexpr = K_H // 2 if STRIDE == 1 else 0
    PAD_W: tl.constexpr = K_W // 2 if STRIDE == 1 else 0
    PARTS: tl.constexpr = 2 if B_REST > 0 else 1
    C: tl.constexpr = C_OUT // FRAMES_OUT
    BLOCKS: tl.constexpr = (C + B_N + B_REST - 1) // (B_N + B_REST)
    EVEN: tl.constexpr = C_IN % B_K == 0 and C % (B_N + B_REST) == 0
    i_block = tl.program_id(0) % (FRAMES_OUT * BLOCKS)
    i_group = i_block // BLOCKS
    i_n = i_group * C + i_block % BLOCKS * (B_N + B_REST)
    steps = T // FRAMES
    i_step = tl.program_id(1) % steps
    i_b = (tl.program_id(1) // steps).to(tl.int64)
    i_t = i_step.to(tl.int64) * FRAMES
    P = W + GUTTER
    P_out = W_out + GUTTER

    p_x += i_b * x_batch
    p_cache += i_b * cache_batch
    p_frames = tl.tuple(())
    for j in tl.static_range(STRIDE_T * (FRAMES - 1) + K_T):
        i_seen = i_t * STRIDE_T + j
        p_past = p_cache + i_seen * cache_frame
        p_frames += (tl.where(i_seen < HISTORY, p_past, p_x + (i_seen - HISTORY) * x_frame),)
    if TMA:
        TAPS: tl.constexpr = K_H * K_W
        d_weight = weight_in_blocks(p_weight, C_OUT, K_T * TAPS * C_IN, B_N, B_REST, B_K)
        if FRAMES == 1:
            d_x = frames_in_runs(p_x, T, H * P, x_frame, C_IN, B_M, B_K)
        if FRAMES == 1 and HISTORY > 0:
            d_past = frames_in_runs(p_cache, HISTORY, H * P, cache_frame, C_IN, B_M, B_K)
            taps_of_past = tl.maximum(HISTORY - i_step, 0) * TAPS
        frames_out = tl.num_programs(1) * (FRAMES * FRAMES_OUT)
        size = H_out * P_out
        if p_residual is not None:
            residual = frames_in_runs(p_residual, frames_out, size, y_frame, C, B_M, PIECE)
        if p_y is not None:
            y = frames_in_runs(p_y, frames_out, size, y_frame, C, B_M, PIECE)
        if p_activated is not None:
            activated = frames_in_runs(p_activated, frames_out, size, y_frame, C, B_M, PIECE)

    first = tl.program_id(0) // (FRAMES_OUT * BLOCKS)
    sharing = tl.num_programs(0) // (FRAMES_OUT * BLOCKS)
    for i in tl.range(0, TILES):
        i_tile = first + i * sharing
        b_row = i_tile * B_M + tl.arange(0, B_M)
        b_h, b_w = b_row // P_out, b_row % P_out
        b_stored = b_row < H_out * P_out
        b_real = b_stored & (b_w < W_out)
        i_run = i_tile * B_M - PAD_H * P - PAD_W
        if TMA and FRAMES == 1:
            b_sums = zero_sums(1, B_M, B_N, B_REST)
            if HISTORY > 0:
                b_sums = sum_runs(
                    b_sums, d_past, d_weight, i_step, i_n, i_run, P, 0, taps_of_past,
                    C_IN, K_H, K_W, B_M, B_N, B_K,
                )  # fmt: skip
                b_sums = sum_runs(
                    b_sums, d_x, d_weight, i_step - HISTORY, i_n, i_run, P, taps_of_past,
                    K_T * TAPS, C_IN, K_H, K_W, B_M, B_N, B_K,
                )  # fmt: skip
            else:
                b_sums = sum_runs(
                    b_sums, d_x, d_weight, i_step, i_n, i_run, P, 0, K_T * TAPS,
                    C_IN, K_H, K_W, B_M, B_N, B_K,
                )  # fmt: skip
        elif TMA:
            b_sums = sum_pairs(
                p_frames, d_weight, i_n, i_run, H * P, P,
                C_IN, K_T, K_H, K_W, FRAMES, B_M, B_N, B_REST, B_K,
            )  # fmt: skip
        else:
            b_sums = sum_pixels(
                p_frames, p_weight, i_n, b_h * STRIDE - PAD_H, b_w * STRIDE - PAD_W, b_real,
                H, W, P, C_IN, C_OUT, K_T, K_H, K_W, B_M, B_N, B_REST, B_K, EVEN,
            )  # fmt: skip
        for f in tl.static_range(FRAMES):
            i_frame = (i_b * T + i_t + f) * FRAMES_OUT + i_group
            at = i_frame * y_frame
            finish(
                b_sums[f * PARTS : (f + 1) * PARTS],
                None if p_bias is None else p_bias + i_group * C,
                None if p_residual is None else residual if TMA else p_residual + at,
                p_gain,
                None if p_y is None else y if TMA else p_y + at,
                None if p_activated is None else activated if TMA else p_activated + at,
                i_n - i_group * C, i_frame.to(tl.int32), i_tile * B_M, b_row, b_stored, b_real,
                C, B_M, B_N, PIECE, TMA,
            )  # fmt: skip


@custom_op("causal_conv3d")
def causal_conv3d(
    x: Tensor, cache: Tensor | None, weight: Tensor, bias: Tensor | None = None,
    residual: Tensor | None = None, gain: Tensor | None = None, stride_t: int = 1, stride: int = 1,
    frames_out: int = 1, gutter: bool = False, keep_y: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Convolve `x` `[B, T, H, W, C]` after its past; gives y, the next norm of it, the next cache.

    `weight` `[C', C, k_t, k_h, k_w]`, channels last in memory; `bias` `[C']`; `cache` the
    `k_t - stride_t` frames before `x`, `[B, k_t - stride_t, H, W, C]`, zeros if None. Each frame of
    `x` and `cache` is contiguous; frames and batches may be strided. Space is padded with zeros: on
    both sides to keep its size, or with `stride` 2 behind the last row and column only, which
    halves it. T is a multiple of `stride_t`.

    y is `[B, T', H', W', C']`, `residual`, of this shape, added. With `frames_out` n it is
    `[B, n T', H', W', C'/n]`: frame i is divided into frames n i, n i + 1, ... With `gain` `[C']`
    the second result is `silu(y sqrt(C') / |y| gain)` over channels, else it is empty; with
    `keep_y` False the first is. The third is what to pass as `cache` next time, in memory of its
    own. With `gutter`, `x`, `cache`, `residual` and the results are `[.., W + 1, ..]`, the last
    column zeros. All tensors are of one dtype, bf16, fp16 or fp32; sums are fp32. Raises
    `ValueError` for anything else.
    """
    call = ConvCall.of(x, weight, residual, gain, stride_t, stride, frames_out, gutter)
    call.check(x, cache, weight, bias, residual, gain)
    past = _past(x, cache, call.history) if call.history else x
    y, activated = call.results(x)
    config = configuration("causal_conv3d", call.key, call.default(x, past), x.device)
    config = call.fitting(config)
    fused = gain is not None and config["channels"] >= call.c_out
    written = keep_y or not fused
    steps = call.t_out // config["frames"]
    if config["tma"]:
        triton.set_allocator(scratch)
        past = past.contiguous()  # a descriptor's strides are not 0
    launch(
        _causal_conv3d_kernel, (call.programs(config), call.batch * steps),
        x, past, weight, bias, residual, gain if fused else None, y if written else None,
        activated if fused else None, call.t_out, call.h, call.w, call.h_out, call.w_out,
        x.stride(0), x.stride(1), past.stride(0), past.stride(1), y[0, 0].numel(),
        **call.constants(config), **launch_options(config),
    )  # fmt: skip
    if gain is not None and not fused:
        activated = launch_rms_norm_silu(y, gain)
    kept = _newest(x, cache, call.history)
    return y if keep_y else x.new_empty(0), activated, kept


@causal_conv3d.register_fake
def _(
    x: Tensor, cache: Tensor | None, weight: Tensor, bias: Tensor | None = None,
    residual: Tensor | None = None, gain: Tensor | None = None, stride_t: int = 1, stride: int = 1,
    frames_out: int = 1, gutter: bool = False, keep_y: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    call = ConvCall.of(x, weight, residual, gain, stride_t, stride, frames_out, gutter)
    y, activated = call.results(x)
    return y if keep_y else x.new_empty(0), activated, _newest(x, cache, call.history)


def _past(x: Tensor, cache: Tensor | None, history: int) -> Tensor:
    """The frames before `x`: the cache, or one frame of zeros that stands for all."""
    if cache is not None:
        return cache
    b, _, h, columns, c = x.shape
    return x.new_zeros(1, 1, h, columns, c).expand(b, history, h, columns, c)


def _newest(x: Tensor, cache: Tensor | None, history: int) -> Tensor:
    """The next call's cache, in memory of its own."""
    if x.shape[1] < history:
        x = torch.cat([_past(x, cache, history), x], dim=1)
    return x[:, x.shape[1] - history :].clone(memory_format=torch.contiguous_format)


def _layer(
    channels: tuple[int, int], kernel: tuple[int, int, int] = (3, 3, 3), *, latents: int = 3,
    residual: bool = False, normed: bool = False, frames_out: int = 1,
) -> ConvCall:  # fmt: skip
    """A layer of Wan's decoder for 480 x 832 pixels and so many latent frames."""
    scale = {384: 2, 192: 4, 96: 8}[channels[0]]
    return ConvCall(
        batch=1, t=latents * min(scale, 4), h=60 * scale, w=104 * scale, c_in=channels[0],
        c_out=channels[1], kernel=kernel, frames_out=frames_out, gutter=True, residual=residual,
        normed=normed,
    )  # fmt: skip


LAYERS = (
    _layer((96, 96), normed=True),
    _layer((96, 96), residual=True, normed=True),
    _layer((192, 192), normed=True),
    _layer((192, 192), residual=True, normed=True),
    _layer((384, 384)),
    _layer((384, 384), residual=True),
    _layer((384, 768), (3, 1, 1), frames_out=2),
)
"""Where the time of Wan's decoder goes."""


COGVIDEOX = tuple(replace(LAYERS[5], c_in=c, c_out=c) for c in (128, 512))
"""The narrowest and the widest layers of CogVideoX's decoder."""


def _shipped(layer: ConvCall, config: Config, sms: tuple[int, ...]) -> Shipped:
    optional = {
        "p_residual": layer.residual,
        "p_gain": layer.normed,
        "p_activated": layer.normed,
        "p_y": layer.residual or not layer.normed,
    }
    present = ("p_x", "p_cache", "p_weight", "p_bias")
    pointers = [*present, *(name for name, given in optional.items() if given)]
    frames = ("x_batch", "x_frame", "cache_batch", "cache_frame", "y_frame")
    return Shipped(
        name=layer.key + ("-runs" if config["tma"] else "-pixels"),
        kernel=_causal_conv3d_kernel,
        signature={
            **dict.fromkeys(pointers, "*bf16:16"),
            **dict.fromkeys(("T", "H", "W", "H_out", "W_out"), "i32"),
            **dict.fromkeys(frames, "i32:16"),
        },
        constants={
            **{name: None for name, given in optional.items() if not given},
            **layer.constants(config),
        },
        num_warps=config["num_warps"],
        num_stages=config["num_stages"],
        maxnreg=config["maxnreg"] or None,
        sms=sms,
    )


SHIPPED = (
    *(_shipped(layer, layer.runs(), (90,)) for layer in (*LAYERS, *COGVIDEOX)),
    *(_shipped(layer, layer.pixels(), (80, 100, 120)) for layer in LAYERS[1:4:2]),
    _shipped(LAYERS[4], LAYERS[4].pixels(), (90,)),
)


def _tunable(layer: ConvCall) -> Tunable:
    def prepare(device: torch.device) -> Callable[[], Tensor]:
        def draw(*sizes: int) -> Tensor:
            return torch.randn(sizes, device=device).bfloat16()

        x = add_gutter(draw(1, layer.t, layer.h, layer.w, layer.c_in))
        cache = add_gutter(draw(1, layer.history, layer.h, layer.w, layer.c_in))
        weight = draw(layer.c_out, layer.c_in, *layer.kernel)
        weight = weight.to(memory_format=torch.channels_last_3d)
        residual = torch.randn_like(layer.results(x)[0]) if layer.residual else None
        gain = draw(layer.c_out) if layer.normed else None
        pick = 1 if layer.normed else 0
        return lambda: causal_conv3d(
            x, cache, weight, None, residual, gain, frames_out=layer.frames_out, gutter=True,
            keep_y=layer.residual or not layer.normed,
        )[pick]  # fmt: skip

    channels = layer.runs()["channels"]
    depths = (32, 64) if layer.c_in % 64 == 0 else (32,)
    candidates = (
        *(
            conv_config(
                channels, pixels=pixels, depth=depth, tma=1, tiles=tiles, warps=warps, stages=stages
            )
            for pixels, warps in ((64, 4), (128, 4), (128, 8), (256, 8))
            for depth in depths
            for tiles in (1, 4)
            for stages in (3, 4)
        ),
        *(
            conv_config(channels, depth=depth, tma=1, stages=stages, maxnreg=128)
            for depth in depths
            for stages in (2, 4)
        ),
        *(
            conv_config(
                channels, pixels=warps * 16, frames=2, tma=1, tiles=tiles, warps=warps,
                stages=stages, maxnreg=maxnreg,
            )
            for warps in (4, 8)
            for tiles in (1, 4)
            for stages, maxnreg in ((2, 0), (2, 128), (3, 0))
        ),
        *(
            conv_config(channels, pixels=pixels, depth=depth, warps=pixels // 16, stages=stages)
            for pixels in (64, 128)
            for depth in depths
            for stages in (3, 4)
        ),
    )  # fmt: skip
    return Tunable(op="causal_conv3d", key=layer.key, candidates=candidates, prepare=prepare)


FIRST = tuple(replace(layer, t=1) for layer in LAYERS[:4])
"""The same for a stream's first latent frame."""

TUNABLE = tuple(_tunable(layer) for layer in (*LAYERS, *FIRST))

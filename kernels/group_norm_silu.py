"""Group norm over time and space, and SiLU, channels last, in two passes over memory.

The norm of CogVideoX's VAE and of motion modules; its statistics see all frames of a chunk. Wu and
He, "Group Normalization" (2018). Statistics are summed in a fixed order, so that a replayed stream
gives the same frames to the bit.

Activations may have a *gutter*, a column of zeros behind each row (see `causal_conv3d`). It does
not count, and is written as zeros.

Shapes: B batch, T frames, H W space, C channels, G groups; P pixels from one row's start to the
next's, W or with a gutter W + 1.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from .checks import check_activations, check_device, check_vector
from .compile import Shipped
from .functions import parts, silu
from .jit import custom_op, jit, launch, tl, triton
from .tuning import Config, Tunable, configuration

_CHANNELS = (128, 256, 512)
"""Those of CogVideoX's VAE, in 32 groups."""


def group_norm_silu_reference(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, gutter: bool = False
) -> Tensor:
    """`silu(group_norm(x))` of `[B, T, H, W, C]`, as `group_norm_silu`."""
    wide = torch.promote_types(x.dtype, torch.float32)
    first = (x[..., :-1, :] if gutter else x).to(wide).movedim(-1, 1)
    normed = F.group_norm(first, groups, weight.to(wide), bias.to(wide), eps)
    y = F.silu(normed).movedim(1, -1).contiguous().to(x.dtype)
    return F.pad(y, (0, 0, 0, 1)) if gutter else y


@jit
def _counted(first: tl.tensor, end: tl.tensor, P: int, GUTTER: tl.constexpr) -> tl.tensor:
    """How many pixels from `first` to before `end` are part of a picture."""
    count = end - first
    if GUTTER:
        count -= end // P - first // P
    return count


@jit
def _moments_kernel(
    p_x: tl.tensor,
    p_moments: tl.tensor,
    pixels: int,
    slab: int,
    P: int,
    GUTTER: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    """Mean and summed squares of deviations of each channel in one slab of `slab` pixels.

    What is summed is the distance to the slab's first pixel (its second, if that is the gutter's),
    so that a mean far from zero costs no digits. `p_moments` is `[B, slabs, 2, C]`.
    """
    i_slab, i_batch = tl.program_id(0), tl.program_id(1)
    i_row = tl.arange(0, ROWS)
    i_col = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    inside = i_col < CHANNELS
    first = i_slab * slab
    count = tl.minimum(slab, pixels - first)
    p_x += (i_batch.to(tl.int64) * pixels + first) * CHANNELS
    p_origin = p_x
    if GUTTER:  # behind the last row nothing follows
        p_origin += tl.where((first % P == P - 1) & (count > 1), CHANNELS, 0)
    b_origin = tl.load(p_origin + i_col, mask=inside, other=0.0).to(tl.float32)

    b_sums = tl.zeros([ROWS, BLOCK], tl.float32)
    b_squares = tl.zeros([ROWS, BLOCK], tl.float32)
    for i in range(0, count, ROWS):
        mask = (i + i_row < count)[:, None] & inside[None, :]
        if GUTTER:
            mask = mask & ((first + i + i_row) % P != P - 1)[:, None]
        at = (i + i_row)[:, None] * CHANNELS + i_col[None, :]
        b_x = tl.load(p_x + at, mask=mask, other=0.0).to(tl.float32)
        b_x = tl.where(mask, b_x - b_origin[None, :], 0.0)
        b_sums += b_x
        b_squares += b_x * b_x
    b_sum = tl.sum(b_sums, axis=0)
    b_square = tl.sum(b_squares, axis=0)
    real = tl.maximum(_counted(first, first + count, P, GUTTER), 1)
    p_moments += (i_batch * tl.num_programs(0) + i_slab) * 2 * CHANNELS
    tl.store(p_moments + i_col, b_origin + b_sum / real, mask=inside)
    tl.store(p_moments + CHANNELS + i_col, b_square - b_sum * b_sum / real, mask=inside)


@jit
def _combine_kernel(
    p_moments: tl.tensor,
    p_stats: tl.tensor,
    pixels: int,
    slab: int,
    slabs: int,
    P: int,
    groups: int,
    eps: float,
    GUTTER: tl.constexpr,
    CHANNELS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    """Mean and 1 / deviation of one group of `WIDTH` channels into `p_stats` `[B, 2, G]`.

    Chan, Golub and LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample
    Variances" (1979), the parts being each channel of each slab.
    """
    eps = tl.cast(eps, tl.float32)  # AOTInductor passes on floats as fp64
    i_group, i_batch = tl.program_id(0), tl.program_id(1)
    i_row, i_col = tl.arange(0, ROWS), tl.arange(0, BLOCK)
    p_moments += i_batch.to(tl.int64) * slabs * 2 * CHANNELS + i_group * WIDTH
    total = _counted(0, pixels, P, GUTTER) * 1.0 * WIDTH

    b_sums = tl.zeros([ROWS, BLOCK], tl.float32)
    for i in range(0, slabs, ROWS):
        mask = (i + i_row < slabs)[:, None] & (i_col < WIDTH)[None, :]
        at = (i + i_row)[:, None] * (2 * CHANNELS) + i_col[None, :]
        b_first = (i + i_row) * slab
        b_count = _counted(b_first, tl.minimum(b_first + slab, pixels), P, GUTTER).to(tl.float32)
        b_sums += tl.load(p_moments + at, mask=mask, other=0.0) * b_count[:, None]
    mean = tl.sum(tl.sum(b_sums, axis=1), axis=0) / total

    b_squares = tl.zeros([ROWS, BLOCK], tl.float32)
    for i in range(0, slabs, ROWS):
        mask = (i + i_row < slabs)[:, None] & (i_col < WIDTH)[None, :]
        at = (i + i_row)[:, None] * (2 * CHANNELS) + i_col[None, :]
        b_first = (i + i_row) * slab
        b_count = _counted(b_first, tl.minimum(b_first + slab, pixels), P, GUTTER).to(tl.float32)
        b_off = tl.load(p_moments + at, mask=mask, other=0.0) - mean
        b_within = tl.load(p_moments + CHANNELS + at, mask=mask, other=0.0)
        b_squares += tl.where(mask, b_within + b_off * b_off * b_count[:, None], 0.0)
    variance = tl.sum(tl.sum(b_squares, axis=1), axis=0) / total

    p_stats += i_batch * 2 * groups + i_group
    tl.store(p_stats, mean)
    tl.store(p_stats + groups, tl.rsqrt(variance + eps))


@jit
def _group_norm_silu_kernel(
    p_x: tl.tensor,
    p_stats: tl.tensor,
    p_weight: tl.tensor,
    p_bias: tl.tensor,
    p_out: tl.tensor,
    pixels: int,
    P: int,
    groups: int,
    GUTTER: tl.constexpr,
    CHANNELS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    """A program takes `BLOCK` of the channels of `ROWS` pixels."""
    i_first, i_batch = tl.program_id(0) * ROWS, tl.program_id(1)
    i_row = tl.arange(0, ROWS)
    i_col = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    inside = i_col < CHANNELS
    mask = (i_first + i_row < pixels)[:, None] & inside[None, :]
    at = i_row[:, None] * CHANNELS + i_col[None, :]
    start = (i_batch.to(tl.int64) * pixels + i_first) * CHANNELS

    p_stats += i_batch * 2 * groups
    b_mean = tl.load(p_stats + i_col // WIDTH, mask=inside, other=0.0)
    b_rstd = tl.load(p_stats + groups + i_col // WIDTH, mask=inside, other=0.0)
    b_gain = b_rstd * tl.load(p_weight + i_col, mask=inside, other=0.0).to(tl.float32)
    b_bias = tl.load(p_bias + i_col, mask=inside, other=0.0).to(tl.float32)
    b_x = tl.load(p_x + start + at, mask=mask, other=0.0).to(tl.float32)
    b_out = silu((b_x - b_mean[None, :]) * b_gain[None, :] + b_bias[None, :])
    if GUTTER:
        b_out = tl.where(((i_first + i_row) % P == P - 1)[:, None], 0.0, b_out)
    tl.store(p_out + start + at, b_out.to(p_out.dtype.element_ty), mask=mask)


@custom_op("group_norm_silu")
def group_norm_silu(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, gutter: bool = False
) -> Tensor:
    """`silu(group_norm(x))` in the dtype of `x`, statistics over T, H, W and a group, on CUDA.

    `x` `[B, T, H, W, C]`, contiguous, bf16, fp16 or fp32; `weight` and `bias` `[C]`, each one of
    these. With `gutter`, `x` and the result are `[B, T, H, W + 1, C]`. Raises `ValueError` for
    anything else, and when `groups` do not divide the channels.
    """
    check_device("group_norm_silu", x, weight, bias)
    check_group_norm("group_norm_silu", x, weight, bias, groups)
    batch, channels = x.shape[0], x.shape[-1]
    out = torch.empty_like(x)
    if x.numel() == 0:
        return out
    stats = group_statistics(x, groups, eps, gutter)
    pixels = x.numel() // (batch * channels)
    default = _apply_default(channels)
    config = configuration("group_norm_silu", f"C{channels}", default, x.device)
    grid = (triton.cdiv(pixels, config["rows"]), batch, triton.cdiv(channels, config["block"]))
    launch(
        _group_norm_silu_kernel,
        grid,
        x,
        stats,
        weight,
        bias,
        out,
        pixels,
        x.shape[3],
        groups,
        GUTTER=int(gutter),
        CHANNELS=channels,
        WIDTH=channels // groups,
        BLOCK=config["block"],
        ROWS=config["rows"],
        num_warps=config["num_warps"],
    )
    return out


@group_norm_silu.register_fake
def _(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, gutter: bool = False
) -> Tensor:
    return torch.empty_like(x)


def check_group_norm(op: str, x: Tensor, weight: Tensor, bias: Tensor, groups: int) -> None:
    """Raise `ValueError` unless `op` can group-normalize `x` `[B, T, H, W, C]` so."""
    check_activations(op, "x", x, "[B, T, H, W, C]")
    channels = x.shape[-1]
    check_vector(op, "weight", weight, channels)
    check_vector(op, "bias", bias, channels)
    if groups < 1 or channels % groups:
        raise ValueError(f"{op} wants groups that divide {channels} channels; got {groups}")


def group_statistics(x: Tensor, groups: int, eps: float, gutter: bool = False) -> Tensor:
    """Mean and 1 / sqrt(variance + eps) of each group of `[B, T, H, W, C]`: fp32 `[B, 2, G]`."""
    batch, channels = x.shape[0], x.shape[-1]
    pixels = x.numel() // (batch * channels)
    config = configuration(
        "group_statistics", f"C{channels}", _statistics_default(channels), x.device
    )
    block, rows = config["block"], config["rows"]
    slab = rows * triton.cdiv(triton.cdiv(pixels, config["slabs"]), rows)
    slabs = triton.cdiv(pixels, slab)
    moments = torch.empty(batch, slabs, 2, channels, dtype=torch.float32, device=x.device)
    stats = torch.empty(batch, 2, groups, dtype=torch.float32, device=x.device)
    width = channels // groups
    combine_block, combine_rows = _combine_tile(width)
    launch(
        _moments_kernel,
        (slabs, batch, triton.cdiv(channels, block)),
        x,
        moments,
        pixels,
        slab,
        x.shape[3],
        GUTTER=int(gutter),
        CHANNELS=channels,
        BLOCK=block,
        ROWS=rows,
        num_warps=config["num_warps"],
    )
    launch(
        _combine_kernel,
        (groups, batch),
        moments,
        stats,
        pixels,
        slab,
        slabs,
        x.shape[3],
        groups,
        eps,
        GUTTER=int(gutter),
        CHANNELS=channels,
        WIDTH=width,
        BLOCK=combine_block,
        ROWS=combine_rows,
        num_warps=4,
    )
    return stats


def _apply_default(channels: int) -> Config:
    """Some 4,000 values a program, 32 a thread."""
    block = min(512, parts(channels)[0])
    return {"block": block, "rows": max(1, 4096 // block), "num_warps": 4}


def _statistics_default(channels: int) -> Config:
    """A thousand slabs, several for each multiprocessor of any chip."""
    block = min(512, parts(channels)[0])
    return {"block": block, "rows": max(1, 2048 // block), "num_warps": 4, "slabs": 1024}


def _combine_tile(width: int) -> tuple[int, int]:
    """The block that holds a group's channels, and how many slabs at a time."""
    block = 1 << (width - 1).bit_length()
    return block, max(1, 1024 // block)


def _shipped(channels: int, groups: int = 32) -> tuple[Shipped, ...]:
    width = channels // groups
    statistics, apply = _statistics_default(channels), _apply_default(channels)
    sizes = {"GUTTER": 1, "CHANNELS": channels, "WIDTH": width}
    moments = Shipped(
        name=f"moments-bf16-C{channels}",
        kernel=_moments_kernel,
        signature={
            "p_x": "*bf16:16", "p_moments": "*fp32:16", "pixels": "i32", "slab": "i32:16",
            "P": "i32",
        },
        constants={
            "GUTTER": 1, "CHANNELS": channels, "BLOCK": statistics["block"],
            "ROWS": statistics["rows"],
        },
        num_warps=statistics["num_warps"],
    )  # fmt: skip
    block, rows = _combine_tile(width)
    combine = Shipped(
        name=f"combine-C{channels}",
        kernel=_combine_kernel,
        signature={
            "p_moments": "*fp32:16", "p_stats": "*fp32:16", "pixels": "i32", "slab": "i32:16",
            "slabs": "i32", "P": "i32", "groups": "i32:16", "eps": "fp32",
        },
        constants={**sizes, "BLOCK": block, "ROWS": rows},
    )  # fmt: skip
    pointers = dict.fromkeys(("p_x", "p_weight", "p_bias", "p_out"), "*bf16:16")
    normed = Shipped(
        name=f"apply-bf16-C{channels}",
        kernel=_group_norm_silu_kernel,
        signature={
            **pointers,
            "p_stats": "*fp32:16",
            "pixels": "i32",
            "P": "i32",
            "groups": "i32:16",
        },
        constants={**sizes, "BLOCK": apply["block"], "ROWS": apply["rows"]},
        num_warps=apply["num_warps"],
    )
    return moments, combine, normed


SHIPPED = tuple(shipped for channels in _CHANNELS for shipped in _shipped(channels))


def _tunable(channels: int) -> tuple[Tunable, Tunable]:
    def inputs(device: torch.device) -> tuple[Tensor, Tensor, Tensor, int, float]:
        scale = 512 // channels  # narrower layers run at higher resolutions
        x = torch.randn(1, 8, 60 * scale, 90 * scale, channels, device=device).bfloat16()
        weight, bias = torch.randn(2, channels, device=device).bfloat16()
        return x, weight, bias, 32, 1e-6

    def statistics(device: torch.device) -> Callable[[], Tensor]:
        x, _, _, groups, eps = inputs(device)
        return lambda: group_statistics(x, groups, eps)

    def whole(device: torch.device) -> Callable[[], Tensor]:
        arguments = inputs(device)
        return lambda: group_norm_silu(*arguments)

    tiles = tuple(
        {"block": block, "rows": max(1, values // block), "num_warps": warps}
        for block in (64, 128, 256)
        for values in (2048, 4096, 8192)
        for warps in (4, 8)
    )
    slabs = tuple({**tile, "slabs": slabs} for tile in tiles for slabs in (512, 1024, 2048))
    key = f"C{channels}"
    return (
        Tunable(op="group_statistics", key=key, candidates=slabs, prepare=statistics),
        Tunable(op="group_norm_silu", key=key, candidates=tiles, prepare=whole),
    )


TUNABLE = tuple(tunable for channels in _CHANNELS for tunable in _tunable(channels))

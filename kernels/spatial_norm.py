"""CogVideoX's spatial norm and SiLU: group norm whose gain and bias are pictures of the latent.

Yang et al., "CogVideoX" (2024); the norm is that of Zheng et al., "MoVQ" (2022): the latent,
resized to the activations by nearest neighbor, goes through two 1x1x1 convolutions to a gain and a
bias for each pixel and channel. A 1x1x1 convolution and nearest neighbor may trade places, so the
convolutions run on the latent as it is (one matrix product, 64 times fewer pixels at the decoder's
end) and this op looks the results up; nothing is resized in memory. In the decoder SiLU always
follows.

As in `group_norm_silu`, activations may have a gutter.

Shapes: B batch, T frames, H W space, C channels; t h w the latent's frames and space.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from .checks import check_device, describe
from .compile import Shipped
from .functions import parts, silu
from .group_norm_silu import check_group_norm, group_statistics
from .jit import custom_op, jit, launch, tl, triton
from .tuning import Config, Tunable, configuration

_CHANNELS = (128, 256, 512)
"""Those of CogVideoX's decoder, in 32 groups."""


def spatial_norm_reference(
    x: Tensor, modulation: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float,
    gutter: bool = False,
) -> Tensor:  # fmt: skip
    """`silu(group_norm(x) gain + shift)`, as `spatial_norm`."""
    x = x[..., :-1, :] if gutter else x
    every, lone, down, across = _ratios(x, modulation)
    wide = torch.promote_types(x.dtype, torch.float32)
    first = x.to(wide).movedim(-1, 1)
    normed = F.group_norm(first, groups, weight.to(wide), bias.to(wide), eps).movedim(1, -1)
    frames = [(frame + (every - 1) * lone) // every for frame in range(x.shape[1])]
    seen = modulation.to(wide)[:, frames]
    seen = seen.repeat_interleave(down, 2).repeat_interleave(across, 3)
    gain, shift = seen.chunk(2, dim=-1)
    y = F.silu(normed * gain + shift).contiguous().to(x.dtype)
    return F.pad(y, (0, 0, 0, 1)) if gutter else y


@jit
def _spatial_norm_kernel(
    p_x: tl.tensor,
    p_modulation: tl.tensor,
    p_stats: tl.tensor,
    p_weight: tl.tensor,
    p_bias: tl.tensor,
    p_out: tl.tensor,
    frames: int,
    width: int,
    latent_frames: int,
    latent_height: int,
    latent_width: int,
    groups: int,
    every: int,
    lone: int,
    down: int,
    GUTTER: tl.constexpr,
    ACROSS: tl.constexpr,
    CHANNELS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    """A program takes `BLOCK` of the channels of `ROWS` pixels side by side in one picture row.

    Of a row's `width` pixels the last is its gutter, if it has one. A latent frame serves `every`
    frames, but for the first where it stands alone (`lone` is 1); a latent pixel serves `down` x
    `ACROSS` pixels; a group is `WIDTH` channels.
    """
    BLOCKS: tl.constexpr = (CHANNELS + BLOCK - 1) // BLOCK
    i_first = tl.program_id(0) // BLOCKS * ROWS
    i_y, i_frame = tl.program_id(1), tl.program_id(2)
    i_batch, i_time = i_frame // frames, i_frame % frames
    i_row = tl.arange(0, ROWS)
    i_col = tl.program_id(0) % BLOCKS * BLOCK + tl.arange(0, BLOCK)
    inside = i_col < CHANNELS
    mask = (i_first + i_row < width)[:, None] & inside[None, :]
    real = (i_first + i_row < width - GUTTER)[:, None] & inside[None, :]
    at = i_row[:, None] * CHANNELS + i_col[None, :]
    line = i_frame.to(tl.int64) * tl.num_programs(1) + i_y
    start = (line * width + i_first) * CHANNELS

    i_latent = (i_time + (every - 1) * lone) // every
    line = (i_batch * latent_frames + i_latent).to(tl.int64) * latent_height + i_y // down
    p_modulation += line * latent_width * (2 * CHANNELS)
    seen = ((i_first + i_row) // ACROSS)[:, None] * (2 * CHANNELS) + i_col[None, :]
    b_gain = tl.load(p_modulation + seen, mask=real, other=0.0).to(tl.float32)
    b_shift = tl.load(p_modulation + CHANNELS + seen, mask=real, other=0.0).to(tl.float32)

    p_stats += i_batch * 2 * groups
    b_mean = tl.load(p_stats + i_col // WIDTH, mask=inside, other=0.0)
    b_rstd = tl.load(p_stats + groups + i_col // WIDTH, mask=inside, other=0.0)
    b_weight = b_rstd * tl.load(p_weight + i_col, mask=inside, other=0.0).to(tl.float32)
    b_bias = tl.load(p_bias + i_col, mask=inside, other=0.0).to(tl.float32)
    b_x = tl.load(p_x + start + at, mask=mask, other=0.0).to(tl.float32)
    b_y = (b_x - b_mean[None, :]) * b_weight[None, :] + b_bias[None, :]
    b_out = tl.where(real, silu(b_y * b_gain + b_shift), 0.0)
    tl.store(p_out + start + at, b_out.to(p_out.dtype.element_ty), mask=mask)


@custom_op("spatial_norm")
def spatial_norm(
    x: Tensor, modulation: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float,
    gutter: bool = False,
) -> Tensor:  # fmt: skip
    """`silu(group_norm(x) gain + shift)` in the dtype of `x`, on CUDA.

    `x` `[B, T, H, W, C]`, contiguous, bf16, fp16 or fp32, with statistics over T, H, W and a group;
    `weight` and `bias` `[C]` are the group norm's. `modulation` `[B, t, h, w, 2 C]`, contiguous, in
    the dtype of `x`, holds gains and then shifts; H and W are multiples of h and w. T is a multiple
    of t or, when it is odd and more than 1, T - 1 is one of t - 1 and the first latent frame serves
    the first frame alone. With `gutter`, `x` and the result are `[B, T, H, W + 1, C]`. Raises
    `ValueError` for anything else.
    """
    check_device("spatial_norm", x, modulation, weight, bias)
    check_group_norm("spatial_norm", x, weight, bias, groups)
    every, lone, down, across = _ratios(x[..., :-1, :] if gutter else x, modulation)
    batch, frames, height, width, channels = x.shape
    if modulation.dtype != x.dtype or not modulation.is_contiguous():
        raise ValueError(
            f"spatial_norm wants modulation contiguous in {x.dtype}; got {describe(modulation)}"
        )
    out = torch.empty_like(x)
    stats = group_statistics(x, groups, eps, gutter)
    config = configuration("spatial_norm", f"C{channels}", _default(channels), x.device)
    block, rows = config["block"], config["rows"]
    grid = (
        triton.cdiv(width, rows) * triton.cdiv(channels, block),
        height,
        batch * frames,
    )
    launch(
        _spatial_norm_kernel,
        grid,
        x,
        modulation,
        stats,
        weight,
        bias,
        out,
        frames,
        width,
        *modulation.shape[1:4],
        groups,
        every,
        lone,
        down,
        GUTTER=int(gutter),
        ACROSS=across,
        CHANNELS=channels,
        WIDTH=channels // groups,
        BLOCK=block,
        ROWS=rows,
        num_warps=config["num_warps"],
    )
    return out


@spatial_norm.register_fake
def _(
    x: Tensor, modulation: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float,
    gutter: bool = False,
) -> Tensor:  # fmt: skip
    return torch.empty_like(x)


def _ratios(x: Tensor, modulation: Tensor) -> tuple[int, int, int, int]:
    """Frames a latent frame serves, whether the first stands alone, pixels down and across.

    Raises `ValueError` when the modulation's sizes do not go into those of `x`.
    """
    if x.ndim == 5 and modulation.ndim == 5 and x.numel() and modulation.numel():
        batch, frames, height, width, channels = x.shape
        latents, latent_height, latent_width = modulation.shape[1:4]
        lone = 1 if frames > 1 and frames % 2 else 0
        every, rest = divmod(frames - lone, max(1, latents - lone))
        fits = not (rest or height % latent_height or width % latent_width)
        if fits and latents > lone and modulation.shape[::4] == (batch, 2 * channels):
            return every, lone, height // latent_height, width // latent_width
    raise ValueError(
        f"spatial_norm wants modulation [B, t, h, w, 2 C] whose t, h, w go into those of "
        f"x [B, T, H, W, C]; got {describe(modulation)} for {describe(x)}"
    )


def _default(channels: int) -> Config:
    """Some 2,000 values a program, 16 a thread, each with a gain and a shift of its own."""
    block = min(512, parts(channels)[0])
    return {"block": block, "rows": max(1, 2048 // block), "num_warps": 4}


def _shipped(channels: int) -> Shipped:
    config = _default(channels)
    pointers = ("p_x", "p_modulation", "p_weight", "p_bias", "p_out")
    numbers = (
        "frames", "width", "latent_frames", "latent_height", "latent_width", "groups",
        "every", "lone", "down",
    )  # fmt: skip
    return Shipped(
        name=f"bf16-C{channels}",
        kernel=_spatial_norm_kernel,
        signature={
            **dict.fromkeys(pointers, "*bf16:16"),
            "p_stats": "*fp32:16",
            **dict.fromkeys(numbers, "i32"),
        },
        constants={
            "GUTTER": 1,
            "ACROSS": 8 * 128 // channels,
            "CHANNELS": channels,
            "WIDTH": channels // 32,
            "BLOCK": config["block"],
            "ROWS": config["rows"],
        },
        num_warps=config["num_warps"],
    )


SHIPPED = tuple(_shipped(channels) for channels in _CHANNELS)


def _tunable(channels: int) -> Tunable:
    def prepare(device: torch.device) -> Callable[[], Tensor]:
        scale = 512 // channels  # narrower layers run at higher resolutions
        x = torch.randn(1, 8, 60 * scale, 90 * scale, channels, device=device).bfloat16()
        modulation = torch.randn(1, 2, 60, 90, 2 * channels, device=device).bfloat16()
        weight, bias = torch.randn(2, channels, device=device).bfloat16()
        return lambda: spatial_norm(x, modulation, weight, bias, 32, 1e-6)

    candidates = tuple(
        {"block": block, "rows": max(1, values // block), "num_warps": warps}
        for block in (64, 128, 256)
        for values in (1024, 2048, 4096, 8192)
        for warps in (4, 8)
    )
    return Tunable(op="spatial_norm", key=f"C{channels}", candidates=candidates, prepare=prepare)


TUNABLE = tuple(_tunable(channels) for channels in _CHANNELS)

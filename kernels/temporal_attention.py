"""Attention over time alone: each pixel's few frames attend to one another, as they lie in memory.

The factorized attention of pseudo-3D models (Guo et al., "AnimateDiff", 2023; Blattmann et al.,
"Stable Video Diffusion", 2023). A stream keeps the keys and values of past frames in slots that are
written in turn; tables tell where in time each stands, so nothing is moved or transposed. Keys and
values may be kept without the positions that a model adds before it projects: projections are
linear, so that a position's share of them can be added here, by a frame's place in the window.

Shapes: B batch, T query frames, S key frames, H W space, h heads, d head width, P places.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .checks import check_device, describe
from .compile import Shipped
from .jit import custom_op, jit, launch, tl, triton
from .tuning import Config, Tunable, configuration

MASKS = ("full", "causal", "sparse_causal")
"""What a frame sees: all; itself and those before it; the first one and the one right before it (Wu
et al., "Tune-A-Video", 2023; the first sees itself)."""

MOST_FRAMES = 64
MOST_WIDTH = 256


def temporal_attention_reference(
    q: Tensor, k: Tensor, v: Tensor, mask: str = "full", q_at: Tensor | None = None,
    k_at: Tensor | None = None, k_add: Tensor | None = None, v_add: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """What `temporal_attention` does, in plain torch; fp64 inputs are computed in fp64."""
    q_at, k_at = _places(q, k, q_at, k_at)
    wide = torch.promote_types(q.dtype, torch.float32)
    kept = (k_at >= 0)[:, :, None, None, None, None]

    def ready(x: Tensor, add: Tensor | None) -> Tensor:
        x = x.to(wide)
        if add is not None:
            x = x + add.to(wide)[k_at.clamp_min(0).long()][:, :, None, None]
        return x.where(kept, 0.0).permute(0, 2, 3, 4, 1, 5)

    now, then = q_at[:, :, None], k_at[:, None]
    seen = {"full": then >= 0, "causal": then <= now, "sparse_causal": then == now - 1}[mask]
    if mask == "sparse_causal":
        seen = seen | (then == 0)
    seen = (seen & (then >= 0))[:, None, None, None]
    scores = q.to(wide).permute(0, 2, 3, 4, 1, 5) @ ready(k, k_add).transpose(-1, -2)
    weights = (scores / math.sqrt(q.shape[-1])).where(seen, -torch.inf).softmax(-1)
    out = weights.where(seen.any(-1, keepdim=True), 0.0) @ ready(v, v_add)
    return out.permute(0, 4, 1, 2, 3, 5).to(q.dtype)


def _places(
    q: Tensor, k: Tensor, q_at: Tensor | None, k_at: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The tables, by default keys in order and queries the last of them."""
    if q_at is None or k_at is None:
        order = torch.arange(k.shape[1], dtype=torch.int32, device=q.device).expand(q.shape[0], -1)
        k_at = order.contiguous() if k_at is None else k_at
        q_at = order[:, k.shape[1] - q.shape[1] :].contiguous() if q_at is None else q_at
    return q_at, k_at


@jit
def _temporal_attention_kernel(
    p_q: tl.tensor, p_k: tl.tensor, p_v: tl.tensor, p_q_at: tl.tensor, p_k_at: tl.tensor,
    p_k_add: tl.tensor, p_v_add: tl.tensor, p_out: tl.tensor, pixels: int, h: int,
    q_batch: int, q_frame: int, q_pixel: int, k_batch: int, k_frame: int, k_pixel: int,
    scale: float, T: tl.constexpr, S: tl.constexpr, D: tl.constexpr, MASK: tl.constexpr,
    K_ADD: tl.constexpr, V_ADD: tl.constexpr, BT: tl.constexpr, BS: tl.constexpr, BD: tl.constexpr,
    PIXELS: tl.constexpr, STAGES: tl.constexpr,
) -> None:  # fmt: skip
    """One head at PIXELS pixels, one after the other; neighbors in the grid take other heads."""
    scale = tl.cast(scale, tl.float32)  # AOTInductor passes on floats as fp64
    i_h, i_first = tl.program_id(0) % h, tl.program_id(0) // h * PIXELS
    i_b = tl.program_id(1).to(tl.int64)
    i_t, i_s, i_d = tl.arange(0, BT), tl.arange(0, BS), tl.arange(0, BD)
    b_now = tl.load(p_q_at + i_b * T + i_t, mask=i_t < T, other=0)
    b_then = tl.load(p_k_at + i_b * S + i_s, mask=i_s < S, other=-1)
    seen = (b_then >= 0)[None, :] & (i_t < T)[:, None]
    if MASK == "causal":
        seen = seen & (b_then[None, :] <= b_now[:, None])
    if MASK == "sparse_causal":
        seen = seen & ((b_then[None, :] == b_now[:, None] - 1) | (b_then == 0)[None, :])
    in_q = (i_t < T)[:, None] & (i_d < D)[None, :]
    in_k = (b_then >= 0)[:, None] & (i_d < D)[None, :]
    at_add = b_then[:, None] * (h * D) + i_h * D + i_d[None, :]
    if K_ADD:
        b_k_add = tl.load(p_k_add + at_add, mask=in_k, other=0.0).to(tl.float32)
    if V_ADD:
        b_v_add = tl.load(p_v_add + at_add, mask=in_k, other=0.0).to(tl.float32)

    at_q = i_b * q_batch + i_h * D + i_t.to(tl.int64)[:, None] * q_frame + i_d[None, :]
    at_k = i_b * k_batch + i_h * D + i_s.to(tl.int64)[:, None] * k_frame + i_d[None, :]
    at_out = (i_b * T + i_t[:, None]) * pixels * (h * D) + i_h * D + i_d[None, :]
    for i in tl.range(i_first, tl.minimum(i_first + PIXELS, pixels), num_stages=STAGES):
        b_q = tl.load(p_q + at_q + i * q_pixel, mask=in_q, other=0.0)
        b_k = tl.load(p_k + at_k + i * k_pixel, mask=in_k, other=0.0)
        b_v = tl.load(p_v + at_k + i * k_pixel, mask=in_k, other=0.0)
        if K_ADD:
            b_k = (b_k.to(tl.float32) + b_k_add).to(b_k.dtype)
        if V_ADD:
            b_v = (b_v.to(tl.float32) + b_v_add).to(b_v.dtype)
        b_scores = tl.dot(b_q, b_k.T, input_precision="tf32x3") * scale
        b_scores = tl.where(seen, b_scores, float("-inf"))
        b_most = tl.max(b_scores, 1)
        b_most = tl.where(b_most > float("-inf"), b_most, 0.0)
        b_weights = tl.math.exp2(b_scores - b_most[:, None])
        b_sum = tl.sum(b_weights, 1)
        b_out = tl.dot(b_weights.to(b_v.dtype), b_v, input_precision="tf32x3")
        b_out = b_out * (1.0 / tl.where(b_sum > 0, b_sum, 1.0))[:, None]
        p_pixel = p_out + at_out + i * (h * D)
        tl.store(p_pixel, b_out.to(p_out.dtype.element_ty), mask=in_q)


@custom_op("temporal_attention")
def temporal_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: str = "full", q_at: Tensor | None = None,
    k_at: Tensor | None = None, k_add: Tensor | None = None, v_add: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Frames `q` `[B, T, H, W, h, d]` attend to `k`, `v` `[B, S, H, W, h, d]` pixel by pixel.

    Each of q, k and v may be a slice of a wider projection. `q_at` `[B, T]` and `k_at` `[B, S]`
    (int32) are the frames' places in time from 0 on, -1 where a slot holds none; by default the
    slots are in order and the queries belong to the last. `mask` is one of `MASKS`; a frame that
    sees none gives zeros. `k_add` and `v_add` `[P, h, d]` are added to the keys and values of the
    frames at each place, all of which must be below P (not checked). Gives `[B, T, H, W, h, d]`,
    contiguous. Raises `ValueError` for other shapes, dtypes, strides or devices, more than 64
    frames or heads wider than 256.
    """
    _check(q, k, v, mask, q_at, k_at, k_add, v_add)
    b, t, height, width, h, d = q.shape
    s = k.shape[1]
    q_at, k_at = _places(q, k, q_at, k_at)
    out = q.new_empty(q.shape)
    pixels = height * width
    config = configuration("temporal_attention", _key(t, s, d), _default(t, s, d), q.device)
    grid = (h * triton.cdiv(pixels, config["pixels"]), b)
    launch(
        _temporal_attention_kernel, grid,
        q, k, v, q_at, k_at, k_add, v_add, out, pixels, h,
        q.stride(0), q.stride(1), q.stride(3), k.stride(0), k.stride(1), k.stride(3),
        math.log2(math.e) / math.sqrt(d), T=t, S=s, D=d, MASK=mask,
        K_ADD=k_add is not None, V_ADD=v_add is not None, **_blocks(t, s, d),
        PIXELS=config["pixels"], STAGES=config["num_stages"],
        num_warps=config["num_warps"], num_stages=config["num_stages"],
    )  # fmt: skip
    return out


@temporal_attention.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, mask: str = "full", q_at: Tensor | None = None,
    k_at: Tensor | None = None, k_add: Tensor | None = None, v_add: Tensor | None = None,
) -> Tensor:  # fmt: skip
    return q.new_empty(q.shape)


def _blocks(t: int, s: int, d: int) -> dict[str, int]:
    """Powers of two, 16 at least, for the matrix units."""
    names = {"BT": t, "BS": s, "BD": d}
    return {name: max(16, 1 << (size - 1).bit_length()) for name, size in names.items()}


def _key(t: int, s: int, d: int) -> str:
    return f"T{t}_S{s}_D{d}"


def _default(t: int, s: int, d: int) -> Config:
    """Some 32 elements of the keys a thread; one pixel is loaded ahead where there is room."""
    blocks = _blocks(t, s, d)
    elements = max(blocks["BT"], blocks["BS"]) * blocks["BD"]
    warps = max(1, min(8, elements // 1024))
    return {"pixels": 4, "num_warps": warps, "num_stages": 2 if elements <= 8192 else 1}


def _check(
    q: Tensor, k: Tensor, v: Tensor, mask: str, q_at: Tensor | None, k_at: Tensor | None,
    k_add: Tensor | None, v_add: Tensor | None,
) -> None:  # fmt: skip
    op = "temporal_attention"
    check_device(op, q, k, v, q_at, k_at, k_add, v_add)
    if mask not in MASKS:
        raise ValueError(f"{op} wants a mask among {', '.join(MASKS)}; got {mask!r}")
    if q.dtype not in (torch.bfloat16, torch.float16, torch.float32) or q.dim() != 6:
        raise ValueError(
            f"{op} wants q [B, T, H, W, h, d] in bfloat16, float16 or float32; got {describe(q)}"
        )
    b, t, height, width, h, d = q.shape
    s = k.shape[1]
    if not 0 < max(t, s) <= MOST_FRAMES or d > MOST_WIDTH:
        raise ValueError(
            f"{op} wants 1 to {MOST_FRAMES} frames and heads at most {MOST_WIDTH} wide; "
            f"got {describe(q)} and {describe(k)}"
        )
    for name, x, frames, like in (("q", q, t, q), ("k", k, s, k), ("v", v, s, k)):
        pixel = x.stride(3) if x.dim() == 6 else 0
        if (
            x.stride()[2:] != (width * pixel, pixel, d, 1)
            or height * width * pixel >= 1 << 31
            or x.shape != (b, frames, height, width, h, d)
            or x.dtype != q.dtype
            or x.stride() != like.stride()
        ):
            raise ValueError(
                f"{op} wants {name} [{b}, {frames}, {height}, {width}, {h}, {d}] of q's dtype, "
                f"pixels evenly spaced and within 2^31 of each other, heads dense, v with k's "
                f"strides; got {describe(x)}"
            )
    for name, at, frames in (("q_at", q_at, t), ("k_at", k_at, s)):
        if at is not None and (
            at.shape != (b, frames) or at.dtype != torch.int32 or not at.is_contiguous()
        ):
            raise ValueError(
                f"{op} wants {name} int32 [{b}, {frames}], contiguous; got {describe(at)}"
            )
    for name, add in (("k_add", k_add), ("v_add", v_add)):
        if add is not None and (
            add.shape[1:] != (h, d) or add.dtype != q.dtype or not add.is_contiguous()
        ):
            raise ValueError(
                f"{op} wants {name} [P, {h}, {d}] of q's dtype, contiguous; got {describe(add)}"
            )


def _shipped(
    name: str, t: int, s: int, d: int, *, mask: str = "full", add: bool = False
) -> Shipped:
    config = _default(t, s, d)
    tensors = ("p_q", "p_k", "p_v", "p_k_add", "p_v_add", "p_out")
    strides = ("q_batch", "q_frame", "q_pixel", "k_batch", "k_frame", "k_pixel")
    return Shipped(
        name=name,
        kernel=_temporal_attention_kernel,
        signature={**dict.fromkeys(tensors, "*bf16:16"), **dict.fromkeys(strides, "i32:16"),
                   "p_q_at": "*i32:16", "p_k_at": "*i32:16", "pixels": "i32", "h": "i32",
                   "scale": "fp32"},
        constants={"T": t, "S": s, "D": d, "MASK": mask, "K_ADD": add, "V_ADD": add,
                   **_blocks(t, s, d), "PIXELS": config["pixels"], "STAGES": config["num_stages"]},
        num_warps=config["num_warps"],
        num_stages=config["num_stages"],
    )  # fmt: skip


SHIPPED = (
    _shipped("animatediff-d40", 16, 16, 40),
    _shipped("animatediff-d160", 16, 16, 160),
    _shipped("animatediff-stream", 1, 16, 80, add=True),
    _shipped("svd", 25, 25, 64),
    _shipped("most-frames", 64, 64, 64, mask="causal"),
)


def _tunable(t: int, s: int, h: int, d: int, height: int, width: int) -> Tunable:
    def prepare(device: torch.device) -> Callable[[], Tensor]:
        q = torch.randn(2, t, height, width, h, d, device=device).bfloat16()
        k, v = torch.randn(2, 2, s, height, width, h, d, device=device).bfloat16()
        return lambda: temporal_attention(q, k, v)

    candidates = tuple(
        {"pixels": pixels, "num_warps": warps, "num_stages": stages}
        for pixels in (1, 4, 16)
        for warps in (1, 2, 4, 8)
        for stages in (1, 2, 3)
    )
    return Tunable(
        op="temporal_attention", key=_key(t, s, d), candidates=candidates, prepare=prepare
    )


TUNABLE = (
    _tunable(16, 16, 8, 40, 64, 64),
    _tunable(16, 16, 8, 80, 32, 32),
    _tunable(16, 16, 8, 160, 16, 16),
    _tunable(1, 16, 8, 40, 64, 64),
    _tunable(25, 25, 5, 64, 72, 128),
)

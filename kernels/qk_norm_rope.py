"""Queries and keys normed and rotated, keys and values written into the KV ring, in one pass.

RMS norm over the whole width, all heads together, as Wan has it (`rms_norm_across_heads`); rotary
embedding over time, height and width (Su et al., "RoFormer", 2021; `engine/layers/rope.py`), pairs
interleaved, time's pairs first. Time is the frame's number in the stream and never starts anew:
scores depend on differences alone, so a key is rotated once, when it is written, and stays right
for as long as it is kept. What is to look nearer than it is, a sink say, is brought up by
`chunk_attention`.

Shapes: B batch, T latent frames, n tokens a frame, N = T n, h heads, d head width, D = h d,
S slots.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .checks import check_device, describe
from .compile import Shipped
from .jit import custom_op, jit, launch, tl, triton

BASE = 10000.0


def time_rotations(
    positions: Tensor | Sequence[int] | Sequence[Sequence[int]], pairs: int
) -> Tensor:
    """Cosines and sines `[..., pairs, 2]`, fp32, of whole positions `[...]`, reckoned in fp64."""
    rates = BASE ** -(torch.arange(pairs, dtype=torch.float64) / pairs)
    angles = torch.as_tensor(positions).double().unsqueeze(-1) * rates
    return torch.stack((angles.cos(), angles.sin()), dim=-1).float()


def space_rotations(height: int, width: int, head_dim: int) -> Tensor:
    """The same, `[n, pairs, 2]`, of a frame of `height` x `width` tokens: rows' pairs, columns'."""
    pairs = head_dim // 6
    rows = time_rotations(range(height), pairs)[:, None].expand(height, width, pairs, 2)
    columns = time_rotations(range(width), pairs)[None].expand(height, width, pairs, 2)
    return torch.cat((rows, columns), dim=2).flatten(0, 1)


def time_pairs(head_dim: int) -> int:
    """How many of a head's pairs Wan rotates by time."""
    return head_dim // 2 - 2 * (head_dim // 6)


def rotate_pairs(x: Tensor, turns: Tensor) -> Tensor:
    """Rotate `x` `[..., d]` by cosines and sines `[..., d/2, 2]`; gives the wider of the dtypes."""
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = turns.unbind(-1)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


def qk_norm_rope_reference(
    q: Tensor, k: Tensor, v: Tensor, q_weight: Tensor, k_weight: Tensor, time: Tensor,
    space: Tensor, slots: Tensor, k_ring: Tensor, v_ring: Tensor, eps: float,
) -> Tensor:  # fmt: skip
    """What `qk_norm_rope` does, in plain torch; fp64 inputs are computed in fp64."""
    b, t = slots.shape
    n, h, d = k_ring.shape[2:]
    wide = torch.promote_types(q.dtype, torch.float32)
    turns = torch.cat(
        (time[:, :, None].expand(-1, -1, n, -1, -1), space.expand(b, t, -1, -1, -1)), dim=3
    ).flatten(1, 2)

    def ready(x: Tensor, weight: Tensor) -> Tensor:
        y = F.rms_norm(x.to(wide), (h * d,), weight.to(wide), eps).unflatten(-1, (h, d))
        return rotate_pairs(y, turns[:, :, None].to(wide)).to(q.dtype)

    batch = torch.arange(b, device=slots.device)[:, None]
    k_ring[batch, slots.long()] = ready(k, k_weight).unflatten(1, (t, n))
    v_ring[batch, slots.long()] = v.reshape(b, t, n, h, d)
    return ready(q, q_weight)


@jit
def _normed_and_rotated(
    b_x: tl.tensor, p_weight: tl.tensor, at: tl.tensor, mask: tl.tensor, b_cos: tl.tensor,
    b_sin: tl.tensor, eps: float, H: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """`[ROWS, D]` heads of one token, H of them real; in fp32."""
    b_x = b_x.to(tl.float32)
    scale = tl.math.rsqrt(tl.sum(tl.sum(b_x * b_x, 1), 0) / (H * D) + eps)
    b_x = b_x * scale * tl.load(p_weight + at, mask=mask, other=0.0).to(tl.float32)
    b_even, b_odd = tl.split(tl.reshape(b_x, [ROWS, D // 2, 2]))
    b_rotated = tl.join(b_even * b_cos - b_odd * b_sin, b_even * b_sin + b_odd * b_cos)
    return tl.reshape(b_rotated, [ROWS, D])


@jit
def _qk_norm_rope_kernel(
    p_q: tl.tensor, p_k: tl.tensor, p_v: tl.tensor, p_q_weight: tl.tensor, p_k_weight: tl.tensor,
    p_time: tl.tensor, p_space: tl.tensor, p_slots: tl.tensor, p_out: tl.tensor,
    p_k_ring: tl.tensor, p_v_ring: tl.tensor, t: int, n: int, s_batch: int, s_token: int,
    s_ring_batch: int, s_slot: int, eps: float,
    H: tl.constexpr, D: tl.constexpr, TIME_PAIRS: tl.constexpr, ROWS: tl.constexpr,
) -> None:  # fmt: skip
    """One token of one session: all its heads."""
    eps = tl.cast(eps, tl.float32)  # AOTInductor passes on floats as fp64
    i_token, i_b = tl.program_id(0), tl.program_id(1).to(tl.int64)
    i_t, i_n = i_token // n, i_token % n

    pair = tl.arange(0, D // 2)[:, None]
    at = 2 * pair + tl.arange(0, 2)[None, :]  # cosine and sine
    p_time += (i_b * t + i_t) * (2 * TIME_PAIRS) + at
    p_space += i_n * (D - 2 * TIME_PAIRS) + at - 2 * TIME_PAIRS
    b_turns = tl.load(p_time, mask=pair < TIME_PAIRS, other=0.0)
    b_turns += tl.load(p_space, mask=pair >= TIME_PAIRS, other=0.0)
    b_cos, b_sin = tl.split(b_turns)

    head = tl.arange(0, ROWS)[:, None]
    mask = head < H
    at = head * D + tl.arange(0, D)[None, :]
    own = i_b * s_batch + i_token.to(tl.int64) * s_token + at
    i_slot = tl.load(p_slots + i_b * t + i_t).to(tl.int64)
    ring = i_b * s_ring_batch + i_slot * s_slot + i_n.to(tl.int64) * (H * D) + at
    out = (i_b * t * n + i_token) * (H * D) + at

    b_v = tl.load(p_v + own, mask=mask, other=0.0)
    b_k = tl.load(p_k + own, mask=mask, other=0.0)
    b_q = tl.load(p_q + own, mask=mask, other=0.0)
    tl.store(p_v_ring + ring, b_v, mask=mask)
    b_k = _normed_and_rotated(b_k, p_k_weight, at, mask, b_cos, b_sin, eps, H, D, ROWS)
    tl.store(p_k_ring + ring, b_k.to(p_k_ring.dtype.element_ty), mask=mask)
    b_q = _normed_and_rotated(b_q, p_q_weight, at, mask, b_cos, b_sin, eps, H, D, ROWS)
    tl.store(p_out + out, b_q.to(p_out.dtype.element_ty), mask=mask)


@custom_op("qk_norm_rope", mutates=("k_ring", "v_ring"))
def qk_norm_rope(
    q: Tensor, k: Tensor, v: Tensor, q_weight: Tensor, k_weight: Tensor, time: Tensor,
    space: Tensor, slots: Tensor, k_ring: Tensor, v_ring: Tensor, eps: float,
) -> Tensor:  # fmt: skip
    """Norm and rotate `q` and `k` `[B, N, D]`, put k and `v` in the ring, give q `[B, N, h, d]`.

    q, k and v may be slices of one wider projection. `q_weight`, `k_weight` `[D]` are the norms'
    gains. `time` `[B, T, pairs, 2]` and `space` `[n, d/2 - pairs, 2]` (fp32) come from
    `time_rotations` of the frames' numbers and `space_rotations`. Frame t of session b goes to slot
    `slots[b, t]` (int32 `[B, T]`, all different in a session, not checked) of `k_ring` and `v_ring`
    `[B, S, n, h, d]`. Raises `ValueError` for other shapes, dtypes, strides or devices.
    """
    _check(q, k, v, q_weight, k_weight, time, space, slots, k_ring, v_ring)
    b, t = slots.shape
    n, h, d = k_ring.shape[2:]
    out = q.new_empty(b, t * n, h, d)
    rows = triton.next_power_of_2(h)
    launch(
        _qk_norm_rope_kernel, (t * n, b),
        q, k, v, q_weight, k_weight, time, space, slots, out, k_ring, v_ring,
        t, n, *q.stride()[:2], *k_ring.stride()[:2], eps,
        H=h, D=d, TIME_PAIRS=time.shape[2], ROWS=rows, num_warps=_warps(rows * d),
    )  # fmt: skip
    return out


@qk_norm_rope.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, q_weight: Tensor, k_weight: Tensor, time: Tensor,
    space: Tensor, slots: Tensor, k_ring: Tensor, v_ring: Tensor, eps: float,
) -> Tensor:  # fmt: skip
    return q.new_empty(*q.shape[:2], *k_ring.shape[3:])


def _warps(elements: int) -> int:
    """16 to 32 elements of each of q, k and v a thread."""
    return max(1, min(8, elements // 512))


def _check(
    q: Tensor, k: Tensor, v: Tensor, q_weight: Tensor, k_weight: Tensor, time: Tensor,
    space: Tensor, slots: Tensor, k_ring: Tensor, v_ring: Tensor,
) -> None:  # fmt: skip
    op = "qk_norm_rope"
    check_device(op, q, k, v, q_weight, k_weight, time, space, slots, k_ring, v_ring)
    if k_ring.dim() != 5 or slots.dim() != 2:
        raise ValueError(
            f"{op} wants rings [B, S, n, h, d] and slots [B, T]; "
            f"got {describe(k_ring)} and {describe(slots)}"
        )
    b, t = slots.shape
    n, h, d = k_ring.shape[2:]
    if d % 2 or d & (d - 1):
        raise ValueError(f"{op} wants a head width that is a power of two; got {d}")
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.shape != (b, t * n, h * d) or x.stride(2) != 1 or x.stride() != q.stride():
            raise ValueError(
                f"{op} wants {name} [{b}, {t * n}, {h * d}], dense in its last dimension and with "
                f"q's strides; got {describe(x)}"
            )
    for name, x in (("k_ring", k_ring), ("v_ring", v_ring)):
        inner = x.stride()[2:] == (h * d, d, 1)
        if x.shape != k_ring.shape or x.shape[0] != b or not inner or x.stride() != k_ring.stride():
            raise ValueError(
                f"{op} wants {name} [{b}, S, n, h, d], dense in its last three dimensions, both "
                f"rings alike; got {describe(x)}"
            )
    if len({x.dtype for x in (q, k, v, k_ring, v_ring)}) > 1:
        raise ValueError(f"{op} wants q, k, v and the rings in one dtype; got {describe(k_ring)}")
    pairs = time.shape[2] if time.dim() == 4 else 0
    wanted = {"time": (b, t, pairs, 2), "space": (n, d // 2 - pairs, 2), "q_weight": (h * d,),
              "k_weight": (h * d,), "slots": (b, t)}  # fmt: skip
    given = {"time": time, "space": space, "q_weight": q_weight, "k_weight": k_weight,
             "slots": slots}  # fmt: skip
    for name, shape in wanted.items():
        x = given[name]
        if x.shape != shape or not x.is_contiguous():
            raise ValueError(f"{op} wants {name} {list(shape)}, contiguous; got {describe(x)}")
    if time.dtype != torch.float32 or space.dtype != torch.float32 or slots.dtype != torch.int32:
        raise ValueError(
            f"{op} wants time and space in float32 and slots in int32; "
            f"got {describe(time)}, {describe(space)} and {describe(slots)}"
        )


_TYPES = {
    **dict.fromkeys(("p_q", "p_k", "p_v", "p_out", "p_k_ring", "p_v_ring"), "*bf16:16"),
    **dict.fromkeys(("p_q_weight", "p_k_weight"), "*bf16:16"),
    **dict.fromkeys(("p_time", "p_space"), "*fp32:16"),
    **dict.fromkeys(("s_batch", "s_token", "s_ring_batch", "s_slot"), "i32:16"),
    "p_slots": "*i32:16", "t": "i32", "n": "i32", "eps": "fp32",
}  # fmt: skip

SHIPPED = tuple(
    Shipped(
        name=name,
        kernel=_qk_norm_rope_kernel,
        signature=_TYPES,
        constants={"H": h, "D": 128, "TIME_PAIRS": time_pairs(128), "ROWS": rows},
        num_warps=_warps(rows * 128),
    )
    for name, h, rows in (("wan-1.3b", 12, 16), ("wan-14b", 40, 64))
)

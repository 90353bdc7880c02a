"""Attention of a chunk's queries to the frames that it sees, read where they lie in the KV ring.

Softmax does not care for order, so what is visible is a few runs of slots: one for a whole window,
however far the ring has turned. Keys are rotated by their frames' numbers (`qk_norm_rope`), and
scores depend on differences alone. A frame that is to look nearer than it is (a sink, which stands
right before the window however long the stream) is in a run with a shift: the queries are turned
back by as many frames before they meet that run's keys, which is exact. Several sessions with
different fill, and a chunk whose later frames see more than its earlier ones, go in one launch.

Online softmax after Dao, "FlashAttention-2" (2023).

Shapes: B batch, N queries, G blocks of queries, R runs, S slots, n tokens a frame, h heads, d head
width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .checks import check_device, describe
from .compile import Shipped
from .jit import custom_op, jit, launch, tl, triton
from .qk_norm_rope import rotate_pairs, time_pairs, time_rotations
from .tuning import Config, Tunable, configuration

WIDTHS = (64, 128)


def _config(rows: int, keys: int, warps: int, stages: int, specialize: int = 0) -> Config:
    return {"rows": rows, "keys": keys, "num_warps": warps, "num_stages": stages,
            "specialize": specialize}  # fmt: skip


_WIDE = _config(128, 128, 8, 2)
_NARROW = _config(64, 64, 4, 3)  # two fit a Hopper multiprocessor
_LEAN = _config(128, 64, 8, 2)  # for 99 KiB of shared memory
_SPECIALIZED = _config(128, 128, 4, 2, specialize=1)
_EXACT = _config(16, 32, 4, 1)  # fp32: right rather than fast


@dataclass(frozen=True)
class Run:
    """`frames` latent frames in slots from `slot` on, which look `shift` frames nearer than they
    are."""

    slot: int
    frames: int
    shift: int = 0


def runs_of(slots: Sequence[int], frames: Sequence[int]) -> list[Run]:
    """Runs of what is visible: frame number `frames[i]` lies in `slots[i]`, oldest first.

    A frame looks as far away as its place in the list says: the newest at its own number, the one
    before it one frame back, whether or not the stream has more frames between.
    """
    shifts = [frames[-1] - back - frame for back, frame in enumerate(reversed(frames))]
    runs: list[Run] = []
    for slot, shift in sorted(zip(slots, reversed(shifts), strict=True)):
        last = runs[-1] if runs else None
        if last is not None and (last.slot + last.frames, last.shift) == (slot, shift):
            runs[-1] = Run(last.slot, last.frames + 1, shift)
        else:
            runs.append(Run(slot, 1, shift))
    return runs


def run_tables(
    sessions: Sequence[Sequence[Sequence[Run]]], pairs: int, width: int = 1
) -> tuple[Tensor, Tensor]:
    """`runs` and `shifts` as `chunk_attention` takes them, for B sessions of G query blocks each.

    `pairs` of a head are rotated by time. There is room for `width` runs, or as many as needed.
    """
    width = max([width, *(len(block) for blocks in sessions for block in blocks)])
    padded = [[[*block, *[Run(0, 0)] * (width - len(block))] for block in s] for s in sessions]
    runs = torch.tensor([[[(r.slot, r.frames) for r in block] for block in s] for s in padded])
    back = torch.tensor([[[-r.shift for r in block] for block in s] for s in padded])
    return runs.int(), time_rotations(back, pairs)


def chunk_attention_reference(
    q: Tensor, k: Tensor, v: Tensor, runs: Tensor, shifts: Tensor | None, block: int
) -> Tensor:
    """What `chunk_attention` does, in plain torch; fp64 inputs are computed in fp64."""
    n_q, d = q.shape[1], q.shape[3]
    groups = runs.shape[1]
    wide = torch.promote_types(q.dtype, torch.float32)
    k, v = k.to(wide), v.to(wide)
    slot = torch.arange(k.shape[1], device=q.device)
    start, length = runs.unsqueeze(-1).unbind(3)
    inside = (start <= slot) & (slot < start + length)  # [B, G, R, S]
    first = n_q - (groups - 1) * block
    outs = []
    for g, queries in enumerate(q.to(wide).split([first, *[block] * (groups - 1)], dim=1)):
        scores = torch.full((), -torch.inf, device=q.device, dtype=wide)
        for r in range(runs.shape[2]):
            turned = queries
            if shifts is not None:
                pairs = shifts.shape[3]
                turns = shifts[:, g, r, None, None].to(wide)
                near = rotate_pairs(queries[..., : 2 * pairs], turns)
                turned = torch.cat((near, queries[..., 2 * pairs :]), dim=-1)
            met = torch.einsum("bmhd,bsnhd->bhmsn", turned, k) / math.sqrt(d)
            scores = torch.where(inside[:, g, r, None, None, :, None], met, scores)
        seen = inside[:, g].any(1)[:, None, None, :, None]
        weights = scores.flatten(3).softmax(-1).reshape(scores.shape).where(seen, 0.0)
        outs.append(torch.einsum("bhmsn,bsnhd->bmhd", weights, v))
    return torch.cat(outs, dim=1).to(q.dtype)


@jit
def _attended(
    b_q: tl.tensor, k_rows: tl.tensor_descriptor, v_rows: tl.tensor_descriptor, row: int, stop: int,
    b_most: tl.tensor, b_sum: tl.tensor, b_acc: tl.tensor, scale: float, BN: tl.constexpr,
    BRANCH: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:  # fmt: skip
    """One step of the online softmax: keys and values in `[row, min(row + BN, stop))`.

    Only a run's last block has rows to mask; a branch spares the others that, but the compiler
    cannot specialize warps around it.
    """
    b_k = k_rows.load([row, 0])
    b_scores = tl.dot(b_q, b_k.T, input_precision="tf32x3")
    if BRANCH:
        if stop - row < BN:
            b_scores = tl.where((row + tl.arange(0, BN))[None, :] < stop, b_scores, float("-inf"))
    else:
        b_scores = tl.where((row + tl.arange(0, BN))[None, :] < stop, b_scores, float("-inf"))
    b_new = tl.maximum(b_most, tl.max(b_scores, 1) * scale)
    b_weights = tl.math.exp2(b_scores * scale - b_new[:, None])
    b_fade = tl.math.exp2(b_most - b_new)
    b_v = v_rows.load([row, 0])
    b_acc = tl.dot(b_weights.to(b_v.dtype), b_v, b_acc * b_fade[:, None], input_precision="tf32x3")
    return b_new, b_sum * b_fade + tl.sum(b_weights, 1), b_acc


@jit
def _turned(
    b_q: tl.tensor, p_turns: tl.tensor, PAIRS: tl.constexpr, D: tl.constexpr, BM: tl.constexpr
) -> tl.tensor:
    """Queries with their first pairs rotated."""
    pair = tl.arange(0, D // 2)
    b_cos = tl.load(p_turns + 2 * pair, mask=pair < PAIRS, other=1.0)
    b_sin = tl.load(p_turns + 2 * pair + 1, mask=pair < PAIRS, other=0.0)
    b_even, b_odd = tl.split(tl.reshape(b_q.to(tl.float32), [BM, D // 2, 2]))
    b_both = tl.join(b_even * b_cos - b_odd * b_sin, b_even * b_sin + b_odd * b_cos)
    return tl.reshape(b_both, [BM, D]).to(b_q.dtype)


@jit
def _chunk_attention_kernel(
    p_q: tl.tensor, p_k: tl.tensor, p_v: tl.tensor, p_runs: tl.tensor, p_shifts: tl.tensor,
    p_out: tl.tensor, queries: int, first: int, block: int, tokens: int, rows: int, s_ring: int,
    h: int, scale: float, D: tl.constexpr, RUNS: tl.constexpr, PAIRS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, STAGES: tl.constexpr, SPECIALIZE: tl.constexpr,
) -> None:  # fmt: skip
    """BM queries of one block, one head and one session. No shifts when PAIRS is 0."""
    scale = tl.cast(scale, tl.float32)  # AOTInductor passes on floats as fp64
    i_tile, i_h, i_b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    later = i_tile - tl.cdiv(first, BM)  # tiles after the first block's
    per_block = tl.cdiv(block, BM)
    i_g = tl.where(later < 0, 0, 1 + later // per_block)
    i_q = tl.where(later < 0, i_tile * BM, first + (i_g - 1) * block + later % per_block * BM)
    end = first + i_g * block
    i_table = (i_b * (1 + (queries - first) // block) + i_g) * RUNS

    p_q += i_b * queries * h * D + i_h * D
    ring = i_b * s_ring + i_h * D
    q_rows = tl.make_tensor_descriptor(p_q, [end, D], [h * D, 1], [BM, D])
    k_rows = tl.make_tensor_descriptor(p_k + ring, [rows, D], [h * D, 1], [BN, D])
    v_rows = tl.make_tensor_descriptor(p_v + ring, [rows, D], [h * D, 1], [BN, D])
    b_most = tl.full([BM], float("-inf"), tl.float32)
    b_sum = tl.zeros([BM], tl.float32)
    b_acc = tl.zeros([BM, D], tl.float32)

    if SPECIALIZE:  # in one loop over the blocks of all runs
        b_q = q_rows.load([i_q, 0])
        starts, stops, befores = tl.tuple(()), tl.tuple(()), tl.tuple(())
        blocks = 0
        for i_run in tl.static_range(RUNS):
            row = tl.load(p_runs + (i_table + i_run) * 2) * tokens
            length = tl.load(p_runs + (i_table + i_run) * 2 + 1) * tokens
            starts += (row,)
            stops += (row + length,)
            befores += (blocks,)
            blocks += tl.cdiv(length, BN)
        for i in tl.range(0, blocks, num_stages=STAGES, warp_specialize=True):
            row = 0
            stop = 0
            for i_run in tl.static_range(RUNS):
                inside = i >= befores[i_run]
                row = tl.where(inside, starts[i_run] + (i - befores[i_run]) * BN, row)
                stop = tl.where(inside, stops[i_run], stop)
            b_most, b_sum, b_acc = _attended(
                b_q, k_rows, v_rows, row, stop, b_most, b_sum, b_acc, scale, BN, False
            )
    else:
        for i_run in tl.range(0, RUNS):
            b_q = q_rows.load([i_q, 0])
            if PAIRS:
                b_q = _turned(b_q, p_shifts + (i_table + i_run) * (2 * PAIRS), PAIRS, D, BM)
            row = tl.load(p_runs + (i_table + i_run) * 2) * tokens
            stop = row + tl.load(p_runs + (i_table + i_run) * 2 + 1) * tokens
            for i_row in tl.range(row, stop, BN, num_stages=STAGES):
                b_most, b_sum, b_acc = _attended(
                    b_q,
                    k_rows,
                    v_rows,
                    i_row,
                    stop,
                    b_most,
                    b_sum,
                    b_acc,
                    scale,
                    BN,
                    not SPECIALIZE,
                )

    b_out = b_acc * (1.0 / tl.where(b_sum > 0, b_sum, 1.0))[:, None]
    at = i_q + tl.arange(0, BM)
    p_out += i_b * queries * h * D + i_h * D
    p_out += at[:, None] * (h * D) + tl.arange(0, D)[None, :]
    tl.store(p_out, b_out.to(p_out.dtype.element_ty), mask=(at < end)[:, None])


@custom_op("chunk_attention")
def chunk_attention(
    q: Tensor, k: Tensor, v: Tensor, runs: Tensor, shifts: Tensor | None, block: int
) -> Tensor:
    """`softmax(q k^T / sqrt(d)) v` of `q` `[B, N, h, d]` over what it sees; gives `[B, N, h, d]`.

    `k` and `v` `[B, S, n, h, d]` are the ring, the chunk's own frames in it, keys rotated; slots
    that are not seen must hold finite numbers. The last G - 1 blocks of queries have `block` tokens
    each and the first what is left, at most as many. Block g of session b sees the slots
    `runs[b, g, :, 0]` and on, `runs[b, g, :, 1]` each (int32 `[B, G, R, 2]`; 0 for a run that is
    none; runs that overlap are counted twice, which is not checked); with nothing to see it gives
    zeros. Before they meet run r, queries are rotated by `shifts[b, g, r]` (fp32
    `[B, G, R, pairs, 2]`, of the first `pairs` pairs). `run_tables` makes both. Raises `ValueError`
    for other shapes, dtypes, strides or devices.
    """
    _check(q, k, v, runs, shifts, block)
    b, n_q, h, d = q.shape
    slots, tokens = k.shape[1:3]
    groups, width = runs.shape[1:3]
    out = torch.empty_like(q)
    first = n_q - (groups - 1) * block
    key = f"D{d}_H{b * h}_N{n_q}" + ("" if shifts is None else "_sinks")
    config = configuration("chunk_attention", key, _default(q, n_q), q.device)
    rows = config["rows"]
    tiles = triton.cdiv(first, rows) + (groups - 1) * triton.cdiv(block, rows)
    triton.set_allocator(_scratch)
    launch(
        _chunk_attention_kernel, (tiles, h, b),
        q, k, v, runs, shifts, out,
        n_q, first, block, tokens, slots * tokens, k.stride(0), h, _scale(d),
        D=d, RUNS=width, PAIRS=0 if shifts is None else shifts.shape[3],
        BM=rows, BN=config["keys"], STAGES=config["num_stages"],
        SPECIALIZE=shifts is None and bool(config["specialize"]),
        num_warps=config["num_warps"], num_stages=config["num_stages"],
    )  # fmt: skip
    return out


@chunk_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, runs: Tensor, shifts: Tensor | None, block: int) -> Tensor:
    return torch.empty_like(q)


def _scratch(size: int, alignment: int, stream: int | None) -> Tensor:
    """Where kernels that build their own tensor descriptors keep them."""
    return torch.empty(size, dtype=torch.int8, device="cuda")


def _scale(head_dim: int) -> float:
    """What scores are multiplied by before powers of two are taken of them."""
    return math.log2(math.e) / math.sqrt(head_dim)


def _default(q: Tensor, queries: int) -> Config:
    """128 queries a program, or 64 where that would leave multiprocessors idle."""
    if q.dtype == torch.float32:
        return _EXACT
    if q.device.type != "cuda":
        return _LEAN
    chip = torch.cuda.get_device_properties(q.device)
    if chip.major not in (9, 10):
        return _LEAN
    programs = q.shape[0] * q.shape[2] * triton.cdiv(queries, _WIDE["rows"])
    return _WIDE if programs >= chip.multi_processor_count else _NARROW


def _check(
    q: Tensor, k: Tensor, v: Tensor, runs: Tensor, shifts: Tensor | None, block: int
) -> None:
    op = "chunk_attention"
    check_device(op, q, k, v, runs, shifts)
    if q.dim() != 4 or q.shape[3] not in WIDTHS or not q.is_contiguous():
        raise ValueError(
            f"{op} wants q [B, N, h, d], contiguous, heads {WIDTHS[0]} or {WIDTHS[1]} wide; "
            f"got {describe(q)}"
        )
    b, n_q, h, d = q.shape
    for name, x in (("k", k), ("v", v)):
        ring = x.dim() == 5 and x.shape[0] == b and x.shape[3:] == (h, d) and x.dtype == q.dtype
        if not ring or x.stride() != k.stride() or not x[0].is_contiguous() or x.shape != k.shape:
            raise ValueError(
                f"{op} wants {name} [{b}, S, n, {h}, {d}] of q's dtype, each session contiguous, k "
                f"and v alike; got {describe(x)}"
            )
    if q.dtype not in (torch.bfloat16, torch.float16, torch.float32):
        raise ValueError(f"{op} wants bfloat16, float16 or float32; got {describe(q)}")
    table = runs.dim() == 4 and runs.shape[0] == b and runs.shape[3] == 2
    if not table or runs.dtype != torch.int32 or not runs.is_contiguous() or runs.numel() == 0:
        raise ValueError(f"{op} wants runs int32 [{b}, G, R, 2], contiguous; got {describe(runs)}")
    first = n_q - (runs.shape[1] - 1) * block
    if not 0 < first <= block:
        raise ValueError(
            f"{op} wants {runs.shape[1]} blocks of queries, all of {block} but the first, which "
            f"may be shorter; got {n_q} queries"
        )
    if shifts is not None and (
        shifts.shape != (*runs.shape[:3], shifts.shape[-2], 2)
        or not 0 < shifts.shape[-2] <= d // 2
        or shifts.dtype != torch.float32
        or not shifts.is_contiguous()
    ):
        raise ValueError(
            f"{op} wants shifts float32 {[*runs.shape[:3]]} + [pairs, 2], contiguous, at most "
            f"{d // 2} pairs; got {describe(shifts)}"
        )


def _shipped(
    name: str, config: Config, sms: tuple[int, ...], *, d: int, pairs: int = 0,
) -> Shipped:  # fmt: skip
    pointers = dict.fromkeys(("p_q", "p_k", "p_v", "p_out"), "*bf16:16")
    numbers = dict.fromkeys(("queries", "first", "block", "tokens", "rows", "h"), "i32")
    tables = {"p_runs": "*i32:16", "p_shifts": "*fp32:16"}
    return Shipped(
        name=name,
        kernel=_chunk_attention_kernel,
        signature={**pointers, **numbers, **tables, "s_ring": "i32:16", "scale": "fp32"},
        constants={"D": d, "RUNS": 4, "PAIRS": pairs, "BM": config["rows"], "BN": config["keys"],
                   "STAGES": config["num_stages"], "SPECIALIZE": bool(config["specialize"])},
        num_warps=config["num_warps"],
        num_stages=config["num_stages"],
        sms=sms,
    )  # fmt: skip


def _shipped_all() -> Iterator[Shipped]:
    for d in WIDTHS:
        pairs = time_pairs(d)
        yield _shipped(f"d{d}-wide", _WIDE, (90, 100), d=d)
        yield _shipped(f"d{d}-wide-sinks", _WIDE, (90, 100), d=d, pairs=pairs)
        yield _shipped(f"d{d}-narrow", _NARROW, (90, 100), d=d)
        yield _shipped(f"d{d}-narrow-sinks", _NARROW, (90, 100), d=d, pairs=pairs)
        yield _shipped(f"d{d}-lean", _LEAN, (80, 120), d=d)
        yield _shipped(f"d{d}-lean-sinks", _LEAN, (80, 120), d=d, pairs=pairs)
        yield _shipped(f"d{d}-specialized", _SPECIALIZED, (90,), d=d)


SHIPPED = tuple(_shipped_all())


def _tunable(h: int, tokens: int, sinks: int) -> Tunable:
    """A chunk of three frames in a full window of 12, behind `sinks` sinks."""

    def prepare(device: torch.device) -> Callable[[], Tensor]:
        q = torch.randn(1, 3 * tokens, h, 128, device=device).bfloat16()
        k, v = torch.randn(2, 1, sinks + 12, tokens, h, 128, device=device).bfloat16()
        runs = [Run(0, sinks, 100), Run(sinks, 12)] if sinks else [Run(0, 12)]
        tables = [table.to(device) for table in run_tables([[runs]], time_pairs(128))]
        shifts = tables[1] if sinks else None
        return lambda: chunk_attention(q, k, v, tables[0], shifts, 3 * tokens)

    key = f"D128_H{h}_N{3 * tokens}" + ("_sinks" if sinks else "")
    candidates = [_WIDE, _NARROW, _LEAN, _config(128, 128, 8, 3), _config(64, 128, 4, 2)]
    candidates += [
        _config(64, 64, 4, 2),
        _config(128, 64, 4, 3),
        _config(128, 64, 8, 3),
        _config(128, 64, 8, 4),
    ]
    if not sinks:
        candidates += [_SPECIALIZED, _config(128, 64, 4, 3, 1), _config(64, 128, 4, 2, 1)]
    return Tunable(op="chunk_attention", key=key, candidates=tuple(candidates), prepare=prepare)


TUNABLE = tuple(
    _tunable(h, tokens, sinks) for h in (12, 40) for tokens in (1560, 3600) for sinks in (0, 3)
)

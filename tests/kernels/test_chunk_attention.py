from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from livereel.kernels.chunk_attention import (
    Run,
    chunk_attention,
    chunk_attention_reference,
    run_tables,
    runs_of,
)
from livereel.kernels.qk_norm_rope import (
    qk_norm_rope,
    rotate_pairs,
    space_rotations,
    time_pairs,
    time_rotations,
)
from livereel.kernels.tuning import forced

SMALL = {"rows": 16, "keys": 16, "num_warps": 4, "num_stages": 1, "specialize": 0}
"""Blocks small enough that few tokens make several, with a tail."""

CLOSE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def test_a_turned_ring_is_one_run() -> None:
    assert runs_of([4, 2, 3], [7, 8, 9]) == [Run(2, 3)]


def test_runs_end_at_gaps() -> None:
    assert runs_of([0, 1, 5, 6, 3], [0, 1, 2, 3, 4]) == [Run(0, 2), Run(3, 1), Run(5, 2)]


def test_sinks_and_anchors_look_as_near_as_their_place_in_the_window() -> None:
    runs = runs_of([0, 1, 5, 2, 3, 4], [0, 1, 40, 97, 98, 99])
    assert runs == [Run(0, 2, 94), Run(2, 3), Run(5, 1, 56)]
    runs, shifts = run_tables([[runs], [[Run(0, 1)]]], pairs=2, width=4)
    assert runs.tolist() == [[[[0, 2], [2, 3], [5, 1], [0, 0]]], [[[0, 1], *[[0, 0]] * 3]]]
    turned = torch.tensor([[math.cos(56), -math.sin(56)], [math.cos(0.56), -math.sin(0.56)]])
    torch.testing.assert_close(shifts[0, 0, 2], turned)
    assert shifts.shape == (2, 1, 4, 2, 2) and torch.equal(
        shifts[1], torch.tensor([[1.0, 0.0]]).expand(1, 4, 2, 2)
    )


@dataclass
class Inputs:
    """The op's arguments, in its order; what is not seen is large, but finite."""

    q: Tensor
    k: Tensor
    v: Tensor
    runs: Tensor
    shifts: Tensor | None
    block: int

    @classmethod
    def random(
        cls, sessions: list[list[list[Run]]], slots: int, tokens: int, first: int, block: int,
        h: int, d: int, *, shifted: bool, dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ) -> Inputs:  # fmt: skip
        draw = torch.Generator().manual_seed(h + d)
        b, groups = len(sessions), len(sessions[0])
        n_q = first + (groups - 1) * block
        q = torch.randn(b, n_q, h, d, generator=draw, dtype=torch.float64)
        ring = torch.randn(2, b, slots, tokens, h, d, generator=draw, dtype=torch.float64)
        for i, blocks in enumerate(sessions):
            seen = {r.slot + j for runs in blocks for r in runs for j in range(r.frames)}
            ring[:, i, [slot for slot in range(slots) if slot not in seen]] = 1e4
        runs, shifts = run_tables(sessions, time_pairs(d))
        k, v = ring.to(device, dtype)
        table = shifts.to(device) if shifted else None
        return cls(q.to(device, dtype), k, v, runs.to(device), table, block)

    def wide(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None, int]:
        """The arguments with the same numbers in fp64."""
        q, k, v = self.q.double(), self.k.double(), self.v.double()
        return q, k, v, self.runs, self.shifts, self.block

    def arguments(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None, int]:
        return self.q, self.k, self.v, self.runs, self.shifts, self.block


def ordered(x: Inputs, b: int, g: int, runs: list[Run]) -> Tensor:
    """What block g of session b should give: the visible frames gathered, then plain attention."""
    first, d = x.q.shape[1] - (x.runs.shape[1] - 1) * x.block, x.q.shape[3]
    q = x.q[b, max(0, first + (g - 1) * x.block) : first + g * x.block].double()
    if not runs:
        return torch.zeros_like(q)
    keys, values = [], []
    for run in runs:
        turns = torch.tensor([1.0, 0.0]).repeat(1, d // 2, 1)
        turns[:, : time_pairs(d)] = time_rotations([run.shift], time_pairs(d))
        slots = slice(run.slot, run.slot + run.frames)
        keys.append(rotate_pairs(x.k[b, slots].flatten(0, 1).double(), turns.to(q)))
        values.append(x.v[b, slots].flatten(0, 1).double())
    out = scaled_dot_product_attention(
        *(y.transpose(0, 1) for y in (q, torch.cat(keys), torch.cat(values)))
    )
    return out.transpose(0, 1)


SESSIONS = [
    [[Run(0, 1)], [Run(0, 2)]],  # at its start
    [[Run(0, 1, 9), Run(3, 2), Run(1, 1, 4)], [Run(0, 1, 9), Run(1, 4)]],  # a sink, a turned ring
    [[], [Run(4, 1)]],  # its first block is not in use
]


def test_reference_attends_to_the_window_in_order() -> None:
    x = Inputs.random(SESSIONS, 5, 3, 2, 4, 2, 16, shifted=True)
    out = chunk_attention_reference(*x.arguments())
    for b, blocks in enumerate(SESSIONS):
        wanted = torch.cat([ordered(x, b, g, runs) for g, runs in enumerate(blocks)])
        torch.testing.assert_close(out[b], wanted, rtol=0, atol=1e-6)  # shifts are in fp32


PLAIN = [[[Run(1, 3)]], [[Run(0, 2)]]]
CASES = [
    pytest.param(PLAIN, 5, 1, 1, 1, 1, 64, torch.float32, id="tiny"),
    pytest.param(PLAIN, 5, 7, 7, 7, 2, 64, torch.float32, id="odd"),
    pytest.param(PLAIN, 4, 17, 18, 18, 1, 128, torch.bfloat16, id="bf16"),
    pytest.param(SESSIONS, 5, 9, 9, 18, 2, 64, torch.float32, id="blocks-and-shifts"),
    pytest.param(SESSIONS, 5, 3, 6, 6, 1, 128, torch.float16, id="half"),
]
FULL = [[[Run(0, 21)]]]
TURNED = [[[Run(0, 3, 40), Run(3, 6), Run(12, 12)]], [[Run(0, 9)]]]
FUSED = [[[Run(0, 3, 40), Run(3, 18)], [Run(0, 3, 43), Run(3, 3), Run(9, 15)]]]
REAL = [
    pytest.param(FULL, 21, 1560, 4680, 4680, 3, 128, torch.bfloat16, id="wan-480p"),
    pytest.param(TURNED, 24, 1560, 4680, 4680, 2, 128, torch.float16, id="wan-480p-sinks"),
    pytest.param(FUSED, 24, 3600, 10800, 10800, 1, 128, torch.bfloat16, id="wan-720p-fused"),
    pytest.param(TURNED, 24, 257, 771, 771, 5, 64, torch.bfloat16, id="d64-odd"),
    pytest.param(SESSIONS, 5, 77, 77, 154, 3, 64, torch.float32, id="fp32"),
]


@pytest.mark.parametrize(
    ("sessions", "slots", "tokens", "first", "block", "h", "d", "dtype"),
    [pytest.param(*case.values, id=case.id, marks=mark)
     for mark, cases in ((pytest.mark.interpreter, CASES), (pytest.mark.gpu, REAL))
     for case in cases],
)  # fmt: skip
def test_equals_the_reference_in_fp64(
    sessions: list[list[list[Run]]], slots: int, tokens: int, first: int, block: int, h: int,
    d: int, dtype: torch.dtype, device: torch.device,
) -> None:  # fmt: skip
    shifted = any(run.shift for blocks in sessions for runs in blocks for run in runs)
    x = Inputs.random(
        sessions, slots, tokens, first, block, h, d, shifted=shifted, dtype=dtype, device=device
    )
    if device.type == "cpu":
        with forced("chunk_attention", SMALL):
            out = chunk_attention(*x.arguments())
        truth = chunk_attention_reference(*x.wide())
    else:
        out = chunk_attention(*x.arguments())
        truth = torch.stack(
            [torch.cat([ordered(x, b, g, runs) for g, runs in enumerate(blocks)])
             for b, blocks in enumerate(sessions)]
        )  # fmt: skip
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), truth, rtol=CLOSE[dtype], atol=CLOSE[dtype])


@pytest.mark.interpreter
def test_the_loop_for_specialized_warps_gives_the_same() -> None:
    """Runs longer than a block and shorter, and one of nothing before others."""
    runs = [[[Run(3, 2), Run(0, 0), Run(1, 1)], [Run(1, 4)]], [[], [Run(4, 1), Run(0, 1)]]]
    x = Inputs.random(runs, 5, 11, 3, 22, 1, 64, shifted=False, dtype=torch.float32)
    with forced("chunk_attention", SMALL | {"specialize": 1}):
        out = chunk_attention(*x.arguments())
    truth = chunk_attention_reference(*x.wide())
    torch.testing.assert_close(out.double(), truth, rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [64, 128])
@pytest.mark.parametrize("specialize", [0, 1])
def test_every_configuration_gives_the_same(rows: int, specialize: int) -> None:
    x = Inputs.random(
        FULL, 21, 130, 390, 390, 3, 128, shifted=False, dtype=torch.bfloat16, device="cuda"
    )
    config = {"rows": rows, "keys": 128, "num_warps": 4 if specialize else rows // 16,
              "num_stages": 2, "specialize": specialize}  # fmt: skip
    with forced("chunk_attention", config):
        out = chunk_attention(*x.arguments())
    torch.testing.assert_close(
        out[0].double(), ordered(x, 0, 0, FULL[0][0]), rtol=1.6e-2, atol=1.6e-2
    )


@pytest.mark.parametrize("start", [0, 2**31])
@pytest.mark.interpreter
def test_a_stream_sees_its_window_at_positions_of_its_own(start: int) -> None:
    """Chunks written by `qk_norm_rope` and read here equal attention to the ordered window.

    One sink and a window of four, two frames a chunk; the window's keys are rotated by their place
    in it, the oldest at 0, wherever in the stream it lies.
    """
    sinks, window, chunk, tokens, h, d = 1, 4, 2, 3, 1, 64
    draw = torch.Generator().manual_seed(start % 7)
    pairs, space = time_pairs(d), space_rotations(1, tokens, d)
    weight = torch.ones(h * d)
    k_ring = torch.zeros(1, sinks + window, tokens, h, d)
    v_ring = torch.zeros_like(k_ring)
    keys: dict[int, Tensor] = {}
    values: dict[int, Tensor] = {}
    for own in ([0], *([start + i, start + i + 1] for i in range(1, 9, chunk))):
        q, k, v = torch.randn(3, 1, len(own) * tokens, h * d, generator=draw)
        slots = [0 if frame == 0 else sinks + frame % window for frame in own]
        rotated = qk_norm_rope(
            q, k, v, weight, weight, time_rotations([own], pairs), space,
            torch.tensor([slots], dtype=torch.int32), k_ring, v_ring, 0.0,
        )  # fmt: skip
        keys |= zip(own, k.reshape(-1, tokens, h, d), strict=True)
        values |= zip(own, v.reshape(-1, tokens, h, d), strict=True)
        seen = [0, *[f for f in keys if f and f >= own[0] - (window - chunk)]]
        runs = runs_of([0 if f == 0 else sinks + f % window for f in seen], seen)
        tables = run_tables([[runs]], pairs, width=3)
        with forced("chunk_attention", SMALL):
            out = chunk_attention(rotated, k_ring, v_ring, *tables, len(own) * tokens)

        places = time_rotations(range(len(seen)), pairs)[:, None].expand(-1, tokens, -1, -1)
        turns = torch.cat((places, space.expand(len(seen), -1, -1, -1)), 2).flatten(0, 1).double()

        def ready(x: Tensor, turns: Tensor) -> Tensor:
            x = x.double().reshape(-1, h * d)
            x = x / x.square().mean(-1, keepdim=True).sqrt()
            return rotate_pairs(x, turns[-len(x) :]).unsqueeze(0)

        wanted = scaled_dot_product_attention(
            ready(q, turns), ready(torch.cat([keys[f] for f in seen]), turns),
            torch.cat([values[f] for f in seen]).double().reshape(1, -1, d),
        )  # fmt: skip
        torch.testing.assert_close(out[:, :, 0].double(), wanted, rtol=0, atol=2e-5)


@pytest.mark.interpreter
def test_keeps_the_rules_of_custom_ops() -> None:
    x = Inputs.random(SESSIONS, 5, 1, 1, 2, 1, 64, shifted=True, dtype=torch.float32)
    torch.library.opcheck(chunk_attention, x.arguments())


@pytest.mark.interpreter
def test_refuses_what_it_cannot_run() -> None:
    x = Inputs.random(SESSIONS, 5, 3, 2, 4, 1, 64, shifted=True, dtype=torch.float32)
    q, k, v, runs, shifts, block = x.arguments()
    for arguments, words in (
        ((q[..., :32], k, v, runs, shifts, block), r"heads 64 or 128 wide; got .*\[3, 6, 1, 32\]"),
        ((q, k.transpose(1, 2), v, runs, shifts, block), r"wants k \[3, S, n, 1, 64\]"),
        ((q, k, v[:, :4], runs, shifts, block), r"wants v .* k and v alike; got .* \[3, 4, 3, 1"),
        ((q, k, v.half(), runs, shifts, block), r"wants v .* of q's dtype; got float16|wants v"),
        ((x.wide()[0], *x.wide()[1:3], runs, shifts, block), r"bfloat16, float16 or float32"),
        ((q, k, v, runs.long(), shifts, block), r"runs int32 \[3, G, R, 2\].*; got int64"),
        ((q, k, v, runs, shifts, 2), r"2 blocks of queries, all of 2 but the first.*; got 6"),
        ((q, k, v, runs, shifts[:, :1], block), r"shifts float32 \[3, 2, 3\] \+ \[pairs, 2\]"),
    ):
        with pytest.raises(ValueError, match=words):
            chunk_attention(*arguments)

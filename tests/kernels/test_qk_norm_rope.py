from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from livereel.engine.layers.rope import rope_table, rotate
from livereel.kernels.qk_norm_rope import (
    qk_norm_rope,
    qk_norm_rope_reference,
    rotate_pairs,
    space_rotations,
    time_pairs,
    time_rotations,
)

EPS = 1e-6


@dataclass
class Inputs:
    """The op's arguments, in its order; the ring is poisoned wherever nothing was written."""

    q: Tensor
    k: Tensor
    v: Tensor
    q_weight: Tensor
    k_weight: Tensor
    time: Tensor
    space: Tensor
    slots: Tensor
    k_ring: Tensor
    v_ring: Tensor

    @classmethod
    def random(
        cls, b: int, size: tuple[int, int, int], h: int, d: int, slots: int,
        dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu",
    ) -> Inputs:  # fmt: skip
        """For `size` (T, height, width) and a ring of `slots`; session i starts at frame 1000 i."""
        draw = torch.Generator().manual_seed(b * h + d)
        t, height, width = size
        frames = torch.stack([torch.arange(t) + 1000 * i for i in range(b)])
        qkv = torch.randn(b, t * height * width, 3 * h * d, generator=draw, dtype=torch.float64)
        ring = torch.full((b, slots, height * width, h, d), torch.nan, dtype=dtype, device=device)
        weights = torch.rand(2, h * d, generator=draw, dtype=torch.float64) + 0.5
        placed = torch.stack([torch.randperm(slots, generator=draw)[:t] for _ in range(b)])
        return cls(
            *qkv.to(device, dtype).chunk(3, dim=2),
            *weights.to(device, dtype),
            time_rotations(frames, time_pairs(d)).to(device),
            space_rotations(height, width, d).to(device),
            placed.int().to(device),
            ring,
            ring.clone(),
        )

    def wide(self) -> Inputs:
        """The same numbers, all that is not fixed to fp32 in fp64."""
        fixed = {"time": self.time, "space": self.space, "slots": self.slots}
        copies = {name: x.double() for name, x in vars(self).items() if name not in fixed}
        return Inputs(**copies, **fixed)

    def arguments(self) -> tuple[Tensor, ...]:
        return tuple(vars(self).values())


def test_reference_norms_over_all_heads_and_rotates_as_the_engine_does() -> None:
    x = Inputs.random(1, (3, 2, 3), 2, 32, slots=4, dtype=torch.float32)
    out = qk_norm_rope_reference(*x.arguments(), EPS)
    table = rope_table(0, 3, 2, 3, 32, device=torch.device("cpu"))
    norm = torch.nn.RMSNorm(64, eps=EPS)
    norm.weight.data = x.q_weight
    torch.testing.assert_close(out, rotate(norm(x.q).unflatten(2, (2, 32)), table))
    norm.weight.data = x.k_weight
    k = rotate(norm(x.k).unflatten(2, (2, 32)), table).unflatten(1, (3, 6))
    slots = x.slots[0].long()
    torch.testing.assert_close(x.k_ring[:, slots], k)
    assert torch.equal(x.v_ring[:, slots], x.v.reshape(1, 3, 6, 2, 32))


def test_rotations_are_right_far_into_a_stream() -> None:
    """Scores of frames some apart are the same at the stream's start and 2^31 frames later."""
    draw = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 44, generator=draw, dtype=torch.float64)
    early = time_rotations([3, 5], 22).double()
    late = time_rotations([2**31 + 3, 2**31 + 5], 22).double()
    scores = [rotate_pairs(q, turns[0]) @ rotate_pairs(k, turns[1]) for turns in (early, late)]
    torch.testing.assert_close(scores[0], scores[1], rtol=0, atol=2e-5)


CASES = [
    pytest.param(1, (1, 1, 1), 1, 64, torch.float32, id="tiny"),
    pytest.param(2, (3, 1, 5), 3, 64, torch.float32, id="odd"),
    pytest.param(2, (2, 3, 1), 5, 128, torch.float16, id="half"),
    pytest.param(1, (1, 1, 3), 12, 128, torch.bfloat16, id="bf16"),
]
REAL = [
    pytest.param(1, (3, 30, 52), 12, 128, torch.bfloat16, id="wan-1.3b-480p"),
    pytest.param(2, (3, 45, 80), 40, 128, torch.bfloat16, id="wan-14b-720p"),
]


@pytest.mark.parametrize(
    ("b", "size", "h", "d", "dtype"),
    [pytest.param(*case.values, id=case.id, marks=mark)
     for mark, cases in ((pytest.mark.interpreter, CASES), (pytest.mark.gpu, REAL))
     for case in cases],
)  # fmt: skip
def test_equals_the_reference_in_fp64(
    b: int, size: tuple[int, int, int], h: int, d: int, dtype: torch.dtype, device: torch.device
) -> None:
    x = Inputs.random(b, size, h, d, size[0] + 2, dtype, device)
    wanted = x.wide()
    truth = qk_norm_rope_reference(*wanted.arguments(), EPS)
    out = qk_norm_rope(*x.arguments(), EPS)
    close = {torch.float32: 4e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]
    for got, want in ((out, truth), (x.k_ring, wanted.k_ring)):
        torch.testing.assert_close(got.double(), want, rtol=close, atol=close, equal_nan=True)
    torch.testing.assert_close(x.v_ring.double(), wanted.v_ring, rtol=0, atol=0, equal_nan=True)


@pytest.mark.interpreter
def test_keeps_the_rules_of_custom_ops() -> None:
    x = Inputs.random(2, (2, 1, 3), 3, 64, slots=3, dtype=torch.float32)
    torch.library.opcheck(qk_norm_rope, (*x.arguments(), EPS))


@pytest.mark.interpreter
def test_refuses_what_it_cannot_run() -> None:
    x = Inputs.random(1, (2, 1, 3), 3, 64, slots=3, dtype=torch.float32)
    for name, wrong, words in (
        ("q", x.q[:, 1:], r"wants q \[1, 6, 192\], dense .*; got float32 \[1, 5, 192\]"),
        ("k", x.k.clone(), r"wants k .* with q's strides; got float32 \[1, 6, 192\]"),
        ("slots", x.slots.long(), r"slots in int32; .* int64"),
        ("time", x.time[:, :1], r"wants time \[1, 2, 12, 2\].*; got float32 \[1, 1, 12, 2\]"),
        ("k_ring", x.k_ring.transpose(2, 3), r"wants q \[1, 6, 192\]|wants k_ring"),
        ("v_ring", x.v_ring.half(), r"one dtype"),
        ("k_weight", x.k_weight[1:], r"wants k_weight \[192\], contiguous; got float32 \[191\]"),
    ):
        with pytest.raises(ValueError, match=words):
            qk_norm_rope(*replace(x, **{name: wrong}).arguments(), EPS)

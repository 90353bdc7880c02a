"""Norm and rotation of queries and keys and the ring's filling, at the widths of Wan.

Results are judged by the queries; keys go the same way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from livereel.kernels.qk_norm_rope import (
    qk_norm_rope,
    qk_norm_rope_reference,
    space_rotations,
    time_pairs,
    time_rotations,
)

from .harness import Case, Contender, compiled, main

EPS, HEAD, CHUNK, SLOTS = 1e-6, 128, 3, 12
SIZES = (
    ("Wan 1.3B 832x480", 12, 30, 52),
    ("Wan 14B 832x480", 40, 30, 52),
    ("Wan 14B 1280x720", 40, 45, 80),
)
"""Model and picture, heads, height and width of a latent frame in tokens; a chunk is 3 frames."""


def cases(
    device: torch.device, sizes: Sequence[tuple[str, int, int, int]] = SIZES
) -> Iterator[Case]:
    """Each size."""
    for size in sizes:
        yield _case(device, *size)


def _case(device: torch.device, model: str, heads: int, height: int, width: int) -> Case:
    tokens, wide = height * width, heads * HEAD
    qkv = torch.randn(3, 1, CHUNK * tokens, wide, device=device).bfloat16()
    weights = torch.randn(2, wide, device=device).bfloat16()
    time = time_rotations([range(100, 100 + CHUNK)], time_pairs(HEAD)).to(device)
    space = space_rotations(height, width, HEAD).to(device)
    slots = torch.arange(CHUNK, dtype=torch.int32, device=device)[None]
    rings = torch.zeros(2, 1, SLOTS, tokens, heads, HEAD, device=device).bfloat16()

    def reference(qkv: Tensor, weights: Tensor, rings: Tensor) -> Tensor:
        return qk_norm_rope_reference(
            qkv[0], qkv[1], qkv[2], weights[0], weights[1], time, space, slots, rings[0], rings[1],
            EPS,
        )  # fmt: skip

    def eager() -> Tensor:
        return reference(qkv, weights, rings)

    def ours() -> Tensor:
        out: Tensor = qk_norm_rope(*qkv, *weights, time, space, slots, *rings, EPS)
        return out

    return Case(
        op="qk_norm_rope",
        shape=f"{model}: 3 x {list(qkv.shape[1:])}",
        truth=lambda: reference(qkv.double(), weights.double(), rings.double()),
        tolerance=0.02,
        ours=Contender(name="livereel", settings="bf16, fp32 inside", run=ours),
        others=(
            Contender(name="torch eager", settings="bf16, fp32 inside", run=eager),
            compiled(eager),
        ),
        bytes_moved=2 * qkv.nbytes,
        least_share=0.85,
    )


if __name__ == "__main__":
    raise SystemExit(main("qk_norm_rope", cases))

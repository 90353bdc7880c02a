"""Attention over time at each pixel, at the layers of AnimateDiff and SVD, against torch's.

diffusers moves frames behind pixels and back in memory; that is part of its time. Peers that read
the tensor through strides are held against ours, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from livereel.kernels.temporal_attention import temporal_attention, temporal_attention_reference

from .harness import Case, Contender, compiled, main

SIZES = (
    ("AnimateDiff 512x512", 16, 16, (2, 64, 64, 8, 40)),
    ("AnimateDiff 512x512", 16, 16, (2, 32, 32, 8, 80)),
    ("AnimateDiff 512x512", 16, 16, (2, 16, 16, 8, 160)),
    ("AnimateDiff 512x512, streaming", 1, 16, (2, 64, 64, 8, 40)),
    ("SVD 1024x576", 25, 25, (2, 72, 128, 5, 64)),
    ("SVD 1024x576", 25, 25, (2, 36, 64, 10, 64)),
)
"""Model and picture, frames that ask, frames that are asked, and B, H, W, heads, head width."""

Size = tuple[str, int, int, tuple[int, int, int, int, int]]


def cases(device: torch.device, sizes: Sequence[Size] = SIZES) -> Iterator[Case]:
    """Each size, every frame seeing every other."""
    for size in sizes:
        yield _case(device, *size)


def _case(
    device: torch.device, model: str, t: int, s: int, size: tuple[int, int, int, int, int]
) -> Case:
    b, height, width, h, d = size
    q = torch.randn(b, t, height, width, h, d, device=device).bfloat16()
    k, v = torch.randn(2, b, s, height, width, h, d, device=device).bfloat16()

    def rows(x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 4, 1, 5).flatten(0, 2)

    def attend(qkv: list[Tensor]) -> Tensor:
        y = scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])
        return y.reshape(b, height, width, h, t, d).permute(0, 4, 1, 2, 3, 5)

    def moved() -> Tensor:
        return attend([rows(x).contiguous() for x in (q, k, v)]).contiguous()

    def strided() -> Tensor:
        return attend([rows(x) for x in (q, k, v)])

    return Case(
        op="temporal_attention",
        shape=f"{model}: {list(q.shape)} of {s}",
        truth=lambda: temporal_attention_reference(q.double(), k.double(), v.double()),
        tolerance=0.02,
        ours=Contender(name="livereel", settings="bf16", run=lambda: temporal_attention(q, k, v)),
        others=(
            Contender(name="as in diffusers", settings="bf16, SDPA's choice, moved", run=moved),
            Contender(name="torch eager", settings="bf16, SDPA's choice", run=strided),
            compiled(strided),
        ),
        bytes_moved=2 * q.nbytes + k.nbytes + v.nbytes,
        least_share=0.85,
    )


if __name__ == "__main__":
    raise SystemExit(main("temporal_attention", cases))

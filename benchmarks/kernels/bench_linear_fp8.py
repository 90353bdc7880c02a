"""Linear layers in fp8 at the shapes of Wan, against bf16's: quantization is part of the time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from livereel.kernels.linear_fp8 import (
    Rows,
    linear_fp8,
    norm_modulate_fp8,
    quantize_rows,
    quantize_rows_reference,
)
from livereel.kernels.norm_modulate import norm_modulate, norm_modulate_reference

from .harness import Case, Contender, compiled, main

EPS, CHUNK = 1e-6, 3
SIZES = (
    ("Wan 1.3B 832x480", 1560, 1536, 1536),
    ("Wan 1.3B 832x480", 1560, 1536, 8960),
    ("Wan 1.3B 832x480", 1560, 8960, 1536),
    ("Wan 14B 832x480", 1560, 5120, 5120),
    ("Wan 14B 832x480", 1560, 5120, 13824),
    ("Wan 14B 832x480", 1560, 13824, 5120),
    ("Wan 14B 1280x720", 3600, 5120, 13824),
)
"""Model and picture, tokens of a latent frame, inputs, outputs; a chunk is 3 latent frames."""


def cases(
    device: torch.device, sizes: Sequence[tuple[str, int, int, int]] = SIZES
) -> Iterator[Case]:
    """Each size alone, and behind the norm that comes before it."""
    for size in sizes:
        yield _alone(device, *size)
        yield _behind_norm(device, *size)


def _alone(device: torch.device, model: str, tokens: int, k: int, n: int) -> Case:
    x = torch.randn(1, CHUNK, tokens, k, device=device).bfloat16()
    w, bias = torch.randn(n, k, device=device).bfloat16(), torch.randn(n, device=device).bfloat16()
    weight = quantize_rows_reference(w)

    def ours() -> Tensor:
        return linear_fp8(Rows(*quantize_rows(x)), weight, bias, torch.bfloat16)

    def eager() -> Tensor:
        return linear_fp8(quantize_rows_reference(x), weight, bias, torch.bfloat16)

    return Case(
        op="linear_fp8",
        shape=f"{model}: {CHUNK * tokens} x {k} by {n}",
        truth=lambda: F.linear(x.float(), w.float(), bias.float()),
        tolerance=0.1,
        ours=Contender(name="livereel", settings="fp8 by rows, torch._scaled_mm", run=ours),
        others=(
            Contender(name="cuBLAS", settings="bf16", run=lambda: F.linear(x, w, bias)),
            Contender(name="torch eager", settings="fp8 by rows, torch._scaled_mm", run=eager),
            compiled(eager),
        ),
        flops=2 * CHUNK * tokens * k * n,
    )


def _behind_norm(device: torch.device, model: str, tokens: int, k: int, n: int) -> Case:
    x = torch.randn(1, CHUNK, tokens, k, device=device).bfloat16()
    w, bias = torch.randn(n, k, device=device).bfloat16(), torch.randn(n, device=device).bfloat16()
    weight = quantize_rows_reference(w)
    scale, shift = torch.randn(2, 1, 1, 1, k, device=device)

    def ours() -> Tensor:
        rows = Rows(*norm_modulate_fp8(x, scale, shift, EPS))
        return linear_fp8(rows, weight, bias, torch.bfloat16)

    def formula() -> Tensor:
        normed = F.layer_norm(x.float(), (k,), eps=EPS) * (1 + scale) + shift
        return linear_fp8(quantize_rows_reference(normed), weight, bias, torch.bfloat16)

    def truth() -> Tensor:
        return F.linear(
            norm_modulate_reference(x.float(), scale, shift, EPS), w.float(), bias.float()
        )

    return Case(
        op="norm_modulate_fp8, linear_fp8",
        shape=f"{model}: {CHUNK * tokens} x {k} by {n}",
        truth=truth,
        tolerance=0.1,
        ours=Contender(name="livereel", settings="fp8 by rows, torch._scaled_mm", run=ours),
        others=(
            Contender(
                name="our norm, cuBLAS",
                settings="bf16",
                run=lambda: F.linear(norm_modulate(x, scale, shift, EPS), w, bias),
            ),
            compiled(formula),
        ),
        flops=2 * CHUNK * tokens * k * n,
    )


if __name__ == "__main__":
    raise SystemExit(main("linear_fp8", cases))

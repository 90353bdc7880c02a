"""A residual sum and the norm behind it, at the widths of Wan: `residual_norm` against torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from livereel.kernels.gate_residual import gate_residual
from livereel.kernels.norm_modulate import norm_modulate
from livereel.kernels.residual_norm import residual_norm, residual_norm_reference

from .harness import Case, Contender, compiled, main

EPS = 1e-6
SIZES = (
    ("Wan 1.3B 832x480", 1560, 1536),
    ("Wan 14B 832x480", 1560, 5120),
    ("Wan 14B 1280x720", 3600, 5120),
)
"""Model and picture, tokens of a latent frame, hidden width; a chunk is 3 latent frames."""


def cases(device: torch.device, sizes: Sequence[tuple[str, int, int]] = SIZES) -> Iterator[Case]:
    """Each size, one timestep for the chunk."""
    for size in sizes:
        yield _case(device, *size)


def _case(device: torch.device, model: str, tokens: int, width: int) -> Case:
    x, y = torch.randn(2, 1, 3, tokens, width, device=device).bfloat16()
    shift, scale, gate = torch.randn(1, 1, 6, width, device=device).unsqueeze(3).unbind(2)[:3]

    def eager() -> Tensor:
        return residual_norm_reference(x, y, gate, scale, shift, EPS)[1]

    def formula() -> Tensor:
        total = (x + gate * y).to(x.dtype)
        normed = F.layer_norm(total.float(), (width,), eps=EPS)
        return (normed * (1 + scale) + shift).to(x.dtype)

    def apart() -> Tensor:
        normed: Tensor = norm_modulate(gate_residual(x, y, gate), scale, shift, EPS)
        return normed

    def truth() -> Tensor:
        a, b, g, gain, bias = (z.double() for z in (x, y, gate, scale, shift))
        return residual_norm_reference(a, b, g, gain, bias, EPS)[1]

    return Case(
        op="residual_norm",
        shape=f"{model}: [1, 3, {tokens}, {width}]",
        truth=truth,
        tolerance=0.01,
        ours=Contender(
            name="livereel",
            settings="bf16, fp32 gains",
            run=lambda: residual_norm(x, y, gate, scale, shift, EPS)[1],
        ),
        others=(
            Contender(name="torch eager", settings="bf16, fp32 gains", run=eager),
            Contender(name="two launches", settings="gate_residual, norm_modulate", run=apart),
            compiled(formula),
        ),
        bytes_moved=4 * x.nbytes,
        least_share=0.85,
    )


if __name__ == "__main__":
    raise SystemExit(main("residual_norm", cases))

"""The gated residual sum, at the widths of Wan: `gate_residual` against torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from livereel.kernels.gate_residual import gate_residual, gate_residual_reference

from .bench_norm_modulate import SIZES
from .harness import Case, Contender, compiled, main


def cases(device: torch.device, sizes: Sequence[tuple[str, int, int]] = SIZES) -> Iterator[Case]:
    """Each size, one timestep for the chunk."""
    for size in sizes:
        yield _case(device, *size)


def _case(device: torch.device, model: str, tokens: int, width: int) -> Case:
    x, y = torch.randn(2, 1, 3, tokens, width, device=device).bfloat16()
    gate = torch.randn(1, 1, 6, width, device=device).unsqueeze(3).unbind(2)[2]
    return Case(
        op="gate_residual",
        shape=f"{model}: [1, 3, {tokens}, {width}]",
        truth=lambda: gate_residual_reference(x.double(), y.double(), gate.double()),
        tolerance=0.01,
        ours=Contender(
            name="livereel", settings="bf16, fp32 gate", run=lambda: gate_residual(x, y, gate)
        ),
        others=(
            Contender(
                name="torch.addcmul",
                settings="bf16, bf16 gate",
                run=lambda: gate_residual_reference(x, y, gate),
            ),
            compiled(lambda: (x.float() + gate * y.float()).to(x.dtype)),
        ),
        bytes_moved=3 * x.nbytes,
        least_share=0.85,
    )


if __name__ == "__main__":
    raise SystemExit(main("gate_residual", cases))

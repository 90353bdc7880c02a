"""LayerNorm with a timestep's gains, at the widths of Wan: `norm_modulate` against torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from livereel.kernels.norm_modulate import norm_modulate, norm_modulate_reference

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
    x = torch.randn(1, 3, tokens, width, device=device).bfloat16()
    shift, scale = torch.randn(1, 1, 6, width, device=device).unsqueeze(3).unbind(2)[:2]

    def eager() -> Tensor:
        return norm_modulate_reference(x, scale, shift, EPS)

    def formula() -> Tensor:
        normed = F.layer_norm(x.float(), (width,), eps=EPS)
        return (normed * (1 + scale) + shift).to(x.dtype)

    def library() -> Tensor:
        gain, bias = (1 + scale).to(x.dtype).flatten(), shift.to(x.dtype).flatten()
        return F.layer_norm(x, (width,), gain, bias, EPS)

    return Case(
        op="norm_modulate",
        shape=f"{model}: [1, 3, {tokens}, {width}]",
        truth=lambda: norm_modulate_reference(x.double(), scale.double(), shift.double(), EPS),
        tolerance=0.01,
        ours=Contender(
            name="livereel",
            settings="bf16, fp32 gains",
            run=lambda: norm_modulate(x, scale, shift, EPS),
        ),
        others=(
            Contender(name="torch eager", settings="bf16, fp32 gains", run=eager),
            Contender(name="F.layer_norm", settings="bf16, bf16 gains", run=library),
            compiled(formula),
        ),
        bytes_moved=2 * x.nbytes,
        least_share=0.85,
    )


if __name__ == "__main__":
    raise SystemExit(main("norm_modulate", cases))

"""Group norm over a chunk and SiLU, at the layers of CogVideoX's VAE: ours against torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from livereel.kernels.group_norm_silu import group_norm_silu, group_norm_silu_reference

from .harness import Case, Contender, compiled, main

GROUPS, EPS = 32, 1e-6
SIZES = (
    ("CogVideoX VAE 720x480", (1, 8, 480, 720, 128)),
    ("CogVideoX VAE 720x480", (1, 8, 240, 360, 256)),
    ("CogVideoX VAE 720x480", (1, 4, 120, 180, 256)),
    ("CogVideoX VAE 720x480", (1, 2, 60, 90, 512)),
)
"""Model and picture, `[B, T, H, W, C]`: two latent frames' worth, as its encoder takes them."""


def cases(
    device: torch.device, sizes: Sequence[tuple[str, tuple[int, ...]]] = SIZES
) -> Iterator[Case]:
    """Each size."""
    for size in sizes:
        yield _case(device, *size)


def _case(device: torch.device, model: str, shape: tuple[int, ...]) -> Case:
    x = torch.randn(shape, device=device).bfloat16()
    weight, bias = torch.randn(2, shape[-1], device=device).bfloat16()
    first = x.movedim(-1, 1)  # channels last in memory, as torch's layers take it
    planes = first.contiguous()

    def library() -> Tensor:
        return F.silu(F.group_norm(first, GROUPS, weight, bias, EPS)).movedim(1, -1)

    return Case(
        op="group_norm_silu",
        shape=f"{model}: {list(shape)}",
        truth=lambda: group_norm_silu_reference(
            x.float(), weight.float(), bias.float(), GROUPS, EPS
        ),
        tolerance=0.02,
        ours=Contender(
            name="livereel",
            settings="bf16, channels last",
            run=lambda: group_norm_silu(x, weight, bias, GROUPS, EPS),
        ),
        others=(
            Contender(name="F.group_norm, silu", settings="bf16, channels last", run=library),
            Contender(
                name="F.group_norm, silu",
                settings="bf16, channels first",
                run=lambda: F.silu(F.group_norm(planes, GROUPS, weight, bias, EPS)).movedim(1, -1),
            ),
            compiled(library),
        ),
        bytes_moved=3 * x.nbytes,  # statistics first: read twice, written once
        least_share=0.85,
    )


if __name__ == "__main__":
    raise SystemExit(main("group_norm_silu", cases))

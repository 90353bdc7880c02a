"""Channel RMS norm and SiLU, at the layers of Wan's decoder: `rms_norm_silu` against torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.nn import functional as F

from livereel.kernels.rms_norm_silu import rms_norm_silu, rms_norm_silu_reference

from .harness import Case, Contender, compiled, main

SIZES = (
    ("Wan 2.1 VAE 832x480", (1, 4, 480, 832, 96)),
    ("Wan 2.1 VAE 832x480", (1, 4, 240, 416, 192)),
    ("Wan 2.1 VAE 832x480", (1, 2, 120, 208, 384)),
    ("Wan 2.1 VAE 1280x720", (1, 4, 720, 1280, 96)),
)
"""Model and picture, `[B, T, H, W, C]`: one latent frame's worth."""


def cases(
    device: torch.device, sizes: Sequence[tuple[str, tuple[int, ...]]] = SIZES
) -> Iterator[Case]:
    """Each size."""
    for size in sizes:
        yield _case(device, *size)


def _case(device: torch.device, model: str, shape: tuple[int, ...]) -> Case:
    channels = shape[-1]
    x = torch.randn(shape, device=device).bfloat16()
    gain = torch.randn(channels, device=device).bfloat16()
    return Case(
        op="rms_norm_silu",
        shape=f"{model}: {list(shape)}",
        truth=lambda: rms_norm_silu_reference(x.double(), gain.double()),
        tolerance=0.02,
        ours=Contender(
            name="livereel", settings="bf16, channels last", run=lambda: rms_norm_silu(x, gain)
        ),
        others=(
            Contender(
                name="torch eager",
                settings="bf16 to fp32 and back, channels last",
                run=lambda: rms_norm_silu_reference(x, gain),
            ),
            Contender(
                name="F.rms_norm, F.silu",
                settings="bf16, channels last",
                run=lambda: F.silu(F.rms_norm(x, (channels,), gain, 1e-12)),
            ),
            compiled(lambda: rms_norm_silu_reference(x, gain)),
        ),
        bytes_moved=2 * x.nbytes,
        least_share=0.85,
    )


if __name__ == "__main__":
    raise SystemExit(main("rms_norm_silu", cases))

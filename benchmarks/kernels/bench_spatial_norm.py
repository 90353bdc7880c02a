"""CogVideoX's spatial norm and SiLU with its two convolutions, against what diffusers computes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from livereel.kernels.spatial_norm import spatial_norm, spatial_norm_reference

from .harness import Case, Contender, compiled, main

GROUPS, EPS, LATENT_CHANNELS = 32, 1e-6, 16
SIZES = (
    ("CogVideoX VAE 720x480", (1, 8, 480, 720, 128), (2, 60, 90)),
    ("CogVideoX VAE 720x480", (1, 8, 240, 360, 256), (2, 60, 90)),
    ("CogVideoX VAE 720x480", (1, 2, 60, 90, 512), (2, 60, 90)),
)
"""Model and picture, `[B, T, H, W, C]`, the latent's frames and space."""

Size = tuple[str, tuple[int, ...], tuple[int, int, int]]


def cases(device: torch.device, sizes: Sequence[Size] = SIZES) -> Iterator[Case]:
    """Each size."""
    for size in sizes:
        yield _case(device, *size)


def _case(
    device: torch.device, model: str, shape: tuple[int, ...], latent: tuple[int, int, int]
) -> Case:
    channels = shape[-1]
    x = torch.randn(shape, device=device).bfloat16()
    z = torch.randn(shape[0], *latent, LATENT_CHANNELS, device=device).bfloat16()
    matrix = torch.randn(2 * channels, LATENT_CHANNELS, device=device).bfloat16()
    offset, weight = torch.randn(2 * channels, device=device).bfloat16(), x.new_ones(channels)
    bias = torch.randn(channels, device=device).bfloat16()
    first, latents = x.movedim(-1, 1), z.movedim(-1, 1)

    def library() -> Tensor:
        near = F.interpolate(latents, first.shape[2:])
        kernel = matrix[:, :, None, None, None]
        gain = F.conv3d(near, kernel[:channels], offset[:channels])
        shift = F.conv3d(near, kernel[channels:], offset[channels:])
        normed = F.group_norm(first, GROUPS, weight, bias, EPS)
        return F.silu(normed * gain + shift).movedim(1, -1)

    def truth() -> Tensor:
        modulation = F.linear(z.float(), matrix.float(), offset.float())
        return spatial_norm_reference(
            x.float(), modulation, weight.float(), bias.float(), GROUPS, EPS
        )

    return Case(
        op="spatial_norm",
        shape=f"{model}: {list(shape)} by {list(latent)}",
        truth=truth,
        tolerance=0.02,
        ours=Contender(
            name="livereel",
            settings="bf16, channels last",
            run=lambda: spatial_norm(x, F.linear(z, matrix, offset), weight, bias, GROUPS, EPS),
        ),
        others=(
            Contender(name="as in diffusers", settings="bf16, channels last", run=library),
            compiled(library),
        ),
        bytes_moved=3 * x.nbytes,  # statistics first: read twice, written once
        least_share=0.85,
    )


if __name__ == "__main__":
    raise SystemExit(main("spatial_norm", cases))

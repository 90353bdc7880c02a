"""Upsampling convolution at the layers of Wan's decoder: `upsample2x_conv` against cuDNN.

With the norm and SiLU of the residual block behind it; the picture that torch upsamples is four
times as large as its input, and cuDNN does 36 multiplications where four 2x2 kernels need 16: the
rates are those of the 16.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from livereel.kernels.causal_conv3d import add_gutter
from livereel.kernels.rms_norm_silu import rms_norm_silu_reference
from livereel.kernels.upsample2x_conv import fold_upsampled, upsample2x_conv

from .harness import Case, Contender, compiled, main

SIZES = (
    ("Wan 2.1 VAE 832x480", (6, 60, 104), (384, 192)),
    ("Wan 2.1 VAE 832x480", (12, 120, 208), (384, 192)),
    ("Wan 2.1 VAE 832x480", (12, 240, 416), (192, 96)),
    ("Wan 2.1 VAE 1280x720", (4, 360, 640), (192, 96)),
)
"""Model and picture; frames, height and width that are doubled; channels in and out."""


def cases(
    device: torch.device,
    sizes: Sequence[tuple[str, tuple[int, int, int], tuple[int, int]]] = SIZES,
) -> Iterator[Case]:
    """Each size."""
    for size in sizes:
        yield _case(device, *size)


def _case(
    device: torch.device, model: str, size: tuple[int, int, int], channels: tuple[int, int]
) -> Case:
    c_in, c_out = channels
    x = torch.randn(1, *size, c_in, device=device).bfloat16()
    weight = (torch.randn(c_out, c_in, 3, 3, device=device) / (9 * c_in) ** 0.5).bfloat16()
    weight = weight.contiguous(memory_format=torch.channels_last)
    bias, gain = torch.randn(2, c_out, device=device).bfloat16()
    phases, small = fold_upsampled(weight), add_gutter(x)
    pictures = x[0].permute(0, 3, 1, 2)

    def ours() -> Tensor:
        activated: Tensor = upsample2x_conv(small, phases, bias, gain, gutter=True)[1]
        return activated[0, ..., :-1, :]

    def torchs() -> tuple[Tensor, Tensor]:
        large = F.interpolate(pictures, scale_factor=2, mode="nearest-exact")
        y = F.conv2d(large, weight, bias, padding=1).permute(0, 2, 3, 1)
        return rms_norm_silu_reference(y, gain), y

    def eager() -> Tensor:
        with torch.backends.cudnn.flags(enabled=True, benchmark=True):
            return torchs()[0]

    def truth() -> Tensor:
        large = F.interpolate(pictures.float(), scale_factor=2, mode="nearest-exact")
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            y = F.conv2d(large, weight.float(), bias.float(), padding=1)
        return rms_norm_silu_reference(y.permute(0, 2, 3, 1), gain.float())

    peer = compiled(torchs)
    return Case(
        op="upsample2x_conv",
        shape=f"{model}: {list(size)}, {c_in} to {c_out} channels, norm, SiLU",
        truth=truth,
        tolerance=0.02,
        ours=Contender(name="livereel", settings="bf16, channels last, gutter", run=ours),
        others=(
            Contender(name="torch, cuDNN", settings="bf16, channels_last, benchmark", run=eager),
            replace(peer, run=lambda: peer.run()[0]),
        ),
        flops=2 * 16 * c_in * c_out * size[0] * size[1] * size[2],
    )


if __name__ == "__main__":
    raise SystemExit(main("upsample2x_conv", cases))

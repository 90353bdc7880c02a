"""Causal convolution at the layers of Wan's decoder: `causal_conv3d` against cuDNN.

Each layer twice: the convolution alone, cuDNN's input being put together beforehand; and as the
decoder has it, with the past before it, the residual and the next norm behind it, and the frames
that the next chunk needs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from livereel.kernels.causal_conv3d import add_gutter, causal_conv3d
from livereel.kernels.rms_norm_silu import rms_norm_silu_reference

from .harness import Case, Contender, compiled, main

SIZES = (
    ("Wan 2.1 VAE 832x480", (12, 480, 832), (96, 96)),
    ("Wan 2.1 VAE 832x480", (12, 240, 416), (192, 192)),
    ("Wan 2.1 VAE 832x480", (6, 120, 208), (384, 384)),
    ("Wan 2.1 VAE 832x480", (1, 480, 832), (96, 96)),
    ("Wan 2.1 VAE 1280x720", (4, 720, 1280), (96, 96)),
)
"""Model and picture; frames, height and width of the layer: 3 latent frames' worth, the first
alone, and one of a larger picture; channels in and out."""

WIDE = 256
"""Channels from which a convolution alone is to be as fast as cuDNN's."""


def cases(
    device: torch.device,
    sizes: Sequence[tuple[str, tuple[int, int, int], tuple[int, int]]] = SIZES,
) -> Iterator[Case]:
    """Each size alone, and with what comes before and behind it."""
    for model, size, channels in sizes:
        layer = _Layer(device, size, channels)
        shape = f"{model}: {list(size)}, {channels[0]} to {channels[1]} channels, 3x3x3"
        yield layer.alone(shape)
        yield layer.in_decoder(shape)


class _Layer:
    """The tensors of one layer, as ours and as torch takes them."""

    def __init__(
        self, device: torch.device, size: tuple[int, int, int], channels: tuple[int, int]
    ) -> None:
        c_in, c_out = channels

        def draw(frames: int, c: int) -> Tensor:
            return torch.randn(1, frames, *size[1:], c, device=device).bfloat16()

        self.x, self.cache, self.residual = draw(size[0], c_in), draw(2, c_in), draw(size[0], c_out)
        weight = torch.randn(c_out, c_in, 3, 3, 3, device=device) / (27 * c_in) ** 0.5
        self.weight = weight.bfloat16().contiguous(memory_format=torch.channels_last_3d)
        self.bias, self.gain = torch.randn(2, c_out, device=device).bfloat16()
        self.flops = 2 * 27 * c_in * c_out * size[0] * size[1] * size[2]

    def alone(self, shape: str) -> Case:
        """Against one call of cuDNN, past and frames already side by side."""
        x, cache = add_gutter(self.x), add_gutter(self.cache)
        seen = _channels_first(torch.cat([self.cache, self.x], dim=1))

        def ours() -> Tensor:
            y, _, _ = causal_conv3d(x, cache, self.weight, self.bias, gutter=True)
            return _channels_first(y[..., :-1, :])

        def cudnn() -> Tensor:
            with torch.backends.cudnn.flags(enabled=True, benchmark=True):
                return F.conv3d(seen, self.weight, self.bias, padding=(0, 1, 1))

        return Case(
            op="causal_conv3d",
            shape=f"{shape}, alone",
            truth=self._exact,
            tolerance=0.02,
            ours=Contender(name="livereel", settings="bf16, channels last, gutter", run=ours),
            others=(
                Contender(name="cuDNN", settings="bf16, channels_last_3d, benchmark", run=cudnn),
            ),
            flops=self.flops,
            least_ratio=1.0 if self.weight.shape[1] >= WIDE else 0.0,
        )

    def in_decoder(self, shape: str) -> Case:
        """A residual block's second half: conv, residual, and the next block's norm and SiLU."""
        x, cache, residual = (add_gutter(t) for t in (self.x, self.cache, self.residual))

        def ours() -> Tensor:
            activated: Tensor = causal_conv3d(
                x, cache, self.weight, self.bias, residual, self.gain, gutter=True
            )[1]
            return activated[..., :-1, :]

        def torchs() -> tuple[Tensor, Tensor, Tensor]:
            seen = _channels_first(torch.cat([self.cache, self.x], dim=1))
            y = F.conv3d(seen, self.weight, self.bias, padding=(0, 1, 1))
            y = y.permute(0, 2, 3, 4, 1) + self.residual
            return rms_norm_silu_reference(y, self.gain), y, seen[:, :, -2:].clone()

        def eager() -> Tensor:
            with torch.backends.cudnn.flags(enabled=True, benchmark=True):
                return torchs()[0]

        def truth() -> Tensor:
            y = self._exact().permute(0, 2, 3, 4, 1) + self.residual.float()
            return rms_norm_silu_reference(y, self.gain.float())

        peer = compiled(torchs)
        return Case(
            op="causal_conv3d",
            shape=f"{shape}, past, residual, norm, SiLU",
            truth=truth,
            tolerance=0.02,
            ours=Contender(name="livereel", settings="bf16, channels last, gutter", run=ours),
            others=(
                Contender(
                    name="torch, cuDNN", settings="bf16, channels_last_3d, benchmark", run=eager
                ),
                replace(peer, run=lambda: peer.run()[0]),
            ),
            flops=self.flops,
            least_ratio=1.5 if self.weight.shape[1] < WIDE else 0.0,
        )

    def _exact(self) -> Tensor:
        seen = _channels_first(torch.cat([self.cache, self.x], dim=1)).float()
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            return F.conv3d(seen, self.weight.float(), self.bias.float(), padding=(0, 1, 1))


def _channels_first(x: Tensor) -> Tensor:
    """`[B, T, H, W, C]` as torch's layers see it, in the same memory."""
    return x.permute(0, 4, 1, 2, 3)


if __name__ == "__main__":
    raise SystemExit(main("causal_conv3d", cases))

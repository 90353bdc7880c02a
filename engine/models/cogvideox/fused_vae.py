"""The CogVideoX VAE on Triton's kernels: channels last, each norm two launches, its SiLU included.

The same function as `vae.CogVideoXVAE`, whose weights it uses. A norm needs statistics of the whole
chunk, so none can be part of the convolution before it, as in Wan's VAE. The decoder's norms take
gains and biases from the latents' own resolution and look them up pixel by pixel.

Between launches a picture's rows have one column of zeros behind them, so that convolutions load
runs of pixels (`kernels/causal_conv3d.py`); caches hold frames of this kind.

Shapes: B batch, C channels, T latent frames, F pixel frames, H W space; activations are
`[B, T, H, W + 1, C]`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from livereel.kernels.causal_conv3d import add_gutter, causal_conv3d
from livereel.kernels.group_norm_silu import group_norm_silu
from livereel.kernels.spatial_norm import spatial_norm
from livereel.kernels.upsample2x_conv import fold_upsampled, upsample2x_conv

from ...layers.launch_late import Launched, launch_late
from . import vae
from .config import CHUNK

if TYPE_CHECKING:
    from ...layers.causal_conv import CacheTape, ConvCaches


class Conv:
    """A causal convolution's weights as the kernel takes them."""

    def __init__(self, conv: vae.CausalConv) -> None:
        self.weight = conv.conv.weight.detach().contiguous(memory_format=torch.channels_last_3d)
        self.bias = None if conv.conv.bias is None else conv.conv.bias.detach()
        self.history = conv.history

    def step(self, x: Tensor, tape: CacheTape, residual: Tensor | None = None) -> Tensor:
        """After its past on the tape, which begins with the first frame repeated."""

        def launch(x: Tensor, past: Tensor, residual: Tensor | None) -> Launched:
            result: Launched = causal_conv3d(x, past, self.weight, self.bias, residual, gutter=True)
            return result

        if tape.neighbor is not None:
            return launch_late(launch, x, residual, tape.neighbor, self.history)[0]
        past = tape.take()
        if past is None:
            past = x[:, :1].expand(-1, self.history, -1, -1, -1)
        y, _, kept = launch(x, past, residual)
        tape.put(kept)
        return y


class Norm:
    """Group norm and SiLU, under gains and biases of the latents if it is the decoder's."""

    def __init__(self, norm: vae.Norm) -> None:
        self.pixelwise: tuple[Tensor, Tensor] | None = None
        plain: nn.GroupNorm
        if isinstance(norm, vae.SpatialNormSiLU):
            plain = norm.norm_layer
            convs = norm.conv_y.conv, norm.conv_b.conv
            weight = torch.cat([conv.weight.detach().flatten(1) for conv in convs])
            biases = [conv.bias.detach() for conv in convs if conv.bias is not None]
            self.pixelwise = weight, torch.cat(biases)
        else:
            plain = norm
        self.weight, self.bias = plain.weight.detach(), plain.bias.detach()
        self.groups = plain.num_groups

    def __call__(self, x: Tensor, latents: Tensor | None = None) -> Tensor:
        """`[B, T, H, W + 1, C]` to the same; `latents` `[B, t, h, w, C']`."""
        own = self.weight, self.bias, self.groups, vae.EPS
        y: Tensor
        if self.pixelwise is None or latents is None:
            y = group_norm_silu(x, *own, gutter=True)
        else:
            y = spatial_norm(x, F.linear(latents, *self.pixelwise), *own, gutter=True)
        return y


class Residual:
    """norm, SiLU, conv, norm, SiLU, conv, added to the (projected) input."""

    def __init__(self, block: vae.ResidualBlock) -> None:
        self.norm1, self.norm2 = Norm(block.norm1), Norm(block.norm2)
        self.conv1, self.conv2 = Conv(block.conv1), Conv(block.conv2)
        shortcut = block.conv_shortcut
        self.shortcut: tuple[Tensor, Tensor | None] | None = None
        if isinstance(shortcut, nn.Conv3d):
            bias = None if shortcut.bias is None else shortcut.bias.detach()
            self.shortcut = shortcut.weight.detach().flatten(1), bias

    def step(self, x: Tensor, latents: Tensor | None, tape: CacheTape) -> Tensor:
        y = self.conv1.step(self.norm1(x, latents), tape)
        if self.shortcut is not None:
            x = F.linear(x, *self.shortcut)  # its gutter is not zero; that of the next result is
        return self.conv2.step(self.norm2(y, latents), tape, residual=x)


class Down:
    """Average pairs of frames if asked, a stream's first standing alone; halve space."""

    def __init__(self, layer: vae.Downsample) -> None:
        weight = layer.conv.weight.detach().unsqueeze(2)
        self.weight = weight.contiguous(memory_format=torch.channels_last_3d)
        self.bias = None if layer.conv.bias is None else layer.conv.bias.detach()
        self.time = layer.time

    def step(self, x: Tensor, latents: Tensor | None, tape: CacheTape) -> Tensor:
        if self.time:
            lone = int(tape.first)
            pairs = (x[:, lone::2] + x[:, lone + 1 :: 2]) / 2
            x = torch.cat([x[:, :lone], pairs], dim=1)
        y: Tensor = causal_conv3d(x, None, self.weight, self.bias, stride=2, gutter=True)[0]
        return y


class Up:
    """Double space; show each frame twice if asked, but for a stream's first."""

    def __init__(self, layer: vae.Upsample) -> None:
        self.phases = fold_upsampled(layer.conv.weight.detach())
        self.bias = None if layer.conv.bias is None else layer.conv.bias.detach()
        self.time = layer.time

    def step(self, x: Tensor, latents: Tensor | None, tape: CacheTape) -> Tensor:
        y: Tensor = upsample2x_conv(x, self.phases, self.bias, gutter=True)[0]
        return vae.repeated(y, first=tape.first, dim=1).contiguous() if self.time else y


class Half:
    """Encoder or decoder."""

    def __init__(self, half: vae.Encoder | vae.Decoder) -> None:
        self.conv_in, self.conv_out = Conv(half.conv_in), Conv(half.conv_out)
        self.norm_out = Norm(half.norm_out)
        middle = [Residual(block) for block in half.mid_block.resnets]
        self.layers: list[Residual | Down | Up] = []
        if isinstance(half, vae.Encoder):
            for down in half.down_blocks:
                self.layers += map(Residual, down.resnets)
                self.layers += map(Down, down.downsamplers)
            self.layers += middle
            self.spatial = False
        else:
            self.layers += middle
            for up in half.up_blocks:
                self.layers += map(Residual, up.resnets)
                self.layers += map(Up, up.upsamplers)
            self.spatial = True

    def step(self, x: Tensor, tape: CacheTape) -> Tensor:
        """`[B, C, T, H, W]` to the same with other sizes, channels last in memory."""
        # A copy in any case: a single pixel's strides may pass for contiguous and yet be others.
        x = x.permute(0, 2, 3, 4, 1).clone(memory_format=torch.contiguous_format)
        latents = x if self.spatial else None
        x = self.conv_in.step(add_gutter(x), tape)
        for layer in self.layers:
            x = layer.step(x, latents, tape)
        y = self.conv_out.step(self.norm_out(x, latents), tape)
        return y[..., :-1, :].permute(0, 4, 1, 2, 3)


class FusedVAE:
    """A CogVideoX VAE whose `encode` and `decode` are those of `model`, to rounding."""

    cache_time = 1

    def __init__(self, model: vae.CogVideoXVAE) -> None:
        self.model = model
        self.channels, self.chunk = model.channels, model.chunk
        self.decoder_memory = model.decoder_memory
        self.temporal_factor = model.temporal_factor
        self.spatial_factor = model.spatial_factor
        self.normalize, self.denormalize = model.normalize, model.denormalize
        self._encoder, self._decoder = Half(model.encoder), Half(model.decoder)

    def encode(self, frames: Tensor, caches: ConvCaches | None = None) -> tuple[Tensor, ConvCaches]:
        """As `CogVideoXVAE.encode`."""
        self.model.check_frames(frames, first=caches is None)
        size = CHUNK * self.temporal_factor
        moments, caches = vae.in_chunks(self._encoder.step, frames, size, caches)
        return moments[:, : self.channels], caches

    def encode_step(self, frames: Tensor, tape: CacheTape) -> Tensor:
        """As `CogVideoXVAE.encode_step`."""
        self.model.check_frames(frames, first=tape.first)
        return self._encoder.step(frames, tape)[:, : self.channels]

    def decode(
        self, latents: Tensor, caches: ConvCaches | None = None
    ) -> tuple[Tensor, ConvCaches]:
        """As `CogVideoXVAE.decode`."""
        self.model.check_latents(latents)
        frames, caches = vae.in_chunks(self._decoder.step, latents, CHUNK, caches)
        return frames.clamp(-1.0, 1.0), caches

    def decode_step(self, latents: Tensor, tape: CacheTape) -> Tensor:
        """As `CogVideoXVAE.decode_step`."""
        self.model.check_latents(latents)
        return self._decoder.step(latents, tape).clamp(-1.0, 1.0)

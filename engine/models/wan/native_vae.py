"""The Wan VAE with its decoder on the C++ core's kernels: bfloat16, on a CPU.

The same function as `vae.WanVAE`, with copies of its decoder's weights; caches are its own, so that
a stream can go over from one to the other. Frames lie channels last, without a batch.

Shapes: B batch, C channels, T latent frames, F pixel frames, H W space.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, cast

import torch
from torch import Tensor, nn

from ...layers.causal_conv import CacheTape, ConvCaches
from ...layers.packed import (
    PackedCausalConv,
    PackedConv,
    PackedLinear,
    PackedUpsample2xConv,
    affordable,
    after_past,
    attention,
    floats,
    rms_norm,
    torch_in_one_thread,
    unfold,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ...layers.causal_conv import CausalConv3d
    from ...layers.upsample import Upsample2xConv
    from . import vae_blocks
    from .vae import WanVAE


class Layer(Protocol):
    """A part of the decoder."""

    def step(self, x: Tensor, tape: CacheTape) -> Tensor:
        """`[T, H, W, C]` to the same of other sizes."""


class ResidualBlock:
    """norm, SiLU, conv, norm, SiLU, conv, added to the (projected) input."""

    def __init__(self, block: vae_blocks.ResidualBlock) -> None:
        self.first = PackedCausalConv(block.conv1, block.norm1)
        self.second = PackedCausalConv(block.conv2, block.norm2)
        shortcut = block.conv_shortcut
        self.shortcut = PackedLinear(shortcut) if isinstance(shortcut, nn.Conv3d) else None

    def step(self, x: Tensor, tape: CacheTape) -> Tensor:
        y = self.first.step(x, tape)
        if self.shortcut is not None:
            x = self.shortcut(x.flatten(0, 2)).view(y.shape)
        return self.second.step(y, tape, residual=x)


class FrameAttention:
    """Single-head self-attention inside each frame."""

    def __init__(self, layer: vae_blocks.FrameAttention) -> None:
        self.gain = floats(layer.norm.gamma.flatten())
        self.qkv = PackedLinear(layer.to_qkv)
        self.proj = PackedLinear(layer.proj)

    def step(self, x: Tensor, tape: CacheTape) -> Tensor:
        t, h, w, c = x.shape
        rows = x.view(-1, c)
        # x / |x| * sqrt(C) is x / sqrt(mean(x^2)); of zeros that is none.
        qkv = self.qkv(rms_norm(rows, self.gain, 1e-24)).view(t, h * w, 3, 1, c)
        y = x.new_empty(t, h * w, 1, c)
        for frame, out in zip(qkv, y, strict=True):
            q, k, v = frame.unbind(1)
            attention(q, [k], [v], out)
        self.proj.add_to(rows, y.view(-1, c))
        return x


class DoubleFrames:
    """Two frames for each but the stream's first: the halves of a convolution's channels."""

    def __init__(self, conv: CausalConv3d) -> None:
        biases = (None, None) if conv.bias is None else conv.bias.chunk(2)
        pairs = zip(conv.weight.chunk(2), biases, strict=True)
        self.halves = [PackedConv(weight, bias) for weight, bias in pairs]
        self.history = conv.history

    def step(self, x: Tensor, tape: CacheTape) -> Tensor:
        lone = 1 if tape.first else 0
        out = x.new_empty(lone + 2 * (len(x) - lone), *x.shape[1:])
        out[:lone] = x[:lone]
        seen = after_past(x[lone:], tape, self.history)
        if len(x) > lone:
            for i, half in enumerate(self.halves):
                half(seen, out[lone + i :: 2])
        return out


class NativeVAE:
    """A Wan VAE that encodes as `model` does, and decodes faster."""

    def __init__(self, model: WanVAE) -> None:
        self.model = model
        self.channels = model.channels
        self.chunk: int | None = None
        self.decoder_memory = model.decoder_memory
        self.temporal_factor = model.temporal_factor
        self.spatial_factor = model.spatial_factor
        self.normalize, self.denormalize = model.normalize, model.denormalize
        self.encode = model.encode
        decoder, mid = model.decoder, model.decoder.mid_block
        self._post_quant = PackedLinear(model.post_quant_conv)
        self._layers: list[Layer] = [
            PackedCausalConv(decoder.conv_in),
            ResidualBlock(mid.resnets[0]),
            FrameAttention(mid.attentions[0]),
            ResidualBlock(mid.resnets[1]),
        ]
        for level in cast("Sequence[vae_blocks.UpBlock]", decoder.up_blocks):
            self._layers += [ResidualBlock(block) for block in level.resnets]
            for upsample in level.upsamplers:
                if upsample.time_conv is not None:
                    self._layers.append(DoubleFrames(upsample.time_conv))
                self._layers.append(
                    PackedUpsample2xConv(cast("Upsample2xConv", upsample.resample[1]))
                )
        self._layers.append(PackedCausalConv(decoder.conv_out, decoder.norm_out))

    @staticmethod
    def fits(model: WanVAE) -> bool:
        """Whether the kernels can run it: Wan 2.1's layout, what `affordable` says, and channels in
        pairs."""
        if model.config.is_residual:
            return False
        convs = (m for m in model.decoder.modules() if isinstance(m, (nn.Conv2d, nn.Conv3d)))
        even = all(conv.in_channels % 2 == 0 for conv in (model.post_quant_conv, *convs))
        return affordable(model) and even

    @torch_in_one_thread()
    def decode(
        self, latents: Tensor, caches: ConvCaches | None = None
    ) -> tuple[Tensor, ConvCaches]:
        """As `WanVAE.decode`, of latents in bfloat16; clip by clip."""
        self.model.check_latents(latents)
        if len(latents) == 1:
            tape = CacheTape(caches)
            return self._decode(latents[0], tape), tape.caches()
        clips, kept = [], []
        for i, clip in enumerate(latents):
            tape = CacheTape(None if caches is None else tuple(c[i : i + 1] for c in caches))
            clips.append(self._decode(clip, tape))
            kept.append(tape.caches())
        return torch.cat(clips), tuple(torch.cat(caches) for caches in zip(*kept, strict=True))

    def _decode(self, latents: Tensor, tape: CacheTape) -> Tensor:
        """`[C, T, h, w]` to `[1, 3, F, H, W]`."""
        x = latents.permute(1, 2, 3, 0).contiguous()
        x = self._post_quant(x.flatten(0, 2)).view(x.shape)
        for layer in self._layers:
            x = layer.step(x, tape)
        patch = self.model.config.patch_size
        x = x.clamp_(-1.0, 1.0) if patch is None else unfold(x, patch)
        return x.permute(3, 0, 1, 2).unsqueeze(0)

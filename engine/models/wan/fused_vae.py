"""The Wan VAE on Triton's kernels: channels last, each norm fused into the launch before it.

The same function as `vae.WanVAE`, whose weights it uses. Between launches a picture's rows have one
column of zeros behind them (`kernels/causal_conv3d.py` says why); caches hold frames of this kind,
in the order of the model's own. A residual block is two launches, or three where channels change.

Shapes: B batch, C channels, T latent frames, F pixel frames, H W space; activations are
`[B, T, H, W + 1, C]`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn

from livereel.kernels.causal_conv3d import add_gutter, causal_conv3d
from livereel.kernels.rms_norm_silu import rms_norm_silu
from livereel.kernels.upsample2x_conv import fold_upsampled, upsample2x_conv

from ...layers.causal_conv import CacheTape, ConvCaches
from ...layers.launch_late import Launched, launch_late
from . import vae_blocks

if TYPE_CHECKING:
    from ...layers.norm import ChannelRMSNorm
    from .vae import WanVAE


class Flow(NamedTuple):
    """What goes from layer to layer: activations, and their norm and SiLU if the next layer begins
    with these. What the next layer does not ask for is empty."""

    x: Tensor
    normed: Tensor


class Layer(Protocol):
    """A part of encoder or decoder."""

    @property
    def gain(self) -> Tensor | None:
        """Of the norm that it begins with."""

    def step(self, flow: Flow, tape: CacheTape, gain: Tensor | None, last: bool) -> Flow:
        """Its result, normed by the next layer's `gain`; the `last` one's is wanted normed only."""


class Conv:
    """A convolution's weights as the kernel takes them."""

    def __init__(self, conv: nn.Conv2d | nn.Conv3d) -> None:
        weight = conv.weight.detach()
        weight = weight.unsqueeze(2) if weight.ndim == 4 else weight
        self.weight = weight.contiguous(memory_format=torch.channels_last_3d)
        self.bias = None if conv.bias is None else conv.bias.detach()

    def plain(self, x: Tensor, stride: int = 1) -> Tensor:
        """Frame by frame."""
        y: Tensor = causal_conv3d(x, None, self.weight, self.bias, stride=stride, gutter=True)[0]
        return y

    def step(
        self, x: Tensor, tape: CacheTape, gain: Tensor | None = None, *,
        residual: Tensor | None = None, frames_out: int = 1, keep: bool = True,
    ) -> Flow:  # fmt: skip
        """After its past on the tape; `keep` False leaves out the result before the norm."""

        def launch(x: Tensor, past: Tensor | None, residual: Tensor | None) -> Launched:
            result: Launched = causal_conv3d(
                x, past, self.weight, self.bias, residual, gain, frames_out=frames_out,
                gutter=True, keep_y=keep,
            )  # fmt: skip
            return result

        if tape.neighbor is not None:
            history = self.weight.shape[2] - 1
            late = launch_late(launch, x, residual, tape.neighbor, history, frames_out=frames_out)
            return Flow(*late)
        y, normed, kept = launch(x, tape.take(), residual)
        tape.put(kept)
        return Flow(y, normed)


class EndConv:
    """The first or last convolution; the last begins with a norm."""

    def __init__(self, conv: nn.Conv3d, norm: ChannelRMSNorm | None = None) -> None:
        self.conv, self.gain = Conv(conv), None if norm is None else gain_of(norm)

    def step(self, flow: Flow, tape: CacheTape, gain: Tensor | None, last: bool) -> Flow:
        return self.conv.step(flow.x if self.gain is None else flow.normed, tape, gain)


class Residual:
    """norm, SiLU, conv, norm, SiLU, conv, added to the (projected) input."""

    def __init__(self, block: vae_blocks.ResidualBlock) -> None:
        self.gain, self.inner = gain_of(block.norm1), gain_of(block.norm2)
        self.first, self.second = Conv(block.conv1), Conv(block.conv2)
        shortcut = block.conv_shortcut
        self.shortcut = Conv(shortcut) if isinstance(shortcut, nn.Conv3d) else None

    def step(self, flow: Flow, tape: CacheTape, gain: Tensor | None, last: bool) -> Flow:
        x = flow.x if self.shortcut is None else self.shortcut.plain(flow.x)
        inner = self.first.step(flow.normed, tape, self.inner, keep=False).normed
        return self.second.step(inner, tape, gain, residual=x, keep=not last)


class Attention:
    """Self-attention inside each frame, at the lowest resolution: torch's own."""

    gain = None

    def __init__(self, layer: vae_blocks.FrameAttention) -> None:
        self.layer = layer

    def step(self, flow: Flow, tape: CacheTape, gain: Tensor | None, last: bool) -> Flow:
        pictures = self.layer(without_gutter(flow.x)).permute(0, 2, 3, 4, 1)
        return normed(add_gutter(pictures), gain)


class Down:
    """Halve space, and time if asked, the stream's first frame standing alone."""

    gain = None

    def __init__(self, layer: vae_blocks.Downsample) -> None:
        self.space = Conv(cast(nn.Conv2d, layer.resample[1]))
        self.time = None if layer.time_conv is None else Conv(layer.time_conv)

    def step(self, flow: Flow, tape: CacheTape, gain: Tensor | None, last: bool) -> Flow:
        x = self.space.plain(flow.x, stride=2)
        if self.time is None:
            return normed(x, gain)
        if tape.neighbor is not None:
            late = launch_late(
                lambda x, past, _: self._halved(x, past, gain), x, None, tape.neighbor, 1, stride=2
            )
            return Flow(*late)
        past = tape.take()
        tape.put(x[:, -1:].clone())
        lone, past, x = (x[:, :1], x[:, :1], x[:, 1:]) if past is None else (None, past, x)
        if x.shape[1]:
            y, after, _ = self._halved(x, past, gain)
            if lone is None:
                return Flow(y, after)
            x = torch.cat([lone, y], dim=1)
        else:
            x = past
        return normed(x, gain)

    def _halved(self, x: Tensor, past: Tensor, gain: Tensor | None) -> Launched:
        assert self.time is not None
        result: Launched = causal_conv3d(
            x, past, self.time.weight, self.time.bias, gain=gain, stride_t=2, gutter=True
        )
        return result


class Up:
    """Double space and halve channels; double time if asked, but for the stream's first frame."""

    gain = None

    def __init__(self, layer: vae_blocks.Upsample) -> None:
        conv = cast(nn.Conv2d, layer.resample[1])
        self.phases = fold_upsampled(conv.weight.detach())
        self.bias = None if conv.bias is None else conv.bias.detach()
        self.time = None if layer.time_conv is None else Conv(layer.time_conv)

    def step(self, flow: Flow, tape: CacheTape, gain: Tensor | None, last: bool) -> Flow:
        x = flow.x if self.time is None else self._doubled(flow.x, self.time, tape)
        return Flow(*upsample2x_conv(x, self.phases, self.bias, gain, gutter=True))

    @staticmethod
    def _doubled(x: Tensor, conv: Conv, tape: CacheTape) -> Tensor:
        if not tape.first:
            return conv.step(x, tape, frames_out=2).x
        lone, x = x[:, :1], x[:, 1:]
        if x.shape[1]:
            return torch.cat([lone, conv.step(x, tape, frames_out=2).x], dim=1)
        tape.put(lone.new_zeros(len(lone), 2, *lone.shape[2:]))
        return lone


class Level:
    """Layers in turn, and their shortcut: Wan 2.2's levels."""

    def __init__(
        self, layers: Sequence[Layer], level: vae_blocks.ShrinkingLevel | vae_blocks.GrowingLevel
    ) -> None:
        self.layers, self.level, self.gain = layers, level, layers[0].gain

    def step(self, flow: Flow, tape: CacheTape, gain: Tensor | None, last: bool) -> Flow:
        x = without_gutter(flow.x)
        if isinstance(self.level, vae_blocks.GrowingLevel):
            shortcut = self.level.shortcut(x, first=tape.first)
        else:
            shortcut = self.level.shortcut(x)
        y = run(self.layers, flow, tape)
        without_gutter(y).add_(shortcut)
        return normed(y, gain)


def gain_of(norm: ChannelRMSNorm) -> Tensor:
    """The norm's gain `[C]`; what it is multiplied by otherwise is part of the kernel."""
    return norm.gamma.detach().flatten()


def normed(x: Tensor, gain: Tensor | None) -> Flow:
    """`x`, and its norm by `gain` if there is one."""
    return Flow(x, x.new_empty(0) if gain is None else rms_norm_silu(x, gain))


def begin(x: Tensor) -> Flow:
    """What the first layer takes."""
    return normed(x, None)


def without_gutter(x: Tensor) -> Tensor:
    """`[B, T, H, W + 1, C]` to a `[B, C, T, H, W]` view."""
    return x[..., :-1, :].permute(0, 4, 1, 2, 3)


def with_gutter(x: Tensor) -> Tensor:
    """`[B, C, T, H, W]` to `[B, T, H, W + 1, C]`."""
    return add_gutter(x.permute(0, 2, 3, 4, 1)).contiguous()


def run(layers: Sequence[Layer], flow: Flow, tape: CacheTape) -> Tensor:
    """All layers in turn; the last one's result."""
    for layer, after in zip(layers, [*layers[1:], None], strict=True):
        gain = None if after is None else after.gain
        flow = layer.step(flow, tape, gain, last=isinstance(after, EndConv))
    return flow.x


def down_layer(
    block: vae_blocks.ResidualBlock | vae_blocks.Downsample | vae_blocks.ShrinkingLevel,
) -> Layer:
    """A part of the encoder between its ends."""
    if isinstance(block, vae_blocks.ResidualBlock):
        return Residual(block)
    if isinstance(block, vae_blocks.Downsample):
        return Down(block)
    layers: list[Layer] = [Residual(inner) for inner in block.resnets]
    if block.downsampler is not None:
        layers.append(Down(block.downsampler))
    return Level(layers, block)


def up_layers(level: vae_blocks.UpBlock | vae_blocks.GrowingLevel) -> list[Layer]:
    """A level of the decoder."""
    layers: list[Layer] = [Residual(block) for block in level.resnets]
    if isinstance(level, vae_blocks.GrowingLevel):
        return [Level([*layers, Up(level.upsampler)], level)]
    return [*layers, *(Up(layer) for layer in level.upsamplers)]


def mid_layers(block: vae_blocks.MidBlock) -> list[Layer]:
    """Those at the lowest resolution."""
    before, behind = block.resnets
    return [Residual(before), Attention(block.attentions[0]), Residual(behind)]


class FusedVAE:
    """A Wan VAE whose `encode` and `decode` are those of `model`, to rounding."""

    cache_time = 1

    def __init__(self, model: WanVAE) -> None:
        self.model = model
        self.channels = model.channels
        self.chunk: int | None = None
        self.decoder_memory = model.decoder_memory
        self.temporal_factor = model.temporal_factor
        self.spatial_factor = model.spatial_factor
        self.normalize, self.denormalize = model.normalize, model.denormalize
        encoder, decoder = model.encoder, model.decoder
        self._quant, self._post_quant = Conv(model.quant_conv), Conv(model.post_quant_conv)
        self._encoder: list[Layer] = [
            EndConv(encoder.conv_in),
            *(down_layer(block) for block in encoder.down_blocks),
            *mid_layers(encoder.mid_block),
            EndConv(encoder.conv_out, encoder.norm_out),
        ]
        self._decoder: list[Layer] = [EndConv(decoder.conv_in), *mid_layers(decoder.mid_block)]
        for level in decoder.up_blocks:
            self._decoder += up_layers(level)
        self._decoder.append(EndConv(decoder.conv_out, decoder.norm_out))

    def encode(self, frames: Tensor, caches: ConvCaches | None = None) -> tuple[Tensor, ConvCaches]:
        """As `WanVAE.encode`."""
        tape = CacheTape(caches)
        return self.encode_step(frames, tape), tape.caches()

    def encode_step(self, frames: Tensor, tape: CacheTape) -> Tensor:
        """As `WanVAE.encode_step`."""
        x = with_gutter(self.model.patches(frames, first=tape.first))
        moments = without_gutter(self._quant.plain(run(self._encoder, begin(x), tape)))
        return moments[:, : self.channels]

    def decode(
        self, latents: Tensor, caches: ConvCaches | None = None
    ) -> tuple[Tensor, ConvCaches]:
        """As `WanVAE.decode`."""
        tape = CacheTape(caches)
        return self.decode_step(latents, tape), tape.caches()

    def decode_step(self, latents: Tensor, tape: CacheTape) -> Tensor:
        """As `WanVAE.decode_step`."""
        self.model.check_latents(latents)
        x = self._post_quant.plain(with_gutter(latents))
        x = run(self._decoder, begin(x), tape)
        return self.model.pixels(without_gutter(x))

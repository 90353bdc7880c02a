"""What the encoders and decoders of Wan's VAEs are built from; each block's state is on the tape.

State-dict keys are those of diffusers' `AutoencoderKLWan`.

Shapes: B batch, C channels, T frames at the block's own rate, H W space.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...layers.beside import Beside, with_rows
from ...layers.causal_conv import CacheTape, CausalConv3d, convolve_late, newest, with_past
from ...layers.module_list import module_list
from ...layers.norm import ChannelRMSNorm
from ...layers.norm_silu import norm_silu_with_past
from ...layers.per_frame import per_frame
from ...layers.upsample import Upsample2xConv
from .shortcut import check_groups, grow, shrink


def normed_step(conv: CausalConv3d, norm: ChannelRMSNorm, x: Tensor, tape: CacheTape) -> Tensor:
    """Norm, SiLU, and the convolution of that after its past."""
    if tape.neighbor is not None or tape.beside is not None:
        return conv.step(norm_silu_with_past(x, norm, None, 0), tape)
    x = norm_silu_with_past(x, norm, tape.take(), conv.history)
    return conv.after_past(x, tape)


class ResidualBlock(nn.Module):
    """norm, SiLU, conv, norm, SiLU, conv, added to the (projected) input."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.norm1 = ChannelRMSNorm(in_dim, 3)
        self.conv1 = CausalConv3d(in_dim, out_dim, (3, 3, 3))
        self.norm2 = ChannelRMSNorm(out_dim, 3)
        self.conv2 = CausalConv3d(out_dim, out_dim, (3, 3, 3))
        self.conv_shortcut = nn.Conv3d(in_dim, out_dim, 1) if in_dim != out_dim else nn.Identity()

    def step(self, x: Tensor, tape: CacheTape) -> Tensor:
        y = normed_step(self.conv1, self.norm1, x, tape)
        y = normed_step(self.conv2, self.norm2, y, tape)
        shortcut: Tensor = self.conv_shortcut(x)
        return y + shortcut


class FrameAttention(nn.Module):
    """Single-head self-attention inside each frame."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = ChannelRMSNorm(dim, 2)
        self.to_qkv = nn.Conv2d(dim, dim * 3, 1)
        self.proj = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor, beside: Beside | None = None) -> Tensor:
        return x + per_frame(partial(self._attend, beside=beside), x)

    def _attend(self, x: Tensor, beside: Beside | None) -> Tensor:
        b, c, h, w = x.shape
        qkv = self.to_qkv(self.norm(x)).flatten(2).transpose(1, 2).unsqueeze(1)
        q, kv = qkv.split([c, 2 * c], dim=-1)
        kv = kv if beside is None else beside.gather(kv, dim=2)
        y = F.scaled_dot_product_attention(q, *kv.chunk(2, dim=-1))
        y = y.squeeze(1).transpose(1, 2).reshape(b, c, h, w)
        out: Tensor = self.proj(y)
        return out


class MidBlock(nn.Module):
    """Residual block, attention, residual block at the lowest resolution."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.resnets = module_list([ResidualBlock(dim, dim), ResidualBlock(dim, dim)])
        self.attentions = module_list([FrameAttention(dim)])

    def step(self, x: Tensor, tape: CacheTape) -> Tensor:
        before, after = self.resnets
        x = before.step(x, tape)
        x = self.attentions[0](x, tape.beside)
        return after.step(x, tape)


class Downsample(nn.Module):
    """Halve space; with `time`, halve time as well, the stream's first frame standing alone."""

    def __init__(self, dim: int, *, time: bool) -> None:
        super().__init__()
        self.resample = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(dim, dim, 3, stride=2))
        self.time_conv = nn.Conv3d(dim, dim, (3, 1, 1), stride=(2, 1, 1)) if time else None

    def step(self, x: Tensor, tape: CacheTape) -> Tensor:
        x = with_rows(partial(per_frame, self.resample), x, tape.beside, above=0)
        if self.time_conv is None:
            return x
        if tape.neighbor is not None:
            return convolve_late(self.time_conv, x, tape.neighbor, history=1, stride=2)
        past = tape.take()
        tape.put(newest(x, 1))
        if past is not None:
            halved: Tensor = self.time_conv(torch.cat([past, x], dim=2))
            return halved
        if x.shape[2] == 1:
            return x
        return torch.cat([x[:, :, :1], self.time_conv(x)], dim=2)


class Upsample(nn.Module):
    """Double space, and with `time` every frame but the stream's first; to `out_dim` channels."""

    def __init__(self, dim: int, out_dim: int, *, time: bool) -> None:
        super().__init__()
        self.resample = nn.Sequential(nn.Identity(), Upsample2xConv(dim, out_dim))
        self.time_conv = CausalConv3d(dim, dim * 2, (3, 1, 1)) if time else None

    def step(self, x: Tensor, tape: CacheTape) -> Tensor:
        if self.time_conv is not None:
            x = self._double_frames(x, self.time_conv, tape)
        return with_rows(partial(per_frame, self.resample), x, tape.beside, scale=2)

    @staticmethod
    def _double_frames(x: Tensor, conv: CausalConv3d, tape: CacheTape) -> Tensor:
        # The stream's first frame neither doubles nor enters the history of those behind it.
        lone, x = (x[:, :, :1], x[:, :, 1:]) if tape.first else (None, x)
        if lone is not None and x.shape[2] == 0:
            tape.put(with_past(x, tape.take(), conv.history))
            return lone
        # The channels' halves are the two frames; channels stay last in memory.
        y = conv.step(x, tape).permute(0, 2, 3, 4, 1).unflatten(4, (2, -1))
        y = y.permute(0, 1, 4, 2, 3, 5).flatten(1, 2).permute(0, 4, 1, 2, 3)
        return y if lone is None else torch.cat([lone, y], dim=2)


class UpBlock(nn.Module):
    """Residual blocks and, but for the last level, an upsampling."""

    def __init__(self, in_dim: int, out_dim: int, blocks: int, upsample: Upsample | None) -> None:
        super().__init__()
        self.resnets = module_list(
            ResidualBlock(in_dim if i == 0 else out_dim, out_dim) for i in range(blocks)
        )
        self.upsamplers = module_list([] if upsample is None else [upsample])

    def step(self, x: Tensor, tape: CacheTape) -> Tensor:
        for block in self.resnets:
            x = block.step(x, tape)
        for upsample in self.upsamplers:
            x = upsample.step(x, tape)
        return x


class ShrinkingLevel(nn.Module):
    """Residual blocks and a downsampling, if any, beside a shortcut: Wan 2.2's encoder."""

    def __init__(
        self, in_dim: int, out_dim: int, blocks: int, downsample: Downsample | None
    ) -> None:
        super().__init__()
        self.channels = out_dim
        self.resnets = module_list(
            ResidualBlock(in_dim if i == 0 else out_dim, out_dim) for i in range(blocks)
        )
        self.downsampler = downsample
        self.time = 1 if downsample is None or downsample.time_conv is None else 2
        self.space = 1 if downsample is None else 2
        check_groups(in_dim * self.time * self.space**2, out_dim)

    def shortcut(self, x: Tensor) -> Tensor:
        """`x` at the size and channels that the level gives."""
        return shrink(x, self.channels, time=self.time, space=self.space)

    def step(self, x: Tensor, tape: CacheTape) -> Tensor:
        shortcut = self.shortcut(x)
        for block in self.resnets:
            x = block.step(x, tape)
        if self.downsampler is not None:
            x = self.downsampler.step(x, tape)
        return x + shortcut


class GrowingLevel(nn.Module):
    """Residual blocks and an upsampling beside a shortcut: Wan 2.2's decoder."""

    def __init__(self, in_dim: int, out_dim: int, blocks: int, upsample: Upsample) -> None:
        super().__init__()
        self.channels = out_dim
        self.resnets = module_list(
            ResidualBlock(in_dim if i == 0 else out_dim, out_dim) for i in range(blocks)
        )
        self.upsampler = upsample
        self.time = 1 if upsample.time_conv is None else 2
        check_groups(out_dim * self.time * 4, in_dim)

    def shortcut(self, x: Tensor, *, first: bool) -> Tensor:
        """`x` at the size and channels that the level gives."""
        return grow(x, self.channels, time=self.time, first=first)

    def step(self, x: Tensor, tape: CacheTape) -> Tensor:
        shortcut = self.shortcut(x, first=tape.first)
        for block in self.resnets:
            x = block.step(x, tape)
        return self.upsampler.step(x, tape) + shortcut

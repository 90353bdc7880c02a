"""The CogVideoX video VAE: 4x in time, 8x8 in space, causal, with its conv caches as state.

A call takes the frames at hand and the caches of the call before (None at the start). The first
frame stands alone in time: it makes one latent frame by itself, and each later latent frame stands
for four. Group norms see all frames of a chunk, so how a clip is cut is part of the result: as in
diffusers chunks are of 2 latent frames (8 of pixels), and what is left over joins the first. A
stream that comes in such chunks equals the clip.

Yang et al., "CogVideoX" (2024), section 2.1; state-dict keys are those of diffusers'
`AutoencoderKLCogVideoX`. In that one parity decides whether a chunk's first frame stands alone,
which is the same for clips of an odd number of latent frames; of an even number it makes three
frames more.

Shapes: B batch, C channels, T latent frames, F pixel frames, H W space.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import InputError
from ...layers.beside import group_norm, with_rows
from ...layers.causal_conv import CacheTape, ConvCaches, convolve_late, newest
from ...layers.chunks import cut
from ...layers.module_list import module_list
from ...layers.per_frame import per_frame
from ...layers.upsample import Upsample2xConv
from .config import CHUNK, CogVideoXVAEConfig

if TYPE_CHECKING:
    from .fused_vae import FusedVAE

EPS = 1e-6
"""Of all norms."""


class CausalConv(nn.Module):
    """A 3D convolution that sees `kernel - 1` earlier frames; before a stream's first frame it sees
    that one, repeated."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 3) -> None:
        super().__init__()
        side = kernel // 2
        self.conv = nn.Conv3d(in_channels, out_channels, kernel, padding=(0, side, side))
        self.history = kernel - 1

    def step(self, x: Tensor, tape: CacheTape) -> Tensor:
        """Convolve `x` `[B, C, T, H, W]` after what the tape holds of its past; T stays."""
        return with_rows(partial(self._convolved, tape=tape), x, tape.beside)

    def _convolved(self, x: Tensor, tape: CacheTape) -> Tensor:
        if tape.neighbor is not None:
            return convolve_late(self.conv, x, tape.neighbor, self.history)
        past = tape.take()
        if past is None:
            past = x[:, :, :1].expand(-1, -1, self.history, -1, -1)
        x = torch.cat([past, x], dim=2)
        tape.put(newest(x, self.history))
        y: Tensor = self.conv(x)
        return y


class GroupNormSiLU(nn.GroupNorm):
    """Group norm over time, space and a group's channels, then SiLU."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__(groups, channels, eps=EPS)

    def step(self, x: Tensor, latents: Tensor | None, tape: CacheTape) -> Tensor:
        """`[B, C, T, H, W]` to the same shape; no latents are looked at."""
        return F.silu(group_norm(x, self, tape.beside), inplace=True)


def spread(y: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
    """`y gain + bias`, each value of the smaller `gain` and `bias` serving its share of neighboring
    frames, rows and columns of `y`; in place, but where graphs are traced, which take copies."""
    if not y.shape[2]:
        return y
    shape, small = list(y.shape[:2]), list(y.shape[:2])
    for large, few in zip(y.shape[2:], gain.shape[2:], strict=True):
        shape += [few, large // few]
        small += [few, 1]
    view, gain, bias = y.view(shape), gain.reshape(small), bias.reshape(small)
    if torch.compiler.is_compiling():
        return (view * gain + bias).reshape(y.shape)
    view.mul_(gain).add_(bias)
    return y


class SpatialNormSiLU(nn.Module):
    """Group norm whose gain and bias are pictures of the latents, then SiLU.

    The 1x1x1 convolutions run before the latents are resized, which is exact.
    """

    def __init__(self, channels: int, latent_channels: int, groups: int) -> None:
        super().__init__()
        self.norm_layer = nn.GroupNorm(groups, channels, eps=EPS)
        self.conv_y = CausalConv(latent_channels, channels, 1)
        self.conv_b = CausalConv(latent_channels, channels, 1)

    def step(self, x: Tensor, latents: Tensor | None, tape: CacheTape) -> Tensor:
        """`x` `[B, C, T, H, W]` under the decoder's input."""
        assert latents is not None
        y = group_norm(x, self.norm_layer, tape.beside)
        gain, bias = self.conv_y.conv(latents), self.conv_b.conv(latents)
        # A chunk's first frame stands alone where the chunk has an odd number of them.
        lone = x.shape[2] % 2 if x.shape[2] > 1 else 0
        parts = [
            spread(y[:, :, part], gain[:, :, part], bias[:, :, part])
            for part in (slice(0, lone), slice(lone, None))
        ]
        if torch.compiler.is_compiling():
            y = torch.cat(parts, dim=2) if lone else parts[1]
        return F.silu(y, inplace=True)


Norm = GroupNormSiLU | SpatialNormSiLU


class Norms:
    """Makes the encoder's norms, or the decoder's, which look at the latents."""

    def __init__(self, groups: int, latent_channels: int | None = None) -> None:
        self.groups, self.latent_channels = groups, latent_channels

    def of(self, channels: int) -> Norm:
        """One of them."""
        if self.latent_channels is None:
            return GroupNormSiLU(channels, self.groups)
        return SpatialNormSiLU(channels, self.latent_channels, self.groups)


class ResidualBlock(nn.Module):
    """norm, SiLU, conv, norm, SiLU, conv, added to the (projected) input."""

    def __init__(self, in_dim: int, out_dim: int, norms: Norms) -> None:
        super().__init__()
        self.norm1 = norms.of(in_dim)
        self.conv1 = CausalConv(in_dim, out_dim)
        self.norm2 = norms.of(out_dim)
        self.conv2 = CausalConv(out_dim, out_dim)
        self.conv_shortcut = nn.Conv3d(in_dim, out_dim, 1) if in_dim != out_dim else nn.Identity()

    def step(self, x: Tensor, latents: Tensor | None, tape: CacheTape) -> Tensor:
        y = self.conv1.step(self.norm1.step(x, latents, tape), tape)
        y = self.conv2.step(self.norm2.step(y, latents, tape), tape)
        shortcut: Tensor = self.conv_shortcut(x)
        return y + shortcut


class Downsample(nn.Module):
    """Halve space; with `time`, first average pairs of frames, a stream's first standing alone."""

    def __init__(self, dim: int, *, time: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, stride=2)
        self.time = time

    def step(self, x: Tensor, tape: CacheTape) -> Tensor:
        if self.time:
            lone, rest = x[:, :, : int(tape.first)], x[:, :, int(tape.first) :]
            x = torch.cat([lone, (rest[:, :, ::2] + rest[:, :, 1::2]) / 2], dim=2)
        return with_rows(partial(per_frame, self._halved), x, tape.beside, above=0)

    def _halved(self, frames: Tensor) -> Tensor:
        y: Tensor = self.conv(F.pad(frames, (0, 1, 0, 1)))
        return y


class Upsample(nn.Module):
    """Double space; with `time`, show each frame twice, but for a stream's first.

    The convolution sees one frame at a time, so it comes before frames are repeated.
    """

    def __init__(self, dim: int, *, time: bool) -> None:
        super().__init__()
        self.conv = Upsample2xConv(dim, dim)
        self.time = time

    def step(self, x: Tensor, tape: CacheTape) -> Tensor:
        x = with_rows(partial(per_frame, self.conv), x, tape.beside, scale=2)
        return repeated(x, first=tape.first) if self.time else x


def repeated(x: Tensor, *, first: bool, dim: int = 2) -> Tensor:
    """Each frame twice, but for the first one of a stream."""
    twice = x.repeat_interleave(2, dim)
    return twice.narrow(dim, int(first), twice.shape[dim] - int(first))


class MidBlock(nn.Module):
    """Two residual blocks at the lowest resolution."""

    def __init__(self, dim: int, norms: Norms) -> None:
        super().__init__()
        self.resnets = module_list(ResidualBlock(dim, dim, norms) for _ in range(2))


class DownBlock(nn.Module):
    """Residual blocks and, but for the last level, a downsampling."""

    def __init__(
        self, in_dim: int, out_dim: int, blocks: int, norms: Norms, down: Downsample | None
    ) -> None:
        super().__init__()
        self.resnets = _resnets(in_dim, out_dim, blocks, norms)
        self.downsamplers = module_list([] if down is None else [down])


class UpBlock(nn.Module):
    """Residual blocks and, but for the last level, an upsampling."""

    def __init__(
        self, in_dim: int, out_dim: int, blocks: int, norms: Norms, up: Upsample | None
    ) -> None:
        super().__init__()
        self.resnets = _resnets(in_dim, out_dim, blocks, norms)
        self.upsamplers = module_list([] if up is None else [up])


def _resnets(in_dim: int, out_dim: int, blocks: int, norms: Norms) -> Sequence[ResidualBlock]:
    return module_list(
        ResidualBlock(in_dim if i == 0 else out_dim, out_dim, norms) for i in range(blocks)
    )


class Encoder(nn.Module):
    """Frames to the mean and log-variance of latents."""

    def __init__(self, config: CogVideoXVAEConfig) -> None:
        super().__init__()
        dims = [config.block_out_channels[0], *config.block_out_channels]
        norms = Norms(config.norm_num_groups)
        self.conv_in = CausalConv(config.in_channels, dims[0])
        self.down_blocks = module_list(
            DownBlock(
                in_dim, out_dim, config.layers_per_block, norms,
                Downsample(out_dim, time=level < config.time_levels)
                if level < config.levels - 1 else None,
            )
            for level, (in_dim, out_dim) in enumerate(pairwise(dims))
        )  # fmt: skip
        self.mid_block = MidBlock(dims[-1], norms)
        self.norm_out = norms.of(dims[-1])
        self.conv_out = CausalConv(dims[-1], 2 * config.latent_channels)

    def step(self, x: Tensor, tape: CacheTape) -> Tensor:
        x = self.conv_in.step(x, tape)
        for level in self.down_blocks:
            for block in level.resnets:
                x = block.step(x, None, tape)
            for down in level.downsamplers:
                x = down.step(x, tape)
        for block in self.mid_block.resnets:
            x = block.step(x, None, tape)
        return self.conv_out.step(self.norm_out.step(x, None, tape), tape)


class Decoder(nn.Module):
    """Latents to frames."""

    def __init__(self, config: CogVideoXVAEConfig) -> None:
        super().__init__()
        widths = config.block_out_channels[::-1]
        dims = [widths[0], *widths]
        norms = Norms(config.norm_num_groups, config.latent_channels)
        self.conv_in = CausalConv(config.latent_channels, dims[0])
        self.mid_block = MidBlock(dims[0], norms)
        self.up_blocks = module_list(
            UpBlock(
                in_dim, out_dim, config.layers_per_block + 1, norms,
                Upsample(out_dim, time=level < config.time_levels)
                if level < config.levels - 1 else None,
            )
            for level, (in_dim, out_dim) in enumerate(pairwise(dims))
        )  # fmt: skip
        self.norm_out = norms.of(dims[-1])
        self.conv_out = CausalConv(dims[-1], config.out_channels)

    def step(self, latents: Tensor, tape: CacheTape) -> Tensor:
        x = self.conv_in.step(latents, tape)
        for block in self.mid_block.resnets:
            x = block.step(x, latents, tape)
        for level in self.up_blocks:
            for block in level.resnets:
                x = block.step(x, latents, tape)
            for up in level.upsamplers:
                x = up.step(x, tape)
        return self.conv_out.step(self.norm_out.step(x, latents, tape), tape)


class CogVideoXVAE(nn.Module):
    """Encoder and decoder, whole or chunk by chunk."""

    cache_time = 2
    """The dim of a cache that counts frames."""

    def __init__(self, config: CogVideoXVAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

    @classmethod
    def from_config(cls, values: Mapping[str, Any]) -> CogVideoXVAE:
        """Build from a diffusers `config.json`, weights not yet set."""
        return cls(CogVideoXVAEConfig.from_dict(values))

    @property
    def channels(self) -> int:
        """Latent channels."""
        return self.config.latent_channels

    @property
    def decoder_memory(self) -> int:
        """Latent frames after which a decoder that starts anew has forgotten that it did.

        Two for each causal convolution at the latent's own rate, of which CogVideoX's decoder has
        13; later ones see several frames in place of one, and their traces are faint.
        """
        blocks = 2 + self.config.layers_per_block + 1  # of two convolutions each
        return 2 * (1 + 2 * blocks)

    @property
    def chunk(self) -> int:
        """Latent frames that go through encoder and decoder together."""
        return CHUNK

    @property
    def temporal_factor(self) -> int:
        """Pixel frames that a latent frame stands for; a stream's first stands for one."""
        return self.config.temporal_compression_ratio

    @property
    def spatial_factor(self) -> int:
        """Pixels of each side that a latent pixel stands for."""
        return self.config.spatial_factor

    def moments(
        self, frames: Tensor, caches: ConvCaches | None = None
    ) -> tuple[Tensor, ConvCaches]:
        """Encode to `[B, 2 C, T, h, w]`: mean and log-variance. Arguments as in `encode`."""
        self.check_frames(frames, first=caches is None)
        return in_chunks(self.encoder.step, frames, CHUNK * self.temporal_factor, caches)

    def check_frames(self, frames: Tensor, *, first: bool) -> None:
        """Raise `InputError` as `encode` does."""
        if frames.ndim != 5 or frames.shape[1] != 3:
            raise InputError(f"frames have shape {tuple(frames.shape)}; wanted [B, 3, F, H, W]")
        factor, count = self.temporal_factor, frames.shape[2]
        if count == 0 or (count - int(first)) % factor:
            rule = f"1 + a multiple of {factor}" if first else f"a multiple of {factor}"
            raise InputError(f"the encoder was given {count} frames; it wants {rule} here")

    def encode(self, frames: Tensor, caches: ConvCaches | None = None) -> tuple[Tensor, ConvCaches]:
        """Frames `[B, 3, F, H, W]` in [-1, 1] to the latents' mean `[B, C, T, h, w]`.

        At a stream's start (`caches` None) F is 1 + 4n and T is 1 + n; later F is 4n and T is n.
        H and W should be multiples of `spatial_factor`. Latents are not normalized. Raises
        `InputError` for another number of frames, or for what are no frames.
        """
        moments, caches = self.moments(frames, caches)
        return moments[:, : self.channels], caches

    def encode_step(self, frames: Tensor, tape: CacheTape) -> Tensor:
        """`encode` of one chunk, with the caches on a tape of the caller's."""
        self.check_frames(frames, first=tape.first)
        return self.encoder.step(frames, tape)[:, : self.channels]

    def decode(
        self, latents: Tensor, caches: ConvCaches | None = None
    ) -> tuple[Tensor, ConvCaches]:
        """Latents `[B, C, T, h, w]`, un-normalized, to frames `[B, 3, F, H, W]` in [-1, 1].

        At a stream's start F is 1 + 4 (T - 1); later it is 4 T. Raises `InputError` for another
        shape.
        """
        self.check_latents(latents)
        frames, caches = in_chunks(self.decoder.step, latents, CHUNK, caches)
        return frames.clamp(-1.0, 1.0), caches

    def decode_step(self, latents: Tensor, tape: CacheTape) -> Tensor:
        """`decode` of one chunk, with the caches on a tape of the caller's."""
        self.check_latents(latents)
        return self.decoder.step(latents, tape).clamp(-1.0, 1.0)

    def check_latents(self, latents: Tensor) -> None:
        """Raise `InputError` as `decode` does."""
        wanted, shape = self.channels, tuple(latents.shape)
        if latents.ndim != 5 or shape[1] != wanted or shape[2] == 0:
            raise InputError(f"latents have shape {shape}; wanted [B, {wanted}, T, h, w]")

    @property
    def picture_scale(self) -> float:
        """1.5's image to video was trained on pictures' latents divided by the factor that others
        are multiplied by."""
        config = self.config
        return config.scaling_factor**-2 if config.invert_scale_latents else 1.0

    def fused(self) -> FusedVAE:
        """The same VAE on Triton's kernels, with the weights as they are now."""
        from .fused_vae import FusedVAE

        return FusedVAE(self)

    def native(self) -> None:
        """The C++ core has no kernels for it."""

    def normalize(self, latents: Tensor) -> Tensor:
        """Un-normalized latents to the DiT's scale."""
        return latents * self.config.scaling_factor

    def denormalize(self, latents: Tensor) -> Tensor:
        """The inverse of `normalize`."""
        return latents / self.config.scaling_factor


def in_chunks(
    step: Callable[[Tensor, CacheTape], Tensor], x: Tensor, size: int, caches: ConvCaches | None
) -> tuple[Tensor, ConvCaches]:
    """Run `step` over the chunks that `x` `[B, C, T, H, W]` is `cut` into, caches going along."""
    parts = []
    for chunk in x.split(cut(x.shape[2], size), dim=2):
        tape = CacheTape(caches)
        parts.append(step(chunk, tape))
        caches = tape.caches()
    assert caches is not None
    return torch.cat(parts, dim=2), caches

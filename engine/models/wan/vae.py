"""Wan's video VAEs, causal, with their conv caches as state.

Wan 2.1's is 4x in time and 8x8 in space. Wan 2.2's is 4x16x16: pixels are folded 2x2 first, and
levels have shortcuts past them (`shortcut.py`).

One code path serves whole clips and streams: a call takes the frames at hand and the caches of the
call before (None at the start). The first frame stands alone in time: it makes one latent frame by
itself, and each later latent frame stands for four. Wan Team, "Wan: Open and Advanced Large-Scale
Video Generative Models" (2025), section 3; state-dict keys are those of diffusers'
`AutoencoderKLWan`.

Shapes: B batch, C channels, T latent frames, F pixel frames, H W space.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...errors import InputError
from ...layers.causal_conv import CacheTape, CausalConv3d, ConvCaches
from ...layers.module_list import module_list
from ...layers.norm import ChannelRMSNorm
from .vae_blocks import (
    Downsample,
    GrowingLevel,
    MidBlock,
    ResidualBlock,
    ShrinkingLevel,
    UpBlock,
    Upsample,
    normed_step,
)
from .vae_config import WanVAEConfig

if TYPE_CHECKING:
    from .fused_vae import FusedVAE
    from .native_vae import NativeVAE


class Encoder(nn.Module):
    """Frames (folded) to the mean and log-variance of latents."""

    def __init__(self, config: WanVAEConfig) -> None:
        super().__init__()
        dims = [config.base_dim * m for m in (1, *config.dim_mult)]
        in_channels = config.in_channels
        self.conv_in = CausalConv3d(in_channels, dims[0], (3, 3, 3))
        times = config.temperal_downsample
        blocks: list[ResidualBlock | Downsample | ShrinkingLevel] = []
        for level, (in_dim, out_dim) in enumerate(pairwise(dims)):
            down = Downsample(out_dim, time=times[level]) if level < len(times) else None
            if config.is_residual:
                blocks.append(ShrinkingLevel(in_dim, out_dim, config.num_res_blocks, down))
                continue
            for i in range(config.num_res_blocks):
                blocks.append(ResidualBlock(in_dim if i == 0 else out_dim, out_dim))
            if down is not None:
                blocks.append(down)
        self.down_blocks = module_list(blocks)
        self.mid_block = MidBlock(dims[-1])
        self.norm_out = ChannelRMSNorm(dims[-1], 3)
        self.conv_out = CausalConv3d(dims[-1], config.z_dim * 2, (3, 3, 3))

    def step(self, x: Tensor, tape: CacheTape) -> Tensor:
        x = self.conv_in.step(x, tape)
        for block in self.down_blocks:
            x = block.step(x, tape)
        x = self.mid_block.step(x, tape)
        return normed_step(self.conv_out, self.norm_out, x, tape)


class Decoder(nn.Module):
    """Latents to frames (folded)."""

    def __init__(self, config: WanVAEConfig) -> None:
        super().__init__()
        base = config.decoder_base_dim or config.base_dim
        mult = config.dim_mult[::-1]
        times = config.temperal_downsample[::-1]
        dims = [base * m for m in (mult[0], *mult)]
        self.conv_in = CausalConv3d(config.z_dim, dims[0], (3, 3, 3))
        self.mid_block = MidBlock(dims[0])
        count = config.num_res_blocks + 1
        blocks: list[UpBlock | GrowingLevel] = []
        for level, (in_dim, out_dim) in enumerate(pairwise(dims)):
            if level == len(times):
                incoming = in_dim if config.is_residual or level == 0 else in_dim // 2
                blocks.append(UpBlock(incoming, out_dim, count, None))
            elif config.is_residual:
                up = Upsample(out_dim, out_dim, time=times[level])
                blocks.append(GrowingLevel(in_dim, out_dim, count, up))
            else:
                up = Upsample(out_dim, out_dim // 2, time=times[level])
                halved = in_dim if level == 0 else in_dim // 2
                blocks.append(UpBlock(halved, out_dim, count, up))
        self.up_blocks = module_list(blocks)
        self.norm_out = ChannelRMSNorm(dims[-1], 3)
        self.conv_out = CausalConv3d(dims[-1], config.out_channels, (3, 3, 3))

    def step(self, x: Tensor, tape: CacheTape) -> Tensor:
        x = self.conv_in.step(x, tape)
        x = self.mid_block.step(x, tape)
        for block in self.up_blocks:
            x = block.step(x, tape)
        return normed_step(self.conv_out, self.norm_out, x, tape)


def fold(x: Tensor, patch: int) -> Tensor:
    """`[B, C, F, H, W]` to `[B, C p p, F, H/p, W/p]`, channel order (c, column, row)."""
    b, c, f, h, w = x.shape
    x = x.reshape(b, c, f, h // patch, patch, w // patch, patch)
    return x.permute(0, 1, 6, 4, 2, 3, 5).reshape(b, -1, f, h // patch, w // patch)


def unfold(x: Tensor, patch: int) -> Tensor:
    """The inverse of `fold`."""
    b, c, f, h, w = x.shape
    x = x.reshape(b, c // patch**2, patch, patch, f, h, w).permute(0, 1, 4, 5, 3, 6, 2)
    return x.reshape(b, c // patch**2, f, h * patch, w * patch)


class WanVAE(nn.Module):
    """Encoder and decoder, whole or chunk by chunk."""

    cache_time = 2
    """The dim of a cache that counts frames."""

    def __init__(self, config: WanVAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.quant_conv = nn.Conv3d(config.z_dim * 2, config.z_dim * 2, 1)
        self.post_quant_conv = nn.Conv3d(config.z_dim, config.z_dim, 1)
        self.decoder = Decoder(config)

    @classmethod
    def from_config(cls, values: Mapping[str, Any]) -> WanVAE:
        """Build from a diffusers `config.json`, weights not yet set."""
        return cls(WanVAEConfig.from_dict(values))

    @property
    def channels(self) -> int:
        """Latent channels."""
        return self.config.z_dim

    @property
    def chunk(self) -> None:
        """Any cut into chunks gives the same."""

    @property
    def decoder_memory(self) -> int:
        """Latent frames after which a decoder that starts anew has forgotten that it did.

        Two for each causal convolution at the latent's own rate, of which Wan's decoder has
        twelve; later ones see several frames in place of one, and their traces are faint.
        """
        times = self.config.temperal_downsample[::-1]
        levels = times.index(True) + 1 if True in times else len(times) + 1
        blocks = 2 + levels * (self.config.num_res_blocks + 1)  # of two convolutions each
        return 2 * (1 + 2 * blocks + 1)

    @property
    def temporal_factor(self) -> int:
        """Pixel frames that a latent frame stands for; a stream's first stands for one."""
        return self.config.temporal_factor

    @property
    def spatial_factor(self) -> int:
        """Pixels of each side that a latent pixel stands for."""
        return self.config.spatial_factor

    def moments(
        self, frames: Tensor, caches: ConvCaches | None = None
    ) -> tuple[Tensor, ConvCaches]:
        """Encode to `[B, 2 z_dim, T, h, w]`: mean and log-variance. Arguments as in `encode`."""
        tape = CacheTape(caches)
        return self._moments(frames, tape), tape.caches()

    def _moments(self, frames: Tensor, tape: CacheTape) -> Tensor:
        moments: Tensor = self.quant_conv(
            self.encoder.step(self.patches(frames, first=tape.first), tape)
        )
        return moments

    def patches(self, frames: Tensor, *, first: bool) -> Tensor:
        """What the encoder's first layer takes, at a stream's start or later.

        Raises `InputError` as `encode` does.
        """
        if frames.ndim != 5 or frames.shape[1] != 3:
            raise InputError(f"frames have shape {tuple(frames.shape)}; wanted [B, 3, F, H, W]")
        factor = self.config.temporal_factor
        _, _, count, height, width = frames.shape
        if count == 0 or (count - int(first)) % factor:
            rule = f"1 + a multiple of {factor}" if first else f"a multiple of {factor}"
            raise InputError(f"the encoder was given {count} frames; it wants {rule} here")
        patch = self.config.patch_size or 1
        step = self.config.spatial_factor if self.config.is_residual else patch
        if height % step or width % step:
            raise InputError(f"frames are {width}x{height}; both must be multiples of {step}")
        return frames if patch == 1 else fold(frames, patch)

    def encode(self, frames: Tensor, caches: ConvCaches | None = None) -> tuple[Tensor, ConvCaches]:
        """Frames `[B, 3, F, H, W]` in [-1, 1] to the latents' mean `[B, z_dim, T, h, w]`.

        At a stream's start (`caches` None) F is 1 + 4n and T is 1 + n; later F is 4n and T is n.
        H and W should be multiples of `config.spatial_factor`. Latents are not normalized.
        Raises `InputError` for another number of frames, or for what are no frames.
        """
        tape = CacheTape(caches)
        return self.encode_step(frames, tape), tape.caches()

    def encode_step(self, frames: Tensor, tape: CacheTape) -> Tensor:
        """`encode`, with the caches on a tape of the caller's."""
        return self._moments(frames, tape)[:, : self.config.z_dim]

    def decode(
        self, latents: Tensor, caches: ConvCaches | None = None
    ) -> tuple[Tensor, ConvCaches]:
        """Latents `[B, z_dim, T, h, w]`, un-normalized, to frames `[B, 3, F, H, W]` in [-1, 1].

        At a stream's start F is 1 + 4 (T - 1); later it is 4 T. Raises `InputError` when the
        latents' channels are not `z_dim`.
        """
        tape = CacheTape(caches)
        return self.decode_step(latents, tape), tape.caches()

    def decode_step(self, latents: Tensor, tape: CacheTape) -> Tensor:
        """`decode`, with the caches on a tape of the caller's."""
        self.check_latents(latents)
        return self.pixels(self.decoder.step(self.post_quant_conv(latents), tape))

    def check_latents(self, latents: Tensor) -> None:
        """Raise `InputError` as `decode` does."""
        z_dim, shape = self.config.z_dim, tuple(latents.shape)
        if latents.ndim != 5 or shape[1] != z_dim:
            raise InputError(f"latents have shape {shape}; wanted [B, {z_dim}, T, h, w]")

    def pixels(self, x: Tensor) -> Tensor:
        """What the decoder's last layer gives, as frames `[B, 3, F, H, W]` in [-1, 1]."""
        if self.config.patch_size:
            x = unfold(x, self.config.patch_size)
        return x.clamp(-1.0, 1.0)

    @property
    def picture_scale(self) -> float:
        """A picture's latents are scaled like others."""
        return 1.0

    def fused(self) -> FusedVAE:
        """The same VAE on Triton's kernels, with the weights as they are now."""
        from .fused_vae import FusedVAE

        return FusedVAE(self)

    def native(self) -> NativeVAE | None:
        """The same VAE on the C++ core's kernels, with the weights as they are now; None where the
        kernels cannot run it."""
        from .native_vae import NativeVAE

        return NativeVAE(self) if NativeVAE.fits(self) else None

    def normalize(self, latents: Tensor) -> Tensor:
        """Un-normalized latents to the DiT's scale, by the config's mean and deviation."""
        mean, std = self._scale(latents)
        return (latents - mean) / std

    def denormalize(self, latents: Tensor) -> Tensor:
        """The inverse of `normalize`."""
        mean, std = self._scale(latents)
        return latents * std + mean

    def _scale(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the latents, as columns beside `like`."""
        mean, std = self.config.latents_mean, self.config.latents_std
        return _column(mean, like.dtype, like.device), _column(std, like.dtype, like.device)


@lru_cache(maxsize=8)
def _column(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """`[1, C, 1, 1, 1]`, kept, so that the device need not wait for it."""
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device).view(1, -1, 1, 1, 1)

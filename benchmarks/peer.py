"""diffusers on the same weights: what a user of the folder would run instead of LiveReel."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from livereel.engine.layers.layout import channels_last

from .baseline_diffusers import leave_control_out

if TYPE_CHECKING:
    from pathlib import Path

    from livereel.engine.config import StreamConfig
    from livereel.engine.types import Frames

# Untyped and, both of them, lazy: naming a class imports it, which is no part of loading weights.
_transformers: Any = import_module("transformers")
_transformers.utils.logging.set_verbosity_error()
_transformers.utils.logging.disable_progress_bar()
_diffusers: Any = import_module("diffusers")
for _name in ("WanPipeline", "FlowMatchEulerDiscreteScheduler"):
    getattr(_diffusers, _name)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How the peer is set up; `Setting()` is how diffusers comes."""

    dtype: str = "float32"
    channels_last: bool = False
    compiled: bool = False

    def __str__(self) -> str:
        """`bfloat16, channels-last, torch.compile`."""
        extras = {"channels-last": self.channels_last, "torch.compile": self.compiled}
        shown = ", ".join([self.dtype, *(name for name, on in extras.items() if on)])
        return f"{shown} (defaults)" if self == DEFAULTS else shown


DEFAULTS = Setting()
EAGER = (
    Setting(channels_last=True),
    Setting(dtype="bfloat16"),
    Setting(dtype="bfloat16", channels_last=True),
)
"""What is tried, beside the defaults, for the peer's best."""


class Peer:
    """diffusers' `WanPipeline` over a model folder."""

    def __init__(self, folder: Path, stream: StreamConfig, setting: Setting = DEFAULTS) -> None:
        self.folder, self.stream, self.setting = folder, stream, setting
        dtype = getattr(torch, setting.dtype)
        self.vae = _diffusers.AutoencoderKLWan.from_pretrained(folder / "vae", torch_dtype=dtype)
        transformer = _diffusers.WanTransformer3DModel.from_pretrained(
            folder / "transformer", torch_dtype=dtype
        )
        leave_control_out(transformer, stream.told_channels)
        if setting.channels_last:
            channels_last(self.vae)
            channels_last(transformer)
        if setting.compiled:
            self.vae.decoder.compile()
            transformer.compile()
        self.pipeline = _diffusers.WanPipeline(
            tokenizer=_transformers.AutoTokenizer.from_pretrained(folder / "tokenizer"),
            text_encoder=_transformers.UMT5EncoderModel.from_pretrained(
                folder / "text_encoder", dtype=dtype
            ),
            vae=self.vae,
            scheduler=_diffusers.FlowMatchEulerDiscreteScheduler(shift=stream.shift),
            transformer=transformer,
        )
        self.pipeline.set_progress_bar_config(disable=True)

    def having(self, setting: Setting) -> Peer:
        """The same folder with other settings."""
        return Peer(self.folder, self.stream, setting)

    def random_latents(self, frames: int, *, seed: int) -> Tensor:
        """Un-normalized latents `[1, C, T, h, w]` in fp32, as wide as real ones, of a clip."""
        config = self.vae.config
        shape = (
            1,
            config.z_dim,
            1 + (frames - 1) // config.scale_factor_temporal,
            self.stream.height // config.scale_factor_spatial,
            self.stream.width // config.scale_factor_spatial,
        )
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        mean, std = (
            torch.tensor(values).view(1, -1, 1, 1, 1)
            for values in (config.latents_mean, config.latents_std)
        )
        return noise * std + mean

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Un-normalized latents `[B, C, T, h, w]` to frames `[B, 3, F, H, W]` in [-1, 1]."""
        frames: Tensor = self.vae.decode(latents.to(self.vae.dtype), return_dict=False)[0]
        return frames

    def clip(self, prompt: str, *, frames: int, passes: int, seed: int) -> Frames:
        """Prompt to uint8 frames `[F, H, W, 3]`: text, Euler steps, VAE, conversion.

        As many steps as `passes` allow: a guided one is two forwards of the DiT.
        """
        guided = self.stream.guidance_scale > 1
        video = self.pipeline(
            prompt,
            width=self.stream.width,
            height=self.stream.height,
            num_frames=frames,
            num_inference_steps=max(1, passes // (2 if guided else 1)),
            guidance_scale=self.stream.guidance_scale,
            generator=torch.Generator().manual_seed(seed),
            max_sequence_length=self.stream.max_sequence_length,
        ).frames[0]
        result: Frames = (video * 255.0).round().astype(np.uint8)
        return result

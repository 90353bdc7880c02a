"""Runs a model's parts with torch: text encoder, DiT and VAE, each in its dtype on one device.

Shapes: B batch, C channels, T latent frames, F pixel frames, H W space, L tokens, D text width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from ..checkpoint.folder import ModelFolder
from ..checkpoint.load import load_component
from ..errors import CheckpointError, InputError, ResourceError
from ..layers.layout import channels_last
from ..layers.road import pick_road
from ..sampling.gathered import Gathered
from ..sampling.stream import StreamSampler
from ..text.encoder import TextEncoder
from ..types import VAE, StreamDenoiser, Transformer

if TYPE_CHECKING:
    from ..config import StreamConfig
    from ..layers.causal_conv import ConvCaches
    from ..layers.road import Road

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_DEVICES = "wanted auto, cpu, cuda or cuda:N"


def pick_device(device: str) -> torch.device:
    """ "auto" is the GPU where there is one. Raises `InputError` or `ResourceError` otherwise."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        picked = torch.device(device)
    except RuntimeError as error:
        raise InputError(f"device {device!r} is unknown; {_DEVICES}") from error
    if picked.type not in ("cpu", "cuda"):
        raise InputError(f"device {device!r} is not supported; {_DEVICES}")
    if picked.type == "cuda" and (picked.index or 0) >= torch.cuda.device_count():
        found = torch.cuda.device_count()
        raise ResourceError(f"device {device!r} was asked for; {found} GPUs found")
    return picked


def pick_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """ "auto" is bfloat16 where the chip multiplies it natively, else float32."""
    if dtype == "auto":
        native = device.type == "cuda" or torch.cpu._is_avx512_bf16_supported()
        return torch.bfloat16 if native else torch.float32
    if dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r} is unknown; wanted auto, {', '.join(DTYPES)}")
    return DTYPES[dtype]


@dataclass(frozen=True)
class TorchRunner:
    """A loaded model. `dtype` is what the DiT and the VAE compute in.

    `denoiser` is the DiT as streams run it, on the road that was chosen.
    """

    transformer: Transformer
    denoiser: StreamDenoiser
    vae: VAE
    text_encoder: TextEncoder
    device: torch.device
    dtype: torch.dtype
    road: Road

    @classmethod
    def load(
        cls, folder: ModelFolder, *, device: torch.device, dtype: torch.dtype, road: str = "auto"
    ) -> TorchRunner:
        """Read the parts of a model folder, to run them on `road` (see `pick_road`).

        Raises `CheckpointError` for what does not fit, and what `pick_road` raises.
        """
        taken = pick_road(road, device, dtype)
        transformer = load_component(folder, "transformer", device=device, dtype=dtype)
        vae = load_component(folder, "vae", device=device, dtype=dtype)
        channels_last(vae)
        text = TextEncoder.load(folder.path, device=device, dtype=dtype)
        runner = cls.on_road(
            taken, cast(Transformer, transformer), cast(VAE, vae), text, device, dtype
        )
        for what, wanted, found in (
            ("latent channels from the VAE", runner.transformer.channels, runner.vae.channels),
            ("numbers a token from the text encoder", runner.transformer.text_width, text.width),
        ):
            if wanted != found:
                raise CheckpointError(
                    f"{folder.path}: the transformer wants {wanted} {what}, which gives {found}"
                )
        return runner

    @classmethod
    def on_road(
        cls, road: Road, transformer: Transformer, vae: VAE, text_encoder: TextEncoder,
        device: torch.device, dtype: torch.dtype,
    ) -> TorchRunner:  # fmt: skip
        """A model of these parts, each on `road` where its shapes allow it."""
        denoiser: StreamDenoiser | None = None
        if road == "triton":
            denoiser = transformer.in_ring()
        denoiser = denoiser or Gathered(transformer)
        return cls(transformer, denoiser, vae, text_encoder, device, dtype, road)

    def sampler(self, config: StreamConfig, width: int, height: int) -> StreamSampler:
        """The streaming loop over this model, for pictures of `width` x `height` pixels."""
        factor = self.vae.spatial_factor
        return StreamSampler(
            denoiser=self.denoiser,
            config=config,
            channels=self.transformer.channels,
            size=(height // factor, width // factor),
            device=self.device,
            dtype=self.dtype,
            warm_up=self.vae.decoder_memory,
        )

    def encode_text(self, prompt: str, length: int) -> Tensor:
        """The prompt's embedding `[1, L, D]`, zero-padded to L = `length`."""
        return self.text_encoder.encode([prompt], length).to(self.dtype)

    def encode(self, frames: Tensor, caches: ConvCaches | None = None) -> tuple[Tensor, ConvCaches]:
        """Frames `[B, 3, F, H, W]` in [-1, 1] to normalized fp32 latents, and the conv caches."""
        latents, caches = self.vae.encode(self.ready(frames), caches)
        return self.vae.normalize(latents.float()), caches

    def decode(
        self, latents: Tensor, caches: ConvCaches | None = None
    ) -> tuple[Tensor, ConvCaches]:
        """Normalized latents `[B, C, T, H, W]` to frames `[B, 3, F, H, W]` in [-1, 1]."""
        return self.vae.decode(self.ready(self.vae.denormalize(latents.float())), caches)

    def cache_shapes(self, height: int, width: int) -> list[tuple[int, ...]]:
        """The shapes of the decoder's caches for latents of that size.

        Found on a latent of a single pixel, with which caches grow.
        """
        pixel = torch.zeros(1, self.vae.channels, 1, 1, 1)
        shapes = (cache.shape for cache in self.decode(pixel)[1])
        return [(*shape[:3], shape[3] * height, shape[4] * width) for shape in shapes]

    def ready(self, x: Tensor) -> Tensor:
        """Frames or latents `[B, C, T, H, W]` on the device, in the dtype and layout of the VAE.

        Raises `InputError` for a tensor of other than five dimensions.
        """
        if x.ndim != 5:
            raise InputError(f"frames or latents have five dimensions, got {tuple(x.shape)}")
        x = x.to(self.device, self.dtype)
        return x.contiguous(memory_format=torch.channels_last_3d)

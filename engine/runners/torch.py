"""Runs a model's parts with torch: text encoder, DiT and VAE, each in its dtype on one device.

Shapes: B batch, C channels, T latent frames, F pixel frames, H W space, L tokens, D text width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from livereel.kernels.to_pixels import to_pixels, to_pixels_reference

from ..checkpoint.folder import ModelFolder
from ..checkpoint.load import load_component
from ..errors import CheckpointError, InputError, ResourceError
from ..layers.layout import channels_last
from ..layers.packed import to_bytes as to_bytes_natively
from ..layers.road import pick_road
from ..models.clip.vision import ImageEncoder
from ..models.taehv.decoder import TinyDecoder, TinyVAE
from ..sampling.gathered import Gathered
from ..sampling.goal import channels as goal_channels
from ..sampling.schedule import TRAIN_TIMESTEPS
from ..sampling.stream import StreamSampler
from ..sampling.windowed import Windowed
from ..text.encoder import TextEncoder
from ..types import VAE, ClipTransformer, LoadedVAE, StreamDenoiser
from .gpu import CudaGpu
from .makers import GraphedMaker, Maker

if TYPE_CHECKING:
    from collections.abc import Collection

    from ..config import StreamConfig
    from ..layers.causal_conv import ConvCaches
    from ..layers.road import Road
    from ..models.wan.in_ring import InRing
    from ..types import Frames

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
FP8 = "fp8"
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
    """ "auto" is bfloat16 where the chip multiplies it natively, else float32; "fp8" is bfloat16
    for all but the DiT's large products. Raises `InputError` for a name that is none, and
    `ResourceError` for a GPU without fp8."""
    if dtype == FP8:
        _check_fp8(device)
        return torch.bfloat16
    if dtype == "auto":
        native = device.type == "cuda" or torch.cpu._is_avx512_bf16_supported()
        return torch.bfloat16 if native else torch.float32
    if dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r} is unknown; wanted auto, {', '.join(DTYPES)}, {FP8}")
    return DTYPES[dtype]


def _check_fp8(device: torch.device) -> None:
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (9, 0):
        raise ResourceError(
            f"dtype {FP8!r} wants a Hopper GPU (H100) or a newer one; {device} is a "
            f"{torch.cuda.get_device_name(device)}"
        )


@dataclass(frozen=True)
class TorchRunner:
    """A loaded model. `dtype` is what the DiT and the VAE compute in.

    `low_noise` is a second DiT, which takes over from `transformer` below timestep `boundary`, and
    `image_encoder` makes tokens of pictures for a DiT that reads such; most models have neither.
    `denoiser` is the DiT as streams run it, `vae` the VAE and `to_bytes` what makes of its floats
    `[B, 3, F, H, W]` bytes `[B, F, H, W, 3]`, all on the road that was chosen. `parts_at_once` of
    a whole clip go through the VAE together, where several devices share it.
    On a GPU streams replay `graphs` where the DiT works in the ring.
    """

    transformer: ClipTransformer
    denoiser: StreamDenoiser
    vae: VAE
    text_encoder: TextEncoder
    device: torch.device
    dtype: torch.dtype
    road: Road
    to_bytes: Callable[[Tensor], Tensor]
    graphs: bool = True
    low_noise: ClipTransformer | None = None
    boundary: float = 0.0
    image_encoder: ImageEncoder | None = None
    picture_scale: float = 1.0
    parts_at_once: int = 1

    @classmethod
    def load(
        cls, folder: ModelFolder, *, device: torch.device, dtype: torch.dtype, road: str = "auto",
        fp8: bool = False, keep: Collection[str] = (),
    ) -> TorchRunner:  # fmt: skip
        """Read the parts of a model folder, to run them on `road` (see `pick_road`).

        With `fp8` the DiT's linear layers are, but for its `keep_in_bf16` and those that `keep`
        names. Raises `CheckpointError` for what does not fit, and what `pick_road` and
        `convert_linears` raise.
        """
        taken = pick_road(road, device, dtype)

        def load_dit(name: str) -> nn.Module:
            dit = load_component(folder, name, device=device, dtype=dtype)
            if fp8:
                from ..layers.linear_fp8 import convert_linears

                kept = {*cast(ClipTransformer, dit).keep_in_bf16, *keep}
                convert_linears(dit, keep=kept, road=taken)
            return dit

        transformer = load_dit("transformer")
        vae = load_component(folder, "vae", device=device, dtype=dtype)
        channels_last(vae)
        text = TextEncoder.load(folder.path, device=device, dtype=dtype)
        runner = cls.on_road(
            taken, cast(ClipTransformer, transformer), cast(LoadedVAE, vae), text, device, dtype
        )
        if "transformer_2" in folder.classes:
            second = load_dit("transformer_2")
            boundary = (folder.boundary_ratio or 0.0) * TRAIN_TIMESTEPS
            runner = replace(runner, low_noise=cast(ClipTransformer, second), boundary=boundary)
        if "image_encoder" in folder.classes:
            pictures = ImageEncoder.load(folder, device=device, dtype=dtype)
            runner = replace(runner, image_encoder=pictures)
        width = None if runner.image_encoder is None else runner.image_encoder.width
        for what, wanted, found in (
            ("latent channels from the VAE", runner.transformer.channels, runner.vae.channels),
            ("numbers a token from the text encoder", runner.transformer.text_width, text.width),
            ("numbers a token from the image encoder", runner.transformer.image_width, width),
        ):
            if wanted != found and wanted is not None:
                raise CheckpointError(
                    f"{folder.path}: the transformer wants {wanted} {what}, which gives {found}"
                )
        return runner

    @classmethod
    def on_road(
        cls, road: Road, transformer: ClipTransformer, vae: LoadedVAE, text_encoder: TextEncoder,
        device: torch.device, dtype: torch.dtype,
    ) -> TorchRunner:  # fmt: skip
        """A model of these parts, each on `road` where its shapes allow it."""
        denoiser: StreamDenoiser | None = None
        codec: VAE = vae
        to_bytes: Callable[[Tensor], Tensor] = to_pixels_reference
        if road == "triton":
            denoiser, codec, to_bytes = transformer.in_ring(), vae.fused(), to_pixels
        if road == "native":
            if (dit := transformer.native()) is not None:
                denoiser = Gathered(dit)
            if (fast := vae.native()) is not None:
                codec, to_bytes = fast, to_bytes_natively
        if denoiser is None:
            cached = transformer.cached()
            denoiser = Windowed(transformer) if cached is None else Gathered(cached)
        return cls(
            transformer, denoiser, codec, text_encoder, device, dtype, road, to_bytes,
            picture_scale=vae.picture_scale,
        )  # fmt: skip

    def with_decoder(self, path: Path) -> TorchRunner:
        """The same model with the tiny decoder of this file or folder in place of the VAE's own.

        Raises `CheckpointError` for what is none, or not for this VAE's latents.
        """
        decoder = TinyDecoder.load(path, device=self.device, dtype=self.dtype)
        to_bytes = self.to_bytes if self.road == "triton" else to_pixels_reference
        return replace(self, vae=TinyVAE(self.vae, decoder), to_bytes=to_bytes)

    @property
    def modules(self) -> nn.ModuleDict:
        """The DiTs, by the names of their folders."""
        found = {"transformer": self.transformer, "transformer_2": self.low_noise}
        return nn.ModuleDict({k: cast(nn.Module, v) for k, v in found.items() if v is not None})

    def refresh(self) -> None:
        """Make anew, after the DiT's weights have changed, what has copies of them."""
        if self.road == "native" and isinstance(self.denoiser, Gathered):
            native = self.transformer.native()
            if native is not None:
                self.denoiser.denoiser = native
        if self.denoiser.in_place and self.device.type == "cpu":
            cast("InRing", self.denoiser).join()  # a GPU's weights are changed in place

    @property
    def layout(self) -> str:
        """How the ring and the caches of a stream lie in memory: that of "torch", or "triton"'s,
        or with the caches of a tiny decoder."""
        road = "triton" if self.road == "triton" else "torch"
        return f"{road}, tiny" if isinstance(self.vae, TinyVAE) else road

    def sampler(self, config: StreamConfig, width: int, height: int) -> StreamSampler:
        """The streaming loop over this model, for pictures of `width` x `height` pixels.

        Raises `InputError` for a DiT that is shown pictures in each pass, and for two DiTs: no
        stream has these.
        """
        wanted = self.transformer.condition_channels
        if wanted and not config.told_channels:
            raise InputError("this model starts from pictures: it makes whole clips, not streams")
        if self.low_noise is not None:
            raise InputError("this model has two DiTs: it makes whole clips, not streams")
        frames = self.vae.temporal_factor
        control, goal = config.control_channels, config.goal_channels
        arrival = goal_channels(self.transformer.channels, frames)
        fits = control in (0, frames) and goal in (0, arrival)
        if not fits or wanted != config.told_channels:
            raise InputError(
                f"livereel.json has {control} control_channels and {goal} goal_channels; the "
                f"transformer takes {wanted}, and wanted are {frames} and {arrival}, or 0"
            )
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

    def maker(self, sampler: StreamSampler) -> Maker:
        """What makes a session's chunks."""
        if self.graphs and self.device.type == "cuda" and self.denoiser.in_place:
            return GraphedMaker(self, sampler, CudaGpu(self.device))
        return Maker(self, sampler)

    def encode_text(self, prompt: str, length: int) -> Tensor:
        """The prompt's embedding `[1, L, D]`, zero-padded to L = `length`."""
        return self.text_encoder.encode([prompt], length).to(self.dtype)

    def encode(self, frames: Tensor, caches: ConvCaches | None = None) -> tuple[Tensor, ConvCaches]:
        """Frames `[B, 3, F, H, W]` in [-1, 1] to normalized fp32 latents, and the conv caches."""
        latents, caches = self.vae.encode(self.ready(frames), caches)
        return self.vae.normalize(latents.float()), caches

    def encode_picture(
        self, frames: Tensor, caches: ConvCaches | None = None
    ) -> tuple[Tensor, ConvCaches]:
        """As `encode`, scaled for a DiT that takes pictures' latents behind its own."""
        latents, caches = self.encode(frames, caches)
        return latents * self.picture_scale, caches

    def decode(
        self, latents: Tensor, caches: ConvCaches | None = None
    ) -> tuple[Tensor, ConvCaches]:
        """Normalized latents `[B, C, T, H, W]` to frames `[B, 3, F, H, W]` in [-1, 1]."""
        return self.vae.decode(self.ready(self.vae.denormalize(latents.float())), caches)

    def frames(self, decoded: Tensor) -> Frames:
        """What `decode` gave for one stream, as uint8 `[F, H, W, 3]` on the host."""
        pixels: Frames = self.to_bytes(decoded)[0].cpu().numpy()
        return pixels

    def cache_shapes(self, height: int, width: int) -> list[tuple[int, ...]]:
        """The shapes of the decoder's caches for latents of that size.

        Found on latents of a pixel or two: each side of a cache is a multiple of one of theirs, and
        perhaps a constant more.
        """
        one, tall, wide = (self._cache_shapes(*size) for size in ((1, 1), (2, 1), (1, 2)))
        return [
            tuple(
                a + (height - 1) * (b - a) + (width - 1) * (c - a)
                for a, b, c in zip(*shapes, strict=True)
            )
            for shapes in zip(one, tall, wide, strict=True)
        ]

    def _cache_shapes(self, height: int, width: int) -> list[torch.Size]:
        latents = torch.zeros(1, self.vae.channels, 1, height, width)
        return [cache.shape for cache in self.decode(latents)[1]]

    def ready(self, x: Tensor) -> Tensor:
        """Frames or latents `[B, C, T, H, W]` on the device, in the dtype and layout of the VAE.

        Raises `InputError` for a tensor of other than five dimensions.
        """
        if x.ndim != 5:
            raise InputError(f"frames or latents have five dimensions, got {tuple(x.shape)}")
        x = x.to(self.device, self.dtype)
        return x.contiguous(memory_format=torch.channels_last_3d)

"""What the engine and its sessions need of a loaded model, whoever executes its parts.

Shapes: B batch, C channels, T latent frames, F pixel frames, H W space, L tokens, D text width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ..config import StreamConfig
    from ..layers.causal_conv import ConvCaches
    from ..sampling.stream import StreamSampler
    from ..text.encoder import TextEncoder
    from ..types import KV, VAE, Frames, StreamDenoiser
    from .makers import Maker


class Reader(Protocol):
    """A DiT as far as prompts and picture sizes go."""

    def text_kv(self, text: Tensor) -> KV:
        """Text `[B, L, D]` to the keys and values that cross-attention reads."""

    @property
    def spatial_patch(self) -> int:
        """Height and width of the latent must be multiples of this."""


class Runner(Protocol):
    """A loaded model that streams."""

    @property
    def device(self) -> torch.device:
        """Where it runs."""

    @property
    def dtype(self) -> torch.dtype:
        """What the DiT and the VAE compute in."""

    @property
    def layout(self) -> str:
        """How the ring and the caches of a stream lie in memory: that of "torch", or "triton"'s."""

    @property
    def transformer(self) -> Reader:
        """The DiT."""

    @property
    def denoiser(self) -> StreamDenoiser:
        """The DiT as streams run it."""

    @property
    def vae(self) -> VAE:
        """The VAE."""

    @property
    def text_encoder(self) -> TextEncoder:
        """Prompts to embeddings."""

    @property
    def to_bytes(self) -> Callable[[Tensor], Tensor]:
        """What makes of the VAE's floats `[B, 3, F, H, W]` bytes `[B, F, H, W, 3]`."""

    def sampler(self, config: StreamConfig, width: int, height: int) -> StreamSampler:
        """The streaming loop over this model, for pictures of `width` x `height` pixels."""

    def maker(self, sampler: StreamSampler) -> Maker:
        """What makes a session's chunks."""

    def encode_text(self, prompt: str, length: int) -> Tensor:
        """The prompt's embedding `[1, L, D]`, zero-padded to L = `length`."""

    def encode(self, frames: Tensor, caches: ConvCaches | None = None) -> tuple[Tensor, ConvCaches]:
        """Frames `[B, 3, F, H, W]` in [-1, 1] to normalized fp32 latents, and the conv caches."""

    def decode(
        self, latents: Tensor, caches: ConvCaches | None = None
    ) -> tuple[Tensor, ConvCaches]:
        """Normalized latents `[B, C, T, H, W]` to frames `[B, 3, F, H, W]` in [-1, 1]."""

    def frames(self, decoded: Tensor) -> Frames:
        """What `decode` gave for one stream, as uint8 `[F, H, W, 3]` on the host."""

    def cache_shapes(self, height: int, width: int) -> list[tuple[int, ...]]:
        """The shapes of the decoder's caches for latents of that size."""

    def ready(self, x: Tensor) -> Tensor:
        """Frames or latents `[B, C, T, H, W]` as the VAE takes them.

        Raises `InputError` for a tensor of other than five dimensions.
        """

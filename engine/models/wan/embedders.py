"""What the Wan DiT is told besides its latents: timesteps, text, and an image's tokens.

State-dict keys are those of diffusers' `WanTransformer3DModel`.

Shapes: B batch, T latent frames, L text tokens, M image tokens, D hidden width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import InputError
from ...layers.modulate import layer_norm

if TYPE_CHECKING:
    from .transformer import WanTransformerConfig


def gelu(x: Tensor) -> Tensor:
    """GELU, by its tanh approximation."""
    return F.gelu(x, approximate="tanh")


class TwoLayers(nn.Module):
    """Linear, activation, Linear (module names as in checkpoints)."""

    def __init__(self, inside: int, outside: int, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(inside, outside)
        self.linear_2 = nn.Linear(outside, outside)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear_2(self.activation(self.linear_1(x)))
        return y


class Activated(nn.Module):
    """Linear, then exact GELU (module names as in checkpoints)."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.proj = nn.Linear(inside, outside)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.proj(x))


class Projection(nn.Module):
    """Linear, GELU, Linear (module names as in checkpoints)."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            Activated(inside, inside), nn.Identity(), nn.Linear(inside, outside)
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.net(x)
        return y


class ImageEmbedder(nn.Module):
    """CLIP's tokens to the DiT's width; those of two images get a table of `length` places."""

    def __init__(self, inside: int, outside: int, length: int | None) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(inside)
        self.ff = Projection(inside, outside)
        self.norm2 = nn.LayerNorm(outside)
        self.pos_embed = None if length is None else nn.Parameter(torch.zeros(1, length, inside))

    def forward(self, x: Tensor) -> Tensor:
        """`[B, M, inside]` to `[B, M, outside]`; `InputError` for another M than `length`."""
        if self.pos_embed is not None:
            if x.shape[1] != self.pos_embed.shape[1]:
                raise InputError(
                    f"the model takes {self.pos_embed.shape[1]} tokens of a first and a last image "
                    f"together, got {x.shape[1]}"
                )
            x = x + self.pos_embed
        y = self.ff(_normed(self.norm1, x))
        return _normed(self.norm2, y)


def _normed(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    return layer_norm(x, norm.weight, norm.bias, norm.eps)


class ConditionEmbedder(nn.Module):
    """Timesteps and text to what the blocks take."""

    def __init__(self, config: WanTransformerConfig) -> None:
        super().__init__()
        self.freq_dim, self.image_dim = config.freq_dim, config.image_dim
        self.time_embedder = TwoLayers(config.freq_dim, config.width, F.silu)
        self.time_proj = nn.Linear(config.width, config.width * 6)
        self.text_embedder = TwoLayers(config.text_dim, config.width, gelu)
        if config.image_dim is not None:
            self.image_embedder = ImageEmbedder(
                config.image_dim, config.width, config.pos_embed_seq_len
            )

    def time(self, timestep: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """`[B, 1 or T]` to the embedding `[B, 1 or T, D]` and the modulation `[.., 6, D]`."""
        half = self.freq_dim // 2
        ramp = torch.arange(half, dtype=torch.float32, device=timestep.device) / half
        angles = timestep.float().unsqueeze(-1) * torch.exp(-math.log(10000.0) * ramp)
        waves = torch.cat([angles.cos(), angles.sin()], dim=-1)
        embedding: Tensor = self.time_embedder(waves.to(self.time_embedder.linear_1.weight.dtype))
        embedding = embedding.to(dtype)
        modulation: Tensor = self.time_proj(F.silu(embedding))
        return embedding, modulation.reshape(*embedding.shape[:-1], 6, -1)

    def text(self, text: Tensor) -> Tensor:
        """`[B, L, text_dim]` to `[B, L, D]`."""
        y: Tensor = self.text_embedder(text)
        return y

    def image(self, image: Tensor) -> Tensor:
        """`[B, M, image_dim]` to `[B, M, D]`. Raises `InputError` for another number of tokens or
        width than the model takes."""
        if self.image_dim is None or image.shape[-1] != self.image_dim:
            raise InputError(
                f"an image's tokens are {image.shape[-1]} wide; the model takes {self.image_dim}"
            )
        y: Tensor = self.image_embedder(image)
        return y

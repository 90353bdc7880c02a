"""One pass of the Wan DiT over a chunk of a fixed shape, with its past as tensors.

What exported graphs compute: the place of every latent frame is data, so that one graph serves a
stream from its second chunk on.

Shapes: C channels, P latent frames of the past, T of the chunk, H W latent space, n tokens a frame,
L text tokens, h heads, d head width; batch 1.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ...layers.rope import RopeTable, rotate
from ...types import LayerKV

if TYPE_CHECKING:
    from .transformer import WanTransformer


class WanStep(nn.Module):
    """`WanTransformer.chunk` over a past whose frames may lie in any order, or be missing."""

    time_cos: Tensor
    time_sin: Tensor
    space_cos: Tensor
    space_sin: Tensor

    def __init__(
        self, model: WanTransformer, past: int, frames: int, height: int, width: int
    ) -> None:
        super().__init__()
        self.model = model
        self.past = past
        self.kv_shape = model.kv_shape(height, width)
        _, _, _, head_dim = self.kv_shape
        in_time = head_dim - 4 * (head_dim // 6)
        _, patch_h, patch_w = model.config.patch_size
        cpu = torch.device("cpu")
        time = model.rope(0, past + frames, patch_h, patch_w, cpu)
        space = model.rope(0, 1, height, width, cpu)
        for name in ("cos", "sin"):
            self.register_buffer(f"time_{name}", getattr(time, name)[..., :in_time])
            self.register_buffer(f"space_{name}", getattr(space, name)[:, 0, in_time:].unsqueeze(0))

    def forward(
        self, latent: Tensor, timestep: Tensor, text_k: Tensor, text_v: Tensor, past_k: Tensor,
        past_v: Tensor, positions: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """Flow of the latents' shape, fp32, and the chunk's own keys, not rotated, and values.

        `latent` `[1, C, T, H, W]` fp32, `timestep` `[1]` on 0..1000, `text_k`, `text_v`
        `[layers, L, h, d]`, `past_k`, `past_v` `[layers, P, n, h, d]`. `positions` `[P + T]` has
        the place of each latent frame, those of the past first: 0 is the oldest one seen, and -1
        one that is not there. Gives keys and values `[layers, T, n, h, d]`.
        """
        model = self.model
        tokens = self.kv_shape[1]
        rope = self._rope(positions)
        seen, own_rope = _split(rope, self.past * tokens)
        missing = torch.where(positions < 0, -math.inf, 0.0).to(model.dtype)
        bias = missing.unsqueeze(1).expand(-1, tokens).reshape(-1)
        x = model.tokens(latent)
        embedding, modulation = model.condition_embedder.time(timestep.unsqueeze(1), model.dtype)
        own: list[LayerKV] = []
        for i, block in enumerate(model.blocks):
            text = LayerKV(text_k[i : i + 1], text_v[i : i + 1])
            past = None
            if self.past:
                k, v = (one[i : i + 1].flatten(1, 2) for one in (past_k, past_v))
                past = LayerKV(rotate(k, seen), v)
            x, kv = block(x, modulation, text, own_rope, past, bias)
            own.append(kv)
        k, v = (
            torch.cat(parts).unflatten(1, (-1, tokens))
            for parts in ([kv.k for kv in own], [kv.v for kv in own])
        )
        return model.head(x, embedding, *latent.shape[3:]).float(), k, v

    def _rope(self, positions: Tensor) -> RopeTable:
        """Rotations of all tokens, in the frames' order."""
        at = positions.clamp_min(0)
        tables = []
        for time, space in ((self.time_cos, self.space_cos), (self.time_sin, self.space_sin)):
            frames, tokens = len(at), space.shape[1]
            in_time = time.index_select(0, at).expand(-1, tokens, -1)
            in_space = space.expand(frames, -1, -1)
            tables.append(torch.cat([in_time, in_space], dim=-1).flatten(0, 1).unsqueeze(1))
        return RopeTable(*tables)


def _split(rope: RopeTable, first: int) -> tuple[RopeTable, RopeTable]:
    """The rotations of the `first` tokens, and of the others."""
    return (
        RopeTable(rope.cos[:first], rope.sin[:first]),
        RopeTable(rope.cos[first:], rope.sin[first:]),
    )

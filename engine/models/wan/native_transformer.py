"""The Wan DiT on the C++ core's kernels: bfloat16, on a CPU.

The same function as `transformer.WanTransformer`, with copies of its weights. Activations are rows
of all tokens; residual sums are made in place.

Shapes: B batch, C channels, T latent frames, n tokens a frame, N = T n tokens, D hidden width,
h heads, d head width, G groups of rows that share a timestep (B, or B T).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from torch import Tensor, nn

from ...layers.packed import (
    PackedLinear,
    affordable,
    attention,
    floats,
    norm_modulate,
    qk_norm_rotate,
    rms_norm,
    rotate,
    torch_in_one_thread,
)
from ...layers.rope import RopeTable
from ...types import KV, LayerKV, Past

if TYPE_CHECKING:
    from . import blocks
    from .transformer import WanTransformer

_LEVELS = 32
"""Noise levels whose modulation is kept; a stream comes back to the same few."""


@dataclass(frozen=True)
class Level:
    """What a timestep makes of the gains: `[6, G, D]` for each block, `[2, G, D]` at the end."""

    blocks: tuple[Tensor, ...]
    last: Tensor


class Begun(NamedTuple):
    """A pass as far as it does not hang on the text: past the first block's self-attention.

    `x` are the rows, `own` the chunk's keys and values there; the rest is what it was given.
    """

    latents: Tensor
    past: Past | None
    level: Level
    x: Tensor
    own: LayerKV


class Block:
    """Self-attention, cross-attention to the text, feed-forward; AdaLN from the timestep."""

    def __init__(self, block: blocks.Block) -> None:
        own, cross = block.attn1, block.attn2
        self.eps, self.heads = block.eps, own.heads
        self.qkv = PackedLinear(own.to_q, own.to_k, own.to_v)
        self.q_gain, self.k_gain = floats(own.norm_q.weight), floats(own.norm_k.weight)
        self.out = PackedLinear(own.to_out[0])
        self.cross_q, self.cross_gain = PackedLinear(cross.to_q), floats(cross.norm_q.weight)
        self.cross_out = PackedLinear(cross.to_out[0])
        norm = block.norm2
        self.norm2 = (
            None if isinstance(norm, nn.Identity) else (floats(norm.weight), floats(norm.bias))
        )
        inner, _, outer = block.ffn.net
        self.up = PackedLinear(cast("blocks.LinearGELU", inner).proj)
        self.down = PackedLinear(cast(nn.Linear, outer))

    def project(
        self, x: Tensor, batch: int, level: Tensor, rope: RopeTable
    ) -> tuple[Tensor, LayerKV, Tensor]:
        """Rotated queries, keys and values, and rotated keys of `[B N, D]`; `[B, N, h, d]` each."""
        qkv = self.qkv(norm_modulate(x, level[1], level[0], self.eps))
        q, k, rotated = qk_norm_rotate(qkv, self.q_gain, self.k_gain, self.eps, rope)
        shape = (batch, len(x) // batch, self.heads, -1)
        v = qkv.view(*shape[:2], 3 * self.heads, -1)[:, :, 2 * self.heads :]
        return q.view(shape), LayerKV(k.view(shape), v), rotated.view(shape)

    def add_attention(
        self,
        x: Tensor,
        q: Tensor,
        own: LayerKV,
        level: Tensor,
        past: LayerKV | None,
    ) -> None:
        """Add what `q` finds in the past and in the chunk's `own` keys, which are rotated."""
        y = torch.empty_like(q)
        for i in range(len(q)):
            keys, values = [own.k[i]], [own.v[i]]
            if past is not None:
                keys, values = [past.k[i], *keys], [past.v[i], *values]
            attention(q[i], keys, values, y[i])
        self.out.add_to(x, y.view(x.shape), level[2])

    def add_rest(self, x: Tensor, level: Tensor, text: LayerKV) -> None:
        """Add cross-attention and feed-forward."""
        y = x if self.norm2 is None else norm_modulate(x, *self.norm2, self.eps, offset=0.0)
        q = rms_norm(self.cross_q(y), self.cross_gain, self.eps)
        q = q.view(len(text.k), -1, *text.k.shape[2:])
        y = torch.empty_like(q)
        for i in range(len(q)):
            attention(q[i], [text.k[i]], [text.v[i]], y[i])
        self.cross_out.add_to(x, y.view(x.shape))
        y = self.up(norm_modulate(x, level[4], level[3], self.eps), gelu=True)
        self.down.add_to(x, y, level[5])


class NativeTransformer:
    """A causal DiT."""

    def __init__(self, model: WanTransformer) -> None:
        self.model = model
        self.embed = PackedLinear(model.patch_embedding)
        self.blocks = [Block(block) for block in model.blocks]
        self.out = PackedLinear(model.proj_out)
        self._levels: dict[tuple[float, ...], Level] = {}
        self._begun: Begun | None = None

    @staticmethod
    def fits(model: WanTransformer) -> bool:
        """Whether the kernels can run it: see `affordable`; numbers come in pairs."""
        config = model.config
        patch = config.in_channels * config.patch_size[1] ** 2
        return affordable(model) and patch % 2 == 0 and config.ffn_dim % 2 == 0

    def kv_shape(self, height: int, width: int) -> tuple[int, int, int, int]:
        """`[layers, n, h, d]` of one latent frame's keys."""
        return self.model.kv_shape(height, width)

    def text_kv(self, text: Tensor) -> KV:
        """The text's keys and values."""
        return self.model.text_kv(text)

    @torch_in_one_thread()
    def past(self, frames: int, height: int, width: int, layers: KV) -> Past:
        """Rotate cached keys by their place in the window."""
        rope = self.model.rope(0, frames, height, width, layers[0].k.device)
        return Past(frames, [LayerKV(rotate(kv.k, rope), kv.v) for kv in layers])

    @torch_in_one_thread()
    def chunk(
        self, latents: Tensor, timestep: Tensor, text: KV, past: Past | None
    ) -> tuple[Tensor, KV]:
        """As `WanTransformer.chunk`."""
        x, level, own = self._blocks(latents, timestep, text, past, len(self.blocks))
        x = norm_modulate(x, level.last[1], level.last[0], self.model.config.eps)
        batch, _, t, height, width = latents.shape
        flow = self.out(x).view(batch, t, -1, self.out.weights.outputs)
        return self.model.unpatch(flow, height, width), own

    @torch_in_one_thread()
    def keys_values(self, latents: Tensor, timestep: Tensor, text: KV, past: Past | None) -> KV:
        """As `WanTransformer.keys_values`."""
        return self._blocks(latents, timestep, text, past, len(self.blocks) - 1)[2]

    def _blocks(
        self, latents: Tensor, timestep: Tensor, text: KV, past: Past | None, count: int
    ) -> tuple[Tensor, Level, list[LayerKV]]:  # fmt: skip
        """What the first `count` blocks make of the latents, `[B N, D]`, and the keys and
        values of these and the next block."""
        batch, _, t, height, width = latents.shape
        rope = self.model.rope(past.frames if past else 0, t, height, width, latents.device)
        begun = self._begin(latents, past, self._level(timestep.reshape(batch, -1)), rope)
        x, level, own = begun.x.clone(), begun.level, [begun.own]
        for i, block in enumerate(self.blocks[: count + 1]):
            if i > 0:
                q, kv, rotated = block.project(x, batch, level.blocks[i], rope)
                own.append(kv)
            if i == count:
                break
            if i > 0:
                seen = past.layers[i] if past else None
                block.add_attention(x, q, LayerKV(rotated, kv.v), level.blocks[i], seen)
            block.add_rest(x, level.blocks[i], text[i])
        return x, level, own

    def _begin(self, latents: Tensor, past: Past | None, level: Level, rope: RopeTable) -> Begun:
        """The pass before it meets the text. Guidance's two passes share it: what was given last is
        remembered, so latents must not be changed in place."""
        last = self._begun
        if last and last.latents is latents and last.past is past and last.level is level:
            return last
        x, block = self._rows(latents), self.blocks[0]
        q, own, rotated = block.project(x, len(latents), level.blocks[0], rope)
        seen = past.layers[0] if past else None
        block.add_attention(x, q, LayerKV(rotated, own.v), level.blocks[0], seen)
        self._begun = Begun(latents, past, level, x, own)
        return self._begun

    def _rows(self, latents: Tensor) -> Tensor:
        """Latents `[B, C, T, H, W]` to embedded patches `[B N, D]`."""
        b, c, t, height, width = latents.shape
        patch = self.model.spatial_patch
        self.model.check_latents(latents)
        x = latents.to(torch.bfloat16).view(b, c, t, height // patch, patch, width // patch, patch)
        return self.embed(x.permute(0, 2, 3, 5, 1, 4, 6).reshape(-1, c * patch**2))

    def _level(self, timestep: Tensor) -> Level:
        """The gains at `[B, 1 or T]`."""
        key = (*timestep.flatten().tolist(), len(timestep))
        if key not in self._levels:
            if len(self._levels) >= _LEVELS:
                self._levels.clear()
            embedding, modulation = self.model.condition_embedder.time(timestep, torch.bfloat16)
            rows = modulation.float().flatten(0, 1).transpose(0, 1)
            end = embedding.float().flatten(0, 1)
            self._levels[key] = Level(
                tuple(
                    floats(rows + block.scale_shift_table.view(6, 1, -1))
                    for block in self.model.blocks
                ),
                floats(end + self.model.scale_shift_table.view(2, 1, -1)),
            )
        return self._levels[key]

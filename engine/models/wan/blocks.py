"""What the Wan DiT is made of: attention, feed-forward, and the block of both.

State-dict keys are those of diffusers' `WanTransformer3DModel`.

Shapes: B batch, T latent frames, n tokens a frame, N = T n tokens, M tokens of an image, D hidden
width, h heads, d head width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ...layers.attention import attention
from ...layers.linear_gelu import linear_gelu
from ...layers.modulate import gate_residual, layer_norm, norm_modulate
from ...layers.module_list import module_list
from ...layers.rope import RopeTable, rotate
from ...layers.share import PLAIN
from ...types import LayerKV

if TYPE_CHECKING:
    from livereel.kernels.linear_fp8 import Rows

    from ...layers.share import Attend
    from .transformer import WanTransformerConfig


class Attention(nn.Module):
    """Projections and QK-norm of Wan's attentions; who attends to what is up to the block."""

    def __init__(self, config: WanTransformerConfig, *, image: bool = False) -> None:
        super().__init__()
        width = config.width
        self.heads = config.num_attention_heads
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(width, width)
        self.to_v = nn.Linear(width, width)
        self.to_out = module_list([nn.Linear(width, width)])
        self.norm_q = nn.RMSNorm(width, eps=config.eps)
        self.norm_k = nn.RMSNorm(width, eps=config.eps)
        if image:
            self.add_k_proj = nn.Linear(width, width)
            self.add_v_proj = nn.Linear(width, width)
            self.norm_added_k = nn.RMSNorm(width, eps=config.eps)

    def query(self, x: Tensor | Rows) -> Tensor:
        """`[..., D]` to normed queries `[..., h, d]`."""
        return self._split(self.norm_q(self.to_q(x)))

    def key_value(self, x: Tensor) -> LayerKV:
        """`[B, N, D]` to normed keys, not rotated, and values."""
        return LayerKV(self._split(self.norm_k(self.to_k(x))), self._split(self.to_v(x)))

    def attend(
        self, q: Tensor, kv: LayerKV, bias: Tensor | None = None, by: Attend = PLAIN
    ) -> Tensor:
        """Attention of `[B, N, h, d]` to all of `kv`, with a bias on each key's scores if given,
        projected back to `[B, N, D]`."""
        out: Tensor = self.to_out[0](by(q, kv.k, kv.v, bias).flatten(2))
        return out

    def image_key_value(self, x: Tensor) -> LayerKV:
        """An image's tokens `[B, M, D]` to normed keys and values."""
        k = self.norm_added_k(self.add_k_proj(x))
        return LayerKV(self._split(k), self._split(self.add_v_proj(x)))

    def attend_also(self, q: Tensor, kv: LayerKV, image: LayerKV | None) -> Tensor:
        """`attend`, and beside it attention to an image's keys and values, if any."""
        if image is None:
            return self.attend(q, kv)
        y = attention(q, kv.k, kv.v) + attention(q, image.k, image.v)
        out: Tensor = self.to_out[0](y.flatten(2))
        return out

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:-1], self.heads, -1)


class LinearGELU(nn.Module):
    """Linear, then GELU."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.proj = nn.Linear(inside, outside)

    def forward(self, x: Tensor | Rows) -> Tensor:
        return linear_gelu(self.proj, x)


class FeedForward(nn.Module):
    """Linear, GELU, Linear (module names as in checkpoints)."""

    def __init__(self, config: WanTransformerConfig) -> None:
        super().__init__()
        self.net = nn.Sequential(
            LinearGELU(config.width, config.ffn_dim),
            nn.Identity(),
            nn.Linear(config.ffn_dim, config.width),
        )

    @property
    def reader(self) -> nn.Module:
        """The layer that reads what this is given."""
        inner = self.net[0]
        assert isinstance(inner, LinearGELU)
        return inner.proj

    def forward(self, x: Tensor | Rows) -> Tensor:
        y: Tensor = self.net(x)
        return y


class Block(nn.Module):
    """Self-attention, cross-attention to the text, feed-forward; AdaLN from the timestep."""

    def __init__(self, config: WanTransformerConfig) -> None:
        super().__init__()
        self.eps = config.eps
        self.attn1 = Attention(config)
        self.attn2 = Attention(config, image=config.image_dim is not None)
        self.norm2 = (
            nn.LayerNorm(config.width, eps=config.eps) if config.cross_attn_norm else nn.Identity()
        )
        self.ffn = FeedForward(config)
        self.scale_shift_table = nn.Parameter(torch.randn(1, 6, config.width) / config.width**0.5)

    def forward(
        self, x: Tensor, modulation: Tensor, text: LayerKV, rope: RopeTable, past: LayerKV | None,
        bias: Tensor | None = None, image: LayerKV | None = None, by: Attend = PLAIN,
    ) -> tuple[Tensor, LayerKV]:  # fmt: skip
        """`x` `[B, T, n, D]`, `modulation` `[B, 1 or T, 6, D]`; gives x and the chunk's own K/V.

        `bias` is added to the scores of self-attention's keys, those of the past first; `by` is
        what computes it.
        """
        shift1, scale1, gate1, shift2, scale2, gate2 = self._table(modulation)

        y = norm_modulate(x, scale1, shift1, self.eps).flatten(1, 2)
        own = self.attn1.key_value(y)
        k, v = rotate(own.k, rope), own.v
        if past is not None:
            k, v = torch.cat([past.k, k], dim=1), torch.cat([past.v, v], dim=1)
        y = self.attn1.attend(rotate(self.attn1.query(y), rope), LayerKV(k, v), bias, by)
        x = gate_residual(x, y.reshape(x.shape), gate1)

        y = self._norm2(x).flatten(1, 2)
        x = x + self.attn2.attend_also(self.attn2.query(y), text, image).reshape(x.shape)

        y = norm_modulate(x, scale2, shift2, self.eps)
        return gate_residual(x, self.ffn(y), gate2), own

    def key_value(self, x: Tensor, modulation: Tensor) -> LayerKV:
        """The chunk's own keys and values alone."""
        shift, scale, *_ = self._table(modulation)
        return self.attn1.key_value(norm_modulate(x, scale, shift, self.eps).flatten(1, 2))

    def _table(self, modulation: Tensor) -> tuple[Tensor, ...]:
        """Shift, scale and gate of self-attention, then of feed-forward: `[B, 1 or T, 1, D]`."""
        return (self.scale_shift_table + modulation.float()).unsqueeze(3).unbind(2)

    def _norm2(self, x: Tensor) -> Tensor:
        if isinstance(self.norm2, nn.Identity):
            return x
        return layer_norm(x, self.norm2.weight, self.norm2.bias, self.eps)

"""Motion modules: what pseudo-3D models add to an image model so that its frames hang together.

`MotionModule` is AnimateDiff's (Guo et al., "AnimateDiff", 2023; `AnimateDiffTransformer3D` in
diffusers), `TemporalMixer` the temporal half of Stable Video Diffusion's transformers (Blattmann et
al., 2023; `TransformerSpatioTemporalModel` in diffusers), with diffusers' state-dict keys. Both run
a whole clip, or a stream: a chunk's frames see themselves and a window of frames before them, whose
keys and values are the state, and the stream's first frames if they are to be kept (the warm-up
frames of Xing et al., "Live2Diff", 2024).

Shapes: B batch, T frames, H W space, C channels, L text tokens, h heads, d head width, P places,
S slots.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from livereel.kernels.temporal_attention import temporal_attention, temporal_attention_reference

from ..errors import InputError
from .attention import attention
from .module_list import module_list
from .road import Road

Mask: TypeAlias = Literal["full", "causal", "sparse_causal"]


@dataclass(frozen=True, kw_only=True)
class MotionState:
    """What a stream keeps of its past frames, for one motion module.

    A chunk sees the newest `window` frames, itself included, and the stream's first `sinks`.
    `frames` have gone by. `kv` has keys and values `[B, S, H, W, h, d]` of each attention over
    time, without positions, S = sinks + window. They are written in place; as there is room for a
    whole window, what a chunk has seen stays until the next, and a pass can be run again from the
    state before it.
    """

    window: int
    sinks: int
    frames: int
    kv: tuple[tuple[Tensor, Tensor], ...]

    def tables(self, count: int) -> Tables:
        """Of the next `count` frames. Raises `InputError` for more than the window holds."""
        if not 0 < count <= self.window:
            raise InputError(f"a window of {self.window} frames takes 1 to as many; got {count}")
        k = self.kv[0][0]
        end, sinks, window = self.frames + count, self.sinks, self.window
        own = torch.arange(self.frames, end, device=k.device)
        slots = torch.where(own < sinks, own, sinks + (own - sinks) % window)
        slot = torch.arange(k.shape[1], device=k.device)
        newest = end - 1 - sinks  # counted from the end of the sinks, as is what a slot holds
        held = newest - (newest - (slot - sinks)) % window
        place = sinks + held - max(0, newest + 1 - window)
        place = torch.where(held < 0, -1, place)
        place = torch.where(slot < sinks, torch.where(slot < end, slot, -1), place)
        keys = place.int().expand(k.shape[0], -1).contiguous()
        return Tables(slots, keys[:, slots].contiguous(), keys)


@dataclass(frozen=True)
class Tables:
    """For a pass over a chunk: its frames' `slots` `[T]`, their places in what they see `queries`
    `[B, T]`, the oldest at 0, and those of what each slot holds `keys` `[B, S]`, -1 for nothing."""

    slots: Tensor
    queries: Tensor
    keys: Tensor


class TemporalAttention(nn.Module):
    """Attention over frames at each pixel.

    On the `triton` road that is one kernel, on others plain torch; it is set once, when a model is
    loaded.
    """

    def __init__(self, width: int, heads: int, mask: Mask = "full") -> None:
        super().__init__()
        self.heads = heads
        self.mask: Mask = mask
        self.road: Road = "reference"
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(width, width, bias=False)
        self.to_v = nn.Linear(width, width, bias=False)
        self.to_out = module_list([nn.Linear(width, width)])

    def forward(
        self, x: Tensor, positions: Tensor | None, tables: Tables | None,
        kept: tuple[Tensor, Tensor] | None,
    ) -> Tensor:  # fmt: skip
        """`x` `[B, T, H, W, C]`, to which `positions` `[P, C]` are added by place, to the same.

        With `tables`, keys and values are written into `kept`, and what is in it is seen.
        """
        q, k, v = (self._split(to(x)) for to in (self.to_q, self.to_k, self.to_v))
        q_at = k_at = k_add = v_add = None
        if tables is not None and kept is not None:
            for ring, own in zip(kept, (k, v), strict=True):
                ring.index_copy_(1, tables.slots, own)
            (k, v), q_at, k_at = kept, tables.queries, tables.keys
        if positions is not None:
            q_add, k_add, v_add = (
                self._split(to(positions)) for to in (self.to_q, self.to_k, self.to_v)
            )
            q_add = q_add[: x.shape[1]] if q_at is None else q_add[q_at[0].long()]
            q = q + q_add[:, None, None]
        run = temporal_attention if self.road == "triton" else temporal_attention_reference
        y = run(q, k, v, self.mask, q_at, k_at, k_add, v_add)
        out: Tensor = self.to_out[0](y.flatten(-2))
        return out

    def _split(self, x: Tensor) -> Tensor:
        heads: Tensor = x.unflatten(-1, (self.heads, -1))
        return heads


class TextAttention(nn.Module):
    """Attention of all pixels of all frames to the same text or image embedding."""

    def __init__(self, width: int, heads: int, context: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(context, width, bias=False)
        self.to_v = nn.Linear(context, width, bias=False)
        self.to_out = module_list([nn.Linear(width, width)])

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """`x` `[B, T, H, W, C]` and `context` `[B, L, D]` to the shape of `x`."""
        q, k, v = (
            y.flatten(1, -2).unflatten(-1, (self.heads, -1))
            for y in (self.to_q(x), self.to_k(context), self.to_v(context))
        )
        out: Tensor = self.to_out[0](attention(q, k, v).flatten(2))
        return out.reshape(x.shape)


class GEGLU(nn.Module):
    """Linear to twice the width, one half gated by the other's GELU (Shazeer, 2020)."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.proj = nn.Linear(inside, outside * 2)

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.proj(x).chunk(2, dim=-1)
        return x * F.gelu(gate)


class FeedForward(nn.Module):
    """GEGLU to four times the width, and back (module names as in checkpoints)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            GEGLU(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.net(x)
        return y


class Positions(nn.Module):
    """Sines and cosines of up to `length` places (Vaswani et al., 2017)."""

    pe: Tensor

    def __init__(self, width: int, length: int) -> None:
        super().__init__()
        rates = torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
        angles = torch.arange(length)[:, None] * rates
        self.register_buffer("pe", torch.stack((angles.sin(), angles.cos()), -1).flatten(1)[None])


class MotionBlock(nn.Module):
    """Two attentions over time and a feed-forward."""

    def __init__(self, width: int, heads: int, places: int, mask: Mask) -> None:
        super().__init__()
        self.pos_embed = Positions(width, places)
        self.norm1 = nn.LayerNorm(width)
        self.attn1 = TemporalAttention(width, heads, mask)
        self.norm2 = nn.LayerNorm(width)
        self.attn2 = TemporalAttention(width, heads, mask)
        self.norm3 = nn.LayerNorm(width)
        self.ff = FeedForward(width)

    def forward(
        self, x: Tensor, tables: Tables | None, kept: Iterator[tuple[Tensor, Tensor]]
    ) -> Tensor:
        """`x` `[B, T, H, W, C]` to the same; each attention takes its own of `kept`."""
        places = self.pos_embed.pe[0].to(x.dtype)
        x = x + self.attn1(self.norm1(x), places, tables, next(kept, None))
        x = x + self.attn2(self.norm2(x), places, tables, next(kept, None))
        y: Tensor = x + self.ff(self.norm3(x))
        return y


class MotionModule(nn.Module):
    """AnimateDiff's motion module; a clip or a window has at most `places` frames."""

    def __init__(
        self, channels: int, *, heads: int = 8, layers: int = 1, groups: int = 32, places: int = 32,
        mask: Mask = "full",
    ) -> None:  # fmt: skip
        super().__init__()
        self.places = places
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, channels)
        self.transformer_blocks = module_list(
            MotionBlock(channels, heads, places, mask) for _ in range(layers)
        )
        self.proj_out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """A whole clip `[B, C, T, H, W]` to the same, every frame at its place in the clip."""
        self._fits(x.shape[2])
        return self._run(x, None, iter(()))

    def stream(self, x: Tensor, state: MotionState) -> tuple[Tensor, MotionState]:
        """A stream's next frames `[B, C, T, H, W]` to the same, and the state after them.

        The group norm sees these frames alone. Raises `InputError` for more than the window holds.
        """
        y = self._run(x, state.tables(x.shape[2]), iter(state.kv))
        return y, replace(state, frames=state.frames + x.shape[2])

    def start(
        self, batch: int, height: int, width: int, *, window: int, sinks: int = 0
    ) -> MotionState:
        """The state of a stream that has no frames yet, on the weights' device in their dtype."""
        self._fits(window + sinks)
        attentions = 2 * len(self.transformer_blocks)
        attention = self.transformer_blocks[0].attn1
        return _start(attention, attentions, (batch, height, width), window, sinks)

    def _run(
        self, x: Tensor, tables: Tables | None, kept: Iterator[tuple[Tensor, Tensor]]
    ) -> Tensor:
        y = self.proj_in(self.norm(x).permute(0, 2, 3, 4, 1))
        for block in self.transformer_blocks:
            y = block(y, tables, kept)
        out: Tensor = x + self.proj_out(y).permute(0, 4, 1, 2, 3)
        return out

    def _fits(self, frames: int) -> None:
        if frames > self.places:
            raise InputError(f"this motion module has {self.places} places; got {frames} frames")


class TemporalBlock(nn.Module):
    """Feed-forward, attention over time, attention to the context, feed-forward."""

    def __init__(self, width: int, heads: int, context: int, mask: Mask) -> None:
        super().__init__()
        self.norm_in = nn.LayerNorm(width)
        self.ff_in = FeedForward(width)
        self.norm1 = nn.LayerNorm(width)
        self.attn1 = TemporalAttention(width, heads, mask)
        self.norm2 = nn.LayerNorm(width)
        self.attn2 = TextAttention(width, heads, context)
        self.norm3 = nn.LayerNorm(width)
        self.ff = FeedForward(width)

    def forward(
        self, x: Tensor, context: Tensor, tables: Tables | None, kept: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        """`x` `[B, T, H, W, C]` and `context` `[B, L, D]` to the shape of `x`."""
        x = x + self.ff_in(self.norm_in(x))
        x = x + self.attn1(self.norm1(x), None, tables, kept)
        x = x + self.attn2(self.norm2(x), context)
        y: Tensor = x + self.ff(self.norm3(x))
        return y


class TimeEmbedding(nn.Module):
    """Linear, SiLU, Linear over sines and cosines of a frame's number."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(width, 4 * width)
        self.linear_2 = nn.Linear(4 * width, width)

    def forward(self, frames: Tensor) -> Tensor:
        """`[T]` to `[T, C]`."""
        half = self.linear_1.in_features // 2
        rates = torch.exp(torch.arange(half, device=frames.device) * (-math.log(10000.0) / half))
        angles = frames[:, None].float() * rates
        waves = torch.cat((angles.cos(), angles.sin()), dim=-1).to(self.linear_1.weight.dtype)
        y: Tensor = self.linear_2(F.silu(self.linear_1(waves)))
        return y


class Mixer(nn.Module):
    """How much of the image model's own result stays."""

    def __init__(self) -> None:
        super().__init__()
        self.mix_factor = nn.Parameter(torch.tensor([0.5]))

    def forward(self, x: Tensor, moved: Tensor) -> Tensor:
        """`sigmoid(mix_factor)` of `x` and the rest of `moved`."""
        alpha = self.mix_factor.sigmoid().to(x.dtype)
        return alpha * x + (1 - alpha) * moved


class TemporalMixer(nn.Module):
    """The temporal half of Stable Video Diffusion's transformers, to go behind each spatial block.

    A stream's frames are numbered from its start. `layer` tells which spatial block came before.
    """

    def __init__(
        self, width: int, *, heads: int, context: int, layers: int = 1, mask: Mask = "full"
    ) -> None:
        super().__init__()
        self.temporal_transformer_blocks = module_list(
            TemporalBlock(width, heads, context, mask) for _ in range(layers)
        )
        self.time_pos_embed = TimeEmbedding(width)
        self.time_mixer = Mixer()

    def forward(self, x: Tensor, context: Tensor, layer: int = 0) -> Tensor:
        """A whole clip `x` `[B, T, H, W, C]`, seeing `context` `[B, L, D]`, to the same."""
        return self._run(x, context, layer, 0, None, None)

    def stream(
        self, x: Tensor, context: Tensor, state: MotionState, layer: int = 0
    ) -> tuple[Tensor, MotionState]:
        """A stream's next frames `[B, T, H, W, C]` to the same, and the state after them.

        The state is that of this `layer` alone. Raises `InputError` for more frames than its window
        holds.
        """
        tables = state.tables(x.shape[1])
        y = self._run(x, context, layer, state.frames, tables, state.kv[0])
        return y, replace(state, frames=state.frames + x.shape[1])

    def start(
        self, batch: int, height: int, width: int, *, window: int, sinks: int = 0
    ) -> MotionState:
        """The state of one layer of a stream that has no frames yet."""
        attention = self.temporal_transformer_blocks[0].attn1
        return _start(attention, 1, (batch, height, width), window, sinks)

    def _run(
        self, x: Tensor, context: Tensor, layer: int, first: int, tables: Tables | None,
        kept: tuple[Tensor, Tensor] | None,
    ) -> Tensor:  # fmt: skip
        frames = torch.arange(first, first + x.shape[1], device=x.device)
        moved = x + self.time_pos_embed(frames)[:, None, None]
        moved = self.temporal_transformer_blocks[layer](moved, context, tables, kept)
        y: Tensor = self.time_mixer(x, moved)
        return y


def _start(
    attention: TemporalAttention, count: int, size: tuple[int, int, int], window: int, sinks: int
) -> MotionState:
    """Empty rings for `count` attentions like this one; `size` is batch, height and width."""
    if window < 1 or sinks < 0:
        raise InputError(f"a window has 1 frame or more and 0 sinks or more; got {window}, {sinks}")
    weight, (batch, height, width) = attention.to_k.weight, size
    head = (attention.heads, weight.shape[0] // attention.heads)
    shape = (count, 2, batch, sinks + window, height, width, *head)
    rings = torch.zeros(shape, device=weight.device, dtype=weight.dtype)
    kv = tuple((k, v) for k, v in (ring.unbind() for ring in rings))
    return MotionState(window=window, sinks=sinks, frames=0, kv=kv)

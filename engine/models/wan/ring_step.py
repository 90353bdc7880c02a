"""One pass of the Wan DiT over a chunk of a fixed shape, on Triton's kernels.

What packages for GPUs compute: `WanStep`, by the kernels of `InRing`. Past and chunk lie in a ring
that each layer fills for itself, the past's keys rotated for the places that its frames have.

Shapes: C channels, P latent frames of the past, T of the chunk, H W latent space, n tokens a frame,
L text tokens, h heads, d head width; batch 1.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from livereel.kernels.chunk_attention import chunk_attention
from livereel.kernels.qk_norm_rope import (
    qk_norm_rope,
    rotate_pairs,
    space_rotations,
    time_pairs,
    time_rotations,
)

from ...layers.module_list import module_list
from ...types import LayerKV
from .in_ring import BlocksPass, Positions

if TYPE_CHECKING:
    from .blocks import Attention
    from .in_ring import InRing


class RingStep(nn.Module):
    """`WanStep` for a DiT on Triton's kernels."""

    time: Tensor
    space: Tensor
    slots: Tensor

    def __init__(self, dit: InRing, past: int, frames: int, height: int, width: int) -> None:
        super().__init__()
        self.dit, self.model, self.past = dit, dit.model, past
        self.qkv = module_list(layer for joined in dit.qkv for layer in joined.layers)
        patch, head_dim = dit.model.spatial_patch, dit.model.config.attention_head_dim
        time = time_rotations(range(past + frames), time_pairs(head_dim))
        slots = torch.arange(past, past + frames, dtype=torch.int32)
        self.register_buffer("time", time)
        self.register_buffer("space", space_rotations(height // patch, width // patch, head_dim))
        self.register_buffer("slots", slots.unsqueeze(0))

    def forward(
        self, latent: Tensor, timestep: Tensor, text_k: Tensor, text_v: Tensor, past_k: Tensor,
        past_v: Tensor, positions: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """As `WanStep.forward`."""
        time = self.time.index_select(0, positions.clamp_min(0))
        own = time[self.past :].unsqueeze(0)
        at = Positions(own, self.slots, visible_runs(positions), None, latent.shape[2])
        before = time[: self.past, None].expand(-1, len(self.space), -1, -1)
        turns = torch.cat([before, self.space.expand(self.past, -1, -1, -1)], dim=2)
        step = _StepPass(self.dit, at, self.space, past_k, past_v, turns.unsqueeze(2))
        text = [LayerKV(text_k[i : i + 1], text_v[i : i + 1]) for i in range(len(text_k))]
        flow = step.flow(latent, timestep, text)
        k, v = (torch.cat([getattr(kv, name) for kv in step.own]) for name in ("k", "v"))
        return flow.float(), k, v


def visible_runs(positions: Tensor) -> Tensor:
    """Runs of slots, as `chunk_attention` takes them, where frame i lies in slot i: int32
    `[1, 1, N, 2]`, one from each frame that is there behind one that is not. Frames whose position
    is -1 are not there."""
    there = positions >= 0
    slots = torch.arange(len(positions), device=positions.device)
    later = slots >= slots.unsqueeze(1)
    missing = (later & ~there.unsqueeze(1)).sum(0)  # up to each slot
    length = (later & there & (missing == missing.unsqueeze(1))).sum(1)
    first = there & ~torch.cat([there.new_zeros(1), there[:-1]])
    runs = torch.stack([slots, torch.where(first, length, 0)], dim=1)
    return runs.int().view(1, 1, -1, 2)


@dataclass(frozen=True)
class _StepPass(BlocksPass):
    """A pass over a past `[layers, P, n, h, d]`, to be rotated by `turns` `[P, n, 1, d/2, 2]`.

    `own` takes in each layer's keys and values of the chunk, `[1, T, n, h, d]`.
    """

    space: Tensor
    past_k: Tensor
    past_v: Tensor
    turns: Tensor
    own: list[LayerKV] = field(default_factory=list)

    def _attend(
        self, attention: Attention, q: Tensor, k: Tensor, v: Tensor, layer: int, space: Tensor
    ) -> Tensor:
        at, shape = self.positions, (self.space.shape[0], attention.heads, -1)
        frames, past = at.last, self.turns.shape[0]
        kept = (attention.norm_k(k), v)
        self.own.append(LayerKV(*(x.reshape(1, frames, *shape) for x in kept)))
        k_ring = k.new_empty(1, past + frames, *self.own[-1].k.shape[2:])
        v_ring = torch.empty_like(k_ring)
        if past:
            k_ring[:, :past] = rotate_pairs(self.past_k[layer], self.turns).to(k.dtype)
            v_ring[:, :past] = self.past_v[layer]
        q = qk_norm_rope(
            q, k, v, attention.norm_q.weight, attention.norm_k.weight, at.time, space, at.slots,
            k_ring, v_ring, self.dit.model.config.eps,
        )  # fmt: skip
        y = chunk_attention(q, k_ring, v_ring, at.runs, None, frames * shape[0])
        out: Tensor = attention.to_out[0](y.flatten(2))
        return out

    def _space(self, latents: Tensor) -> Tensor:
        return self.space

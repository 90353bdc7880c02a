"""The Wan DiT on Triton's kernels, streaming over a KV ring that it reads and writes in place.

Each block's keys are normed, rotated by their frames' numbers in the stream and put into the ring
by one kernel, and attention reads the ring as it lies: nothing is gathered, rotated again or
concatenated. The launch that adds to the residual stream norms it for the layer behind. A pass may
be over two chunks in a row, of which the second sees the first; so the pass that caches one chunk
is one forward with the next chunk's first.

Shapes: B batch, T latent frames, n tokens a frame, N = T n tokens, S slots, G chunks in a pass,
R runs of slots, D hidden width, h heads, d head width; batch 1.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from livereel.kernels.chunk_attention import WIDTHS, chunk_attention, run_tables, runs_of
from livereel.kernels.gate_residual import gate_residual
from livereel.kernels.norm_modulate import MOST_WIDTH, norm_modulate
from livereel.kernels.qk_norm_rope import (
    qk_norm_rope,
    space_rotations,
    time_pairs,
    time_rotations,
)
from livereel.kernels.residual_norm import residual_norm

from ...layers.joined import Joined
from ...layers.linear_fp8 import LinearFP8, norm_modulate_rows
from ...transfer import to_device

if TYPE_CHECKING:
    from livereel.kernels.linear_fp8 import Rows

    from ...types import KV, LayerKV, Place, Ring
    from .blocks import Attention
    from .ring_step import RingStep
    from .transformer import WanTransformer, WanTransformerConfig

_RUNS = 4
"""Tables have room for so many runs of slots, or for a multiple of it: few shapes, few kernels."""


@dataclass(frozen=True)
class Positions:
    """A pass's place in stream and ring, on the device: all that changes from chunk to chunk.

    `time` `[1, T, pairs, 2]` rotates its frames, `slots` `[1, T]` are where they go; `runs`
    `[1, G, R, 2]` and `shifts` `[1, G, R, pairs, 2]` are what its chunks see, as `chunk_attention`
    takes them; shifts are None where no frame looks nearer than it is. The last chunk has `last`
    latent frames; in a pass over two the first has as many, or fewer.
    """

    time: Tensor
    slots: Tensor
    runs: Tensor
    shifts: Tensor | None
    last: int

    @classmethod
    def of(
        cls, places: Sequence[Place], ring: Ring, head_dim: int, device: torch.device
    ) -> Positions:
        """The positions of chunks in a row."""
        pairs = time_pairs(head_dim)
        own = [frame for place in places for frame in _frames(place)]
        blocks = []
        for place in places:
            frames = [*place.seen, *_frames(place)]
            blocks.append(runs_of([ring.slot(frame) for frame in frames], frames))
        longest = max(len(runs) for runs in blocks)
        runs, shifts = run_tables([blocks], pairs, -(-longest // _RUNS) * _RUNS)
        shifted = any(run.shift for block in blocks for run in block)
        slots = torch.tensor([[ring.slot(frame) for frame in own]], dtype=torch.int32)
        return cls(
            to_device(time_rotations([own], pairs), device),
            to_device(slots, device),
            to_device(runs, device),
            to_device(shifts, device) if shifted else None,
            places[-1].count,
        )

    def copy_(self, other: Positions) -> None:
        """Take over the values of positions of the same `shapes`, in this one's memory."""
        for mine, theirs in zip(self._tensors(), other._tensors(), strict=True):
            mine.copy_(theirs, non_blocking=True)

    @property
    def shapes(self) -> tuple[Hashable, ...]:
        """What is equal for passes that differ in these tables' values alone."""
        return (self.last, self.shifts is None, *(x.shape for x in self._tensors()))

    def _tensors(self) -> list[Tensor]:
        tables = [self.time, self.slots, self.runs]
        return tables if self.shifts is None else [*tables, self.shifts]


def _frames(place: Place) -> range:
    return range(place.first, place.first + place.count)


@dataclass(frozen=True)
class BlocksPass(ABC):
    """A pass through all blocks at `positions`."""

    dit: InRing
    positions: Positions

    def flow(self, latents: Tensor, timestep: Tensor, text: KV) -> Tensor:
        """Flow of all latents."""
        model = self.dit.model
        x, embedding = self._blocks(latents, timestep, text)
        shift, scale = (model.scale_shift_table + embedding.unsqueeze(2)).unsqueeze(3).unbind(2)
        x = norm_modulate(x, scale, shift, model.config.eps)
        return model.unpatch(model.proj_out(x), *latents.shape[3:])

    def _blocks(self, latents: Tensor, timestep: Tensor, text: KV) -> tuple[Tensor, Tensor]:
        """The last block's `[B, T, n, D]`, and the timesteps' embedding `[B, 1 or T, D]`."""
        model = self.dit.model
        x = model.tokens(latents).contiguous()
        embedding, modulation = model.condition_embedder.time(
            timestep.reshape(x.shape[0], -1), model.dtype
        )
        space = self._space(latents)
        tables = torch.stack([block.scale_shift_table for block in model.blocks])
        tables = (tables.unsqueeze(1) + modulation.float()).unsqueeze(4)
        norms = [
            _Norm(table[:, :, 1], table[:, :, 0], block.eps, 1.0, qkv.layers)
            for block, table, qkv in zip(model.blocks, tables, self.dit.qkv, strict=True)
        ]
        ready = _normed(x, norms[0])
        for i, after in enumerate([*norms[1:], None]):
            x, ready = self._block(i, x, ready, tables[i], after, text[i], space)
        return x, embedding

    def _block(
        self, layer: int, x: Tensor, ready: Tensor | Rows, table: Tensor, after: _Norm | None,
        text: LayerKV, space: Tensor,
    ) -> tuple[Tensor, Tensor | Rows]:  # fmt: skip
        """`ready` is `x` normed for this block, and with the result comes its norm for what is
        `after` it; `table` is `[B, 1 or T, 6, 1, D]`."""
        block = self.dit.model.blocks[layer]
        _, _, gate1, shift2, scale2, gate2 = table.unbind(2)
        q, k, v = (part.flatten(1, 2) for part in self.dit.qkv[layer](ready))
        cross = block.attn2
        norm: _Norm | None = None
        if not isinstance(block.norm2, nn.Identity):
            gain, bias = block.norm2.weight.view(1, 1, 1, -1), block.norm2.bias.view(1, 1, 1, -1)
            norm = _Norm(gain, bias, block.eps, 0.0, (cross.to_q,))
        x, ready = _added(x, self._attend(block.attn1, q, k, v, layer, space), gate1, norm)

        y = cross.attend(cross.query(ready).flatten(1, 2), text)
        norm = _Norm(scale2, shift2, block.eps, 1.0, (block.ffn.reader,))
        x, ready = _added(x, y, None, norm)

        return _added(x, block.ffn(ready), gate2, after)

    @abstractmethod
    def _attend(
        self, attention: Attention, q: Tensor, k: Tensor, v: Tensor, layer: int, space: Tensor
    ) -> Tensor:
        """Self-attention of `[B, N, D]`, its own keys and values included."""

    @abstractmethod
    def _space(self, latents: Tensor) -> Tensor:
        """The rotations of a frame's tokens by row and column."""


@dataclass(frozen=True)
class RingPass(BlocksPass):
    """Passes over one chunk, or two, whose keys and values go to their own slots of the ring, which
    nobody else sees before a pass has cached them."""

    ring: Ring

    def cache(self, latents: Tensor, timestep: Tensor, text: KV) -> None:
        """The same for the sake of the keys and values alone."""
        self._blocks(latents, timestep, text)

    @property
    def shape(self) -> Hashable:
        """Equal for passes over chunks as long, with tables as large."""
        return self.positions.shapes

    def copy_(self, other: RingPass) -> None:
        """Take over the positions of another pass of this shape."""
        self.positions.copy_(other.positions)

    def _attend(
        self, attention: Attention, q: Tensor, k: Tensor, v: Tensor, layer: int, space: Tensor
    ) -> Tensor:
        """Self-attention of `[B, N, D]` to the ring's layer, its own keys and values included."""
        k_ring, v_ring = self.ring.k[layer].unsqueeze(0), self.ring.v[layer].unsqueeze(0)
        at = self.positions
        q = qk_norm_rope(
            q, k, v, attention.norm_q.weight, attention.norm_k.weight, at.time, space, at.slots,
            k_ring, v_ring, self.dit.model.config.eps,
        )  # fmt: skip
        y = chunk_attention(q, k_ring, v_ring, at.runs, at.shifts, at.last * k_ring.shape[2])
        out: Tensor = attention.to_out[0](y.flatten(2))
        return out

    def _space(self, latents: Tensor) -> Tensor:
        """The rotations of a frame's tokens by row and column."""
        model, (height, width) = self.dit.model, latents.shape[3:]
        patch, head_dim = model.spatial_patch, model.config.attention_head_dim
        return _space(height // patch, width // patch, head_dim, latents.device)


class InRing:
    """A DiT made to stream; `fits` says which can be.

    Each block's self-attention has its queries, keys and values from one product, whose weights
    those of its layers are parts of.
    """

    in_place: ClassVar[bool] = True

    def __init__(self, model: WanTransformer) -> None:
        self.model = model
        self.join()

    def join(self) -> None:
        """Take over weights that were put in place of those before; not needed for such as were
        changed in place."""
        attentions = [block.attn1 for block in self.model.blocks]
        self.qkv = [Joined(each.to_q, each.to_k, each.to_v) for each in attentions]

    @staticmethod
    def fits(config: WanTransformerConfig) -> bool:
        """Whether the kernels take heads and rows of these widths."""
        return config.attention_head_dim in WIDTHS and config.width <= MOST_WIDTH

    def kv_shape(self, height: int, width: int) -> tuple[int, int, int, int]:
        """`[layers, n, h, d]` of one latent frame's keys."""
        return self.model.kv_shape(height, width)

    def text_kv(self, text: Tensor) -> KV:
        """The text's keys and values."""
        return self.model.text_kv(text)

    def step(self, past: int, frames: int, height: int, width: int) -> RingStep:
        """As `WanTransformer.step`."""
        from .ring_step import RingStep

        return RingStep(self, past, frames, height, width)

    def at(self, places: Sequence[Place], ring: Ring, height: int, width: int) -> RingPass:
        """Passes over one chunk or two."""
        positions = Positions.of(places, ring, self.model.config.attention_head_dim, ring.k.device)
        return RingPass(self, positions, ring)


class _Norm(NamedTuple):
    """A norm, by `norm_modulate`'s arguments, and the layers that read it."""

    scale: Tensor
    shift: Tensor
    eps: float
    base: float
    readers: tuple[nn.Module, ...]

    @property
    def fp8(self) -> LinearFP8 | None:
        """One of the readers, if all of them want rows in fp8."""
        first = self.readers[0]
        alike = all(isinstance(layer, LinearFP8) for layer in self.readers)
        return first if alike and isinstance(first, LinearFP8) else None


def _normed(x: Tensor, norm: _Norm) -> Tensor | Rows:
    """Quantized in the same pass where all that read it are in fp8."""
    if norm.fp8 is not None:
        return norm_modulate_rows(x, norm.scale, norm.shift, norm.eps, norm.base, norm.fp8.road)
    normed: Tensor = norm_modulate(x, norm.scale, norm.shift, norm.eps, norm.base)
    return normed


def _added(
    x: Tensor, y: Tensor, gate: Tensor | None, norm: _Norm | None
) -> tuple[Tensor, Tensor | Rows]:
    """`x + gate y`, and that normed: as it is without a norm, in the same pass but for fp8."""
    y = y.reshape(x.shape)
    if norm is not None and norm.fp8 is None:
        total, normed = residual_norm(x, y, gate, norm.scale, norm.shift, norm.eps, norm.base)
        return total, normed
    total = x + y if gate is None else gate_residual(x, y, gate)
    return total, total if norm is None else _normed(total, norm)


@lru_cache(maxsize=8)
def _space(height: int, width: int, head_dim: int, device: torch.device) -> Tensor:
    """The rotations of a frame of `height` x `width` tokens."""
    with torch.inference_mode(False):
        return space_rotations(height, width, head_dim).to(device)

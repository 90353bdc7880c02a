"""The Wan DiT (2.1 and 2.2), whole clip or causal chunks over cached keys and values.

Wan Team, "Wan: Open and Advanced Large-Scale Video Generative Models" (2025), section 4; chunks as
in Huang et al., "Self Forcing" (2025). State-dict keys are those of diffusers'
`WanTransformer3DModel`. Keys are cached before rotation, so that positions are relative to the
window and a stream may go on for ever.

Shapes: B batch, C channels, T latent frames, H W latent space, n tokens a frame, N = T n tokens,
P cached tokens, L text tokens, D hidden width, h heads, d head width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from ...errors import CheckpointError, InputError
from ...layers.modulate import norm_modulate
from ...layers.module_list import module_list
from ...layers.rope import RopeTable, rope_table, rotate
from ...layers.share import own_rotations
from ...types import KV, LayerKV, Past
from ..fields import check_numbers, check_whole, check_wholes, known_fields, refuse_others
from .blocks import Block
from .embedders import ConditionEmbedder
from .pictures import condition

if TYPE_CHECKING:
    from ...layers.share import TokenShare
    from ...types import Encode
    from .in_ring import InRing
    from .native_transformer import NativeTransformer
    from .step import WanStep

_MOST = {
    "num_attention_heads": 256,
    "attention_head_dim": 1024,
    "in_channels": 1024,
    "out_channels": 1024,
    "text_dim": 65536,
    "freq_dim": 65536,
    "ffn_dim": 1 << 20,
    "num_layers": 256,
}
_MOST_OF_IMAGES = {"image_dim": 65536, "added_kv_proj_dim": 1 << 18, "pos_embed_seq_len": 65536}


@dataclass(frozen=True, kw_only=True)
class WanTransformerConfig:
    """Fields of diffusers' `WanTransformer3DModel` config, under its names; defaults are 14B's.

    `image_dim` is the width of an image's tokens where the DiT attends to such, `added_kv_proj_dim`
    what they are brought to, and `pos_embed_seq_len` how many there are of a first and a last
    image together. Raises `CheckpointError` for a value of the wrong type or beyond what a real DiT
    has.
    """

    patch_size: tuple[int, int, int] = (1, 2, 2)
    num_attention_heads: int = 40
    attention_head_dim: int = 128
    in_channels: int = 16
    out_channels: int = 16
    text_dim: int = 4096
    freq_dim: int = 256
    ffn_dim: int = 13824
    num_layers: int = 40
    cross_attn_norm: bool = True
    eps: float = 1e-6
    image_dim: int | None = None
    added_kv_proj_dim: int | None = None
    pos_embed_seq_len: int | None = None

    def __post_init__(self) -> None:
        for name, most in _MOST.items():
            check_whole(name, getattr(self, name), most)
        check_wholes("patch_size", self.patch_size, 16, length=3)
        ones, sides = self.patch_size[:1], self.patch_size[1:]
        if ones != (1,) or len(sides) != 2 or sides[0] != sides[1]:
            raise CheckpointError(f"patch_size must be [1, n, n], got {self.patch_size}")
        if self.attention_head_dim % 2 or self.freq_dim % 2:
            raise CheckpointError(
                f"attention_head_dim and freq_dim must be even, "
                f"got {self.attention_head_dim} and {self.freq_dim}"
            )
        if not isinstance(self.cross_attn_norm, bool):
            raise CheckpointError(
                f"cross_attn_norm must be true or false, got {self.cross_attn_norm!r:.40}"
            )
        check_numbers("eps", (self.eps,), length=1, above=0)
        for name, most in _MOST_OF_IMAGES.items():
            if getattr(self, name) is not None:
                check_whole(name, getattr(self, name), most)
        if (self.image_dim is None) != (self.added_kv_proj_dim is None):
            raise CheckpointError("image_dim and added_kv_proj_dim must both be there, or neither")
        if self.added_kv_proj_dim not in (None, self.width):
            raise CheckpointError(
                f"added_kv_proj_dim must be the width, {self.width}, got {self.added_kv_proj_dim}"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> WanTransformerConfig:
        """Read a diffusers `config.json`; layouts that this module cannot run are refused."""
        refuse_others(values, {"qk_norm": "rms_norm_across_heads"})
        return cls(**known_fields(cls, values))

    @property
    def width(self) -> int:
        """Hidden width D."""
        return self.num_attention_heads * self.attention_head_dim

    def tokens(self, height: int, width: int) -> int:
        """Tokens of one latent frame of that size."""
        return (height // self.patch_size[1]) * (width // self.patch_size[2])


class WanTransformer(nn.Module):
    """Predicts flow (noise minus data) from noisy latents, a timestep on 0..1000 and text."""

    keep_in_fp32: ClassVar[tuple[str, ...]] = (
        "time_embedder", "scale_shift_table", "norm1", "norm2",
    )  # fmt: skip

    def __init__(self, config: WanTransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embedding = nn.Conv3d(
            config.in_channels, config.width, config.patch_size, stride=config.patch_size
        )
        self.condition_embedder = ConditionEmbedder(config)
        self.blocks = module_list(Block(config) for _ in range(config.num_layers))
        self.proj_out = nn.Linear(config.width, config.out_channels * math.prod(config.patch_size))
        self.scale_shift_table = nn.Parameter(torch.randn(1, 2, config.width) / config.width**0.5)

    @classmethod
    def from_config(cls, values: Mapping[str, Any]) -> WanTransformer:
        """Build from a diffusers `config.json`, weights not yet set."""
        return cls(WanTransformerConfig.from_dict(values))

    def forward(
        self, latents: Tensor, timestep: Tensor, text: Tensor, image: Tensor | None = None, *,
        share: TokenShare | None = None,
    ) -> Tensor:  # fmt: skip
        """The whole clip at once, every token seeing every other.

        `latents` `[B, C, T, H, W]`, `timestep` `[B]` or one for each latent frame `[B, T]`, `text`
        `[B, L, text_dim]` (zero-padded, no mask), `image` tokens `[B, M, image_dim]` (of the first
        image, and behind it of the last where the model takes both). Gives flow `[B, out_channels,
        T, H, W]`. With a `share` the ranks that call this alike have some of the tokens each, and
        all get the result. Raises `InputError` for image tokens that the model does not take.
        """
        seen = None if image is None else self.image_kv(image)
        if share is not None:
            return self._shared(latents, timestep, self.text_kv(text), seen, share)
        return self._flow(latents, timestep, self.text_kv(text), None, None, seen)

    def _shared(
        self, latents: Tensor, timestep: Tensor, text: KV, image: KV | None, share: TokenShare
    ) -> Tensor:
        x = self.tokens(latents)
        frames, tokens = x.shape[1:3]
        x = share.own(x, 2)
        height, width = latents.shape[3:]
        rope = own_rotations(self.rope(0, frames, height, width, x.device), frames, share)
        timestep = timestep.reshape(len(latents), -1)
        embedding, modulation = self.condition_embedder.time(timestep, self.dtype)
        by = share.attend(frames, tokens)
        for i, block in enumerate(self.blocks):
            shown = image[i] if image is not None else None
            x, _ = block(x, modulation, text[i], rope, None, image=shown, by=by)
        return self.unpatch(share.whole(self.project(x, embedding), 2, tokens), height, width)

    def image_kv(self, image: Tensor) -> KV:
        """Keys and values of an image's tokens `[B, M, image_dim]` for all layers."""
        states = self.condition_embedder.image(image.to(self.dtype))
        return [block.attn2.image_key_value(states) for block in self.blocks]

    def kv_shape(self, height: int, width: int) -> tuple[int, int, int, int]:
        """`[layers, n, h, d]` of the keys, and of the values, of one latent frame of that size."""
        config = self.config
        heads, head_dim = config.num_attention_heads, config.attention_head_dim
        return config.num_layers, config.tokens(height, width), heads, head_dim

    def text_kv(self, text: Tensor) -> KV:
        """Keys and values of the text for all layers; compute once for each prompt."""
        states = self.condition_embedder.text(text.to(self.dtype))
        return [block.attn2.key_value(states) for block in self.blocks]

    def past(self, frames: int, height: int, width: int, layers: KV) -> Past:
        """Rotate cached keys by their place in the window: the oldest frame is at position 0.

        `layers` holds `frames` latent frames (of `height` x `width` latent pixels) in order, as
        `chunk` gave them.
        """
        rope = self.rope(0, frames, height, width, layers[0].k.device)
        return Past(frames, [LayerKV(rotate(kv.k, rope), kv.v) for kv in layers])

    def chunk(
        self, latents: Tensor, timestep: Tensor, text: KV, past: Past | None
    ) -> tuple[Tensor, KV]:
        """Latents `[B, C, T, H, W]` that attend to themselves and to `past`.

        Gives flow of the same shape, and the chunk's own keys (not rotated) and values, to be
        cached when the latents were clean. Raises `InputError` for sizes that patches do not tile.
        """
        own: list[LayerKV] = []
        return self._flow(latents, timestep, text, past, own), own

    def keys_values(self, latents: Tensor, timestep: Tensor, text: KV, past: Past | None) -> KV:
        """The same for the keys and values alone, which need nothing of the last block."""
        own: list[LayerKV] = []
        x, _, modulation = self._blocks(self.blocks[:-1], latents, timestep, text, past, own)
        return [*own, self.blocks[-1].key_value(x, modulation)]

    def _flow(
        self, latents: Tensor, timestep: Tensor, text: KV, past: Past | None,
        own: list[LayerKV] | None, image: KV | None = None,
    ) -> Tensor:  # fmt: skip
        x, embedding, _ = self._blocks(self.blocks, latents, timestep, text, past, own, image)
        return self.head(x, embedding, *latents.shape[3:])

    def head(self, x: Tensor, embedding: Tensor, height: int, width: int) -> Tensor:
        """What the last block gives, and the timestep's embedding, to flow `[B, C, T, H, W]`."""
        return self.unpatch(self.project(x, embedding), height, width)

    def project(self, x: Tensor, embedding: Tensor) -> Tensor:
        """The same, token by token: flow `[B, T, n, patch_h patch_w C]`."""
        shift, scale = (self.scale_shift_table + embedding.unsqueeze(2)).unsqueeze(3).unbind(2)
        y: Tensor = self.proj_out(norm_modulate(x, scale, shift, self.config.eps))
        return y

    def _blocks(
        self, blocks: Sequence[Block], latents: Tensor, timestep: Tensor, text: KV,
        past: Past | None, own: list[LayerKV] | None, image: KV | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """What `blocks`, from the first on, make of the latents, `[B, T, n, D]`, and the timestep's
        embedding and modulation. Each layer's keys and values go to `own`, or are dropped behind
        the layer."""
        b, _, t, height, width = latents.shape
        x = self.tokens(latents)
        start = past.frames if past is not None else 0
        rope = self.rope(start, t, height, width, latents.device)
        timestep = timestep.reshape(b, -1)
        embedding, modulation = self.condition_embedder.time(timestep, self.dtype)
        for i, block in enumerate(blocks):
            seen = past.layers[i] if past is not None else None
            shown = image[i] if image is not None else None
            x, kv = block(x, modulation, text[i], rope, seen, image=shown)
            if own is not None:
                own.append(kv)
            del kv
        return x, embedding, modulation

    def in_ring(self) -> InRing | None:
        """The same DiT on Triton's kernels; None where they do not take heads or rows so wide."""
        from .in_ring import InRing

        return InRing(self) if InRing.fits(self.config) else None

    def native(self) -> NativeTransformer | None:
        """The same DiT on the C++ core's kernels, with the weights as they are now; None where the
        kernels cannot run it."""
        from .native_transformer import NativeTransformer

        return NativeTransformer(self) if NativeTransformer.fits(self) else None

    def step(self, past: int, frames: int, height: int, width: int) -> WanStep:
        """The same DiT for chunks of one shape, to be exported: over `past` latent frames."""
        from .step import WanStep

        return WanStep(self, past, frames, height, width)

    def tokens(self, latents: Tensor) -> Tensor:
        """Latents `[B, C, T, H, W]` to what the first block takes, `[B, T, n, D]`."""
        self.check_latents(latents)
        x: Tensor = self.patch_embedding(latents.to(self.dtype))
        return x.flatten(3).permute(0, 2, 3, 1)

    def check_latents(self, latents: Tensor) -> None:
        """Raise `InputError` for other channels, or for sizes that patches do not tile."""
        _, patch_h, patch_w = self.config.patch_size
        channels, height, width = latents.shape[1], *latents.shape[3:]
        if channels != self.config.in_channels or height % patch_h or width % patch_w:
            raise InputError(
                f"latents have shape {tuple(latents.shape)}; wanted {self.config.in_channels} "
                f"channels, height and width multiples of {patch_h} and {patch_w}"
            )

    @property
    def channels(self) -> int:
        """Latent channels."""
        return self.config.out_channels

    @property
    def condition_channels(self) -> int:
        """Channels that it takes beside the noisy latents."""
        return self.config.in_channels - self.config.out_channels

    @property
    def image_width(self) -> int | None:
        """Width of an image's tokens, where it attends to such."""
        return self.config.image_dim

    @property
    def images(self) -> int | None:
        """How many images' tokens it wants, where it tells them apart by place."""
        return 2 if self.config.pos_embed_seq_len else None

    def picture_condition(
        self, encode: Encode, first: Tensor, last: Tensor | None, latents: int, factor: int
    ) -> Tensor:
        """See `pictures.condition`."""
        return condition(encode, first, last, latents, factor)

    @property
    def text_width(self) -> int:
        """Width of the text's embedding."""
        return self.config.text_dim

    @property
    def spatial_patch(self) -> int:
        """Height and width of the latent must be multiples of this."""
        return self.config.patch_size[1]

    @property
    def temporal_patch(self) -> int:
        """Latent frames of a patch."""
        return self.config.patch_size[0]

    @property
    def keep_in_bf16(self) -> tuple[str, ...]:
        """What fp8 leaves as it is: what is small or read once a prompt, the first block, and the
        last, whose errors nothing behind them mends."""
        attention = self.blocks[0].attn2
        once = [
            part
            for part in ("to_k", "to_v", "add_k_proj", "add_v_proj")
            if hasattr(attention, part)
        ]
        read = [f"blocks.{i}.attn2.{part}" for i in range(len(self.blocks)) for part in once]
        return (
            "condition_embedder",
            "proj_out",
            "blocks.0",
            f"blocks.{len(self.blocks) - 1}",
            *read,
        )

    def cached(self) -> WanTransformer:
        """Itself: it runs over cached keys and values."""
        return self

    @property
    def dtype(self) -> torch.dtype:
        """What activations are computed in."""
        return self.proj_out.weight.dtype

    def rope(self, first: int, t: int, height: int, width: int, device: torch.device) -> RopeTable:
        """Rotations of the tokens of `t` latent frames, the first one at position `first`."""
        _, patch_h, patch_w = self.config.patch_size
        rows, columns = height // patch_h, width // patch_w
        return rope_table(first, t, rows, columns, self.config.attention_head_dim, device=device)

    def unpatch(self, x: Tensor, height: int, width: int) -> Tensor:
        """`[B, T, n, patch_h patch_w C]`, channels fastest, to `[B, C, T, H, W]`."""
        b, t = x.shape[:2]
        _, p, q = self.config.patch_size
        x = x.reshape(b, t, height // p, width // q, p, q, self.config.out_channels)
        return x.permute(0, 6, 1, 2, 4, 3, 5).reshape(b, -1, t, height, width)

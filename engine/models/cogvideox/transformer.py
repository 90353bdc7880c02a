"""The CogVideoX DiT: text and video in one sequence, with modulations of their own.

Yang et al., "CogVideoX" (2024), section 2.2. State-dict keys are those of diffusers'
`CogVideoXTransformer3DModel`: 2B (sines and cosines added to the tokens), 5B (rotary), 5B-I2V
(both, the first stored) and 1.5 (two latent frames in a patch). The model predicts velocity, which
the solvers of `sampling/ddim.py` and `sampling/dpm.py` take.

Shapes: B batch, C channels, T latent frames, t patches along time, H W latent space, n tokens of a
patch in time, N = t n video tokens, L text tokens, D hidden width, E width of the time embedding,
h heads, d head width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import InputError
from ...layers.linear_gelu import linear_gelu
from ...layers.modulate import layer_norm
from ...layers.module_list import module_list
from ...layers.rope import RopeTable, rotate
from ...layers.share import PLAIN, own_rotations
from ...types import LayerKV
from .config import CogVideoXTransformerConfig
from .positions import rotations, waves

if TYPE_CHECKING:
    from ...layers.share import Attend, TokenShare
    from ...types import KV, Encode
    from .step import CogVideoXStep

_QK_EPS = 1e-6
_MOTION_STRENGTH = 2.0
"""What 1.5-I2V is told beside the time; its authors never say another value."""


class Stream(NamedTuple):
    """The two kinds of tokens: `text` `[B, L, D]` and `video` `[B, t, n, D]`."""

    text: Tensor
    video: Tensor


class Modulation(NamedTuple):
    """Shift, scale and gate of one kind of tokens, broadcast to them."""

    shift: Tensor
    scale: Tensor
    gate: Tensor


class ExpertNorm(nn.Module):
    """One LayerNorm for both kinds of tokens, and for each a modulation by the time."""

    def __init__(self, config: CogVideoXTransformerConfig) -> None:
        super().__init__()
        self.linear = nn.Linear(config.time_embed_dim, 6 * config.width)
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)

    def forward(self, x: Stream, time: Tensor) -> tuple[Stream, Tensor, Tensor]:
        """Both modulated, and the gates of text and of video.

        `time` is `[B, 1 or t, E]`; text goes by its last entry, the time of what is denoised.
        """
        parts = self.linear(F.silu(time)).unsqueeze(2).chunk(6, dim=-1)
        video = Modulation(*parts[:3])
        text = Modulation(*(part[:, -1] for part in parts[3:]))
        return (
            Stream(self._modulated(x.text, text), self._modulated(x.video, video)),
            text.gate,
            video.gate,
        )

    def _modulated(self, x: Tensor, by: Modulation) -> Tensor:
        norm = self.norm
        return layer_norm(x, norm.weight, norm.bias, norm.eps) * (1 + by.scale) + by.shift


class Attention(nn.Module):
    """Everything attends to everything; queries and keys are normed, those of video rotated."""

    def __init__(self, config: CogVideoXTransformerConfig) -> None:
        super().__init__()
        width, bias = config.width, config.attention_bias
        self.heads = config.num_attention_heads
        self.to_q = nn.Linear(width, width, bias=bias)
        self.to_k = nn.Linear(width, width, bias=bias)
        self.to_v = nn.Linear(width, width, bias=bias)
        self.to_out = module_list([nn.Linear(width, width)])
        self.norm_q = nn.LayerNorm(config.attention_head_dim, eps=_QK_EPS)
        self.norm_k = nn.LayerNorm(config.attention_head_dim, eps=_QK_EPS)

    def forward(self, x: Stream, rope: RopeTable | None, by: Attend = PLAIN) -> Stream:
        both = joined(x)
        length = x.text.shape[1]
        q = self._placed(self._split(self.to_q(both)), self.norm_q, length, rope)
        k = self._placed(self._split(self.to_k(both)), self.norm_k, length, rope)
        y = by(q, k, self._split(self.to_v(both))).flatten(2)
        return parted(self.to_out[0](y), x)

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:-1], self.heads, -1)

    @staticmethod
    def _placed(x: Tensor, norm: nn.LayerNorm, length: int, rope: RopeTable | None) -> Tensor:
        x = layer_norm(x, norm.weight, norm.bias, norm.eps)
        if rope is None:
            return x
        return torch.cat([x[:, :length], rotate(x[:, length:], rope)], dim=1)


class LinearGELU(nn.Module):
    """Linear, then GELU by its tanh approximation."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.proj = nn.Linear(inside, outside)

    def forward(self, x: Tensor) -> Tensor:
        return linear_gelu(self.proj, x)


class FeedForward(nn.Module):
    """Linear, GELU, Linear (module names as in checkpoints)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            LinearGELU(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.net(x)
        return y


class Block(nn.Module):
    """Attention and feed-forward over both kinds of tokens."""

    def __init__(self, config: CogVideoXTransformerConfig) -> None:
        super().__init__()
        self.norm1 = ExpertNorm(config)
        self.attn1 = Attention(config)
        self.norm2 = ExpertNorm(config)
        self.ff = FeedForward(config.width)

    def forward(
        self, x: Stream, time: Tensor, rope: RopeTable | None, by: Attend = PLAIN
    ) -> Stream:
        y, of_text, of_video = self.norm1(x, time)
        y = self.attn1(y, rope, by)
        x = Stream(x.text + of_text * y.text, x.video + of_video * y.video)
        y, of_text, of_video = self.norm2(x, time)
        y = parted(self.ff(joined(y)), x)
        return Stream(x.text + of_text * y.text, x.video + of_video * y.video)


def joined(x: Stream) -> Tensor:
    """One sequence `[B, L + N, D]`."""
    return torch.cat([x.text, x.video.flatten(1, 2)], dim=1)


def parted(x: Tensor, like: Stream) -> Stream:
    """The inverse of `joined`."""
    length = like.text.shape[1]
    return Stream(x[:, :length], x[:, length:].reshape(like.video.shape))


class TwoLayers(nn.Module):
    """Linear, SiLU, Linear of a number's sines and cosines (module names as in checkpoints)."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(inside, outside)
        self.linear_2 = nn.Linear(outside, outside)
        self.inside = inside

    def forward(self, number: Tensor) -> Tensor:
        """`[...]` to `[..., outside]`."""
        half = self.inside // 2
        ramp = torch.arange(half, dtype=torch.float32, device=number.device) / half
        angles = number.float().unsqueeze(-1) * torch.exp(-math.log(10000.0) * ramp)
        x = torch.cat([angles.cos(), angles.sin()], dim=-1).to(self.linear_1.weight.dtype)
        y: Tensor = self.linear_2(F.silu(self.linear_1(x)))
        return y


class PatchEmbedding(nn.Module):
    """Latents and text to tokens; positions are added where the model has them so."""

    pos_embedding: Tensor

    def __init__(self, config: CogVideoXTransformerConfig) -> None:
        super().__init__()
        self.config = config
        side, depth = config.patch_size, config.temporal_patch
        self.proj: nn.Conv2d | nn.Linear
        if config.patch_size_t is None:
            self.proj = nn.Conv2d(
                config.in_channels, config.width, side, stride=side, bias=config.patch_bias
            )
        else:
            self.proj = nn.Linear(config.in_channels * depth * side**2, config.width)
        self.text_proj = nn.Linear(config.text_embed_dim, config.width)
        if config.use_learned_positional_embeddings:
            shape = (1, config.max_text_seq_length + config.stored_tokens, config.width)
            self.register_buffer("pos_embedding", torch.zeros(shape))

    def text(self, text: Tensor) -> Tensor:
        """`[B, L, text_embed_dim]` to `[B, L, D]`."""
        y: Tensor = self.text_proj(text)
        return y

    def video(self, latents: Tensor) -> Tensor:
        """`[B, C, T, H, W]` to `[B, t, n, D]`."""
        x = self.patches(latents)
        return x + self._positions(x, *latents.shape[2:])

    def patches(self, latents: Tensor) -> Tensor:
        """`video` without what is added for positions."""
        side, depth = self.config.patch_size, self.config.temporal_patch
        b, c, frames, height, width = latents.shape
        t, rows, columns = frames // depth, height // side, width // side
        x = latents.reshape(b, c, t, depth, rows, side, columns, side)
        x = x.permute(0, 2, 4, 6, 1, 3, 5, 7).reshape(b, t, rows * columns, -1)
        return F.linear(x, self.proj.weight.flatten(1), self.proj.bias)

    def _positions(self, x: Tensor, frames: int, height: int, width: int) -> Tensor:
        """What is added to `x` `[B, t, n, D]`; zero for models whose positions are rotary alone."""
        config = self.config
        if config.use_learned_positional_embeddings:
            stored = config.sample_height, config.sample_width
            if (height, width) != stored:
                raise InputError(
                    f"this model stores its positions for latents of height and width {stored}, "
                    f"got {(height, width)}"
                )
            if frames == config.sample_latents:
                table = self.pos_embedding[0, config.max_text_seq_length :]
                return table.reshape(x.shape[1:]).to(x.dtype)
        elif config.use_rotary_positional_embeddings:
            return x.new_zeros(())
        side = config.patch_size
        grid = waves(config, x.shape[1], height // side, width // side, device=x.device)
        return grid.to(x.dtype)


class FinalNorm(nn.Module):
    """LayerNorm, scaled and shifted by the time."""

    def __init__(self, config: CogVideoXTransformerConfig) -> None:
        super().__init__()
        self.linear = nn.Linear(config.time_embed_dim, 2 * config.width)
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        modulation: Tensor = self.linear(F.silu(time))
        shift, scale = modulation.unsqueeze(2).chunk(2, dim=-1)
        norm = self.norm
        return layer_norm(x, norm.weight, norm.bias, norm.eps) * (1 + scale) + shift


class CogVideoXTransformer(nn.Module):
    """Predicts velocity from noisy latents, a timestep on 0..999 and text."""

    def __init__(self, config: CogVideoXTransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbedding(config)
        self.time_embedding = TwoLayers(config.width, config.time_embed_dim)
        if config.ofs_embed_dim:
            self.ofs_embedding = TwoLayers(config.ofs_embed_dim, config.ofs_embed_dim)
        self.transformer_blocks = module_list(Block(config) for _ in range(config.num_layers))
        self.norm_final = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.norm_out = FinalNorm(config)
        patch = config.temporal_patch * config.patch_size**2
        self.proj_out = nn.Linear(config.width, config.out_channels * patch)

    @classmethod
    def from_config(cls, values: Mapping[str, Any]) -> CogVideoXTransformer:
        """Build from a diffusers `config.json`, weights not yet set."""
        return cls(CogVideoXTransformerConfig.from_dict(values))

    def forward(
        self, latents: Tensor, timestep: Tensor, text: Tensor, image: Tensor | None = None, *,
        share: TokenShare | None = None,
    ) -> Tensor:  # fmt: skip
        """The whole clip at once, every token seeing every other; tokens of an image are not read.

        `latents` `[B, C, T, H, W]`, `timestep` `[B]` or one for each latent frame `[B, T]`, `text`
        `[B, L, text_embed_dim]`. Gives velocity `[B, out_channels, T, H, W]`. With a time for each
        frame, those of a patch go by its last one, and the text by the clip's last. With a `share`
        the ranks that call this alike have some of the video's tokens each, and all get the
        result. Raises `InputError` for sizes that patches do not tile.
        """
        config = self.config
        self.check_latents(latents)
        video = self.patch_embed.video(latents.to(self.dtype))
        x = Stream(self.patch_embed.text(text.to(self.dtype)), video)
        time = self.time(timestep.reshape(len(latents), -1))
        side = config.patch_size
        rows, columns = latents.shape[3] // side, latents.shape[4] // side
        rope = None
        if config.use_rotary_positional_embeddings:
            rope = rotations(config, video.shape[1], rows, columns, device=latents.device)
        by, (depth, tokens) = PLAIN, video.shape[1:3]
        if share is not None:
            x = Stream(x.text, share.own(x.video, 2))
            rope = None if rope is None else own_rotations(rope, depth, share)
            by = share.attend(depth, tokens, x.text.shape[1])
        for block in self.transformer_blocks:
            x = block(x, time, rope, by)
        y = self.head(x.video, time)
        if share is not None:
            y = share.whole(y, 2, tokens)
        return self.unpatch(y, rows, columns)

    def head(self, video: Tensor, time: Tensor) -> Tensor:
        """Tokens `[B, t, n, D]` behind the last block to `[B, t, n, C depth side side]`."""
        norm = self.norm_final
        y = layer_norm(video, norm.weight, norm.bias, norm.eps)
        predicted: Tensor = self.proj_out(self.norm_out(y, time))
        return predicted

    def step(self, past: int, frames: int, height: int, width: int) -> CogVideoXStep:
        """A pass over `frames` latent frames behind `past` clean ones, for export."""
        from .step import CogVideoXStep

        return CogVideoXStep(self, past, frames, height, width)

    def text_kv(self, text: Tensor) -> KV:
        """The text `[B, L, text_embed_dim]` as it is, in the one pair that streams hand on."""
        words = text.to(self.dtype).unsqueeze(2)
        return [LayerKV(words, words)]

    @property
    def keep_in_bf16(self) -> tuple[str, ...]:
        """What fp8 leaves as it is: what is small, the first block, and the last, whose errors
        nothing behind them mends."""
        last = len(self.transformer_blocks) - 1
        small = ["patch_embed", "time_embedding", "ofs_embedding", "norm_out", "proj_out"]
        return (
            *(part for part in small if hasattr(self, part)),
            "transformer_blocks.0",
            f"transformer_blocks.{last}",
            *(f"transformer_blocks.{i}.norm{n}" for i in range(last + 1) for n in (1, 2)),
        )

    def cached(self) -> None:
        """It looks at the past anew in each pass."""

    def in_ring(self) -> None:
        """It keeps no keys and values."""

    def native(self) -> None:
        """The C++ core has no kernels for it."""

    def picture_condition(
        self, encode: Encode, first: Tensor, last: Tensor | None, latents: int, factor: int
    ) -> Tensor:
        """The first picture's latent, and zeros for the `latents` frames behind it."""
        known, _ = encode(first)
        return F.pad(known, (0, 0, 0, 0, 0, latents - known.shape[2]))

    def time(self, timestep: Tensor) -> Tensor:
        """`[B, 1 or T]` to what modulates, `[B, 1 or t, E]`."""
        if timestep.shape[1] > 1:
            timestep = timestep[:, self.config.temporal_patch - 1 :: self.config.temporal_patch]
        time: Tensor = self.time_embedding(timestep)
        if self.config.ofs_embed_dim:
            time = time + self.ofs_embedding(torch.full_like(timestep, _MOTION_STRENGTH))
        return time

    def unpatch(self, x: Tensor, rows: int, columns: int) -> Tensor:
        """`[B, t, n, C depth side side]` to `[B, C, T, H, W]`."""
        config = self.config
        side, depth = config.patch_size, config.temporal_patch
        b, t = x.shape[:2]
        x = x.reshape(b, t, rows, columns, config.out_channels, depth, side, side)
        x = x.permute(0, 4, 1, 5, 2, 6, 3, 7)
        return x.reshape(b, config.out_channels, t * depth, rows * side, columns * side)

    def check_latents(self, latents: Tensor) -> None:
        """Raise `InputError` for other channels, or for sizes that patches do not tile."""
        config, side, depth = self.config, self.config.patch_size, self.config.temporal_patch
        channels, frames, height, width = latents.shape[1:]
        if channels != config.in_channels or frames % depth or height % side or width % side:
            raise InputError(
                f"latents have shape {tuple(latents.shape)}; wanted {config.in_channels} channels, "
                f"frames a multiple of {depth}, height and width of {side}"
            )

    @property
    def channels(self) -> int:
        """Latent channels."""
        return self.config.out_channels

    @property
    def condition_channels(self) -> int:
        """Channels of pictures' latents behind the latents' own."""
        return self.config.in_channels - self.config.out_channels

    @property
    def image_width(self) -> None:
        """It reads no tokens of pictures."""

    @property
    def images(self) -> int | None:
        """It is shown one picture, where it is shown any."""
        return 1 if self.condition_channels else None

    @property
    def text_width(self) -> int:
        """Width of the text's embedding."""
        return self.config.text_embed_dim

    @property
    def spatial_patch(self) -> int:
        """Height and width of the latent must be multiples of this."""
        return self.config.patch_size

    @property
    def temporal_patch(self) -> int:
        """Latent frames must be a multiple of this."""
        return self.config.temporal_patch

    @property
    def dtype(self) -> torch.dtype:
        """What activations are computed in."""
        return self.proj_out.weight.dtype

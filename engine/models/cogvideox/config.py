"""What a CogVideoX folder's `config.json` files say, read and bounded without torch.

Yang et al., "CogVideoX: Text-to-Video Diffusion Models with An Expert Transformer" (2024); names
and defaults are those of diffusers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import CheckpointError
from ..fields import check_numbers, check_whole, check_wholes, known_fields, refuse_others

CHUNK = 2
"""Latent frames that go through encoder and decoder together."""
_MAX_LEVELS = 8
_MOST_OF_VAE = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 1024,
    "layers_per_block": 16,
    "norm_num_groups": 1024,
    "sample_height": 8192,
    "sample_width": 8192,
}


@dataclass(frozen=True, kw_only=True)
class CogVideoXVAEConfig:
    """Fields of diffusers' `AutoencoderKLCogVideoX` config that fix the layout.

    `block_out_channels` has a width for each level, between which space is halved;
    `temporal_compression_ratio` says by how much time is, from the first level on. Latents times
    `scaling_factor` are what the DiT sees; `invert_scale_latents` says that those of a picture to
    start from are divided by it. Raises `CheckpointError` for a value of the wrong type
    or beyond what a real VAE has.
    """

    in_channels: int = 3
    out_channels: int = 3
    block_out_channels: tuple[int, ...] = (128, 256, 256, 512)
    latent_channels: int = 16
    layers_per_block: int = 3
    norm_num_groups: int = 32
    temporal_compression_ratio: int = 4
    sample_height: int = 480
    sample_width: int = 720
    scaling_factor: float = 1.15258426
    invert_scale_latents: bool = False

    def __post_init__(self) -> None:
        for name, most in _MOST_OF_VAE.items():
            check_whole(name, getattr(self, name), most)
        if (self.in_channels, self.out_channels) != (3, 3):
            raise CheckpointError(
                f"in_channels and out_channels must be 3, "
                f"got {self.in_channels} and {self.out_channels}"
            )
        check_wholes("block_out_channels", self.block_out_channels, 4096, length=_MAX_LEVELS)
        groups = self.norm_num_groups
        if any(width % groups for width in self.block_out_channels):
            raise CheckpointError(
                f"block_out_channels must be multiples of norm_num_groups ({groups}), "
                f"got {self.block_out_channels}"
            )
        ratios = [2**i for i in range(self.levels)]
        if self.temporal_compression_ratio not in ratios:
            raise CheckpointError(
                f"temporal_compression_ratio must be one of {ratios}, "
                f"got {self.temporal_compression_ratio!r:.40}"
            )
        check_numbers("scaling_factor", (self.scaling_factor,), length=1, above=0)
        if not isinstance(self.invert_scale_latents, bool):
            raise CheckpointError(
                f"invert_scale_latents must be true or false, got {self.invert_scale_latents!r:.40}"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CogVideoXVAEConfig:
        """Read a diffusers `config.json`; layouts that LiveReel cannot run are refused."""
        config = cls(**known_fields(cls, values))
        refuse_others(
            {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()},
            {
                "act_fn": "silu",
                "norm_eps": 1e-6,
                "shift_factor": None,
                "latents_mean": None,
                "latents_std": None,
                "use_quant_conv": False,
                "use_post_quant_conv": False,
                "down_block_types": ["CogVideoXDownBlock3D"] * config.levels,
                "up_block_types": ["CogVideoXUpBlock3D"] * config.levels,
            },
        )
        return config

    @property
    def levels(self) -> int:
        """Resolutions that encoder and decoder go through."""
        return len(self.block_out_channels)

    @property
    def time_levels(self) -> int:
        """Levels of the encoder, from the first, behind which time is halved; the decoder doubles
        it behind as many, from its first."""
        return self.temporal_compression_ratio.bit_length() - 1

    @property
    def spatial_factor(self) -> int:
        """Pixels of each side that a latent pixel stands for."""
        return int(2 ** (self.levels - 1))


_MOST_OF_TRANSFORMER = {
    "num_attention_heads": 256,
    "attention_head_dim": 1024,
    "in_channels": 1024,
    "out_channels": 1024,
    "time_embed_dim": 1 << 16,
    "text_embed_dim": 1 << 16,
    "num_layers": 256,
    "sample_width": 1024,
    "sample_height": 1024,
    "sample_frames": 4096,
    "patch_size": 16,
    "temporal_compression_ratio": 64,
    "max_text_seq_length": 4096,
}


@dataclass(frozen=True, kw_only=True)
class CogVideoXTransformerConfig:
    """Fields of diffusers' `CogVideoXTransformer3DModel` config, by its names; defaults are 2B's.

    `sample_height` and `sample_width` are the latent's that it was trained at, `sample_frames` the
    number of pixel frames. Positions are sines and cosines, or rotary, or rotary with a table of
    sines beside (`use_learned_positional_embeddings`). Raises `CheckpointError` for a value of the
    wrong type or beyond what a real DiT has.
    """

    num_attention_heads: int = 30
    attention_head_dim: int = 64
    in_channels: int = 16
    out_channels: int = 16
    time_embed_dim: int = 512
    ofs_embed_dim: int | None = None
    text_embed_dim: int = 4096
    num_layers: int = 30
    attention_bias: bool = True
    sample_width: int = 90
    sample_height: int = 60
    sample_frames: int = 49
    patch_size: int = 2
    patch_size_t: int | None = None
    temporal_compression_ratio: int = 4
    max_text_seq_length: int = 226
    norm_eps: float = 1e-5
    spatial_interpolation_scale: float = 1.875
    temporal_interpolation_scale: float = 1.0
    use_rotary_positional_embeddings: bool = False
    use_learned_positional_embeddings: bool = False
    patch_bias: bool = True

    def __post_init__(self) -> None:
        for name, most in _MOST_OF_TRANSFORMER.items():
            check_whole(name, getattr(self, name), most)
        if self.patch_size_t is not None:
            check_whole("patch_size_t", self.patch_size_t, 16)
        for name in (
            "attention_bias", "patch_bias", "use_rotary_positional_embeddings",
            "use_learned_positional_embeddings",
        ):  # fmt: skip
            if not isinstance(getattr(self, name), bool):
                raise CheckpointError(
                    f"{name} must be true or false, got {getattr(self, name)!r:.40}"
                )
        for name in ("norm_eps", "spatial_interpolation_scale", "temporal_interpolation_scale"):
            check_numbers(name, (getattr(self, name),), length=1, above=0)
        if self.attention_head_dim % 16:
            raise CheckpointError(
                f"attention_head_dim must be a multiple of 16, got {self.attention_head_dim}"
            )
        if self.ofs_embed_dim not in (None, self.time_embed_dim):
            raise CheckpointError(
                f"ofs_embed_dim must be time_embed_dim ({self.time_embed_dim}) or null, "
                f"got {self.ofs_embed_dim!r:.40}"
            )
        if self.use_learned_positional_embeddings and not self.use_rotary_positional_embeddings:
            raise CheckpointError("use_learned_positional_embeddings wants rotary ones as well")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CogVideoXTransformerConfig:
        """Read a diffusers `config.json`; layouts that LiveReel cannot run are refused."""
        refuse_others(
            values,
            {
                "flip_sin_to_cos": True,
                "freq_shift": 0,
                "activation_fn": "gelu-approximate",
                "timestep_activation_fn": "silu",
                "norm_elementwise_affine": True,
            },
        )
        return cls(**known_fields(cls, values))

    @property
    def width(self) -> int:
        """Hidden width."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def temporal_patch(self) -> int:
        """Latent frames that a token stands for."""
        return self.patch_size_t or 1

    @property
    def sample_latents(self) -> int:
        """Latent frames of a clip of `sample_frames`."""
        return (self.sample_frames - 1) // self.temporal_compression_ratio + 1

    @property
    def stored_tokens(self) -> int:
        """Video tokens of such a clip, one latent frame in each, as a stored table counts them."""
        rows, columns = self.sample_height // self.patch_size, self.sample_width // self.patch_size
        return rows * columns * self.sample_latents

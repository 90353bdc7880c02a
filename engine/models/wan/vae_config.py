"""What a Wan VAE's `config.json` says, bounded, and the published statistics of its latents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import CheckpointError
from ..fields import check_numbers, check_whole, check_wholes, known_fields, refuse_others

# fmt: off
_LATENTS_MEAN = (
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
    0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
)
_LATENTS_STD = (
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
    3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
)
LATENTS_MEAN_2_2 = (
    -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557,
    -0.1382, 0.0542, 0.2813, 0.0891, 0.1570, -0.0098, 0.0375, -0.1825,
    -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502,
    -0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230,
    -0.0313, -0.1649, 0.0117, 0.0723, -0.2839, -0.2083, -0.0520, 0.3748,
    0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667,
)
LATENTS_STD_2_2 = (
    0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013,
    0.8158, 1.0344, 0.5894, 1.0901, 0.6885, 0.6165, 0.8454, 0.4978,
    0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659,
    0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093,
    0.5709, 0.6065, 0.6415, 0.4944, 0.5726, 1.2042, 0.5458, 1.6887,
    0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744,
)
# fmt: on

_MOST = {
    "base_dim": 1024,
    "decoder_base_dim": 1024,
    "z_dim": 1024,
    "num_res_blocks": 16,
    "in_channels": 1024,
    "out_channels": 1024,
    "patch_size": 16,
}
_OPTIONAL = ("decoder_base_dim", "patch_size")
_MAX_LEVELS = 8


@dataclass(frozen=True, kw_only=True)
class WanVAEConfig:
    """Fields of diffusers' `AutoencoderKLWan` config that fix the layout (its names, its defaults).

    `temperal_downsample` says for each halving of space whether time halves too; `patch_size`
    folds that many pixels of each side into channels first; `is_residual` is Wan 2.2's layout, with
    shortcuts past the levels. Raises `CheckpointError` for a value of
    the wrong type or beyond what a real VAE has.
    """

    base_dim: int = 96
    decoder_base_dim: int | None = None
    z_dim: int = 16
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    temperal_downsample: tuple[bool, ...] = (False, True, True)
    in_channels: int = 3
    out_channels: int = 3
    patch_size: int | None = None
    is_residual: bool = False
    latents_mean: tuple[float, ...] = _LATENTS_MEAN
    latents_std: tuple[float, ...] = _LATENTS_STD

    def __post_init__(self) -> None:
        for name, most in _MOST.items():
            if getattr(self, name) is not None or name not in _OPTIONAL:
                check_whole(name, getattr(self, name), most)
        check_wholes("dim_mult", self.dim_mult, 64, length=_MAX_LEVELS)
        halvings = len(self.dim_mult) - 1
        if not _are_flags(self.temperal_downsample, halvings):
            raise CheckpointError(
                f"temperal_downsample must be a list of {halvings} true or false, one less than "
                f"dim_mult, got {self.temperal_downsample!r:.40}"
            )
        channels = 3 * (self.patch_size or 1) ** 2
        if (self.in_channels, self.out_channels) != (channels, channels):
            raise CheckpointError(
                f"in_channels and out_channels must be {channels}, a folded RGB pixel, "
                f"got {self.in_channels} and {self.out_channels}"
            )
        if not isinstance(self.is_residual, bool):
            raise CheckpointError(
                f"is_residual must be true or false, got {self.is_residual!r:.40}"
            )
        check_numbers("latents_mean", self.latents_mean, length=self.z_dim, above=-1e6)
        check_numbers("latents_std", self.latents_std, length=self.z_dim, above=0)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> WanVAEConfig:
        """Read a diffusers `config.json`; layouts that this module cannot run are refused."""
        refuse_others(values, {"attn_scales": [], "dropout": 0.0})
        return cls(**known_fields(cls, values))

    @property
    def temporal_factor(self) -> int:
        """Pixel frames that a latent frame stands for."""
        return int(2 ** sum(self.temperal_downsample))

    @property
    def spatial_factor(self) -> int:
        """Pixels of each side that a latent pixel stands for."""
        return int(2 ** len(self.temperal_downsample)) * (self.patch_size or 1)


def _are_flags(values: object, length: int) -> bool:
    return (
        isinstance(values, tuple)
        and len(values) == length
        and all(isinstance(value, bool) for value in values)
    )

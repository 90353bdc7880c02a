"""A VAE that runs on several ranks, for runners to use as any other."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from .space_split import decode_space_split, has_bands
from .time_split import can_split, decode_time_split, encode_time_split

if TYPE_CHECKING:
    from torch import Tensor

    from ..layers.causal_conv import ConvCaches
    from ..types import VAE
    from .group import Group

    Decode = Callable[[Any, Tensor, Group, ConvCaches | None], tuple[Tensor | None, ConvCaches]]


def can_band(vae: VAE) -> bool:
    """Whether its decoder can be run on bands of the picture."""
    return has_bands(vae)


def banded(vae: VAE, group: Group) -> VAE:
    """`vae` with its decoder on all ranks of `group`, a band of the picture each (see
    `space_split.py`); rank 0 has the frames, others have black ones."""
    return vae if group.size == 1 else cast("VAE", _Decoding(vae, group, decode_space_split))


def in_turns(vae: VAE, group: Group) -> VAE:
    """`vae` with its encoder and decoder on all ranks of `group`, some of a clip's frames on each
    (see `time_split.py`), where it can be split so; all have the latents, and frames are as in
    `banded`."""
    if group.size == 1 or not can_split(vae):
        return vae
    return cast("VAE", _InTurns(vae, group, decode_time_split))


class _Decoding:
    def __init__(self, vae: Any, group: Group, decode: Decode) -> None:
        self._vae, self._group, self._decode = vae, group, decode

    def __getattr__(self, name: str) -> Any:
        return getattr(self._vae, name)

    def decode(
        self, latents: Tensor, caches: ConvCaches | None = None
    ) -> tuple[Tensor, ConvCaches]:
        frames, new = self._decode(self._vae, latents, self._group, caches)
        if frames is None:
            time, space = self._vae.temporal_factor, self._vae.spatial_factor
            count = time * latents.shape[2] - (time - 1 if caches is None else 0)
            height, width = (side * space for side in latents.shape[3:])
            frames = latents.new_full((len(latents), 3, count, height, width), -1.0)
        return frames, new


class _InTurns(_Decoding):
    def encode(self, frames: Tensor, caches: ConvCaches | None = None) -> tuple[Tensor, ConvCaches]:
        latents, new = encode_time_split(self._vae, frames, self._group, caches)
        if latents is None:
            space = self._vae.spatial_factor
            count = -(-frames.shape[2] // self._vae.temporal_factor)
            height, width = (side // space for side in frames.shape[3:])
            latents = frames.new_empty((len(frames), self._vae.channels, count, height, width))
        self._group.broadcast(latents)
        return latents, new

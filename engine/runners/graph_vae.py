"""A VAE that is step graphs, each for calls of one length.

Shapes: C channels, T latent frames, F pixel frames, H W space; batch 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import InputError
from ..layers.chunks import cut

if TYPE_CHECKING:
    from ..layers.causal_conv import ConvCaches
    from ..manifest import Latent, Manifest
    from .graphs import StepGraph


@dataclass(frozen=True)
class GraphVAE:
    """The VAE as `vae_decode*` and `vae_encode*`, which take calls of some lengths alone."""

    manifest: Manifest
    graphs: Mapping[str, StepGraph]

    @property
    def channels(self) -> int:
        """Latent channels."""
        return self._latent.channels

    @property
    def chunk(self) -> int | None:
        """Latent frames of a call, where that is part of the result; else calls have the lengths of
        the graphs."""
        return self._latent.vae_chunk

    @property
    def decoder_memory(self) -> int:
        """See `livereel.engine.types.VAE`."""
        return self._latent.decoder_memory

    @property
    def temporal_factor(self) -> int:
        """Pixel frames that a latent frame stands for; a stream's first stands for one."""
        return self._latent.temporal_factor

    @property
    def spatial_factor(self) -> int:
        """Pixels of each side that a latent pixel stands for."""
        return self._latent.spatial_factor

    def normalize(self, latents: Tensor) -> Tensor:
        """Latents to the DiT's scale."""
        mean, std = self._scale(latents)
        return (latents - mean) / std

    def denormalize(self, latents: Tensor) -> Tensor:
        """The inverse of `normalize`."""
        mean, std = self._scale(latents)
        return latents * std + mean

    def decode(
        self, latents: Tensor, caches: ConvCaches | None = None
    ) -> tuple[Tensor, ConvCaches]:
        """As `livereel.engine.types.VAE.decode`; raises `InputError` for another size."""
        return self.decode_normalized(self.normalize(latents.float()), caches)

    def encode(self, frames: Tensor, caches: ConvCaches | None = None) -> tuple[Tensor, ConvCaches]:
        """As `livereel.engine.types.VAE.encode`; raises `InputError` for another size."""
        latents, caches = self.encode_normalized(frames, caches)
        return self.denormalize(latents), caches

    def decode_normalized(
        self, latents: Tensor, caches: ConvCaches | None
    ) -> tuple[Tensor, ConvCaches]:
        """`decode` of latents in the DiT's scale."""
        latent = self._latent
        _check("latents", latents, (1, latent.channels, None, latent.height, latent.width))
        return self._calls("vae_decode", latents, caches, 1)

    def encode_normalized(
        self, frames: Tensor, caches: ConvCaches | None
    ) -> tuple[Tensor, ConvCaches]:
        """`encode` to latents in the DiT's scale."""
        stream, factor = self.manifest.stream, self.temporal_factor
        _check("frames", frames, (1, 3, None, stream.height, stream.width))
        if (frames.shape[2] - (caches is None)) % factor:
            rule = "1 + " * (caches is None) + f"a multiple of {factor}"
            raise InputError(f"the encoder was given {frames.shape[2]} frames; it wants {rule}")
        return self._calls("vae_encode", frames, caches, factor)

    def cache_shapes(self) -> list[tuple[int, ...]]:
        """The shapes of the decoder's caches."""
        graph = self.manifest.graphs["vae_decode"]
        return [x.shape for x in graph.inputs if x.name in graph.state.values()]

    @property
    def _latent(self) -> Latent:
        return self.manifest.latent

    def _calls(
        self, kind: str, x: Tensor, caches: ConvCaches | None, factor: int
    ) -> tuple[Tensor, ConvCaches]:
        """Go through the frames `x`, of which `factor` make a latent one, by graphs of a kind."""
        parts: list[Tensor] = []
        first, later = self._lengths(kind)
        for count in self._cuts(x.shape[2], later, factor, start=caches is None):
            table = first if caches is None else later
            if count not in table:
                known = ", ".join(map(str, sorted(table)))
                raise InputError(f"this package's {kind} takes {known} frames here, got {count}")
            made, caches = self._call(table[count], x[:, :, :count], caches or ())
            parts.append(made)
            x = x[:, :, count:]
        assert caches is not None
        return torch.cat(parts, dim=2) if len(parts) > 1 else parts[0], caches

    def _lengths(self, kind: str) -> tuple[dict[int, str], dict[int, str]]:
        """Graphs of a kind by how many frames they take: for a first call, and for later ones."""
        first: dict[int, str] = {}
        later: dict[int, str] = {}
        for name, graph in self.manifest.graphs.items():
            if name.startswith(kind):
                table = first if name.startswith(f"{kind}_first") else later
                table[graph.inputs[0].shape[2]] = name
        return first, later

    def _cuts(self, total: int, later: Iterable[int], factor: int, *, start: bool) -> list[int]:
        """How so many frames are cut for calls: as the VAE wants it, or, where any cut gives the
        same, a stream's first frame alone and then what has the longest graph."""
        if self.chunk is not None:
            return cut(total, factor * self.chunk)
        cuts = [1] if start else []
        left = total - len(cuts)
        for count in sorted(later, reverse=True):
            cuts += [count] * (left // count)
            left %= count
        return cuts

    def _call(self, name: str, x: Tensor, caches: ConvCaches) -> tuple[Tensor, ConvCaches]:
        spec = self.manifest.graphs[name]
        names = [given.name for given in spec.inputs]
        given = dict(zip(names, (x.float().contiguous(), *caches), strict=True))
        made = self.graphs[name](given)
        result, *kept = (made[output.name] for output in spec.outputs)
        return result, tuple(kept)

    def _scale(self, like: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = (
            torch.tensor(values, dtype=like.dtype, device=like.device).view(1, -1, 1, 1, 1)
            for values in (self._latent.mean, self._latent.std)
        )
        return mean, std


def _check(what: str, x: Tensor, shape: tuple[int | None, ...]) -> None:
    """Raise `InputError` unless `x` has `shape`, of which None is any number from 1 on."""
    fits = all(wanted in (None, found) for wanted, found in zip(shape, x.shape, strict=True))
    if not fits or 0 in x.shape:
        wanted = ", ".join("T" if n is None else str(n) for n in shape)
        raise InputError(f"this package takes {what} of shape ({wanted}), got {tuple(x.shape)}")

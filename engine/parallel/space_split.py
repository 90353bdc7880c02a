"""A causal video VAE over several ranks, each with a band of every frame's rows.

This lowers the latency of a single chunk of a stream, which has too few frames to share. What a
convolution has seen of the past stays on its rank, with the row to either side; with each chunk
only its own frames' border rows move. Attention inside frames has all ranks' keys and values, and
group norms all ranks' statistics.

Shapes: B batch, C channels, T latent frames, F pixel frames, H W space.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..layers.causal_conv import CacheTape, ConvCaches
from ..layers.chunks import cut
from .group import Group, shares
from .halo import to_first
from .time_split import CausalVAE


class Bands:
    """What `layers/beside.py` asks of the ranks of `group`, which hold bands from the top down, of
    so many latent `rows`."""

    def __init__(self, group: Group, rows: Sequence[int]) -> None:
        self.group, self.rows = group, rows
        self._above = group.rank - 1 if group.rank else None
        self._below = group.rank + 1 if group.rank + 1 < group.size else None

    def widen(self, x: Tensor, above: int, below: int) -> Tensor:
        """As `Beside.widen`; bands have at least as many rows. They travel channels last."""
        frames = x.movedim(1, -1)
        shape = frames.shape
        borders = [frames.new_zeros((*shape[:2], rows, *shape[3:])) for rows in (above, below)]
        sent: dict[int, Tensor] = {}
        received: dict[int, Tensor] = {}
        if self._above is not None:
            sent[self._above] = frames[:, :, :below].contiguous()
            received[self._above] = borders[0]
        if self._below is not None:
            sent[self._below] = frames[:, :, shape[2] - above :].contiguous()
            received[self._below] = borders[1]
        self.group.exchange(sent, received).wait()
        over, under = (rows.movedim(-1, 1) for rows in borders)
        return torch.cat([over, x, under], dim=3)

    def gather(self, x: Tensor, dim: int) -> Tensor:
        """As `Beside.gather`."""
        each = x.shape[dim] // self.rows[self.group.rank]
        return self.group.gather(x, dim, [each * rows for rows in self.rows])

    def stack(self, x: Tensor) -> Tensor:
        """As `Beside.stack`."""
        return self.group.gather(x.unsqueeze(0), 0, [1] * self.group.size)


def has_bands(vae: object) -> bool:
    """Whether a VAE can be split into bands: on torch's road, and no tiny decoder."""
    return isinstance(vae, nn.Module) and hasattr(vae, "decode_step")


def decode_space_split(
    vae: CausalVAE, latents: Tensor, group: Group, caches: ConvCaches | None = None
) -> tuple[Tensor | None, ConvCaches]:
    """Decode a clip, or a stream's next chunk, on all ranks of `group`: each calls this with the
    same `latents` `[B, C, T, h, w]`, un-normalized, the same weights, and the `caches` that it had
    from the call before (None at the start).

    Rank 0 gets the frames `[B, 3, F, H, W]` that `vae.decode` would give, others None; each gets
    its own caches. Of fewer rows than ranks the first ranks take one each, and others do nothing.
    Raises `InputError` for a VAE on other than torch's road.
    """
    _check(vae)
    return _run(vae.decode_step, latents, group, caches, 1, vae.chunk)


def encode_space_split(
    vae: CausalVAE, frames: Tensor, group: Group, caches: ConvCaches | None = None
) -> tuple[Tensor | None, ConvCaches]:
    """Encode a clip, or a stream's next chunk, on all ranks of `group`: each calls this with all
    rows `[B, 3, F, H, W]`, and looks at its own; else as `decode_space_split`.

    Rank 0 gets the latents' mean that `vae.encode` would give. Raises `InputError` for frames of
    other than a multiple of `spatial_factor` rows.
    """
    _check(vae)
    rows, factor = frames.shape[3], vae.spatial_factor
    if rows % factor:
        raise InputError(f"frames have {rows} rows; a split needs a multiple of {factor}")
    chunk = None if vae.chunk is None else vae.chunk * vae.temporal_factor
    return _run(vae.encode_step, frames, group, caches, factor, chunk)


def _check(vae: CausalVAE) -> None:
    if not has_bands(vae):
        raise InputError(f"{type(vae).__name__} sees no rows beside its own; wanted torch's road")


def _run(
    step: Callable[[Tensor, CacheTape], Tensor], x: Tensor, group: Group,
    caches: ConvCaches | None, unit: int, chunk: int | None,
) -> tuple[Tensor | None, ConvCaches]:  # fmt: skip
    """`step` of this rank's band of `x` `[B, C, frames, rows, columns]`, `unit` rows for each of a
    latent, in chunks of so many frames if that matters; what all ranks made is rank 0's."""
    height = x.shape[3] // unit
    used = group.part(*range(min(height, group.size)))
    if used is None:
        return None, ()
    rows = shares(height, used.size)
    band = x.split([unit * count for count in rows], dim=3)[used.rank]
    parts = []
    for part in band.split([x.shape[2]] if chunk is None else cut(x.shape[2], chunk), dim=2):
        tape = CacheTape(caches)
        tape.beside = Bands(used, rows)
        parts.append(step(part, tape))
        caches = tape.caches()
    assert caches is not None
    y = torch.cat(parts, dim=2)
    each = y.shape[3] // rows[used.rank]
    return to_first(y, [each * count for count in rows], 3, used), caches

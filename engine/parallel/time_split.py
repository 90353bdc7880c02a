"""A causal video VAE over several ranks, each with some of the clip's frames.

What each rank holds is its share of all activations, which is what a clip's length is limited by.
The result is that of one rank: convolutions get the frames before a rank's own as halos
(`halo.py`), and all else in such a VAE sees single frames. Where a VAE's norms see the frames of a
chunk, a rank takes a whole chunk at a time, and as many chunks as there are ranks make a round.

Shapes: B batch, C latent channels, T latent frames, F pixel frames, H W pixels, h w latent pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

from ..errors import InputError
from ..layers.causal_conv import CacheTape, ConvCaches
from ..layers.chunks import cut
from .group import Group, shares
from .halo import HaloTape, Route, to_first

Round = Sequence[int]
"""How many latent frames each rank has, of those that are run at a time."""


class CausalVAE(Protocol):
    """A VAE that can be split: on any road, as long as all ranks take the same."""

    @property
    def cache_time(self) -> int:
        """The dim of a cache that counts frames."""

    @property
    def channels(self) -> int:
        """Latent channels."""

    @property
    def chunk(self) -> int | None:
        """Latent frames whose statistics go into one another, if there are such."""

    @property
    def temporal_factor(self) -> int:
        """Pixel frames that a latent frame stands for; a clip's first stands for one."""

    @property
    def spatial_factor(self) -> int:
        """Pixels of each side that a latent pixel stands for."""

    def encode_step(self, frames: Tensor, tape: CacheTape) -> Tensor:
        """Frames to latents, caches on the tape."""

    def decode_step(self, latents: Tensor, tape: CacheTape) -> Tensor:
        """Latents to frames, caches on the tape."""


def rounds(chunks: Sequence[int], ranks: int) -> list[list[int]]:
    """What each rank runs, round by round, of chunks that are run whole, in turn."""
    padded = [*chunks, *[0] * (-len(chunks) % ranks)]
    return [padded[i : i + ranks] for i in range(0, len(padded), ranks)]


def decode_time_split(
    vae: CausalVAE, latents: Tensor, group: Group, counts: Round | None = None
) -> Tensor | None:
    """Decode a clip on all ranks of `group`: each calls this with the same `latents`
    `[B, C, T, h, w]`, un-normalized, and the same weights.

    Rank 0 gets the frames `[B, 3, 1 + 4 (T - 1), H, W]` in [-1, 1] that `vae.decode` would give,
    others None. `counts` says how many latent frames each rank takes, where not as many as others;
    ranks may have none but for the first. Raises `InputError` for latents or counts that do not
    fit.
    """
    total = latents.shape[2]
    chunks = None if vae.chunk is None else cut(total, vae.chunk)
    plan = _plan(total, chunks, group, counts)
    frames = _in_pixels(plan, vae.temporal_factor)
    return _run(vae.decode_step, latents, plan, frames, vae.cache_time, group)


def encode_time_split(
    vae: CausalVAE, frames: Tensor, group: Group, counts: Round | None = None
) -> Tensor | None:
    """Encode a clip on all ranks of `group`: each calls this with all frames `[B, 3, F, H, W]` in
    [-1, 1], F 1 + 4n, and looks at its own.

    Rank 0 gets the latents' mean `[B, C, 1 + n, h, w]` that `vae.encode` would give, others None.
    `counts`, in latent frames, and errors are as in `decode_time_split`.
    """
    factor, total = vae.temporal_factor, frames.shape[2]
    if total % factor != 1 % factor:
        raise InputError(
            f"the encoder was given {total} frames; it wants 1 + a multiple of {factor} here"
        )
    chunks = None if vae.chunk is None else cut(total, vae.chunk * factor)
    latents = None if chunks is None else [-(-chunk // factor) for chunk in chunks]
    plan = _plan(-(-total // factor), latents, group, counts)
    return _run(vae.encode_step, frames, _in_pixels(plan, factor), plan, vae.cache_time, group)


def _plan(
    latents: int, chunks: Sequence[int] | None, group: Group, counts: Round | None
) -> list[list[int]]:
    """What each rank runs, of so many latent frames in such chunks, if any."""
    if latents == 0:
        raise InputError("the clip has no frames; wanted at least one")
    if counts is None:
        return [shares(latents, group.size)] if chunks is None else rounds(chunks, group.size)
    fits = (
        len(counts) == group.size and sum(counts) == latents and min(counts) >= 0 and counts[0] > 0
    )
    if not fits or chunks is not None:
        raise InputError(
            f"counts are {list(counts)} for {latents} latent frames on {group.size} ranks; wanted "
            "as many as there are, the first above 0, and none for a VAE that has chunks"
        )
    return [list(counts)]


def _in_pixels(plan: Sequence[Round], factor: int) -> list[list[int]]:
    """A plan's latent frames as pixel frames, of which the clip's first makes one."""
    frames = [[factor * count for count in counts] for counts in plan]
    frames[0][0] -= factor - 1
    return frames


def _run(
    step: Callable[[Tensor, CacheTape], Tensor], x: Tensor, taken: Sequence[Round],
    given: Sequence[Round], time: int, group: Group,
) -> Tensor | None:  # fmt: skip
    """`step` of a clip `[B, C, frames, H, W]` of which ranks take and give so many frames, on rank
    0; None on others."""
    own = x.split([count for counts in taken for count in counts], dim=2)[group.rank :: group.size]
    total = sum(map(sum, given))
    whole: Tensor | None = None
    caches: ConvCaches | None = None
    start = 0
    for part, counts in zip(own, given, strict=True):
        if part.shape[2]:
            tape = HaloTape(caches, _route(counts, group), time)
            y = step(part, tape)
            tape.finish()
            if group.rank == 0 and whole is None:
                whole = y.new_empty((*y.shape[:2], total, *y.shape[3:]))
            room = None if whole is None else whole[:, :, start : start + sum(counts)]
            to_first(y, counts, 2, group, room)
            if start + sum(counts) < total:
                caches = tape.bring_back(like=y)
        start += sum(counts)
    return whole


def _route(counts: Round, group: Group) -> Route:
    """This rank's neighbors among those that have frames."""
    places = [place for place, count in enumerate(counts) if count]
    at = places.index(group.rank)
    before, after = places[:at], places[at + 1 :]
    return Route(group, before[-1] if before else None, after[0] if after else None)

"""A causal video VAE over several ranks, each with some of the clip's frames.

What each rank holds is its share of all activations, which is what a clip's length is limited by.
The result is that of one rank: convolutions get the frames before a rank's own as halos
(`halo.py`), and all else in such a VAE sees single frames. Where a VAE's norms see the frames of a
chunk, a rank takes a whole chunk at a time, and as many chunks as there are ranks make a round. The
rank that has a round's last frames takes the next one's first: their past is there already.

Shapes: B batch, C latent channels, T latent frames, F pixel frames, H W pixels, h w latent pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from ..errors import InputError
from ..layers.causal_conv import CacheTape, ConvCaches
from ..layers.chunks import cut
from .group import Group, shares
from .halo import HaloTape, Route, to_first

Round = Sequence[int]
"""How many latent frames ranks have, of those that are run at a time, as they come in the clip."""


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


def can_split(vae: object) -> bool:
    """Whether a VAE can be split: on the roads of torch and Triton, and no tiny decoder."""
    return hasattr(vae, "decode_step") and hasattr(vae, "cache_time")


def rounds(chunks: Sequence[int], ranks: int) -> list[list[int]]:
    """What each rank runs, round by round, of chunks that are run whole, in turn."""
    padded = [*chunks, *[0] * (-len(chunks) % ranks)]
    return [padded[i : i + ranks] for i in range(0, len(padded), ranks)]


def decode_time_split(
    vae: CausalVAE, latents: Tensor, group: Group, caches: ConvCaches | None = None,
    counts: Round | None = None,
) -> tuple[Tensor | None, ConvCaches]:  # fmt: skip
    """Decode a clip, or what comes next of it, on all ranks of `group`: each calls this with the
    same `latents` `[B, C, T, h, w]`, un-normalized, the same weights, and the `caches` that it had
    from the call before (None at the start).

    Rank 0 gets the frames `[B, 3, F, H, W]` in [-1, 1] that `vae.decode` would give, others None;
    each gets its own caches. `counts` says how many latent frames each rank takes, where not as
    many as others, beginning with the one whose turn it is; others may have none. Raises
    `InputError` for latents or counts that do not fit.
    """
    batch, _, total, *sides = latents.shape
    chunks = None if vae.chunk is None else cut(total, vae.chunk)
    plan = _plan(total, chunks, group, counts)
    frames = _in_pixels(plan, vae.temporal_factor, first=caches is None)
    whole = (batch, 3, sum(map(sum, frames)), *(side * vae.spatial_factor for side in sides))
    return _run(vae.decode_step, latents, plan, frames, vae.cache_time, group, caches, whole)


def encode_time_split(
    vae: CausalVAE, frames: Tensor, group: Group, caches: ConvCaches | None = None,
    counts: Round | None = None,
) -> tuple[Tensor | None, ConvCaches]:  # fmt: skip
    """Encode a clip, or what comes next of it, on all ranks of `group`: each calls this with all
    frames `[B, 3, F, H, W]` in [-1, 1], F 1 + 4n at the start and 4n later, and looks at its own.

    Rank 0 gets the latents' mean `[B, C, T, h, w]` that `vae.encode` would give, others None.
    `caches`, `counts`, in latent frames, and errors are as in `decode_time_split`.
    """
    batch, _, total, *sides = frames.shape
    factor, first = vae.temporal_factor, caches is None
    if (total - first) % factor:
        rule = f"1 + a multiple of {factor}" if first else f"a multiple of {factor}"
        raise InputError(f"the encoder was given {total} frames; it wants {rule} here")
    chunks = None if vae.chunk is None else cut(total, vae.chunk * factor)
    latents = None if chunks is None else [-(-chunk // factor) for chunk in chunks]
    plan = _plan(-(-total // factor), latents, group, counts)
    taken = _in_pixels(plan, factor, first=first)
    made = sum(map(sum, plan))
    whole = (batch, vae.channels, made, *(side // vae.spatial_factor for side in sides))
    return _run(vae.encode_step, frames, taken, plan, vae.cache_time, group, caches, whole)


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


def _in_pixels(plan: Sequence[Round], factor: int, *, first: bool) -> list[list[int]]:
    """A plan's latent frames as pixel frames, of which the clip's first makes one."""
    frames = [[factor * count for count in counts] for counts in plan]
    frames[0][0] -= (factor - 1) * first
    return frames


def _run(
    step: Callable[[Tensor, CacheTape], Tensor], x: Tensor, taken: Sequence[Round],
    given: Sequence[Round], time: int, group: Group, caches: ConvCaches | None,
    shape: Sequence[int],
) -> tuple[Tensor | None, ConvCaches]:  # fmt: skip
    """`step` of frames `[B, C, frames, H, W]` of which ranks take and give so many: on rank 0 the
    result, of this `shape`, on others None. The first of `caches` says whose turn it is, and the
    others are that rank's."""
    turn, kept = (0, None) if caches is None else (int(caches[0]), caches[1:])
    whole: Tensor | None = None
    at = 0
    for part, counts, made in zip(x.split([*map(sum, taken)], dim=2), taken, given, strict=True):
        order = [(turn + seat) % group.size for seat in range(group.size)]
        busy = [place for place, count in zip(order, counts, strict=True) if count]
        y: Tensor | None = None
        if group.rank in busy:
            tape = HaloTape(kept, _route(busy, group), time)
            y = step(part.split(list(counts), dim=2)[order.index(group.rank)], tape)
            tape.finish()
            kept = tape.caches()
        if group.rank == 0 and whole is None:
            whole = x.new_empty(shape)
        room = None if whole is None else whole[:, :, at : at + sum(made)]
        to_first(y, [count for count in made if count], 2, group, room, busy)
        turn, at = busy[-1], at + sum(made)
    return whole, (torch.tensor(turn), *(kept or ()))


def _route(busy: Sequence[int], group: Group) -> Route:
    """This rank's neighbors among those that have frames."""
    at = busy.index(group.rank)
    return Route(
        group,
        before=busy[at - 1] if at else None,
        after=busy[at + 1] if at + 1 < len(busy) else None,
    )

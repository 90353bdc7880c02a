"""Where in the picture a stream's object shall be, as channels behind the latents' own.

A track is a position for each frame: (x, y) in shares of the picture's width and height. A DiT that
follows tracks is given, beside each noisy latent frame, one map for each pixel frame that it stands
for, with a bump where the object shall be; so Wan's image-to-video DiTs are told by a mask which
frames are known, and Wan2.1-Fun-Control and its like of poses and edges, by channels that begin
with weights of zero (`livereel.engine.models.wan.control`). Maps of zeros leave the object free.

Shapes: F pixel frames, C channels, T latent frames, H W latent space.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from ..errors import InputError

Position: TypeAlias = "tuple[float, float] | None"
"""(x, y) in shares of width and height from the upper left corner; None leaves it open."""

MAX_TRACK = 100_000
"""Frames that a track may have."""
_WIDTH = 1.0  # latent pixels: a bump's standard deviation


def read_track(control: object) -> Tensor:
    """Positions `[F, 2]`, fp64, NaN where they are open, of one position or a sequence of them.

    Raises `InputError` for what is neither, or lies outside the picture.
    """
    given: Iterable[object]
    given = [control] if _is_position(control) else control  # type: ignore[assignment]
    if not isinstance(given, Sequence) or isinstance(given, (str, bytes)):
        raise InputError(
            f"control is {control!r:.40}; wanted a position (x, y) or a sequence of them"
        )
    if len(given) > MAX_TRACK:
        raise InputError(f"a control track has at most {MAX_TRACK} positions, got {len(given)}")
    rows = []
    for position in given:
        if position is not None and not _is_position(position):
            raise InputError(
                f"a position is {position!r:.40}; wanted (x, y), each from 0 to 1, or None"
            )
        rows.append((math.nan, math.nan) if position is None else position)
    return torch.tensor(rows, dtype=torch.float64).reshape(-1, 2)


def check_track(track: Tensor) -> None:
    """Raise `InputError` unless these are positions `[F, 2]`, as a stream's state has them."""
    if track.ndim != 2 or not 1 <= len(track) <= MAX_TRACK + 1 or track.shape[1] != 2:
        raise InputError(f"a track has shape {tuple(track.shape)}; wanted (frames, 2)")
    if not ((track >= 0) & (track <= 1) | track.isnan()).all():
        raise InputError("a track leaves the picture")


def glide(start: Tensor, goal: Tensor, frames: int, *, wraps: bool) -> Tensor:
    """Positions `[frames, 2]` on the straight way from `start` `[2]`, which is not among them, to
    `goal` `[2]`, the last; only `goal` where one of them is open. Where the picture `wraps`, the
    way is the shorter one, perhaps over its edge."""
    if start.isnan().any() or goal.isnan().any():
        return goal.unsqueeze(0)
    way = goal - start
    if wraps:
        way = (way + 0.5) % 1 - 0.5
    share = torch.arange(1, frames + 1, dtype=torch.float64).unsqueeze(1) / frames
    path = start + share * way
    return torch.cat([path[:-1] % 1 if wraps else path[:-1], goal.unsqueeze(0)])


def draw(
    track: Tensor, latents: int, size: tuple[int, int], factor: int, *, first: bool, wraps: bool
) -> Tensor:
    """Maps `[1, C, T, H, W]`, fp32, C = `factor`, T = `latents`, of size (H, W).

    `track` `[F, 2]` are the positions of the frames, at least one; the last one holds on. A latent
    frame stands for `factor` frames, the `first` of a stream for one, which all its channels show.
    """
    held = torch.arange(frames_of(latents, factor, first=first)).clamp_max(len(track) - 1)
    positions = track[held]
    if first:
        positions = torch.cat([positions[:1].expand(factor - 1, -1), positions])
    height, width = size
    squared = [
        _away(positions[:, axis], side, wraps=wraps).square()
        for axis, side in ((1, height), (0, width))
    ]
    distance = squared[0].unsqueeze(2) + squared[1].unsqueeze(1)  # [F, H, W]
    maps = torch.exp(distance / (-2 * _WIDTH**2)).nan_to_num(0.0).float()
    return maps.view(latents, factor, height, width).transpose(0, 1).unsqueeze(0)


def frames_of(latents: int, factor: int, *, first: bool) -> int:
    """Frames that so many latent frames stand for."""
    return latents * factor - (factor - 1 if first else 0)


def _away(place: Tensor, side: int, *, wraps: bool) -> Tensor:
    """Distance of each latent pixel's center from places along an axis, `[F, side]`."""
    away = torch.arange(side, dtype=torch.float64) + 0.5 - place.unsqueeze(1) * side
    return (away + side / 2) % side - side / 2 if wraps else away


def _is_position(value: object) -> bool:
    return (
        isinstance(value, Sequence)
        and len(value) == 2
        and all(
            isinstance(x, (int, float)) and not isinstance(x, bool) and 0 <= x <= 1 for x in value
        )
    )

"""Where the demo's object is, frame by frame, and how far that is from where it should be.

What should be comes from a drawn scene, from another video, or from a track that the model was told
to follow. Lengths are in pixels of the 128 grid of `scenes`, which is a torus.

Shape legend: K clips, F frames, H W space.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from .measure import Floats, Track, find_object
from .scenes import GRID, Frames, Scene

Values: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Objects:
    """A clip's object: its center (x, y) in each frame, `path` `[F, 2]`, NaN where there is none,
    and how much of each pixel it covers, `masks` `[F, H, W]` in 0..1, if that is known."""

    path: Track
    masks: Floats | None = None

    @classmethod
    def seen(cls, frames: Frames) -> Objects:
        """What square uint8 frames `[F, H, W, 3]` show. Raises `InputError` for others."""
        if frames.ndim != 4 or not len(frames) or frames.shape[1] != frames.shape[2]:
            raise InputError(
                f"the demo's object is looked for in square frames [F, H, W, 3], "
                f"got {list(frames.shape)}"
            )
        found = [find_object(frame) for frame in frames]
        path = np.array([center for center, _ in found], np.float64)
        return cls(path, np.stack([mask for _, mask in found]))

    @classmethod
    def drawn(cls, scene: Scene, first: int, count: int, size: int = GRID) -> Objects:
        """The truth of `count` frames of a scene, number `first` the first of them."""
        path = np.array([scene.position(first + i) for i in range(count)], np.float64)
        return cls(path, scene.mask(first, count, size))


@dataclass(frozen=True, kw_only=True)
class ObjectMetrics:
    """How objects go where they should.

    Over the frames that show one: `trajectory_error`, the distance from its place, in pixels, and
    `velocity_error`, the difference of its step from frame to frame, both root mean square. `found`
    is the share of frames that show an object where there should be one, `mask_iou` the mean
    intersection over union of masks (None where these are not known), 0 for a frame without one.
    `error_of` and `iou_of` are the same frame by frame, `error_of` NaN where nothing was found.
    """

    clips: int
    frames: int
    found: float
    trajectory_error: float
    velocity_error: float
    mask_iou: float | None
    error_of: tuple[float, ...] = field(default=())
    iou_of: tuple[float, ...] = field(default=())


def compare_objects(found: Sequence[Objects], truth: Sequence[Objects]) -> ObjectMetrics:
    """Compare clips of one length, pair by pair.

    Raises `InputError` for clips that differ in number or length, or have no frame with an object
    in common.
    """
    lengths = {len(clip.path) for clip in (*found, *truth)}
    if len(found) != len(truth) or len(lengths) != 1:
        raise InputError(
            f"{len(found)} clips and {len(truth)} of {sorted(lengths)} frames; wanted as many, "
            f"all of one length"
        )
    ours, theirs = (np.stack([clip.path for clip in clips]) for clips in (found, truth))
    away = _around(ours - theirs)  # [K, F, 2]
    squared = np.square(away).sum(-1)
    due = ~np.isnan(theirs[..., 0])
    both = due & ~np.isnan(ours[..., 0])
    if not both.any():
        raise InputError("no frame of these clips shows an object where there should be one")
    steps = np.square(_around(np.diff(away, axis=1))).sum(-1)
    stepped = both[:, 1:] & both[:, :-1]
    overlaps = [_overlap(a, b) for a, b in zip(found, truth, strict=True)]
    known = [x for x in overlaps if x is not None]
    iou = np.stack(known) if len(known) == len(overlaps) else None
    return ObjectMetrics(
        clips=len(found),
        frames=ours.shape[1],
        found=float(both.sum() / due.sum()),
        trajectory_error=_root_mean(squared, both),
        velocity_error=_root_mean(steps, stepped),
        mask_iou=None if iou is None else float(iou.mean()),
        error_of=tuple(_root_mean(s, b) for s, b in zip(squared.T, both.T, strict=True)),
        iou_of=() if iou is None else tuple(float(x) for x in iou.mean(0)),
    )


def to_line(metrics: ObjectMetrics) -> str:
    """What was measured, in a sentence."""
    overlap = "" if metrics.mask_iou is None else f", mask IoU {metrics.mask_iou:.3f}"
    return (
        f"Object: found in {100 * metrics.found:.1f} % of the frames, trajectory error "
        f"{metrics.trajectory_error:.2f} px, velocity error {metrics.velocity_error:.2f} px/frame"
        f"{overlap} (pixels of a picture {GRID} wide)."
    )


def _around(offset: Values) -> Values:
    """Offsets on the torus, in -GRID/2 .. GRID/2."""
    result: Values = (offset + GRID / 2) % GRID - GRID / 2
    return result


def _root_mean(squared: Values, counted: npt.NDArray[np.bool_]) -> float:
    return math.sqrt(squared[counted].mean()) if counted.any() else math.nan


def _overlap(one: Objects, other: Objects) -> Values | None:
    """Intersection over union frame by frame, `[F]`; 1 where neither has anything."""
    if one.masks is None or other.masks is None:
        return None
    if one.masks.shape != other.masks.shape:
        raise InputError(
            f"masks are {list(one.masks.shape)} and {list(other.masks.shape)}; wanted alike"
        )
    a, b = one.masks > 0.5, other.masks > 0.5
    union = (a | b).sum((1, 2))
    both = (a & b).sum((1, 2))
    result: Values = np.where(union > 0, both / np.maximum(union, 1), 1.0)
    return result

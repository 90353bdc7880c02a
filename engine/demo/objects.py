"""Where the demo's object is, frame by frame, and how far that is from where it should be.

What should be comes from a drawn scene, from another video, or from a track that the model was told
to follow. Lengths are in pixels of the 128 grid of `scenes`, which is a torus.

Shape legend: K clips, F frames, H W space.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from .measure import Track, find_object
from .scenes import GRID, Frames, Scene

Values: TypeAlias = npt.NDArray[np.float64]
Mask: TypeAlias = npt.NDArray[np.bool_]

MAX_PIXELS = 1 << 29
"""Pixels of all frames that an object is looked for in together."""


@dataclass(frozen=True)
class Objects:
    """A clip's object: its center (x, y) in each frame, `path` `[F, 2]`, NaN where there is none,
    and which pixels it covers, more than half of each, `masks` `[F, H, W]`, if that is known."""

    path: Track
    masks: Mask | None = None

    @classmethod
    def seen(cls, frames: Iterable[Frames]) -> Objects:
        """What square frames of one size show, uint8 `[H, W, 3]` each. Raises `InputError` for
        others, for none, and for more pixels than `MAX_PIXELS`."""
        centers: list[tuple[float, float]] = []
        masks: list[Mask] = []
        for frame in frames:
            if frame.ndim != 3 or frame.shape[0] != frame.shape[1]:
                raise InputError(
                    f"the demo's object is looked for in square frames [H, W, 3], "
                    f"got {list(frame.shape)}"
                )
            if (len(masks) + 1) * frame.shape[0] ** 2 > MAX_PIXELS:
                raise InputError(
                    f"the object is looked for in at most {MAX_PIXELS // frame.shape[0] ** 2} "
                    f"frames of {frame.shape[1]}x{frame.shape[0]}; cut the video first"
                )
            center, alpha = find_object(frame)
            centers.append(center)
            masks.append(alpha > 0.5)
        if not masks:
            raise InputError("there is no frame to look for the demo's object in")
        return cls(np.array(centers, np.float64), np.stack(masks))

    @classmethod
    def drawn(cls, scene: Scene, first: int, count: int, size: int = GRID) -> Objects:
        """The truth of `count` frames of a scene, number `first` the first of them."""
        path = np.array([scene.position(first + i) for i in range(count)], np.float64)
        return cls(path, scene.mask(first, count, size) > 0.5)

    def first(self, count: int) -> Objects:
        """The first `count` frames alone."""
        return Objects(self.path[:count], None if self.masks is None else self.masks[:count])


@dataclass(frozen=True, kw_only=True)
class ObjectMetrics:
    """How objects go where they should.

    Over the frames that show one: `trajectory_error`, the distance from its place, in pixels, and
    `velocity_error`, the difference of its step from frame to frame, both root mean square. `found`
    is the share of frames that show an object of those where there should be one, `mask_iou` the
    mean intersection over union of masks (None where these are not known), 0 for a frame without
    one. `error_of` and `iou_of` are the same frame by frame. Where there is nothing to take a mean
    of, it is NaN.
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

    Raises `InputError` for clips that differ in number, length or size.
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
    steps = np.square(_around(np.diff(away, axis=1))).sum(-1)
    stepped = both[:, 1:] & both[:, :-1]
    overlaps = [_overlap(a, b) for a, b in zip(found, truth, strict=True)]
    known = [x for x in overlaps if x is not None]
    iou = np.stack(known) if len(known) == len(overlaps) else None
    return ObjectMetrics(
        clips=len(found),
        frames=ours.shape[1],
        found=float(both.sum() / due.sum()) if due.any() else math.nan,
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
    union = (one.masks | other.masks).sum((1, 2))
    both = (one.masks & other.masks).sum((1, 2))
    result: Values = np.where(union > 0, both / np.maximum(union, 1), 1.0)
    return result

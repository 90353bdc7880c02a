"""What is to be seen in a clip of the demo's world, by plain image analysis.

No learned part: the background is the plane that most pixels lie on, the object is what differs
from it, its color is the nearest of eight in CIELAB, its shape that of the best overlapping
template of the same area, its motion a straight line fitted on the torus. Every class is `None`
when nothing fits, so that mush is wrong rather than near something.

Shape legend: F frames, H W space. Lengths are in pixels of the 128 grid of `scenes`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from .scenes import (
    BACKGROUND_RGB,
    COLOR_RGB,
    GRID,
    RADII,
    SHAPES,
    VELOCITIES,
    Caption,
    Frames,
    signed_distance,
)

Floats: TypeAlias = npt.NDArray[np.float32]
Track: TypeAlias = npt.NDArray[np.float64]

STANDS_UNDER = 0.5
"""Pixels a frame below which an object stands still; scenes move with 1.9 to 2.1."""

_DIFFERS = 45.0  # RGB distance from the background at which a pixel may be the object's
_COLOR_LIMIT = 40.0  # CIELAB distance beyond which a color has no name
_BACKGROUND_LIMIT = 60.0  # RGB distance beyond which a background has no name
_SHAPE_LIMIT = 0.7  # overlap (intersection over union) below which a shape has no name
_AREA_LIMITS = (0.008, 0.45)  # share of the picture that an object covers


@dataclass(frozen=True)
class Measurement:
    """What a clip shows; a class is None where nothing fits.

    `size` is "small", "medium" or "large"; `radius` that of the circle with the object's area,
    `velocity` (x, y) in pixels a frame. `trajectory_error` says how far, in pixels, the object
    strays within one second from a straight, even motion in the measured direction (standing: from
    its place), root mean square over the clip; infinite when there is no motion class. `overlap` is
    the intersection over union with the shape's template, `path` the object's center (x, y) in each
    frame, `[F, 2]`, NaN where no object was found.
    """

    size: str | None
    color: str | None
    shape: str | None
    motion: str | None
    background: str | None
    radius: float
    velocity: tuple[float, float]
    trajectory_error: float
    overlap: float
    path: Track

    def matches(self, caption: Caption) -> dict[str, bool]:
        """Which of the caption's words hold; "size" only when the caption names one."""
        result = {
            name: getattr(self, name) == getattr(caption, name)
            for name in ("color", "shape", "motion", "background")
        }
        if caption.size is not None:
            result["size"] = self.size == caption.size
        return result


def measure(frames: Frames, fps: float = 16.0) -> Measurement:
    """Look at a clip: classes by vote over its frames, motion by a fit through all of them.

    Args:
        frames: uint8 `[F, H, W, 3]`, H = W, of any side.
        fps: frames a second, for the trajectory error.

    Raises:
        InputError: the frames are of another type or shape, or `fps` is not positive.
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not frames.size:
        raise InputError(
            f"frames must be uint8 of shape [F, H, W, 3], got {frames.dtype} {list(frames.shape)}"
        )
    if frames.shape[1] != frames.shape[2]:
        raise InputError(f"frames must be square, got {frames.shape[1]} by {frames.shape[2]}")
    if not fps > 0:
        raise InputError(f"fps must be positive, got {fps}")
    looks = [_look(frame) for frame in frames]
    path = np.array([look.center for look in looks], np.float64)
    motion, velocity, error = _fit_motion(path, fps)
    radii = [look.radius for look in looks if not math.isnan(look.radius)]
    radius = float(np.median(radii)) if radii else math.nan
    shape = _vote([look.shape for look in looks])
    return Measurement(
        size=_size_class(radius),
        color=_vote([look.color for look in looks]),
        shape=shape,
        motion=motion,
        background=_vote([look.background for look in looks]),
        radius=radius,
        velocity=velocity,
        trajectory_error=error,
        overlap=float(np.mean([look.overlap for look in looks])),
        path=path,
    )


def object_mask(frame: Frames) -> Floats:
    """How much of each pixel is the object's: float32 `[H, W]` in 0..1, for one uint8 frame
    `[H, W, 3]`; all zeros when there is no object."""
    return _separate(frame).alpha


def find_object(frame: Frames) -> tuple[tuple[float, float], Floats]:
    """The object's center (x, y), NaN where there is none, and `object_mask`, for one frame."""
    alpha = _separate(frame).alpha
    low, high = _AREA_LIMITS
    if not low <= float((alpha > 0.5).mean()) <= high:
        return (math.nan, math.nan), np.zeros_like(alpha)
    return _centroid(alpha, GRID / frame.shape[0]), alpha


def psnr(
    frames: npt.NDArray[np.generic],
    truth: npt.NDArray[np.generic],
    mask: npt.NDArray[np.generic] | None = None,
) -> float:
    """Peak signal-to-noise ratio in dB between frames `[F, H, W, 3]` on a scale of 0..255.

    With `mask` `[F, H, W]` only the pixels where it is above one half count. Equal frames give
    infinity.

    Raises:
        InputError: shapes differ, or the mask is empty.
    """
    return mse_to_psnr(squared_error(frames, truth, mask))


def squared_error(
    frames: npt.NDArray[np.generic],
    truth: npt.NDArray[np.generic],
    mask: npt.NDArray[np.generic] | None = None,
) -> float:
    """Mean squared error behind `psnr`, same arguments."""
    if frames.shape != truth.shape:
        raise InputError(f"frames {list(frames.shape)} and truth {list(truth.shape)} differ")
    error = np.square(frames.astype(np.float64) - truth.astype(np.float64))
    if mask is not None:
        inside = np.asarray(mask, np.float64) > 0.5
        if inside.shape != error.shape[:-1] or not inside.any():
            raise InputError(
                f"mask must be of shape {list(error.shape[:-1])} and not empty, "
                f"got {list(inside.shape)} with {int(inside.sum())} pixels set"
            )
        error = error[inside]
    return float(error.mean())


def mse_to_psnr(error: float) -> float:
    """dB for a mean squared error on a scale of 0..255."""
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def to_lab(rgb: Sequence[float] | Floats) -> npt.NDArray[np.float64]:
    """CIELAB (D65) of sRGB values 0..255, last axis 3."""
    linear = np.asarray(rgb, np.float64) / 255
    linear = np.where(linear <= 0.04045, linear / 12.92, ((linear + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    xyz = linear @ to_xyz.T / np.array([0.9505, 1.0, 1.089])
    root = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = root[..., 0], root[..., 1], root[..., 2]
    lab: npt.NDArray[np.float64] = np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)
    return lab


_COLOR_LAB = {name: to_lab(rgb) for name, rgb in COLOR_RGB.items()}


@dataclass(frozen=True)
class _Look:
    """What one frame shows."""

    color: str | None
    shape: str | None
    background: str | None
    radius: float
    overlap: float
    center: tuple[float, float]


@dataclass(frozen=True)
class _Layers:
    """A frame taken apart: background and object color, and how much of each pixel is which."""

    background: Floats
    color: Floats
    alpha: Floats


def _look(frame: Frames) -> _Look:
    layers = _separate(frame)
    background = _background_class(layers.background)
    pixel = GRID / frame.shape[0]
    area = float((layers.alpha > 0.5).mean())
    if not _AREA_LIMITS[0] <= area <= _AREA_LIMITS[1]:
        return _Look(None, None, background, math.nan, 0.0, (math.nan, math.nan))
    radius = GRID * math.sqrt(area / math.pi)
    x, y = _centroid(layers.alpha, pixel)
    shape, overlap = _shape_class(layers.alpha, (x, y), radius, pixel)
    return _Look(_color_class(layers.color), shape, background, radius, overlap, (x, y))


def _separate(frame: Frames) -> _Layers:
    """Tell object from background: a plane for the one, one color for the other."""
    picture = np.ascontiguousarray(frame.transpose(2, 0, 1), np.float32)  # [3, H, W]
    middle: Floats = np.median(picture[:, ::2, ::2].reshape(3, -1), axis=1).astype(np.float32)
    rows = np.linspace(-1, 1, frame.shape[0], dtype=np.float32)
    plane = np.broadcast_to(middle[:, None], (3, frame.shape[0]))
    for _ in range(2):  # a level and a vertical slope, fitted to the pixels that are near it
        near = (_norm(picture - plane[..., None]) < _DIFFERS).astype(np.float32)
        per_row = near.sum(1)
        total = per_row.sum()
        if total < 0.2 * near.size:
            break
        center = (per_row * rows).sum() / total
        spread = (per_row * np.square(rows - center)).sum()
        levels = (picture * near).sum(2)
        slope = levels @ (rows - center) / spread
        plane = (levels.sum(1) / total)[:, None] + slope[:, None] * (rows - center)
    difference = _smooth(picture - plane[..., None])
    differs = _norm(difference) > _DIFFERS
    nothing = np.zeros(differs.shape, np.float32)
    if not differs.any():
        return _Layers(middle, middle, nothing)
    core = _erode(_erode(differs))
    chosen = core if core.sum() >= 12 else differs
    offset = np.median(difference[:, chosen], axis=1)
    length = float(offset @ offset)
    if length < 1:
        return _Layers(middle, middle, nothing)
    alpha: Floats = np.tensordot(offset / np.float32(length), difference, 1).clip(0, 1)
    alpha[alpha < 0.25] = 0
    color = np.median(picture[:, chosen], axis=1)
    return _Layers(plane.mean(1), color, alpha)


def _norm(picture: Floats) -> Floats:
    """Length of each pixel's color, `[3, H, W]` to `[H, W]`."""
    length: Floats = np.sqrt(np.square(picture).sum(0))
    return length


def _smooth(picture: Floats) -> Floats:
    """Mean over 3 by 3 pixels on the torus, `[3, H, W]`: takes the noise off."""
    for axis in (1, 2):
        total = picture + np.roll(picture, 1, axis) + np.roll(picture, -1, axis)
        picture = (total / 3).astype(np.float32, copy=False)
    return picture


def _erode(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """The mask without its outermost pixels, on the torus."""
    for axis in (0, 1):
        mask = mask & np.roll(mask, 1, axis) & np.roll(mask, -1, axis)
    return mask


def _centroid(alpha: Floats, pixel: float) -> tuple[float, float]:
    """Center of mass (x, y) on the torus: a circular mean, then the mean offset from it."""
    result = []
    for axis in (0, 1):  # the axis summed over: rows give x, columns y
        weight = alpha.sum(axis, dtype=np.float64)
        grid = (np.arange(len(weight)) + 0.5) * pixel
        turn = np.exp(2j * math.pi * grid / GRID) @ weight
        place = float(np.angle(turn)) * GRID / (2 * math.pi)
        for _ in range(3):
            offset = (grid - place + GRID / 2) % GRID - GRID / 2
            place += float(offset @ weight / weight.sum())
        result.append(place % GRID)
    return result[0], result[1]


def _shape_class(
    alpha: Floats, center: tuple[float, float], radius: float, pixel: float
) -> tuple[str | None, float]:
    """The template of the same area and center that overlaps the object best, and how well."""
    grid = (np.arange(alpha.shape[0]) + 0.5) * pixel
    dx, dy = (((grid - place + GRID / 2) % GRID - GRID / 2).astype(np.float32) for place in center)
    overlaps = {}
    for shape in SHAPES:
        distance = signed_distance(shape, dx[None, :], dy[:, None], radius)
        template = np.clip(0.5 - distance / (2.5 * pixel), 0, 1)  # as soft as `_smooth` makes it
        union = float(np.maximum(alpha, template).sum())
        overlaps[shape] = float(np.minimum(alpha, template).sum()) / union
    best = max(overlaps, key=lambda shape: overlaps[shape])
    return (best if overlaps[best] >= _SHAPE_LIMIT else None), overlaps[best]


def _color_class(rgb: Floats) -> str | None:
    lab = to_lab(rgb)
    away = {name: float(np.linalg.norm(lab - ideal)) for name, ideal in _COLOR_LAB.items()}
    best = min(away, key=lambda name: away[name])
    return best if away[best] <= _COLOR_LIMIT else None


def _background_class(rgb: Floats) -> str | None:
    away = {name: math.dist(rgb, ideal) for name, ideal in BACKGROUND_RGB.items()}
    best = min(away, key=lambda name: away[name])
    return best if away[best] <= _BACKGROUND_LIMIT else None


def _size_class(radius: float) -> str | None:
    if math.isnan(radius):
        return None
    small, medium, large = RADII["small"], RADII[None], RADII["large"]
    if radius < (small[1] + medium[0]) / 2:
        return "small"
    return "medium" if radius < (medium[1] + large[0]) / 2 else "large"


def _vote(names: Sequence[str | None]) -> str | None:
    """The name that more than half of the frames agree on."""
    name, count = Counter(names).most_common(1)[0]
    return name if 2 * count > len(names) else None


def _fit_motion(path: Track, fps: float) -> tuple[str | None, tuple[float, float], float]:
    """Motion class, velocity (x, y) in pixels a frame and trajectory error in pixels a second."""
    seen = np.flatnonzero(~np.isnan(path[:, 0]))
    nothing = None, (math.nan, math.nan), math.inf
    if len(seen) < 3 or 2 * len(seen) <= len(path):
        return nothing
    step = np.diff(path[seen], axis=0)
    step = (step + GRID / 2) % GRID - GRID / 2
    track = np.concatenate([np.zeros((1, 2)), np.cumsum(step, axis=0)])
    time = seen - seen.mean()
    velocity = time @ (track - track.mean(0)) / (time @ time)
    vx, vy = float(velocity[0]), float(velocity[1])
    motion = _motion_class(vx, vy)
    if motion is None:
        return None, (vx, vy), math.inf
    along = np.abs(np.array(VELOCITIES[motion], np.float64))  # the axis it may move on
    stray = track - time[:, None] * (velocity * along)
    span = min(round(fps), max(2, len(path) // 2))
    first, last = np.nonzero(seen[None, :] - seen[:, None] == span)
    if not len(first):
        return motion, (vx, vy), math.inf
    off = np.square(stray[last] - stray[first]).sum(1)
    return motion, (vx, vy), float(np.sqrt(off.mean())) * fps / span


def _motion_class(vx: float, vy: float) -> str | None:
    """The direction of a velocity in pixels a frame; None when it is oblique."""
    if math.hypot(vx, vy) < STANDS_UNDER:
        return "standing still"
    if max(abs(vx), abs(vy)) < 2 * min(abs(vx), abs(vy)):
        return None
    if abs(vx) > abs(vy):
        return "moving right" if vx > 0 else "moving left"
    return "moving down" if vy > 0 else "moving up"

"""What can be said of a video without knowing what it shows: flicker, drift, and how far it is from
another one.

Read and measured in windows, so that memory does not grow with length. Levels run from 0 to 255.

Shapes: F frames, H W space.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError, ResourceError
from .reader import video_frames

if TYPE_CHECKING:
    import numpy.typing as npt

    from ..types import Frames

    Floats = npt.NDArray[np.float64]

WINDOW = 100
"""Frames whose statistics are taken together."""
MIN_SIDE = 11
"""Pixels of SSIM's window."""
_PART = 8


@dataclass(frozen=True, kw_only=True)
class Look:
    """Means over the frames from number `frame` on, in levels: `brightness`; `contrast`, the
    deviation within a frame; `saturation`, the largest channel less the smallest; `sharpness`, the
    difference between neighboring pixels."""

    frame: int
    brightness: float
    contrast: float
    saturation: float
    sharpness: float

    def drift(self, first: Look) -> dict[str, float]:
        """How far each mean is from another window's."""
        ours, theirs = asdict(self), asdict(first)
        return {name: ours[name] - theirs[name] for name in ours if name != "frame"}


@dataclass(frozen=True, kw_only=True)
class FrameMetrics:
    """One row of frames: its `looks` window by window; `change`, the mean difference from frame to
    frame (what VBench calls temporal flickering is made of it), and `flicker`, half the mean second
    difference over time, which even motion and fades leave small. Levels."""

    frames: int
    width: int
    height: int
    change: float
    flicker: float
    looks: tuple[Look, ...] = field(default=())

    @property
    def drift(self) -> dict[str, float]:
        """The last window's look against the first's."""
        return self.looks[-1].drift(self.looks[0])


@dataclass(frozen=True, kw_only=True)
class VideoMetrics(FrameMetrics):
    """One video, whose windows are of `WINDOW` frames."""

    fps: float


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two videos frame by frame: `psnr` of all their errors together, in dB (infinite where there
    are none), `ssim` on average, `largest` difference in levels, and both measures frame by frame.
    """

    frames: int
    psnr: float
    ssim: float
    largest: int
    psnr_of: tuple[float, ...] = field(default=())
    ssim_of: tuple[float, ...] = field(default=())


def measure_video(path: str | Path) -> VideoMetrics:
    """Look at one video. Raises `InputError` for one of fewer than 3 frames, or no video."""
    rate = 0.0

    def windows() -> Iterator[Frames]:
        nonlocal rate
        for frames, fps in _windows(path, WINDOW):
            rate = fps
            yield frames

    found = measure_frames(windows(), str(path))
    return VideoMetrics(**vars(found), fps=rate)


def measure_frames(windows: Iterable[Frames], name: str) -> FrameMetrics:
    """The same of frames `[F, H, W, 3]`, uint8, that come window by window.

    Raises `InputError`, which names them, for fewer than 3.
    """
    looks: list[Look] = []
    tail: Frames | None = None
    count, changes, seconds = 0, 0.0, 0.0
    height = width = 0
    for frames in windows:
        height, width = frames.shape[1:3]
        looks.append(_look(frames, count))
        joined = frames if tail is None else np.concatenate([tail, frames])
        x = joined.astype(np.int16)
        new = len(joined) - len(frames)
        for i in range(max(1, new), len(x)):
            changes += float(np.abs(x[i] - x[i - 1]).mean())
        for i in range(max(2, new), len(x)):
            seconds += float(np.abs(x[i] - 2 * x[i - 1] + x[i - 2]).mean()) / 2
        tail = joined[-2:]
        count += len(frames)
    if count < 3:
        raise InputError(f"{name} has {count} frames; at least 3 are wanted")
    return FrameMetrics(
        frames=count, width=width, height=height, change=changes / (count - 1),
        flicker=seconds / (count - 2), looks=tuple(looks),
    )  # fmt: skip


def compare_videos(path: str | Path, other: str | Path) -> Comparison:
    """How far a video is from another one, over the frames that both have.

    Raises `InputError` for files that are none, of different sizes, or smaller than SSIM's window,
    `ResourceError` where torchmetrics is not installed.
    """
    return compare_frames(_pairs(path, other))


def compare_frames(pairs: Iterable[tuple[Frames, Frames]]) -> Comparison:
    """The same of frames `[F, H, W, 3]`, uint8, that come in pairs of parts alike.

    Raises `InputError` where there are none, and `ResourceError` as `compare_videos` does.
    """
    psnr, ssim = _functions()
    errors: list[float] = []
    likeness: list[float] = []
    squared, largest, numbers = 0.0, 0, 0
    for a, b in pairs:
        difference = np.abs(a.astype(np.int16) - b)
        squared += float(np.square(difference, dtype=np.int64).sum())
        largest, numbers = max(largest, int(difference.max())), numbers + a.size
        errors += psnr(a, b)
        likeness += ssim(a, b)
    if not errors:
        raise InputError("the videos have no frame in common")
    level = squared / numbers
    return Comparison(
        frames=len(errors), psnr=10 * math.log10(255**2 / level) if level else math.inf,
        ssim=float(np.mean(likeness)), largest=largest, psnr_of=tuple(errors),
        ssim_of=tuple(likeness),
    )  # fmt: skip


def _pairs(path: str | Path, other: str | Path) -> Iterator[tuple[Frames, Frames]]:
    """Parts of two videos, frame by frame beside each other."""
    parts = zip(_windows(path, _PART), _windows(other, _PART), strict=False)
    for (ours, _), (theirs, _) in parts:
        if ours.shape[1:] != theirs.shape[1:]:
            sizes = [f"{frames.shape[2]}x{frames.shape[1]}" for frames in (ours, theirs)]
            raise InputError(f"{path} is {sizes[0]} and {other} {sizes[1]}; they must be alike")
        if min(ours.shape[1:3]) < MIN_SIDE:
            raise InputError(f"{path} is smaller than {MIN_SIDE} pixels a side")
        count = min(len(ours), len(theirs))
        yield ours[:count], theirs[:count]


def to_json(videos: dict[str, VideoMetrics], comparison: Comparison | None) -> dict[str, Any]:
    """All that was measured, as JSON has it: numbers that are not finite become None."""
    values: dict[str, Any] = {
        "videos": {
            name: {**asdict(video), "drift": [look.drift(video.looks[0]) for look in video.looks]}
            for name, video in videos.items()
        }
    }
    if comparison is not None:
        values["comparison"] = asdict(comparison)
    return finite(values)  # type: ignore[no-any-return]


def to_markdown(videos: dict[str, VideoMetrics], comparison: Comparison | None) -> str:
    """A table for each kind of measure."""
    looks = " | ".join(one.name for one in fields(Look)[1:])
    rows = [f"| video | frames | change | flicker | {looks} |", "| --- " * 8 + "|"]
    for name, video in videos.items():
        drift = " | ".join(f"{value:+.2f}" for value in video.drift.values())
        rows.append(
            f"| {name} | {video.frames} | {video.change:.2f} | {video.flicker:.2f} | {drift} |"
        )
    rows += [
        "",
        f"Levels of 255; the last four are the last {WINDOW} frames' less the first's.",
        "",
    ]
    if comparison is not None:
        rows += [
            "| frames compared | PSNR | SSIM | largest difference |",
            "| --- | --- | --- | --- |",
        ]
        rows += [f"| {comparison.frames} | {comparison.psnr:.2f} dB | {comparison.ssim:.4f} "
                 f"| {comparison.largest} |", ""]  # fmt: skip
    return "\n".join(rows)


def _windows(path: str | Path, size: int) -> Iterator[tuple[Frames, float]]:
    frames = video_frames(path)
    while found := list(islice(frames, size)):
        yield np.stack([frame for frame, _ in found]), found[0][1]


def _look(frames: Frames, first: int) -> Look:
    sums = np.zeros(4)
    for frame in frames:
        x = frame.astype(np.float32)
        across, down = np.abs(np.diff(x, axis=1)).mean(), np.abs(np.diff(x, axis=0)).mean()
        colors = x.max(axis=2) - x.min(axis=2)
        sums += (x.mean(), x.std(), colors.mean(), (across + down) / 2)
    brightness, contrast, saturation, sharpness = (float(x) for x in sums / len(frames))
    return Look(
        frame=first, brightness=brightness, contrast=contrast, saturation=saturation,
        sharpness=sharpness,
    )  # fmt: skip


def _functions() -> Any:
    """torchmetrics' PSNR and SSIM of uint8 frames `[F, H, W, 3]`, frame by frame."""
    try:
        import torch
        from torchmetrics.functional.image import (
            peak_signal_noise_ratio,
            structural_similarity_index_measure,
        )
    except ImportError as error:
        raise ResourceError(
            "comparing videos needs torchmetrics: pip install 'livereel[metrics]'"
        ) from error

    def floats(frames: Frames) -> Any:
        return torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255

    def psnr(a: Frames, b: Frames) -> list[float]:
        each = peak_signal_noise_ratio(
            floats(a), floats(b), data_range=1.0, dim=(1, 2, 3), reduction="none"
        )
        return [float(x) for x in each]

    def ssim(a: Frames, b: Frames) -> list[float]:
        each: Any = structural_similarity_index_measure(
            floats(a), floats(b), data_range=1.0, reduction="none"
        )
        return [float(x) for x in each]

    return psnr, ssim


def finite(value: Any) -> Any:
    """What JSON can hold of it: numbers that are not finite become None."""
    if isinstance(value, dict):
        return {key: finite(x) for key, x in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(x) for x in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

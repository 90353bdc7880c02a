"""Measures of videos as a picture: looks over time, and likeness frame by frame."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError, ResourceError

if TYPE_CHECKING:
    from .metrics import Comparison, VideoMetrics

_LOOKS = ("brightness", "contrast", "saturation", "sharpness")
_WIDTH, _HEIGHT = 8.0, 3.0  # inches of a panel


def save_plot(path: Path, videos: dict[str, VideoMetrics], comparison: Comparison | None) -> None:
    """Write a PNG. Raises `InputError` for a place that cannot be written, `ResourceError` where
    matplotlib is not installed."""
    rows = len(videos) + (comparison is not None)
    figure, panels = _panels(rows)
    for panel, (name, video) in zip(panels, videos.items(), strict=False):
        frames = [look.frame for look in video.looks]
        for kind in _LOOKS:
            drift = [look.drift(video.looks[0])[kind] for look in video.looks]
            panel.plot(frames, drift, marker="o", markersize=3, label=kind)
        panel.set(title=f"{name}: drift", xlabel="frame", ylabel="levels of 255")
        panel.legend()
    if comparison is not None:
        frames = list(range(comparison.frames))
        panel, beside = panels[-1], panels[-1].twinx()
        found = [value if math.isfinite(value) else math.nan for value in comparison.psnr_of]
        panel.plot(frames, found, color="tab:blue")
        panel.set(title="frame by frame", xlabel="frame", ylabel="PSNR in dB (blue)")
        beside.plot(frames, comparison.ssim_of, color="tab:orange")
        beside.set(ylabel="SSIM (orange)")
    _write(figure, path)


def save_curves(path: Path, panels: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
    """Write a PNG of curves over frames: by panel, whose name says what is shown, and by name.

    Raises as `save_plot` does.
    """
    figure, drawn = _panels(len(panels))
    for panel, (title, named) in zip(drawn, panels.items(), strict=True):
        for name, values in named.items():
            finite = [value if math.isfinite(value) else math.nan for value in values]
            panel.plot(range(len(finite)), finite, label=name)
        panel.set(xlabel="frame", ylabel=title)
        panel.legend()
    _write(figure, path)


def _panels(rows: int) -> tuple[Any, Any]:
    """A figure of so many panels below each other, and these."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ResourceError("a plot needs matplotlib: pip install 'livereel[metrics]'") from error
    figure = Figure(figsize=(_WIDTH, _HEIGHT * rows), layout="constrained")
    return figure, figure.subplots(rows, 1, squeeze=False)[:, 0]


def _write(figure: Any, path: Path) -> None:
    part = path.with_name(f".{path.name}.part")
    try:
        figure.savefig(part, format="png", dpi=100)
        os.replace(part, path)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)

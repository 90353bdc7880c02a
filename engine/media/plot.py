"""Measures of videos as a picture: looks over time, and likeness frame by frame."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError, ResourceError

if TYPE_CHECKING:
    from .metrics import Comparison, VideoMetrics

_LOOKS = ("brightness", "contrast", "saturation", "sharpness")
_WIDTH, _HEIGHT = 8.0, 3.0  # inches of a panel


def save_plot(path: Path, videos: dict[str, VideoMetrics], comparison: Comparison | None) -> None:
    """Write a PNG. Raises `InputError` for a place that cannot be written, `ResourceError` where
    matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ResourceError("a plot needs matplotlib: pip install 'livereel[metrics]'") from error
    rows = len(videos) + (comparison is not None)
    figure = Figure(figsize=(_WIDTH, _HEIGHT * rows), layout="constrained")
    panels = figure.subplots(rows, 1, squeeze=False)[:, 0]
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
    part = path.with_name(f".{path.name}.part")
    try:
        figure.savefig(part, format="png", dpi=100)
        os.replace(part, path)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)

"""Frames to files, encoded as they come: memory stays flat however long the stream is.

Every sink writes under a temporary name beside its goal and renames at `close`, so that what
stands under the goal's name is always whole. Shape legend: F frames, H W space.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import numpy as np
from av.filter import Graph
from av.video.format import VideoFormat
from av.video.frame import VideoFrame

from ..config import MAX_FPS
from ..errors import InputError
from .place import ACCURATE, BT709, LIMITED_RANGE, check_frames, check_open, new_part, writing
from .png import PngSink

if TYPE_CHECKING:
    from av.container import OutputContainer
    from av.video.stream import VideoStream

    from ..types import Frames, FrameSink

_ENDINGS = "use .mp4, .webm or .gif, or end in a slash for a folder of numbered PNGs"


@dataclass(frozen=True, kw_only=True)
class _Format:
    """How one kind of file is made; `keyframe_s` seconds at most lie between two keyframes."""

    container: str
    codec: str
    pixels: str
    max_fps: float = MAX_FPS
    keyframe_s: float = 2.0
    codec_options: dict[str, str] = field(default_factory=dict)
    container_options: dict[str, str] = field(default_factory=dict)


_FORMATS = {
    ".mp4": _Format(
        container="mp4",
        codec="libx264",
        pixels="yuv420p",
        codec_options={"crf": "18", "preset": "veryfast"},
        container_options={"movflags": "+faststart"},
    ),
    ".webm": _Format(
        container="webm",
        codec="libvpx-vp9",
        pixels="yuv420p",
        codec_options={
            "crf": "24",
            "b": "0",
            "deadline": "realtime",
            "cpu-used": "6",
            "row-mt": "1",
        },
    ),
    # Viewers slow a GIF down when its frames last less than two hundredths of a second.
    ".gif": _Format(container="gif", codec="gif", pixels="pal8", max_fps=50.0),
}


def open_sink(path: str | Path, *, fps: float) -> FrameSink:
    """Open a place for frames: .mp4 (H.264), .webm (VP9), .gif, or PNGs when it ends in a slash.

    Odd widths and heights are padded to even ones in .mp4 and .webm by repeating the last column
    or row, since their color planes have half the size. Raises `InputError` now, before a frame is
    made, for an unknown ending, a folder that is missing or not writable, or an `fps` the format
    cannot hold. The sink raises `ResourceError` when the place fails later, as a full disk does.
    """
    name = os.fspath(path)
    if not name:
        raise InputError(f"the output path is empty; {_ENDINGS}")
    if not (math.isfinite(fps) and 0 < fps <= MAX_FPS):
        raise InputError(f"fps must lie above 0 and at most at {MAX_FPS:g}, got {fps:g}")
    goal = Path(name)
    if name.endswith(("/", os.sep)):
        return PngSink(goal)
    known = _FORMATS.get(goal.suffix.lower())
    if goal.is_dir():
        raise InputError(f"{name} is a folder; name a file in it, or {_ENDINGS.partition(', ')[2]}")
    if known is None:
        raise InputError(f"{name} has an unknown ending {goal.suffix!r}; {_ENDINGS}")
    if fps > known.max_fps:
        raise InputError(
            f"a {goal.suffix} holds at most {known.max_fps:g} frames a second, got {fps:g}"
        )
    return _VideoSink(goal, known, Fraction(fps).limit_denominator(1001))


class _VideoSink:
    """One video file; the encoder opens with the first frames, which tell it their size."""

    def __init__(self, path: Path, kind: _Format, rate: Fraction) -> None:
        self._path = path
        self._kind = kind
        self._rate = rate
        self._goal = path.resolve()
        if self._goal.exists() and not (self._goal.is_file() and os.access(self._goal, os.W_OK)):
            raise InputError(f"{path} is there already and cannot be overwritten")
        self._part = new_part(self._goal, path, lambda part: part.touch(exist_ok=False))
        self._container: OutputContainer | None = None
        self._stream: VideoStream | None = None
        self._palette: Graph | None = None
        self._shape: tuple[int, int] | None = None
        self._count = 0
        self._done = False

    def write(self, frames: Frames) -> None:
        """Encode uint8 `[F, H, W, 3]`. Raises `InputError` for another shape than before."""
        check_open(self._done)
        self._shape = check_frames(frames, self._shape)
        if self._kind.pixels == "yuv420p":
            odd = ((0, 0), (0, self._shape[0] % 2), (0, self._shape[1] % 2), (0, 0))
            frames = np.pad(frames, odd, mode="edge") if frames.size else frames
        with writing(self._path):
            for pixels in frames:
                frame = VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
                frame.pts, frame.time_base = self._count, 1 / self._rate
                self._encode(frame)
                self._count += 1

    def close(self) -> Path:
        """Flush the encoder and give the file its name. Raises `InputError` if nothing came."""
        if self._done:
            return self._path
        if self._count == 0:
            self.abort()
            raise InputError(f"{self._path} was not written, since no frame came")
        try:
            with writing(self._path):
                self._encode(None)
                assert self._container is not None
                self._container.close()
                os.replace(self._part, self._goal)
        except BaseException:
            self.abort()
            raise
        self._done = True
        return self._path

    def abort(self) -> None:
        """Drop the temporary file; what stood under the goal's name before stays."""
        if self._done:
            return
        self._done = True
        if self._container is not None:
            with contextlib.suppress(OSError, ValueError):
                self._container.close()
        self._part.unlink(missing_ok=True)

    def _encode(self, frame: VideoFrame | None) -> None:
        if self._stream is None:
            assert frame is not None
            self._open(frame.width, frame.height)
        assert self._stream is not None
        assert self._container is not None
        for ready in self._convert(frame):
            self._container.mux(self._stream.encode(ready))
        if frame is None:
            self._container.mux(self._stream.encode(None))

    def _open(self, width: int, height: int) -> None:
        kind = self._kind
        self._container = av.open(
            str(self._part), "w", format=kind.container, options=kind.container_options
        )
        # PyAV's stubs list codec names as literals, one overload each.
        add_stream: Any = self._container.add_stream
        stream: VideoStream = add_stream(kind.codec, rate=self._rate, options=kind.codec_options)
        stream.width, stream.height, stream.pix_fmt = width, height, kind.pixels
        stream.codec_context.gop_size = math.ceil(kind.keyframe_s * self._rate)
        if kind.pixels == "pal8":
            self._palette = _palette_graph(width, height, 1 / self._rate)
        else:
            context = stream.codec_context
            context.colorspace = BT709
            context.color_range = LIMITED_RANGE
            context.color_primaries = BT709
            context.color_trc = BT709
        self._stream = stream

    def _convert(self, frame: VideoFrame | None) -> Iterator[VideoFrame]:
        """Frames in the encoder's pixels; None flushes."""
        if self._palette is not None:
            self._palette.vpush(frame)
            while True:
                try:
                    yield self._palette.vpull()
                except (av.BlockingIOError, av.EOFError):
                    return
        elif frame is not None:
            yield frame.reformat(
                format=self._kind.pixels,
                dst_colorspace=BT709,
                dst_color_range=LIMITED_RANGE,
                interpolation=ACCURATE,
            )


def _palette_graph(width: int, height: int, time_base: Fraction) -> Graph:
    """rgb24 in, pal8 out: each frame gets the 128 colors that suit it best."""
    graph = Graph()
    pixels = VideoFormat("rgb24", width, height)
    source = graph.add_buffer(width=width, height=height, format=pixels, time_base=time_base)
    split = graph.add("split")
    palette = graph.add("palettegen", "stats_mode=single:max_colors=128")
    use = graph.add("paletteuse", "new=1:dither=sierra2_4a")
    sink = graph.add("buffersink")
    source.link_to(split)
    split.link_to(use, 0, 0)
    split.link_to(palette, 1, 0)
    palette.link_to(use, 0, 1)
    use.link_to(sink)
    graph.configure()
    return graph

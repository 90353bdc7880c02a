"""Frames to H.264 as they come, a packet for each, at one of a few levels of quality.

What an encoder is told is in `LEVELS` and `PRESETS` here; no viewer can name options of a codec.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import av
import numpy as np
from av.video.codeccontext import VideoCodecContext
from av.video.frame import PictureType, VideoFrame

from ..errors import InputError, ResourceError
from ..media.place import ACCURATE, BT709, LIMITED_RANGE
from .protocol import Flag, Header

if TYPE_CHECKING:
    import numpy.typing as npt

KEYFRAME_S = 2.0
"""At most this long lies between two keyframes."""
HISTORY_BYTES = 16 << 20
HISTORY_S = 12.0
"""Of what was sent, this much is kept for viewers who come late or come back."""

_BITS_PER_PIXEL = 0.5
_LEAST_BITS = 300_000
_LEAST_SIDE = 64


@dataclass(frozen=True, kw_only=True)
class Level:
    """What a viewer gets: a `share` of the bit rate, one frame of `every`, sides over `shrink`."""

    share: float
    every: int = 1
    shrink: int = 1


LEVELS = (
    Level(share=1.0),
    Level(share=0.5),
    Level(share=0.25),
    Level(share=0.15, every=2),
    Level(share=0.08, every=2, shrink=2),
    Level(share=0.04, every=4, shrink=2),
)
"""From everything down: the bit rate first, then the frame rate, then the size."""

PRESETS: dict[str, dict[str, str]] = {
    "libx264": {"preset": "superfast", "tune": "zerolatency", "crf": "20", "forced-idr": "1"},
    "h264_nvenc": {
        "preset": "p2", "tune": "ull", "rc": "vbr", "cq": "23", "zerolatency": "1",
        "delay": "0", "forced-idr": "1",
    },
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Packet:
    """One encoded frame: its number in the stream, its chunk, when it is shown in microseconds
    since the stream's start, and how many frames it stands for."""

    data: bytes
    keyframe: bool
    frame: int
    chunk: int
    pts: int
    span: int

    def message(self, stream: int, *, catch_up: bool = False, gap: bool = False) -> bytes:
        """The binary frame of the socket."""
        flags = (
            Flag.KEYFRAME * self.keyframe | Flag.CATCH_UP * catch_up | Flag.GAP * gap
        )  # fmt: skip
        header = Header(
            flags=flags, stream=stream, chunk=self.chunk, frame=self.frame, pts=self.pts,
            span=self.span,
        )  # fmt: skip
        return header.pack(self.data)


def pick_codec() -> str:
    """NVENC where a GPU encodes, x264 on the CPU elsewhere. Opens an encoder to find out."""
    try:
        Encoder(256, 256, 16.0, LEVELS[0], codec="h264_nvenc").encode(
            np.zeros((256, 256, 3), np.uint8)
        )
    except (ResourceError, av.FFmpegError):
        return "libx264"
    return "h264_nvenc"


class Encoder:
    """One H.264 encoder, without delay: each frame in gives its packet out."""

    def __init__(
        self, width: int, height: int, fps: float, level: Level, codec: str = "libx264"
    ) -> None:
        """For frames `[height, width, 3]`. Odd sides lose their last row or column, since color
        planes have half the size. Raises `ResourceError` where there is no such encoder."""
        if codec not in PRESETS:
            raise InputError(f"codec is {codec!r}; known are {', '.join(PRESETS)}")
        shrink = level.shrink if min(width, height) // level.shrink >= _LEAST_SIDE else 1
        self.width, self.height = width // shrink // 2 * 2, height // shrink // 2 * 2
        rate = Fraction(fps / level.every).limit_denominator(1001)
        pixels = self.width * self.height
        bits = max(_LEAST_BITS, pixels * float(rate) * _BITS_PER_PIXEL * level.every * shrink**2)
        bits = int(bits * level.share)
        try:
            context = av.CodecContext.create(codec, "w")
        except ValueError as error:
            raise ResourceError(f"PyAV was built without the encoder {codec}") from error
        assert isinstance(context, VideoCodecContext)
        context.width, context.height, context.pix_fmt = self.width, self.height, "yuv420p"
        context.framerate, context.time_base = rate, 1 / rate
        context.gop_size = max(1, math.ceil(KEYFRAME_S * float(rate)))
        context.max_b_frames = 0
        context.colorspace = context.color_primaries = context.color_trc = BT709
        context.color_range = LIMITED_RANGE
        context.thread_count = 1
        context.options = PRESETS[codec] | {
            "maxrate": str(bits),
            "bufsize": str(bits // 2),
            "bf": "0",
        }
        self._context = context
        self._count = 0

    def encode(self, pixels: npt.NDArray[np.uint8], *, keyframe: bool = False) -> bytes:
        """Annex B of one frame, uint8 `[H, W, 3]`; in front of a keyframe its parameter sets."""
        frame = VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        frame = frame.reformat(
            width=self.width,
            height=self.height,
            format="yuv420p",
            dst_colorspace=BT709,
            dst_color_range=LIMITED_RANGE,
            interpolation=ACCURATE,
        )
        frame.pts, frame.time_base = self._count, self._context.time_base
        self._count += 1
        if keyframe:
            frame.pict_type = PictureType.I
        return b"".join(bytes(packet) for packet in self._context.encode(frame))


class Rendition:
    """A stream at one level: its encoder, shared by all viewers of that level, and what it has
    lately made, so that a picture can be had before the next frame is there."""

    def __init__(
        self, width: int, height: int, fps: float, level: Level, codec: str = "libx264"
    ) -> None:
        self.level = level
        self._fps = fps
        self._encoder = Encoder(width, height, fps, level, codec)
        self._wanted = True
        self._since = 0
        self._history: deque[Packet] = deque()
        self._bytes = 0

    def want_keyframe(self) -> None:
        """Make the next frame one that can be decoded by itself."""
        self._wanted = True

    def encode(
        self, pixels: npt.NDArray[np.uint8], *, frame: int, chunk: int, pts: int
    ) -> Packet | None:
        """The packet of frame number `frame`; None when this level leaves it out."""
        if frame % self.level.every and not self._wanted:
            return None
        limit = KEYFRAME_S * self._fps / self.level.every
        keyframe = self._wanted or self._since + 1 >= limit
        data = self._encoder.encode(pixels, keyframe=keyframe)
        self._wanted, self._since = False, 0 if keyframe else self._since + 1
        span = self.level.every - frame % self.level.every
        packet = Packet(
            data=data, keyframe=keyframe, frame=frame, chunk=chunk, pts=pts, span=span
        )  # fmt: skip
        self._keep(packet)
        return packet

    def since(self, frame: int) -> list[Packet]:
        """What a viewer needs to go on at `frame`: the packets from the last keyframe at or before
        it; from the first one kept, if it is no longer there; empty before the first."""
        start = 0
        for i, packet in enumerate(self._history):
            if packet.keyframe and packet.frame <= frame:
                start = i
        return list(self._history)[start:]

    def latest(self) -> list[Packet]:
        """The packets that lead up to the newest frame."""
        return self.since(self._history[-1].frame) if self._history else []

    def _keep(self, packet: Packet) -> None:
        self._history.append(packet)
        self._bytes += len(packet.data)
        oldest = packet.pts - int(HISTORY_S * 1e6)
        # Whole groups go: without its keyframe a packet is of no use. The newest one stays.
        while len(groups := list(self._groups())) > 1 and (
            self._bytes > HISTORY_BYTES or self._history[groups[1] - 1].pts < oldest
        ):
            for _ in range(groups[1]):
                self._bytes -= len(self._history.popleft().data)

    def _groups(self) -> Iterator[int]:
        """Where groups begin in the history."""
        return (i for i, packet in enumerate(self._history) if packet.keyframe)

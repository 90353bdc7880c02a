"""Pictures and clips to frames, in bounded memory whatever the file claims to hold."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import InputError
from .place import ACCURATE, BT601, BT709, UNSPECIFIED

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

    from ..types import Frames

MAX_PIXELS = 64 * 1024 * 1024
"""Pixels that one picture or frame may have: a small file can claim a huge picture."""

MAX_PICTURE_SIDE = 32 * 1024
"""Pixels of a side that one may have: a picture that is a line takes minutes to scale."""

MAX_CLIP_BYTES = 1 << 30
"""Bytes that a clip's frames may take."""
_MAX_RATE = 10_000.0

_IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")


def read_image(path: str | Path, width: int, height: int) -> Frames:
    """Read a picture, cut it at its center to the aspect wanted and scale it.

    Turns it as its EXIF data says and lays what is transparent on black. Returns uint8
    `[height, width, 3]`. Raises `InputError` when the file is missing, damaged, larger than
    `MAX_PIXELS` or `MAX_PICTURE_SIDE`, or not PNG, JPEG, WebP, GIF or BMP.
    """
    try:
        with Image.open(path, formats=_IMAGE_FORMATS) as image:
            _check_size(path, image.width, image.height)
            upright = ImageOps.exif_transpose(image)
            fitted = ImageOps.fit(_to_rgb(upright), (width, height), Image.Resampling.LANCZOS)
    except FileNotFoundError:
        raise InputError(f"there is no picture {path}") from None
    except UnidentifiedImageError:
        raise InputError(f"{path} is not a {', '.join(_IMAGE_FORMATS)} picture") from None
    except Image.DecompressionBombError:
        raise InputError(f"{path} has more than the {MAX_PIXELS} pixels allowed") from None
    except InputError:
        raise
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"cannot read the picture {path}: {_reason(error)}") from error
    pixels: Frames = np.asarray(fitted, dtype=np.uint8).copy()
    return pixels


def read_video(path: str | Path, max_frames: int) -> tuple[Frames, float]:
    """Read up to `max_frames` frames: uint8 `[F, H, W, 3]` and frames a second.

    Files that name no color matrix are taken for BT.709, as LiveReel writes them. Raises
    `InputError` when the file is missing, damaged, too large or holds no video.
    """
    if max_frames < 1:
        raise InputError(f"max_frames must be at least 1, got {max_frames}")
    found = list(islice(video_frames(path), max_frames))
    if not found:
        raise InputError(f"{path} holds no video frame")
    return np.stack([frame for frame, _ in found]), found[0][1]


def read_clip(
    path: str | Path, width: int, height: int, fps: float, max_frames: int, *, cut: bool = False
) -> Frames:
    """Read a video at `fps` frames a second, each cut and scaled as `read_image` does: uint8
    `[F, height, width, 3]` of at most `max_frames` and `MAX_CLIP_BYTES`.

    Frames are shown again or left out where the file's rate is another. With `cut`, no more than
    `max_frames` are read. Raises `InputError` as `read_video` does, and for a longer video.
    """
    most = min(max_frames, MAX_CLIP_BYTES // (width * height * 3))
    frames: list[Frames] = []
    for i, (frame, rate) in enumerate(video_frames(path)):
        due = math.ceil((i + 1) * fps / rate - 1e-6)  # frames that begin before this one's end
        if cut and due >= max_frames:
            due = max_frames
        if due > len(frames):
            fitted = ImageOps.fit(Image.fromarray(frame), (width, height), Image.Resampling.LANCZOS)
            if due > most:
                raise InputError(
                    f"{path} is longer than the {most} frames at {fps:g} a second that are taken "
                    f"at {width}x{height}; cut it first"
                )
            frames += [np.asarray(fitted, dtype=np.uint8)] * (due - len(frames))
        if cut and due == max_frames:
            break
    if not frames:
        raise InputError(f"{path} holds no video frame")
    return np.stack(frames)


def video_frames(path: str | Path) -> Iterator[tuple[Frames, float]]:
    """Each frame as it is decoded, uint8 `[H, W, 3]`, and the file's frames a second.

    Raises `InputError` as `read_video` does.
    """
    import av

    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise InputError(f"{path} holds no video")
            stream = container.streams.video[0]
            if stream.codec_context is None:
                raise InputError(f"{path} holds video of an unknown kind")
            _check_size(path, stream.codec_context.width, stream.codec_context.height)
            rate = float(stream.average_rate or stream.guessed_rate or 0)
            if not 0 < rate <= _MAX_RATE:
                raise InputError(f"{path} holds no video frame")
            first: tuple[int, ...] | None = None
            for frame in container.decode(stream):
                _check_size(path, frame.width, frame.height)
                first = first or (frame.height, frame.width)
                if first != (frame.height, frame.width):
                    raise InputError(f"{path} changes its picture size midway")
                picture = frame.reformat(
                    format="rgb24",
                    src_colorspace=_matrix(frame),
                    # RGB has no matrix, yet PyAV before 17 heeds the source's only if they differ.
                    dst_colorspace=BT601,
                    interpolation=ACCURATE,
                )
                yield picture.to_ndarray().astype(np.uint8, copy=False), rate
    except FileNotFoundError:
        raise InputError(f"there is no video {path}") from None
    except InputError:
        raise
    except (OSError, ValueError, av.error.FFmpegError) as error:
        raise InputError(f"cannot read the video {path}: {_reason(error)}") from error


def _matrix(frame: VideoFrame) -> int | None:
    """The color matrix of a frame, BT.709 when it names none."""
    if frame.format.is_rgb:
        return None
    return BT709 if frame.colorspace == UNSPECIFIED else frame.colorspace


def _check_size(path: str | Path, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise InputError(f"{path} is {width}x{height}, more than the {MAX_PIXELS} pixels allowed")
    if max(width, height) > MAX_PICTURE_SIDE:
        raise InputError(
            f"{path} is {width}x{height}; a side may have at most {MAX_PICTURE_SIDE} pixels"
        )


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        return Image.alpha_composite(black, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def _reason(error: Exception) -> str:
    """The first line of what a library says, without its full stop."""
    strerror = getattr(error, "strerror", None)
    lines = str(strerror or error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__

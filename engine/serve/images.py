"""Pictures that clients upload to begin a stream with, checked before they are decoded."""

from __future__ import annotations

import io
import secrets
import time
import warnings
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps

from ..errors import InputError

if TYPE_CHECKING:
    from .limits import Limits

FORMATS = ("PNG", "JPEG", "WEBP")
_KEPT_SIDE = 1280


class TooLarge(InputError):
    """More bytes or pixels than are taken."""


@dataclass(frozen=True)
class Picture:
    """A picture as it is kept until it is used, on Pillow's terms."""

    image: Image.Image
    until: float

    def fit(self, width: int, height: int) -> bytes:
        """As the function of this name."""
        return fit(self.image, width, height)


def fit(image: Image.Image, width: int, height: int) -> bytes:
    """uint8 RGB, `height * width * 3` bytes: the middle of the picture, scaled."""
    fitted = ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
    return np.asarray(fitted, np.uint8).tobytes()


def read(data: bytes, limits: Limits) -> Image.Image:
    """A picture in RGB, upright, made smaller where it is large.

    Only the header is read before its size is known to be allowed. Raises `TooLarge`, or
    `InputError` for bytes that are no PNG, JPEG or WebP.
    """
    if len(data) > limits.image_bytes:
        raise TooLarge(f"a picture has at most {limits.image_bytes:,} bytes, got {len(data):,}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
                width, height = opened.size
                if width * height > limits.image_pixels:
                    raise TooLarge(
                        f"a picture has at most {limits.image_pixels:,} pixels, this one is "
                        f"{width}x{height}"
                    )
                opened.draft("RGB", (_KEPT_SIDE, _KEPT_SIDE))
                image = ImageOps.exif_transpose(opened).convert("RGB")
    except TooLarge:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise TooLarge("the picture has too many pixels") from error
    except Exception as error:  # Pillow's decoders raise whatever comes to them
        raise InputError(
            "these bytes are no PNG, JPEG or WebP picture, or a damaged one"
        ) from error
    image.thumbnail((_KEPT_SIDE, _KEPT_SIDE), Image.Resampling.LANCZOS)
    return image


class Images:
    """Uploaded pictures by id; the oldest goes when there are too many."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._kept: OrderedDict[str, Picture] = OrderedDict()

    def add(self, image: Image.Image) -> str:
        """Keep a picture for a while; gives its id."""
        self.expire()
        name = secrets.token_urlsafe(16)
        self._kept[name] = Picture(image, time.monotonic() + self._limits.image_s)
        while len(self._kept) > self._limits.images:
            self._kept.popitem(last=False)
        return name

    def get(self, name: str) -> Picture:
        """Raises `InputError` for one that is not there, or not any more."""
        self.expire()
        if name not in self._kept:
            raise InputError("there is no uploaded image of this id, or not any more")
        return self._kept[name]

    def expire(self) -> None:
        """Forget pictures whose time is over."""
        now = time.monotonic()
        while self._kept and next(iter(self._kept.values())).until < now:
            self._kept.popitem(last=False)

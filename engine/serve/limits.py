"""What the server allows, from anyone, all bounds in one place."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Seconds, bytes, pixels and counts."""

    streams: int = 64
    sockets: int = 512
    hello_s: float = 10.0
    """A socket says within this what it wants."""
    lease_s: float = 30.0
    """A stream whose owner was cut off waits this long."""
    grace_s: float = 10.0
    """From SIGTERM to the end."""
    body_bytes: int = 65_536
    image_bytes: int = 8 << 20
    image_pixels: int = 16_000_000
    pushed_pixels: int = 1920 * 1088
    """Of a picture that a stream is made from, which come many a second."""
    image_s: float = 600.0
    images: int = 16
    clip_s: float = 600.0
    clips: int = 1000
    clips_waiting: int = 32

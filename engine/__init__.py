"""LiveReel: trained video-diffusion weights to live video.

    from livereel.engine import Engine

    engine = Engine.load()
    engine.generate("a red circle moving right on a black background", seconds=4).save("clip.mp4")
    for chunk in engine.open("a small blue star moving up on a gray background"):
        show(chunk.frames)  # uint8 [F, H, W, 3]

Names load what they need when they are first used, so importing the package is cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .engine import Engine
    from .errors import CheckpointError, InputError, LiveReelError, ResourceError
    from .media.storyboard import Shot, Storyboard
    from .session import Session
    from .types import Chunk, ChunkStats, Video

__version__ = "0.1.0"

__all__ = [
    "CheckpointError",
    "Chunk",
    "ChunkStats",
    "Engine",
    "InputError",
    "LiveReelError",
    "ResourceError",
    "Session",
    "Shot",
    "Storyboard",
    "Video",
    "__version__",
]

_HOME = {
    "CheckpointError": ".errors",
    "Chunk": ".types",
    "ChunkStats": ".types",
    "Engine": ".engine",
    "InputError": ".errors",
    "LiveReelError": ".errors",
    "ResourceError": ".errors",
    "Session": ".session",
    "Shot": ".media.storyboard",
    "Storyboard": ".media.storyboard",
    "Video": ".types",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""The values that cross the library's boundary and the protocols its parts meet at.

Shape legend: B batch, T latent frames, F pixel frames, H W space, C channels, L text tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Frames = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class ChunkStats:
    """Where a chunk's time went, in seconds, and what it cost.

    `text_s` is zero unless the prompt was encoded for this chunk; `cache_s` is the pass that writes
    clean K/V into the ring; `convert_s` is the way from floats to uint8. `passes` counts forwards
    of the DiT (cache pass included) and `decoder_calls` those of the VAE decoder. `fps` is frames
    of this chunk over the seconds it took; `deadline_met` says whether it took no longer than it
    plays.
    """

    text_s: float
    dit_s: float
    cache_s: float
    vae_s: float
    convert_s: float
    passes: int
    decoder_calls: int
    fps: float
    deadline_met: bool

    @property
    def total_s(self) -> float:
        """Seconds spent on the chunk, all stages together."""
        return self.text_s + self.dit_s + self.cache_s + self.vae_s + self.convert_s


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Frames that leave a session together.

    `frames` is uint8 `[F, H, W, 3]`; `index` counts chunks from 0; `pts` is the stream's frame
    number of `frames[0]`; `applied` lists the controls that took hold at this chunk's edge.
    """

    frames: Frames
    index: int
    pts: int
    stats: ChunkStats
    applied: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Video:
    """A finished clip: uint8 `frames` of shape `[F, H, W, 3]` at `fps` frames a second."""

    frames: Frames
    fps: float
    stats: tuple[ChunkStats, ...] = field(default=())

    def save(self, path: str | Path) -> Path:
        """Write the clip; the ending (.mp4, .webm, .gif, or a trailing slash for PNGs) decides how.

        Raises `InputError` for an unknown ending or a place that cannot be written.
        """
        from .media.writer import open_sink

        sink = open_sink(path, fps=self.fps)
        try:
            sink.write(self.frames)
        except BaseException:
            sink.abort()
            raise
        return sink.close()


class FrameSink(Protocol):
    """Where frames go: a file, a folder of pictures, a socket."""

    def write(self, frames: Frames) -> None:
        """Take uint8 frames `[F, H, W, 3]` in order; every call has the same H and W."""

    def close(self) -> Path:
        """Finish what was written so that it can be played, and say where it is."""

    def abort(self) -> None:
        """Drop what was written; leave nothing behind."""


class Denoiser(Protocol):
    """A DiT that predicts flow for a whole clip."""

    def __call__(self, latents: Any, timestep: Any, text: Any) -> Any:
        """Latents `[B, C, T, H, W]`, timestep `[B]` or `[B, T]` on 0..1000, text `[B, L, D]`;
        gives flow (noise minus data) of the latents' shape."""


class Decoder(Protocol):
    """A causal VAE decoder with explicit state."""

    def decode(self, latents: Any, state: Any = None) -> tuple[Any, Any]:
        """Latents `[B, C, T, H, W]` (un-normalized) and conv caches, or None at a stream's start;
        gives frames `[B, 3, F, H, W]` in [-1, 1] and the new caches."""

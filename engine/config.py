"""How a checkpoint wants to be streamed: the values of `livereel.json`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from .errors import CheckpointError, InputError

Solver = Literal["renoise", "euler", "ddim", "dpm"]

MIN_FPS, MAX_FPS = 0.1, 240.0
MAX_FRAMES = 10_000_000
"""Frames of one clip or stream that has an end."""
MAX_SIDE = 8192
"""Pixels that a side of a picture may have."""
MAX_GIVEN = 256
"""Latent frames that a stream may start from."""
TILE_HEIGHT, TILE_WIDTH = 240, 360
"""Pixels of a tile, where the VAE works tile by tile: those of CogVideoX in diffusers."""
CLIP_PART = 2
"""Latent frames of a whole clip that go through the decoder together."""

# name -> (low, high, whole numbers only). Every bound is inclusive.
_BOUNDS: dict[str, tuple[float, float, bool]] = {
    "chunk_latents": (1, 64, True),
    "first_chunk_latents": (1, 64, True),
    "window": (1, 4096, True),
    "sinks": (0, 256, True),
    "anchors": (0, 256, True),
    "anchor_every": (1, 4096, True),
    "context_noise": (0, 1000, False),
    "shift": (0.01, 100, False),
    "guidance_scale": (0, 100, False),
    "fps": (MIN_FPS, MAX_FPS, False),
    "max_sequence_length": (1, 4096, True),
    "width": (8, MAX_SIDE, True),
    "height": (8, MAX_SIDE, True),
    "control_channels": (0, 64, True),
    "goal_channels": (0, 128, True),
}
_MAX_TIMESTEPS = 1000


@dataclass(frozen=True, kw_only=True)
class StreamConfig:
    """One checkpoint's recipe for live video; lengths count latent frames.

    `chunk_latents` are denoised together, `first_chunk_latents` in the stream's first chunk (at
    most as many; `from_dict` fills in the same number). A chunk attends to the newest `window`
    latent frames, itself included, to the stream's first `sinks`, and of those in between to the
    newest `anchors` whose number is a multiple of `anchor_every`. `timesteps` are the passes' times
    on 0..1000, strictly descending, already warped; `shift` is the warp they were made with, from
    which another number of steps can be spaced. Between passes, `solver` "renoise" predicts
    x0 and adds fresh noise (Self-Forcing, arXiv 2506.08009, and CausVid, arXiv 2412.07772), while
    "euler" follows the flow; "ddim" and "dpm" are for models that predict velocity, and `shift` is
    then their signal-to-noise ratio's. `context_noise` is the time of the pass that writes clean
    K/V.
    `guidance_scale` 1.0 means no classifier-free guidance. `width` and `height` are the native
    picture size in pixels, `fps` frames a second, `max_sequence_length` text tokens. A DiT that
    follows tracks has `control_channels`, as many as a latent frame has frames
    (`livereel.engine.sampling.track`); where `control_wraps`, what leaves the picture at one edge
    comes in at the other. One that arrives at a picture that it is given has `goal_channels`: as
    many as a latent frame has frames, the latent's own, and 4 (`livereel.engine.sampling.goal`).

    Raises `InputError` for a value of the wrong type or out of bounds.
    """

    chunk_latents: int = 3
    first_chunk_latents: int
    window: int
    sinks: int = 0
    anchors: int = 0
    anchor_every: int = 1
    timesteps: tuple[float, ...]
    context_noise: float = 0.0
    solver: Solver = "renoise"
    shift: float = 1.0
    guidance_scale: float = 1.0
    fps: float = 16.0
    max_sequence_length: int = 512
    width: int = 832
    height: int = 480
    control_channels: int = 0
    control_wraps: bool = False
    goal_channels: int = 0

    def __post_init__(self) -> None:
        for name, (low, high, whole) in _BOUNDS.items():
            _check_number(name, getattr(self, name), low, high, whole)
        _check_timesteps(self.timesteps)
        if self.solver not in get_args(Solver):
            raise InputError(f"solver must be one of {get_args(Solver)}, got {self.solver!r}")
        if not isinstance(self.control_wraps, bool):
            raise InputError(f"control_wraps must be true or false, got {self.control_wraps!r:.40}")
        if self.first_chunk_latents > self.chunk_latents:
            raise InputError(
                f"first_chunk_latents must be at most chunk_latents ({self.chunk_latents}), "
                f"got {self.first_chunk_latents}"
            )
        if self.window < self.chunk_latents:
            raise InputError(
                f"window counts the chunk itself, so it must be at least chunk_latents "
                f"({self.chunk_latents}), got {self.window}"
            )

    @property
    def told_channels(self) -> int:
        """Channels that a DiT is given behind its latents' own: control's, then the goal's."""
        return self.control_channels + self.goal_channels

    def chunk_size(self, index: int) -> int:
        """Latent frames of the stream's chunk number `index`, which counts from 0."""
        return self.first_chunk_latents if index == 0 else self.chunk_latents

    def to_dict(self) -> dict[str, Any]:
        """The values as JSON has them; `from_dict` gives the same config back."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        if not self.control_channels:
            del values["control_channels"], values["control_wraps"]
        if not self.goal_channels:
            del values["goal_channels"]
        return {**values, "timesteps": list(self.timesteps)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, source: str = "livereel.json") -> StreamConfig:
        """Read what JSON holds; `first_chunk_latents` defaults to `chunk_latents`.

        Raises `CheckpointError` that names `source` and the key which is unknown, missing, of the
        wrong type or out of bounds.
        """
        known = {field.name for field in fields(cls)}
        unknown = [str(key) for key in values if key not in known]
        if unknown:
            raise CheckpointError(
                f"{source} has an unknown key {unknown[0][:64]!r}; known are {sorted(known)}"
            )
        missing = [name for name in ("window", "timesteps") if name not in values]
        if missing:
            raise CheckpointError(f"{source} lacks the key {missing[0]!r}")
        timesteps = values["timesteps"]
        if not isinstance(timesteps, (list, tuple)):
            raise CheckpointError(f"{source}: timesteps must be a list of numbers")
        first = values.get("first_chunk_latents", values.get("chunk_latents", cls.chunk_latents))
        resolved = {**values, "timesteps": tuple(timesteps), "first_chunk_latents": first}
        try:
            return cls(**resolved)
        except InputError as error:
            raise CheckpointError(f"{source}: {error}") from error


def _check_number(name: str, value: object, low: float, high: float, whole: bool) -> None:
    kind = "a whole number" if whole else "a number"
    right_type = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if not right_type or not low <= value <= high:  # type: ignore[operator]
        raise InputError(f"{name} must be {kind} from {low:g} to {high:g}, got {value!r:.40}")


def _check_timesteps(timesteps: object) -> None:
    if not isinstance(timesteps, tuple) or not 1 <= len(timesteps) <= _MAX_TIMESTEPS:
        raise InputError(f"timesteps must be a tuple of 1 to {_MAX_TIMESTEPS} numbers")
    previous = math.inf
    for t in timesteps:
        if isinstance(t, bool) or not isinstance(t, (int, float)) or not 0 < t <= 1000:
            raise InputError(f"timesteps must lie above 0 and at most at 1000, got {t!r:.40}")
        if not t < previous:
            raise InputError(f"timesteps must descend strictly, got {t!r} after {previous!r}")
        previous = t


DEFAULT_SELF_FORCING = StreamConfig(
    chunk_latents=3,
    first_chunk_latents=3,
    window=21,
    timesteps=(1000.0, 937.5, 2500.0 / 3.0, 625.0),
    shift=5.0,
    fps=16.0,
    max_sequence_length=512,
    width=832,
    height=480,
)
"""Self-Forcing's Wan2.1 1.3B: timesteps 1000, 750, 500, 250 warped with shift 5."""

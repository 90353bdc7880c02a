"""Controls of a session, and checks of the values that users give.

Shapes: F frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .config import MAX_FPS, MAX_FRAMES, MIN_FPS
from .errors import InputError
from .sampling import schedule
from .sampling.noise import SEED_LIMIT
from .text.cleaning import MAX_CHARACTERS

if TYPE_CHECKING:
    from torch import Tensor

    from .config import StreamConfig
    from .runners.loras import Loras
    from .types import Frames

MAX_QUEUE = 1000
"""Controls that may wait for a chunk's edge."""


@dataclass(frozen=True)
class Update:
    """A control in the queue; None leaves a value as it is."""

    prompt: str | None = None
    seed: int | None = None
    steps: int | None = None
    recache: bool = False
    strength: float | None = None
    loras: Mapping[str, float] | None = None
    control: Tensor | None = None
    reset: bool = False
    cut: bool = False
    image: Frames | None = None
    at: int | None = None  # the frame from which on it is due

    @property
    def name(self) -> str:
        return "reset" if self.reset else "cut" if self.cut else "update"


def check_at(at: int | None) -> None:
    """Raise `InputError` for what numbers no frame."""
    if at is not None and (isinstance(at, bool) or not isinstance(at, int) or at < 0):
        raise InputError(f"at is {at!r:.40}; wanted a frame's number")


def check_loras(known: Loras | None, wanted: Mapping[str, float]) -> None:
    """Raise `InputError` for LoRAs that the engine does not know, or cannot use."""
    if known is not None:
        known.check(wanted)
    elif wanted:
        raise InputError("this model takes no LoRAs")


def check_prompt(prompt: str) -> None:
    """Raise `InputError` for a prompt that says nothing, or more than any model reads."""
    if not isinstance(prompt, str) or not prompt.strip():
        raise InputError("the prompt is empty; say in a sentence what to show")
    if len(prompt) > MAX_CHARACTERS:
        raise InputError(
            f"a prompt may have at most {MAX_CHARACTERS:,} characters, got {len(prompt):,}"
        )


def check_seed(seed: int) -> None:
    """Raise `InputError` for a seed that is no unsigned 64-bit number."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < SEED_LIMIT:
        raise InputError(f"seed is {seed!r}; wanted a whole number from 0 to {SEED_LIMIT - 1}")


def check_steps(steps: int, config: StreamConfig) -> None:
    """Raise `InputError` for a number of passes that the model was not trained for."""
    if isinstance(steps, bool) or not isinstance(steps, int):
        raise InputError(f"steps is {steps!r:.40}; wanted a whole number")
    schedule.subset(config.timesteps, steps)


def check_count(name: str, value: int | None, low: int, high: int) -> None:
    """Raise `InputError` unless `value` is None or a whole number from `low` to `high`."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InputError(f"{name} is {value!r}; wanted a whole number from {low} to {high}")


def check_picture(frames: Frames, width: int, height: int) -> None:
    """Raise `InputError` unless these are uint8 `[F, height, width, 3]` with F above 0."""
    shape = (height, width, 3)
    if frames.dtype.name != "uint8" or frames.shape[1:] != shape or not len(frames):
        what = "image is" if len(frames) == 1 else "frames are"
        raise InputError(
            f"the {what} {frames.dtype} of shape {frames.shape[1:]}; wanted uint8 of shape {shape}"
        )


def check_rate(fps: float) -> None:
    """Raise `InputError` for frames a second that nothing plays at."""
    number = isinstance(fps, (int, float)) and not isinstance(fps, bool)
    if not number or not MIN_FPS <= fps <= MAX_FPS:
        raise InputError(f"fps is {fps!r:.40}; wanted a number from {MIN_FPS:g} to {MAX_FPS:g}")


def frame_count(seconds: float | None, frames: int | None, fps: float) -> int:
    """The frames of a clip that is to have so many, or to last so long; 5 s where nothing is said.

    Raises `InputError` for a length that is none, or too much.
    """
    check_rate(fps)
    if frames is not None and seconds is not None:
        raise InputError("give seconds or frames, not both")
    if frames is None:
        seconds = 5.0 if seconds is None else seconds
        if not 0 < seconds * fps <= MAX_FRAMES:  # False for NaN as well
            raise InputError(
                f"seconds is {seconds}; wanted more than 0 and at most {MAX_FRAMES / fps:g}"
            )
        frames = round(seconds * fps)
        if frames == 0:
            raise InputError(
                f"seconds is {seconds}, which at {fps:g} frames a second is not one frame"
            )
    check_count("frames", frames, 1, MAX_FRAMES)
    return frames

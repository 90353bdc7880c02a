"""A storyboard: shots that follow one another, each with a prompt and a length.

As TOML:

    [[shot]]
    prompt = "a red circle moving right on a black background"
    seconds = 2

    [[shot]]
    prompt = "a blue star moving up on a gray background"
    seconds = 1.5
    join = "blend"        # go over into it; "cut", by default, starts anew
    image = "first.png"   # of a shot that starts anew: its first frame, beside this file
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from ..errors import InputError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MAX_SHOTS = 500
MAX_SECONDS = 24 * 3600.0
_MAX_BYTES = 1 << 20
_KEYS = ("prompt", "seconds", "join", "image")
_JOINS = ("cut", "blend")


@dataclass(frozen=True, kw_only=True)
class Shot:
    """`seconds` of a `prompt`. With `cut` it starts anew, from the picture `image` if there is one;
    otherwise what was shown goes over into it."""

    prompt: str
    seconds: float
    cut: bool = True
    image: Path | None = None

    def __post_init__(self) -> None:
        number = isinstance(self.seconds, (int, float)) and not isinstance(self.seconds, bool)
        if not number or not 0 < self.seconds <= MAX_SECONDS:
            raise InputError(
                f"a shot's seconds are {self.seconds!r:.40}; wanted more than 0 and at most "
                f"{MAX_SECONDS:g}"
            )
        if not isinstance(self.prompt, str) or not self.prompt.strip():
            raise InputError("a shot's prompt is empty; say in a sentence what to show")
        if self.image is not None and not self.cut:
            raise InputError("only a shot that starts with a cut can have an image")


@dataclass(frozen=True)
class Storyboard:
    """Shots in order, the first of which starts the stream."""

    shots: tuple[Shot, ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.shots) <= MAX_SHOTS:
            raise InputError(f"a storyboard has 1 to {MAX_SHOTS} shots, got {len(self.shots)}")

    @classmethod
    def load(cls, path: str | Path) -> Storyboard:
        """Read TOML. Raises `InputError`, which names file and shot, for what is no storyboard."""
        path = Path(path)
        try:
            with path.open("rb") as file:
                data = file.read(_MAX_BYTES + 1)
            if len(data) > _MAX_BYTES:
                raise InputError(f"{path} is longer than the {_MAX_BYTES} bytes of a storyboard")
            values = tomllib.loads(data.decode())
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
        except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
            raise InputError(f"{path} is not TOML: {error}") from error
        shots = values.get("shot")
        if set(values) != {"shot"} or not isinstance(shots, list):
            raise InputError(f"{path} must hold [[shot]] tables and nothing else")
        found = []
        for number, shot in enumerate(shots, 1):
            try:
                found.append(_shot(shot, path.parent))
            except InputError as error:
                raise InputError(f"{path}, shot {number}: {error}") from error
        try:
            return cls(tuple(found))
        except InputError as error:
            raise InputError(f"{path}: {error}") from error

    def starts(self, fps: float) -> list[int]:
        """The first frame of each shot at `fps` frames a second, and behind them the frames in all.

        Raises `InputError` where a shot is shorter than a frame.
        """
        ends = [0.0]
        for shot in self.shots:
            ends.append(ends[-1] + shot.seconds)
        starts = [math.floor(end * fps + 0.5) for end in ends]
        for number, (start, end) in enumerate(pairwise(starts), 1):
            if end <= start:
                raise InputError(f"shot {number} is shorter than a frame at {fps:g} a second")
        return starts


def _shot(values: object, folder: Path) -> Shot:
    if not isinstance(values, Mapping):
        raise InputError("it must be a table")
    unknown = [str(key)[:40] for key in values if key not in _KEYS]
    if unknown:
        raise InputError(f"{unknown[0]!r} is unknown; known are {', '.join(_KEYS)}")
    for key in ("prompt", "seconds"):
        if key not in values:
            raise InputError(f"it has no {key}")
    if not isinstance(values["prompt"], str):
        raise InputError(f"prompt must be a text, got {values['prompt']!r:.40}")
    join, image = values.get("join", "cut"), values.get("image")
    if join not in _JOINS:
        raise InputError(f"join is {join!r:.40}; wanted {' or '.join(_JOINS)}")
    if image is not None and not isinstance(image, str):
        raise InputError(f"image must be a file's name, got {image!r:.40}")
    given: dict[str, Any] = {"image": None if image is None else folder / image}
    return Shot(prompt=values["prompt"], seconds=values["seconds"], cut=join == "cut", **given)

"""A file of prompts, one JSON object a line: what clips are wanted."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from .config import MAX_FPS, MAX_FRAMES, MIN_FPS
from .errors import InputError
from .text.cleaning import MAX_CHARACTERS

if TYPE_CHECKING:
    from .types import Frames

MAX_FILE, MAX_LINE, MAX_LINES = 64 << 20, 1 << 16, 100_000
"""Bytes of a file of prompts and of a line of it, and its lines."""
MAX_STEPS = 1000
FIELDS = ("prompt", "seed", "seconds", "frames", "fps", "size", "steps")
_SECONDS = 5.0
_SEEDS = 2**64 - 1


@dataclass(frozen=True, kw_only=True)
class Order:
    """The clip of a line, what the line does not say filled in."""

    line: int
    prompt: str
    seed: int
    frames: int
    fps: float
    width: int
    height: int
    steps: int | None

    @property
    def name(self) -> str:
        """The clip's file."""
        return f"{self.line:06d}.mp4"

    @property
    def digest(self) -> str:
        """Tells whether a line still asks for what was made of it."""
        values = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return hashlib.sha256(values.encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What hangs on the model: its rate, sizes (`fit` gives the one to make, or raises
    `InputError`) and the most steps."""

    fps: float
    fit: Callable[[tuple[int, int] | None], tuple[int, int]]
    steps: int = MAX_STEPS


Step: TypeAlias = "tuple[Order, Frames | Exception | None]"
"""What came of a clip just now: frames, why it cannot be made, or None behind its last frame."""


def read_orders(path: Path, rules: Rules) -> tuple[list[Order], list[tuple[int, str]]]:
    """The file's orders, and number and reason of each line that holds none.

    Empty lines count and mean nothing. Raises `InputError` for a file that cannot be read, or is
    too long.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE + 1)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    if len(data) > MAX_FILE:
        raise InputError(f"{path} has more than {MAX_FILE:,} bytes; split it")
    orders: list[Order] = []
    bad: list[tuple[int, str]] = []
    for number, line in enumerate(io.BytesIO(data), start=1):
        if number > MAX_LINES:
            raise InputError(f"{path} has more than {MAX_LINES:,} lines; split it")
        if line.strip():
            try:
                orders.append(_read(number, line, rules))
            except InputError as error:
                bad.append((number, str(error)))
    return orders, bad


def _read(number: int, line: bytes, rules: Rules) -> Order:
    if len(line) > MAX_LINE:
        raise InputError(f"the line has {len(line):,} bytes; at most {MAX_LINE:,} are read")
    try:
        values = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"the line is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise InputError('the line must be an object such as {"prompt": "a red circle"}')
    for name in values:
        if name not in FIELDS:
            raise InputError(f"unknown field {name[:40]!r}; known are {', '.join(FIELDS)}")
    fps = _number(values, "fps", MIN_FPS, MAX_FPS) or rules.fps
    size = values.get("size")
    found = re.fullmatch(r"(\d{1,5})x(\d{1,5})", size) if isinstance(size, str) else None
    if size is not None and found is None:
        raise InputError(f'size must be such as "128x128", got {size!r:.40}')
    width, height = rules.fit(None if found is None else (int(found[1]), int(found[2])))
    return Order(
        line=number, prompt=_prompt(values), seed=_whole(values, "seed", 0, _SEEDS) or 0,
        frames=_length(values, fps), fps=fps, width=width, height=height,
        steps=_whole(values, "steps", 1, rules.steps),
    )  # fmt: skip


def _prompt(values: Mapping[str, Any]) -> str:
    prompt = values.get("prompt")
    if not isinstance(prompt, str) or not prompt.strip():
        raise InputError("the prompt is missing or empty; say what the video should show")
    if len(prompt) > MAX_CHARACTERS:
        raise InputError(f"the prompt has {len(prompt):,} characters; at most {MAX_CHARACTERS:,}")
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise InputError("the prompt has half a character in it (a lone surrogate)") from None
    return prompt


def _length(values: Mapping[str, Any], fps: float) -> int:
    frames = _whole(values, "frames", 1, MAX_FRAMES)
    if frames is not None:
        if "seconds" in values:
            raise InputError("give frames or seconds, not both")
        return frames
    seconds = _number(values, "seconds", 0, MAX_FRAMES / fps)
    count = round((_SECONDS if seconds is None else seconds) * fps)
    if not 1 <= count <= MAX_FRAMES:
        raise InputError(f"{seconds} seconds at {fps:g} frames a second are {count} frames")
    return count


def _number(values: Mapping[str, Any], name: str, low: float, high: float) -> float | None:
    value = values.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise InputError(f"{name} must be a number from {low:g} to {high:g}, got {value!r:.40}")
    return value


def _whole(values: Mapping[str, Any], name: str, low: int, high: int) -> int | None:
    value = values.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InputError(f"{name} must be a whole number from {low} to {high}, got {value!r:.40}")
    return value

"""Many clips from a file of prompts, one JSON object a line.

A line's clip is made under a temporary name and renamed when it is whole; then the folder's journal
says so. Whenever the work is killed, doing it again does what is not in the journal, so that in the
end there is exactly one whole clip for each line.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import io
import json
import os
import re
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from .config import MAX_FPS, MAX_FRAMES, MIN_FPS
from .errors import InputError, LiveReelError, ResourceError
from .text.cleaning import MAX_CHARACTERS

if TYPE_CHECKING:
    from .engine import Engine
    from .types import Frames, FrameSink

JOURNAL = "batch.jsonl"
MAX_FILE, MAX_LINE, MAX_LINES = 64 << 20, 1 << 16, 100_000
"""Bytes of a file of prompts and of a line of it, and its lines."""
MAX_STEPS = 1000
FIELDS = ("prompt", "seed", "seconds", "frames", "fps", "size", "steps")
_SECONDS = 5.0
_SEEDS = 2**64 - 1
_MOST_ABREAST = 8


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


class Journal:
    """What is done in a folder: a line for the model, then one behind each clip.

    Only one process holds it at a time; a lock that dies with the process sees to that.
    """

    def __init__(self, folder: Path, about: Mapping[str, str]) -> None:
        """Open, or begin, the journal of `folder`. `about` says what the clips are made with, and
        has to stay the same. Raises `InputError` when it does not, when another process works
        there, or when the folder cannot be written or holds other clips."""
        self._folder = folder
        self._done: dict[str, str] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(folder / JOURNAL, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise InputError(f"cannot write into {folder}: {error.strerror or error}") from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._recall(dict(about))
        except BlockingIOError:
            os.close(self._fd)
            raise InputError(f"another livereel batch is at work in {folder}") from None
        except BaseException:
            os.close(self._fd)
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def has(self, order: Order) -> bool:
        """Whether the order's clip is there."""
        known = self._done.get(order.name) == order.digest
        return known and (self._folder / order.name).is_file()

    def add(self, order: Order) -> None:
        """Note that it is."""
        self._write({"file": order.name, "order": order.digest, "prompt": order.prompt})
        self._done[order.name] = order.digest

    def _recall(self, about: dict[str, str]) -> None:
        """Read what is done; drop a last line that a kill cut off, and files that it left."""
        with open(self._fd, "rb", closefd=False) as file:
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        os.ftruncate(self._fd, len(whole))
        os.lseek(self._fd, len(whole), os.SEEK_SET)
        first, *lines = [_object(line) for line in whole.splitlines()] or [None]
        if first is None:
            if strange := next(self._folder.glob("[0-9]" * 6 + ".mp4"), None):
                raise InputError(f"{strange} is of no batch known here; give another --out")
            self._write(about)
        elif first != about:
            raise InputError(
                f"{self._folder} was begun with another model or decoder; give another --out"
            )
        for line in lines:
            if line is not None and isinstance(line.get("file"), str):
                self._done[line["file"]] = str(line.get("order"))
        for part in self._folder.glob(".*.mp4.*.part"):
            part.unlink(missing_ok=True)

    def _write(self, values: Mapping[str, str]) -> None:
        line = json.dumps(values).encode() + b"\n"
        try:
            while line:
                line = line[os.write(self._fd, line) :]
        except OSError as error:
            raise ResourceError(
                f"cannot write {self._folder / JOURNAL}: {error.strerror}"
            ) from error


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        values = json.loads(line)
    except ValueError:
        return None
    return values if isinstance(values, dict) else None


def write_clips(
    steps: Iterable[Step], folder: Path, journal: Journal, told: Callable[[Step], None]
) -> None:
    """Write clips as their frames come, several side by side; `told` hears of each step behind it.

    Raises `ResourceError` when the folder takes no more.
    """
    from .media.writer import open_sink

    sinks: dict[Order, FrameSink] = {}
    try:
        for order, got in steps:
            if got is None:
                sinks.pop(order).close()
                journal.add(order)
            elif isinstance(got, Exception):
                if order in sinks:
                    sinks.pop(order).abort()
            else:
                if order not in sinks:
                    sinks[order] = open_sink(folder / order.name, fps=order.fps)
                sinks[order].write(got)
            told((order, got))
    finally:
        for sink in sinks.values():
            sink.abort()


def make_clips(engine: Engine, orders: Sequence[Order], most: int) -> Iterator[Step]:
    """Make clips in this process, up to `most` side by side where that takes less time: streams on
    a CPU of several cores."""
    import torch

    from .serve.abreast import Abreast

    side_by_side = engine.streams and engine.device.type == "cpu"
    abreast = Abreast(
        most=max(1, min(most, _MOST_ABREAST)) if side_by_side else 1,
        threads=torch.get_num_threads(),
    )
    waiting, making = deque(orders), dict[Order, Iterator["Frames"]]()
    while waiting or making:
        while waiting and len(making) < abreast.most:
            order = waiting.popleft()
            making[order] = _frames(engine, order)
        work = list(making.items())
        for (order, _), got in zip(
            work, abreast.run([partial(next, frames, None) for _, frames in work]), strict=True
        ):
            if got is None or isinstance(got, Exception):
                del making[order]
            if isinstance(got, Exception) and not isinstance(got, LiveReelError):
                traceback.print_exception(got)
            yield order, got


def _frames(engine: Engine, order: Order) -> Iterator[Frames]:
    wanted: dict[str, Any] = {
        "seed": order.seed, "steps": order.steps, "width": order.width, "height": order.height,
        "frames": order.frames, "fps": order.fps,
    }  # fmt: skip
    if engine.streams:
        for chunk in engine.open(order.prompt, **wanted):
            yield chunk.frames
    else:
        yield engine.generate(order.prompt, **wanted).frames

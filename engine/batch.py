"""Many clips, one after the other or side by side, into a folder.

A clip is made under a temporary name and renamed when it is whole; then the folder's journal
says so. Whenever the work is killed, doing it again does what is not in the journal, so that in the
end there is exactly one whole clip for each order.
"""

from __future__ import annotations

import fcntl
import json
import os
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import InputError, LiveReelError, ResourceError
from .orders import Order, Step

if TYPE_CHECKING:
    from .engine import Engine
    from .types import Frames, FrameSink

JOURNAL = "batch.jsonl"
_MOST_ABREAST = 8


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

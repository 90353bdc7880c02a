"""Ctrl-C at safe places only: never between a frame's encoding and its way into the file."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any


class StopSignals:
    """While entered, SIGINT and SIGTERM raise `KeyboardInterrupt`, though not inside `held`."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._holding = False
        self._before: dict[int, Any] = {}

    @property
    def exit_code(self) -> int:
        """What a shell expects of a process that was stopped so; 0 when it was not."""
        return 0 if self.number is None else 128 + self.number

    def hold(self) -> None:
        """From here on signals are noted, and nothing more."""
        self._holding = True

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Let the block finish; a signal that came in between takes effect behind it."""
        self._holding = True
        try:
            yield
        finally:
            self._holding = False
        if self.number is not None:
            raise KeyboardInterrupt

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._take)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _take(self, number: int, _: FrameType | None) -> None:
        self.number = number
        if not self._holding:
            raise KeyboardInterrupt

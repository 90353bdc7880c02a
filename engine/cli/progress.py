"""A progress bar on stderr; plain lines now and then when that is no terminal."""

from __future__ import annotations

import shutil
import sys
import time
from typing import TextIO

_PLAIN_EVERY = 5.0
_DRAW_EVERY = 0.1


class Progress:
    """Counts frames, or another `unit`, out of `total`; shows how many, how fast, the time left."""

    def __init__(self, total: int, unit: str = "frames", out: TextIO | None = None) -> None:
        self._total = total
        self._unit = unit
        self._out = out or sys.stderr
        self._live = self._out.isatty()
        self._start = self._shown = time.perf_counter()
        self._width = 0

    def update(self, done: int) -> None:
        """Show that `done` of them have left."""
        now = time.perf_counter()
        last = done >= self._total
        if now - self._shown < (_DRAW_EVERY if self._live else _PLAIN_EVERY) and not last:
            return
        self._shown = now
        rate = done / max(now - self._start, 1e-9)
        text = f"{done}/{self._total} {self._unit}"
        if self._unit == "frames":
            text += f"  {rate:.1f} fps"
        if not last:
            text += f"  {format_time((self._total - done) / rate)} left" if done else ""
        if not self._live:
            print(text, file=self._out, flush=True)
            return
        text = f"{self._bar(done)} {text}"[: shutil.get_terminal_size().columns - 1]
        print("\r" + text.ljust(self._width), end="", file=self._out, flush=True)
        self._width = len(text)

    def clear(self) -> None:
        """Take the bar away, so that what is printed next has the line to itself."""
        if self._live and self._width:
            print("\r" + " " * self._width + "\r", end="", file=self._out, flush=True)
            self._width = 0

    def _bar(self, done: int, cells: int = 24) -> str:
        unicode = (self._out.encoding or "").lower().startswith("utf")
        full, empty = ("█", "░") if unicode else ("#", ".")
        filled = cells * done // max(self._total, 1)
        return full * filled + empty * (cells - filled)


def format_time(seconds: float) -> str:
    """Such as "8 s", "2 min 05 s" or "1 h 07 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"

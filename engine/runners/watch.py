"""Where a chunk's time goes, without making the host wait for the device."""

from __future__ import annotations

import time

import torch

STAGES = ("text", "dit", "cache", "vae", "convert")


class Watch:
    """Seconds by stage of one chunk, from the watch's making on.

    On a GPU a lap leaves an event in the device's present stream, and `stop`, called once the
    chunk's frames have arrived, reads them all: what the device did for each stage. `start` and
    `last` are the host's clock at the two ends.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: list[tuple[str, torch.cuda.Event | float]] = []
        self.start = self.last = time.perf_counter()
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self.lap("text")

    def lap(self, stage: str) -> None:
        """Book the time since the last lap on `stage`."""
        mark: torch.cuda.Event | float = time.perf_counter()
        if self._device.type == "cuda":
            mark = torch.cuda.Event(enable_timing=True)
            mark.record(torch.cuda.current_stream(self._device))
        self._marks.append((stage, mark))

    def stop(self) -> None:
        """Reckon `seconds` and `last`."""
        self.last = time.perf_counter()
        last = self._marks[-1][1]
        if not isinstance(last, float) and not last.query():
            last.synchronize()  # left behind frames that have arrived; the device is about to pass
        before = self._marks[0][1]
        for stage, mark in self._marks[1:]:
            if isinstance(mark, float):
                assert isinstance(before, float)
                self.seconds[stage] += mark - before
            else:
                assert not isinstance(before, float)
                self.seconds[stage] += before.elapsed_time(mark) / 1000
            before = mark

"""The frame ring's benchmark, small."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from livereel.benchmarks import bench_frame_ring


def test_the_readers_end_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    readers: list[subprocess.Popen[bytes]] = []

    def started(*args: Any, **kwargs: Any) -> subprocess.Popen[bytes]:
        readers.append(subprocess.Popen(*args, **kwargs))
        return readers[-1]

    def clock() -> Iterator[float]:
        yield 0.0
        assert readers[0].poll() is None  # it has read all, and lingers
        yield 0.5

    ticks = clock()
    lingers = f"{bench_frame_ring._READER}import time; time.sleep(2)\n"
    monkeypatch.setattr(bench_frame_ring, "_READER", lingers)
    popen = SimpleNamespace(Popen=started, PIPE=subprocess.PIPE)
    monkeypatch.setattr(bench_frame_ring, "subprocess", popen)
    monkeypatch.setattr(bench_frame_ring, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    assert bench_frame_ring.measure(16, 8, frames=100, slots=2) == 200.0

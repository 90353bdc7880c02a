"""The frame ring's benchmark, small."""

from __future__ import annotations

import pytest

from livereel.benchmarks import bench_frame_ring


def test_the_readers_end_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = f"{bench_frame_ring._READER}import time; time.sleep(1)\n"
    monkeypatch.setattr(bench_frame_ring, "_READER", reader)
    assert bench_frame_ring.measure(16, 8, frames=100, slots=2) > 100

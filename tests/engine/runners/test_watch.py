"""Where a chunk's time went, by the host's clock and by events of a GPU that a stand-in plays."""

from __future__ import annotations

import pytest
import torch

from livereel.engine.runners.watch import STAGES, Watch


def test_laps_add_up_to_the_time_between() -> None:
    watch = Watch(torch.device("cpu"))
    for stage in ("dit", "vae", "dit"):
        watch.lap(stage)
    watch.stop()
    assert list(watch.seconds) == list(STAGES) and watch.seconds["convert"] == 0
    assert 0 < sum(watch.seconds.values()) <= watch.last - watch.start


class Event:
    """Comes to pass when it is waited for, as the newest of a busy device."""

    made = 0

    def __init__(self, *, enable_timing: bool) -> None:
        self.stream: object = None
        self.happened = False

    def record(self, stream: object) -> None:
        Event.made += 1
        self.stream, self.at = stream, Event.made

    def query(self) -> bool:
        return self.happened

    def synchronize(self) -> None:
        self.happened = True

    def elapsed_time(self, other: Event) -> float:
        assert other.happened or other.at < Event.made, "the device is not there yet"
        assert self.stream == other.stream == torch.device("cuda:1")
        return 1000.0 * (other.at - self.at)


def test_a_gpu_s_events_are_of_its_own_stream_and_have_happened(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: device)
    watch = Watch(torch.device("cuda:1"))
    for stage in ("dit", "vae", "convert"):
        watch.lap(stage)
    watch.stop()
    assert [watch.seconds[stage] for stage in ("dit", "vae", "convert")] == [1.0, 1.0, 1.0]

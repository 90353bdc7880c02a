"""The stream benchmark's own logic against simulated contenders, whose work moves a fake clock."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch

from livereel.benchmarks import bench_stream
from livereel.benchmarks.bench_stream import Axes, measure, title
from livereel.benchmarks.ceilings import Ceilings
from livereel.benchmarks.contender import Ours
from livereel.benchmarks.harness import Spread
from livereel.benchmarks.report import Contents
from livereel.benchmarks.subject import Subject
from livereel.engine.errors import InputError
from livereel.engine.runners.watch import STAGES

Small = Callable[..., Subject]
TOP = Ceilings(1e12, 1e10)


@dataclass
class World:
    """One clock and a log of who did what."""

    now: float = 0.0
    log: list[str] = field(default_factory=list)


@dataclass
class Fake:
    """Takes `text_s` to open, `first_s` for the first chunk and `chunk_s` for each later one."""

    world: World
    name: str
    chunk_s: float
    frames: int
    text_s: float = 0.25
    first_s: float = 0.5
    until_steady: int = 2
    settings: str = "as it is"
    contents: Contents = field(
        default_factory=lambda: Contents(passes=5, cache_pass=True, vae="full")
    )
    stages: dict[str, list[float]] = field(default_factory=dict)
    _chunks: int = 0

    def open(self) -> None:
        self.world.now += self.text_s
        self._chunks = 0

    def turn(self) -> int:
        self.world.log.append(self.name)
        seconds = self.chunk_s if self._chunks else self.first_s
        self.world.now += seconds
        for i, stage in enumerate(STAGES):
            self.stages.setdefault(stage, []).append(seconds if i == 1 else 0.0)
        self._chunks += 1
        return self.frames if self._chunks > 1 else 1


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    world = World()
    monkeypatch.setattr(bench_stream, "Ours", lambda subject: Fake(world, "livereel", 1.0, 8))
    slow: dict[str, Any] = {"slow": lambda subject: Fake(world, "slow one", 4.0, 16)}
    monkeypatch.setattr(bench_stream, "BASELINES", slow)
    return world


def test_turns_first_frames_and_stages_are_exact(world: World, small: Small) -> None:
    found = small("wan2.1-1.3b").at(steps=2)
    section = measure(found, ["slow"], runs=2, warmup=1, top=TOP, clock=lambda: world.now)
    assert section.figures == {
        "livereel: first frame, s": Spread(0.75, 0.75, 0.75),
        "slow one: first frame, s": Spread(0.75, 0.75, 0.75),
        "livereel: chunk, p99, ms": Spread(1000.0, 1000.0, 1000.0),
        "slow one: chunk, p99, ms": Spread(4000.0, 4000.0, 4000.0),
    }
    assert [timing.seconds for timing in section.timings] == [(1.0, 1.0), (4.0, 4.0)]
    assert section.ratios["livereel over slow one"].median == 2.0  # frames are made in twos
    assert section.stages["livereel"]["dit"] == 1.0 and section.stages["livereel"]["vae"] == 0.0
    assert section.contents["livereel"].startswith("5 passes, the cache pass among them, full VAE")
    assert section.setup["what"] == "stream" and section.setup["steps"] == 2
    # Four streams are opened, the last goes on until it is steady; then a round to warm up, and
    # two in which the order turns.
    assert world.log == [
        *["livereel"] * 6, *["slow one"] * 6, "livereel", "slow one",
        "livereel", "slow one", "slow one", "livereel",
    ]  # fmt: skip
    dit, chunk = section.work
    assert (dit.name, chunk.name) == ("DiT", "chunk")  # the VAE took no time
    assert chunk.flops > dit.flops > 0 and chunk.seconds == 1.0
    assert dit.share == max(dit.flops / 1e12, dit.moved / 1e10)
    said = str(section)
    assert "livereel, ms of a chunk: text 0.0, dit 1000.0" in said and "roofline, DiT:" in said


def test_a_gpus_memory_is_the_most_above_what_was_held(
    world: World, small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, most = iter([4_000_000_000, 6_000_000_000]), iter([5_500_000_000, 9_000_000_000])
    log: list[str] = []
    for name, gives in (
        ("memory_reserved", lambda device: next(held)),
        ("max_memory_reserved", lambda device: next(most)),
        ("reset_peak_memory_stats", lambda device: log.append("reset")),
        ("empty_cache", lambda: log.append("empty")),
    ):
        assert hasattr(torch.cuda, name)
        monkeypatch.setattr(torch.cuda, name, gives)
    found = small("wan2.1-1.3b")
    found = replace(found, runner=replace(found.runner, device=torch.device("cuda")))
    section = measure(found, ["slow"], runs=1, warmup=0, top=TOP, clock=lambda: world.now)
    figures = {name: x.median for name, x in section.figures.items() if name.endswith("GB")}
    assert figures == {
        "livereel: memory beside the weights that are shared, GB": 1.5,
        "slow one: memory beside the weights that are shared, GB": 3.0,
    }
    assert log == ["empty", "reset"] * 2 and section.setup["device"] == "cuda"


def test_an_unknown_baseline_is_told(world: World, small: Small) -> None:
    with pytest.raises(InputError, match="unknown baseline 'fast'; known are slow"):
        measure(small("wan2.1-1.3b"), ["fast"], runs=1, warmup=0, top=TOP)


def test_one_axis_at_a_time_departs_from_the_first(small: Small) -> None:
    axes = Axes(sizes=((32, 32), (64, 32)), steps=(4, 1), windows=(4, 6), chunk=1, first_chunk=1)
    titles = [title(found) for found in axes.subjects(small("wan2.1-1.3b"))]
    assert titles == [
        "wan2.1-1.3b, 32x32, 4 steps, window 4, chunks of 1",
        "wan2.1-1.3b, 64x32, 4 steps, window 4, chunks of 1",
        "wan2.1-1.3b, 32x32, 1 steps, window 4, chunks of 1",
        "wan2.1-1.3b, 32x32, 4 steps, window 6, chunks of 1",
    ]


@pytest.mark.parametrize(
    "name", ["wan2.1-1.3b", pytest.param("cogvideox-2b", marks=pytest.mark.slow)]
)
def test_ours_says_what_is_in_it(name: str, small: Small) -> None:
    found = small(name).at(steps=2)
    ours = Ours(found)
    ours.open()
    frames = [ours.turn() for _ in range(3)]
    assert frames == [1, 8, 8]
    cached = name.startswith("wan")
    assert ours.contents.cache_pass == cached
    assert ours.contents.passes == (3 if cached else 4)
    assert ours.until_steady == 5 and len(ours.stages["vae"]) == 3
    assert ("cache pass" in str(ours.contents).partition("; not")[2]) == (not cached)


def test_contents_read_as_they_are() -> None:
    full = Contents(passes=5, cache_pass=True, vae="tiny", text=True, encode=True)
    assert str(full) == "5 passes, the cache pass among them, tiny VAE, text, conversion, encode"
    none = Contents(passes=0, cache_pass=False, vae="none", conversion=False)
    assert str(none) == "nothing; not text, conversion, encode"

"""Startup under a fake clock, and once for real."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from livereel.benchmarks import bench_startup
from livereel.benchmarks.bench_startup import TOTAL, Startup, measure
from livereel.benchmarks.harness import Spread


def test_stages_and_medians_are_exact_and_the_first_process_is_apart() -> None:
    now, takes = 100.0, iter([9.0, 1.0, 3.0, 2.0])
    asked: list[Sequence[str]] = []

    def fresh(arguments: Sequence[str]) -> dict[str, Any]:
        nonlocal now
        asked.append(arguments)
        load = next(takes)
        begun, imported = now + 0.5, now + 2.5
        now = imported + load + 0.25
        shown, now = now, now + 7.0  # what comes after the first frame does not count
        return dict(begun=begun, imported=imported, loaded=imported + load, shown=shown, peak=2e9)

    section = measure(Startup(model="here"), runs=3, fresh=fresh, clock=lambda: now)
    assert section.figures == {
        "interpreter, s": Spread(0.5, 0.5, 0.5),
        "imports, s": Spread(2.0, 2.0, 2.0),
        "load, s": Spread(2.0, 1.5, 2.5),
        "first chunk, s": Spread(0.25, 0.25, 0.25),
        TOTAL: Spread(4.75, 4.25, 5.25),
        "peak memory, GB": Spread(2.0, 2.0, 2.0),
    }
    assert section.notes == ["the process before these: 11.75 s to its first frame"]
    assert [goal.met for goal in section.goals] == [True]
    assert len(asked) == 4 and "--model=here" in asked[0]


def test_a_process_reads_what_it_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", "warm")
    told: list[Startup] = []

    def probe(startup: Startup) -> dict[str, float | None]:
        told.append(startup)
        assert (bench_startup.os.environ["TRITON_CACHE_DIR"] == "warm") != startup.empty_cache
        return {"begun": 1.0}

    monkeypatch.setattr(bench_startup, "probe", probe)
    for startup in (Startup(), Startup(model="m", device="cpu", dtype="float32", empty_cache=True)):
        assert bench_startup.main(startup.arguments()[2:]) == 0
        assert told.pop() == startup
        assert json.loads(capsys.readouterr().out) == {"begun": 1.0}


def test_the_demo_starts() -> None:
    section = measure(Startup(), runs=1)
    stages = {name: spread.median for name, spread in section.figures.items()}
    memory = stages.pop("peak memory, GB")
    total = stages.pop(TOTAL)
    assert all(seconds > 0 for seconds in stages.values()) and memory > 0.05
    assert total == pytest.approx(sum(stages.values()))

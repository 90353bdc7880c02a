"""Startup under a fake clock, and once for real."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from livereel.benchmarks import bench_startup
from livereel.benchmarks.bench_startup import DIFFUSERS, TOTAL, Startup, measure, probe_diffusers
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
        "livereel: interpreter, s": Spread(0.5, 0.5, 0.5),
        "livereel: imports, s": Spread(2.0, 2.0, 2.0),
        "livereel: load, s": Spread(2.0, 1.5, 2.5),
        "livereel: first chunk, s": Spread(0.25, 0.25, 0.25),
        f"livereel: {TOTAL}": Spread(4.75, 4.25, 5.25),
        "livereel: peak memory, GB": Spread(2.0, 2.0, 2.0),
    }
    assert section.notes == ["livereel: the process before these: 11.75 s to its first frame"]
    assert [goal.met for goal in section.goals] == [True]
    assert len(asked) == 4 and "--model=here" in asked[0]


def test_diffusers_takes_turns_with_ours() -> None:
    now, asked = 0.0, list[str]()

    def fresh(arguments: Sequence[str]) -> dict[str, Any]:
        nonlocal now
        by = next(x for x in arguments if x.startswith("--by=")).removeprefix("--by=")
        asked.append(by)
        begun, now = now, now + (1.0 if by == "livereel" else 3.0)
        return dict(begun=begun, imported=begun, loaded=begun, shown=now, peak=None)

    section = measure(Startup(), runs=2, baseline=True, fresh=fresh, clock=lambda: now)
    ours, theirs = "livereel", "diffusers"
    assert asked == [ours, theirs, theirs, ours, ours, theirs]
    assert section.ratios == {"livereel over diffusers": Spread(3.0, 3.0, 3.0)}
    assert section.figures[f"livereel: {TOTAL}"] == Spread(1.0, 1.0, 1.0)
    assert section.figures[f"diffusers: {TOTAL}"] == Spread(3.0, 3.0, 3.0)
    assert section.goals[0].value == 1.0 and len(section.notes) == 2
    assert "a first chunk's passes" in section.contents[ours]
    assert "a clip of the window's length" in section.contents[theirs]


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
    monkeypatch.setattr(bench_startup, "probe_diffusers", probe)
    other = Startup(model="m", device="cpu", dtype="float32", by=DIFFUSERS, empty_cache=True)
    for startup in (Startup(), other):
        assert bench_startup.main(startup.arguments()[2:]) == 0
        assert told.pop() == startup
        assert json.loads(capsys.readouterr().out) == {"begun": 1.0}


def test_the_demo_starts() -> None:
    section = measure(Startup(), runs=1)
    stages = {name: spread.median for name, spread in section.figures.items()}
    memory = stages.pop("livereel: peak memory, GB")
    total = stages.pop(f"livereel: {TOTAL}")
    assert all(seconds > 0 for seconds in stages.values()) and memory > 0.05
    assert total == pytest.approx(sum(stages.values()))


@pytest.mark.slow
def test_diffusers_starts_from_the_same_folder() -> None:
    stages = probe_diffusers(Startup(device="cpu", dtype="float32", by=DIFFUSERS))
    shown, begun = stages["shown"], stages["begun"]
    assert shown is not None and begun is not None and shown > begun

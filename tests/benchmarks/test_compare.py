"""Results read back, and what is called slower."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from livereel.benchmarks.compare import Result, apart, compare, read, without
from livereel.benchmarks.harness import Environment, Spread, Timing
from livereel.benchmarks.report import Goal, Section, Spent, to_json
from livereel.engine.errors import InputError

HERE = Environment(
    cpu="a CPU", cores=2, threads=2, memory_gb=8.0, load_average=0.5, system="Linux",
    python="3.11.7", versions={"torch": "2.13.0"}, commit="abc",
)  # fmt: skip
COMMITTED = Path(__file__).parents[2] / "benchmarks" / "results" / "stream-cpu-2-cores.json"


def timing(name: str, *seconds: float) -> Timing:
    return Timing(name=name, settings="as it comes", frames=10, warmup_s=(9.0,), seconds=seconds)


FIRST, RATIO = Spread(2.0, 1.9, 2.1), Spread(4.0, 3.9, 4.1)


def result(*ours: float, first: Spread = FIRST, ratio: Spread = RATIO) -> Result:
    section = Section(
        title="decode: 10 frames",
        timings=[timing("livereel", *ours), timing("peer", 4.0, 4.0, 4.0)],
        ratios={"livereel over peer": ratio},
        figures={"first frame, s": first},
        notes=["a note"],
        setup={"what": "decode", "dtype": "float32", "frames": 10},
        contents={"livereel": "full VAE; not text"},
        stages={"livereel": {"vae": 1.0, "text": 0.0}},
        work=[
            Spent(
                name="VAE", seconds=1.0, flops=1e9, moved=1e6, ceiling_flops=1e12, ceiling_bytes=1e9
            )
        ],
        goals=[Goal(what="first frame:", value=2.0, bound=1.0, at_least=False, unit=" s")],
    )
    return Result(environment=HERE, sections={"decode": section})


def changes(before: Result, after: Result, *, by: float = 0.05, ratios: bool = False) -> list[str]:
    """What became better (+) or worse (-) beyond the noise."""
    return [
        ("+" if change.gain > 1 else "-") + change.name
        for change in compare(before, after, by=by, ratios=ratios)
        if change.beyond_noise
    ]


def test_what_was_written_is_read(tmp_path: Path) -> None:
    wrote = result(1.0, 1.1, 0.9)
    path = tmp_path / "a.json"
    path.write_text(to_json(wrote.environment, wrote.sections))
    assert read(path) == wrote


def test_the_committed_run_is_read_and_equals_itself() -> None:
    run = read(COMMITTED)
    assert {"decode", "stream", "start"} <= set(run.sections)
    assert "start: livereel: first frame, s" in dict(run.figures())
    assert changes(run, run) == []


def test_slower_is_lower_rates_and_longer_times() -> None:
    quick = result(1.0, 1.0, 1.0)
    slow = result(1.2, 1.2, 1.2, first=Spread(3.0, 2.9, 3.1), ratio=Spread(3.0, 2.9, 3.1))
    names = [
        "decode: livereel, frames a second", "decode: first frame, s",
        "decode: livereel over peer, x",
    ]  # fmt: skip
    assert changes(quick, slow) == ["-" + name for name in names]
    assert changes(slow, quick) == ["+" + name for name in names]
    assert changes(quick, slow, ratios=True) == ["-decode: livereel over peer, x"]


def test_quartiles_that_meet_are_noise() -> None:
    before = result(1.0, first=Spread(2.0, 1.5, 2.5))
    assert changes(before, result(1.0, first=Spread(3.0, 2.4, 3.6))) == []
    assert changes(before, result(1.0, first=Spread(3.0, 2.6, 3.6))) == ["-decode: first frame, s"]


def test_small_changes_do_not_count() -> None:
    before, after = result(1.0, 1.0), result(1.04, 1.04)
    assert changes(before, after) == []
    assert changes(before, after, by=0.03) == ["-decode: livereel, frames a second"]


def test_what_ran_on_another_road_is_apart() -> None:
    one = result(1.0)
    section = one.sections["decode"]
    setup = {**section.setup, "dtype": "bfloat16"}
    other = Result(environment=HERE, sections={"decode": replace(section, setup=setup)})
    assert apart(one, one) == {}
    assert apart(one, other) == {"decode": "dtype float32 and bfloat16"}
    assert without(one, apart(one, other)).sections == {}


def test_a_change_says_both_figures() -> None:
    first, *_ = compare(result(1.0), result(2.0), by=0.05, ratios=False)
    assert " ".join(str(first).split()) == (
        "slower decode: livereel, frames a second 10.0 [10.0, 10.0] -> 5.00 [5.00, 5.00] -50.0%"
    )


def test_nothing_in_common_is_a_mistake() -> None:
    other = Result(environment=HERE, sections={"else": result(1.0).sections["decode"]})
    with pytest.raises(InputError, match="no ratio in common"):
        compare(result(1.0), other, by=0.05, ratios=True)


def damaged(change: Any) -> Any:
    wrote = result(1.0, 1.1)
    values = json.loads(to_json(wrote.environment, wrote.sections))
    change(values, values["sections"]["decode"])
    return values


@pytest.mark.parametrize(
    "values",
    [
        {},
        [],
        {"environment": {}, "sections": {}},
        {"environment": 3, "sections": {}},
        damaged(lambda all, one: all.update(sections=[])),
        damaged(lambda all, one: one.pop("title")),
        damaged(lambda all, one: one["timings"][0].update(seconds=[])),
        damaged(lambda all, one: one["timings"][0].update(seconds=[0])),
        damaged(lambda all, one: one["timings"][0].update(frames="ten")),
        damaged(lambda all, one: one["timings"][0].update(frames=float("nan"))),
        damaged(lambda all, one: one["figures"]["first frame, s"].update(median=-1)),
        damaged(lambda all, one: one.update(goals=[3])),
        damaged(lambda all, one: one.update(setup={"width": 1.5})),
        damaged(lambda all, one: one.update(stages={"livereel": {"vae": -1}})),
        damaged(lambda all, one: one["work"][0].update(ceiling_flops=0)),
    ],
)
def test_what_is_no_result_is_told(values: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(values))
    with pytest.raises(InputError, match=r"a\.json"):
        read(path)
    with pytest.raises(InputError, match="cannot be read"):
        read(tmp_path / "none.json")

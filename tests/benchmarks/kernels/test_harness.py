"""Who is timed, in which order, and what is said of it; with a clock of our own."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from livereel.benchmarks.kernels import harness
from livereel.benchmarks.kernels.harness import (
    Case,
    Ceilings,
    Contender,
    NoGpuError,
    WrongResultError,
    measure,
)

CEILINGS = Ceilings(copy=1e12, matmul=100e12)
TRUTH = torch.tensor([1.0, -2.0, 4.0])


class FakeTimer:
    """Gives each function its own times in turn, the last one for good, and notes who ran."""

    def __init__(self) -> None:
        self.times: dict[Callable[[], Tensor], list[float]] = {}
        self.ran: list[Callable[[], Tensor]] = []

    def __call__(self, run: Callable[[], Tensor]) -> float:
        run()
        self.ran.append(run)
        times = self.times[run]
        return times.pop(0) if len(times) > 1 else times[0]


def contender(
    timer: FakeTimer, name: str, milliseconds: list[float], result: Tensor = TRUTH
) -> Contender:
    def run() -> Tensor:
        return result

    timer.times[run] = milliseconds
    return Contender(name=name, settings="bf16", run=run)


def case(ours: Contender, *others: Contender, **changes: Any) -> Case:
    values: dict[str, Any] = {
        "op": "some_op", "shape": "[3]", "truth": TRUTH.double, "tolerance": 0.01,
        "bytes_moved": 1_000_000, **changes,
    }  # fmt: skip
    return Case(ours=ours, others=others, **values)


def test_contenders_take_turns_after_a_warm_up() -> None:
    timer = FakeTimer()
    ours = contender(timer, "ours", [9.0, 1.0, 2.0, 3.0])
    theirs = contender(timer, "theirs", [9.0, 4.0, 4.0, 6.0])
    result = measure(case(ours, theirs), CEILINGS, timer, rounds=3)
    a, b = ours.run, theirs.run
    assert timer.ran == [a, b, a, b, b, a, a, b]
    assert [timing.milliseconds for timing in result.timings] == [(1, 2, 3), (4, 4, 6)]
    assert result.ratio(result.timings[1]).median == 2.0


def test_a_wrong_result_of_ours_is_not_timed() -> None:
    timer = FakeTimer()
    for wrong in (TRUTH * 1.02, TRUTH[:2], TRUTH * float("nan")):
        with pytest.raises(WrongResultError, match=r"some_op \[3\]: ours is off by"):
            measure(case(contender(timer, "ours", [1.0], wrong)), CEILINGS, timer)
    assert timer.ran == []


def test_wrong_and_failing_peers_are_left_out_with_a_note() -> None:
    def fail() -> Tensor:
        raise NotImplementedError("no such backend\nand a long story")

    timer = FakeTimer()
    ours = contender(timer, "ours", [1.0])
    wrong = contender(timer, "careless", [0.1], TRUTH * 1.1)
    failing = Contender(name="missing", settings="fp8", run=fail)
    slow = contender(timer, "slow", [3.0])
    result = measure(case(ours, wrong, failing, slow), CEILINGS, timer, rounds=2)
    assert [timing.name for timing in result.timings] == ["ours", "slow"]
    assert result.notes == (
        "left out: careless (bf16) is off by 0.1",
        "left out: missing (fp8) failed: no such backend",
    )


def test_the_ratio_is_over_the_fastest_and_goals_are_told() -> None:
    timer = FakeTimer()
    ours = contender(timer, "ours", [2.0])
    slow, fast = contender(timer, "slow", [9.0]), contender(timer, "fast", [3.0])
    asked = case(ours, slow, fast, least_share=0.5, least_ratio=2.0)
    result = measure(asked, CEILINGS, timer, rounds=2)
    assert [(goal.value, goal.met) for goal in result.goals] == [(0.0005, False), (1.5, False)]
    text = result.to_text(CEILINGS)
    assert "over fast (bf16) 1.50 [1.50, 1.50]x" in text and "MISSED" in text
    alone = measure(case(ours, least_ratio=2.0), CEILINGS, timer, rounds=1)
    assert alone.goals == () and "over" not in alone.to_text(CEILINGS)


def test_speed_and_share_are_of_bytes_or_of_operations() -> None:
    timer = FakeTimer()
    ours = contender(timer, "ours", [0.001])
    copied = measure(case(ours), CEILINGS, timer, rounds=1)
    assert copied.speed(copied.timings[0]) == "1000 GB/s"
    assert copied.share(copied.timings[0], CEILINGS) == pytest.approx(1.0)
    counted = case(ours, bytes_moved=0, flops=50_000_000, least_share=0.4)
    multiplied = measure(counted, CEILINGS, timer, rounds=1)
    assert multiplied.speed(multiplied.timings[0]) == "50 TFLOP/s"
    assert multiplied.goals[0].met and "50%" in multiplied.to_text(CEILINGS)


def test_a_run_goes_on_after_a_wrong_case(capsys: pytest.CaptureFixture[str]) -> None:
    timer = FakeTimer()

    def cases(device: torch.device) -> Iterator[Case]:
        yield case(contender(timer, "ours", [1.0], TRUTH * 2), shape="[bad]")
        failing = Contender(name="ours", settings="", run=lambda: TRUTH.reshape(2))
        yield case(failing, shape="[broken]")
        yield case(contender(timer, "ours", [1.0]), shape="[good]")
        raise RuntimeError("out of memory\nand more")

    kept: list[tuple[int, int]] = []
    results, wrong = harness.run(
        {"some_op": cases}, rounds=1, device=torch.device("cpu"), timer=timer, ceilings=CEILINGS,
        keep=lambda results, wrong: kept.append((len(results), len(wrong))),
    )  # fmt: skip
    assert [result.shape for result in results] == ["[good]"]
    assert len(wrong) == 3 and "[bad]" in wrong[0] and "[broken]: failed: shape" in wrong[1]
    assert wrong[2] == "some_op: a case could not be set up: out of memory"
    assert kept == [(0, 1), (0, 2), (1, 2), (1, 3)]
    out = capsys.readouterr().out
    assert "WRONG  some_op [bad]" in out and "some_op  [good]" in out


def test_the_report_is_written_as_json(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    timer = FakeTimer()

    def cases(device: torch.device) -> Iterator[Case]:
        ours = contender(timer, "ours", [1.0])
        yield case(ours, contender(timer, "theirs", [3.0]), least_share=0.5)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    monkeypatch.setattr(harness, "CudaTimer", lambda device: timer)
    monkeypatch.setattr(Ceilings, "measure", lambda device, timer: CEILINGS)
    path = tmp_path / "out.json"
    assert harness.main("some_op", cases, ["--rounds", "2", "--json", str(path)]) == 0
    assert "Some GPU" in capsys.readouterr().out
    content = json.loads(path.read_text())
    (result,) = content["results"]
    assert content["device"] == "Some GPU" and content["ceilings"]["copy"] == 1e12
    assert result["ratio"] == 3.0 and result["fastest_other"] == "theirs"
    assert result["timings"][0]["median_ms"] == 1.0 and result["goals"][0]["met"] is False


def test_ceilings_are_bytes_and_operations_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "empty", lambda size, **_: torch.zeros(1))
    monkeypatch.setattr(torch, "empty_like", torch.zeros_like)
    monkeypatch.setattr(torch, "randn", lambda *_, **__: torch.zeros(2, 1, 1))
    measured = Ceilings.measure(torch.device("cpu"), lambda run: 0.5, rounds=1)
    assert measured.copy == pytest.approx(2 * 2**30 / 0.5e-3)
    assert measured.matmul == pytest.approx(2 * 8192**3 / 0.5e-3)


def test_without_a_gpu_one_sentence_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert harness.main("some_op", lambda device: [], []) == 2
    assert capsys.readouterr().out == (
        "kernel benchmarks run on a CUDA device, and torch sees none here\n"
    )
    with pytest.raises(NoGpuError):
        harness.report({})


@pytest.mark.gpu
def test_the_timer_sees_more_work() -> None:
    device = torch.device("cuda")
    timer = harness.CudaTimer(device)
    x = torch.zeros(1 << 26, device=device)
    timer(lambda: x.add_(1))
    one = min(timer(lambda: x.add_(1)) for _ in range(5))
    four = min(timer(lambda: x.add_(1).add_(1).add_(1).add_(1)) for _ in range(5))
    assert 3 < four / one < 5

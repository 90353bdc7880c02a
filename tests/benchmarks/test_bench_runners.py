"""The runners' benchmark: every contender in a process of its own, figures under its name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from livereel.benchmarks import bench_runners, harness

SAID = (
    "out.y4m: 160 frames of 128x128; loaded in 0.31 s, first frame after 0.042 s, 61.5 frames a "
    "second\n"
)


def test_the_programs_figures_are_read() -> None:
    assert bench_runners.read_program(SAID) == {"first frame, s": 0.042, "frames a second": 61.5}
    with pytest.raises(RuntimeError, match="said nothing of its speed: out of memory"):
        bench_runners.read_program("out of memory")


def test_torch_runs_the_model_in_the_packages_dtype(
    exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def fresh(arguments: list[str], **_: Any) -> dict[str, float]:
        asked.append(" ".join(arguments[-4:]))
        return {"frames a second": float(len(asked))}

    monkeypatch.setattr(harness, "fresh", fresh)
    section = bench_runners.measure(
        [exported], program=None, model="demo", processes=2, seconds=1.0, threads=1
    )
    assert asked == ["--model demo --dtype float32", f"--model {exported} --dtype auto"] * 2
    assert {name: figure.median for name, figure in section.figures.items()} == {
        "torch: frames a second": 2.0,
        "onnx: frames a second": 3.0,
    }


def test_a_stream_is_measured(exported: Path) -> None:
    figures = bench_runners.probe(str(exported), "auto", 2.0, torch.get_num_threads())
    assert set(figures) == {"load, s", "first frame, s", "frames a second", "peak memory, GB"}
    assert all(value > 0 for value in figures.values())

"""Ratios to the targets, from results as they are written."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from livereel.benchmarks import targets
from livereel.benchmarks.bench_live import CONTROL, INTERVAL
from livereel.benchmarks.bench_startup import Startup, measure
from livereel.benchmarks.compare import Result
from livereel.benchmarks.harness import Environment, Spread, Timing
from livereel.benchmarks.report import Section, to_json

HERE = Environment(
    cpu="a CPU", cores=2, threads=2, memory_gb=8.0, load_average=0.5, system="Linux",
    python="3.11.7", versions={}, commit="abc", gpu="a GPU",
)  # fmt: skip
SETUP: dict[str, Any] = {
    "what": "stream", "model": "wan2.1-1.3b", "dtype": "bfloat16", "device": "cuda", "width": 832,
    "height": 480, "steps": 4, "window": 21, "chunk": 3, "first_chunk": 3, "decoder": "tiny",
}  # fmt: skip


def stream(seconds: float, **setup: Any) -> Section:
    timing = Timing(name="livereel", settings="", frames=12, warmup_s=(), seconds=(seconds,))
    return Section(
        title="stream", timings=[timing], setup={**SETUP, **setup},
        figures={"livereel: first frame, s": Spread(0.1, 0.1, 0.1)},
    )  # fmt: skip


def result(*sections: Section) -> Result:
    return Result(environment=HERE, sections={str(i): s for i, s in enumerate(sections)})


def test_each_target_has_a_line_and_its_best_ratio() -> None:
    vae = Section(
        title="vae", setup={**SETUP, "what": "vae", "decoder": "full", "frames": 81},
        ratios={"livereel over diffusers, channels-last": Spread(3.0, 3.0, 3.0)},
    )  # fmt: skip
    clip = Section(
        title="clip",
        setup={**SETUP, "what": "clip", "decoder": "full", "frames": 81, "steps": 50},
        ratios={"livereel over diffusers, fast": Spread(1.21, 1.2, 1.22)},
    )  # fmt: skip
    found = [
        result(stream(0.34), stream(0.68)),
        result(stream(0.2, decoder="full", window=12), vae, clip),
    ]
    lines = targets.report(found, [{"streams": 1, "control_p95_ms": 300.0}, {"streams": 2}])
    assert len(lines) == len(targets.H200) + len(targets.SERVED)
    assert lines[0] == " 1.00  1.3B, window 21, tiny decoder: a chunk: 340 ms (at most 340 ms)"
    assert " 1.50  1.3B, window 12, full VAE: frames a second: 60 (at least 40)" in lines
    assert " 2.00  1.3B: first frame, warm, of a first chunk of 3: 100 ms (at most 200 ms)" in lines
    assert " 1.50  VAE, 81 frames, over diffusers channels-last: 3x (at least 2x)" in lines
    name = "1.3B, whole clip of 81 frames in 50 steps, over diffusers compiled, cuDNN"
    assert f" 1.10  {name}: 1.21x (at least 1.1x)" in lines
    assert "    -  14B, window 12: frames a second: not measured (at least 7.5)" in lines


@pytest.mark.parametrize("baseline", [False, True])
def test_a_cold_start_is_found_in_what_the_benchmark_of_it_writes(baseline: bool) -> None:
    now = 0.0

    def fresh(arguments: Sequence[str]) -> dict[str, Any]:
        nonlocal now
        begun, now = now, now + (10.0 if "--by=livereel" in arguments else 5.0)
        return dict(begun=begun, imported=begun, loaded=begun, shown=now, peak=None)

    startup = Startup(model="/models/wan2.1-1.3b", device="cuda")
    section = measure(startup, runs=1, baseline=baseline, fresh=fresh, clock=lambda: now)
    name = "1.3B, files in the system's cache: cold process to first frame"
    assert f" 2.00  {name}: 10 s (at most 20 s)" in targets.report([result(section)])


def test_a_cpus_figures_are_no_h200s_and_what_is_not_built_is_told() -> None:
    lines = targets.report([result(stream(1, device="cpu"))])
    (unbuilt,) = (line for line in lines if "not measured" not in line)
    assert unbuilt == (
        "    -  the same with fp8 attention as well: a chunk: not built: the engine has no fp8 "
        "attention (at most 240 ms)"
    )


def test_a_paced_streams_figures_are_found() -> None:
    live = Section(
        title="live", setup={**SETUP, "what": "live", "chunk": 1, "first_chunk": 1},
        figures={CONTROL: Spread.of([400.0]), INTERVAL: Spread.of([1.2])},
    )  # fmt: skip
    lines = targets.report([result(live)])
    name = "1.3B paced, full window, tiny decoder, chunks of 1"
    assert f" 1.50  {name}: control to pixel, p95: 400 ms (at most 600 ms)" in lines
    assert f" 1.25  {name}: frame interval, p99, over nominal: 1.2x (at most 1.5x)" in lines
    assert sum("chunks of 3: control" in line and "not measured" in line for line in lines) == 1


def test_a_folder_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.json").write_text(to_json(HERE, result(stream(0.17)).sections))
    row = {
        "streams": 1, "control_p95_ms": 500.0, "interval_p50_ms": 50.0, "interval_p99_ms": 60.0,
    }  # fmt: skip
    (tmp_path / "b.json").write_text(json.dumps({"rows": [row]}))
    (tmp_path / "c.json").write_text("no JSON")
    assert targets.main([str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert " 2.00  1.3B, window 21, tiny decoder: a chunk: 170 ms" in out
    assert " 1.20  one stream served: control to pixel, p95, ms: 500 (at most 600)" in out
    assert (
        " 1.25  one stream served: frame interval, p99, over its median: 1.2 (at most 1.5)" in out
    )

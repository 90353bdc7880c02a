"""The reckoning of many devices: its parts by hand, and that it is the code's own traffic."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from livereel.benchmarks import bench_scaling, models
from livereel.benchmarks.bench_scaling import (
    LINKS,
    Clip,
    Link,
    Measured,
    Shape,
    costs_of,
    predict,
    table,
)
from livereel.engine.cli import main
from livereel.engine.errors import InputError

SHAPE = Shape(
    products=1000.0, attention=400.0, moved=500.0, weights=100.0, alike=40.0, frames=3, tokens=10,
    heads=4, layers=2, width=8, item=2, flow=60,
)  # fmt: skip
LINK = Link(bandwidth=100.0, latency=0.5)


def test_one_device_exchanges_nothing() -> None:
    step = predict(SHAPE, 1, LINK, flops=10.0)
    assert step is not None
    assert (step.compute, step.exchange, step.sent) == (2 * 140.0, 0.0, 0.0)
    bound = predict(SHAPE, 1, LINK, flops=1e9, moved=10.0, guided=False)
    assert bound is not None
    assert bound.seconds == 50.0


def test_guidance_parts_two_devices() -> None:
    step = predict(SHAPE, 2, LINK, flops=10.0)
    assert step is not None
    assert (step.compute, step.sent) == (140.0, 60.0)
    assert step.exchange == pytest.approx(0.6 + 0.5)


def test_ranks_of_one_pass_share_it() -> None:
    step = predict(SHAPE, 4, LINK, flops=10.0, guided=False)
    assert step is not None
    # Of 10 tokens the fullest rank has 3, and of 4 heads 1.
    assert step.compute == pytest.approx((960 * 0.3 + 40 + 400 / 4) / 10)
    assert step.sent == pytest.approx(2 * 4 * 3 * 3 * 8 * 2 * 0.75 + 60 * 0.3 * 3)
    assert step.exchange == pytest.approx(step.sent / 100 + 5 * 0.5)


def test_no_more_ranks_than_heads() -> None:
    assert predict(SHAPE, 5, LINK, flops=10.0, guided=False) is None
    assert predict(SHAPE, 8, LINK, flops=10.0) is not None
    assert predict(SHAPE, 10, LINK, flops=10.0) is None


def test_costs() -> None:
    clip = Clip(
        shape=SHAPE, seconds=2.0, steps=5, guided=True, decode=(50.0, 0.0), halo=90.0, latents=3
    )
    costs = costs_of(clip, flops=10.0, moved=math.inf, price=3600.0)
    assert [row.devices for row in costs["PCIe"]] == [1, 2, 3, 4, 6, 8]
    first = costs["NVLink"][0]
    assert first.seconds == 5 * 280 + 5
    assert first.cost == first.seconds / 2
    both = 5 * (140 + 60 / 450e9 + 15e-6) + 5 * 2 / 3 + 90 / 450e9
    assert costs["NVLink"][1].seconds == pytest.approx(both, rel=1e-12)
    for rows in zip(*(costs[name] for name in ("NVLink", "PCIe", "100 GbE")), strict=True):
        assert rows[0].speedup >= rows[1].speedup >= rows[2].speedup
    lines = table(costs).splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["1", "2", "4", "8"]


def test_full_size_model() -> None:
    clip = bench_scaling.clip_of(
        models.find("wan2.1-1.3b"), size=(832, 480), frames=81, steps=50, guided=True
    )
    shape = clip.shape
    assert (shape.frames, shape.tokens, shape.heads, shape.layers) == (21, 1560, 12, 30)
    assert shape.products + shape.attention == pytest.approx(283.0e12, rel=0.01)  # as is published
    alone, many = (clip.on(n, LINKS["NVLink"], flops=5e14, moved=math.inf) for n in (1, 8))
    assert alone is not None
    assert many is not None
    assert 4 < alone / many < 8


def test_too_long_a_clip() -> None:
    with pytest.raises(InputError, match="tokens; at most"):
        bench_scaling.clip_of(
            models.find("demo"), size=(2048, 2048), frames=997, steps=1, guided=True
        )


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, plot = tmp_path / "out.json", tmp_path / "up.png"
    words = ["bench", "scaling", "--model=demo", "--frames=9", "--no-check", "--tflops=1"]
    assert main([*words, f"--json={out}", f"--plot={plot}"]) == 0
    assert "a device computes 1 TFLOP/s" in capsys.readouterr().out
    assert plot.read_bytes().startswith(b"\x89PNG")
    figures = json.loads(out.read_text())["sections"]["reckoned"]["figures"]
    assert figures["clip on 8 over PCIe, s"]["median"] > 0
    assert main(["bench", "scaling", "--no-check"]) == 2
    assert "wants --tflops" in capsys.readouterr().err


def test_noise_of_some_rounds_does_not_count() -> None:
    quiet = Measured(alone=1.0, shared=0.6, small=1e-4, large=2e-3)
    busy = Measured(alone=4.0, shared=2.4, small=0.1, large=0.2)
    upset = Measured(alone=1.0, shared=5.0, small=1e-4, large=2e-3)
    section, flops = bench_scaling._section([quiet, busy, quiet, upset, quiet], SHAPE)
    assert flops == 1400.0
    (goal,) = section.goals
    alone, _ = bench_scaling._section([quiet], SHAPE)
    assert goal.value == pytest.approx(alone.goals[0].value)


@pytest.mark.slow
def test_check() -> None:
    section, flops = bench_scaling.check(rounds=3)
    assert flops > 0
    assert len(section.goals) == 1

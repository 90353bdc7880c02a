"""What the server's benchmarks make of their figures; one of them runs whole in the slow tier."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from livereel.benchmarks import bench_serve, soak
from livereel.benchmarks.bench_serve import Row
from livereel.benchmarks.served import Usage
from livereel.benchmarks.soak import Sample

ROW = Row(
    streams=2, refused=1, first_ms=120.5, fps=4.0, interval_p50_ms=250.0, interval_p95_ms=260.0,
    interval_p99_ms=270.0, control_p50_ms=900.0, control_p95_ms=1500.0, missed=0, goodput=1.0,
    cpu_outside=0.05,
)  # fmt: skip


def test_the_table_has_a_column_for_each_figure() -> None:
    head, line = bench_serve.table([ROW]).split("\n")
    assert len(head.split()) == len(line.split()) == 12
    assert bench_serve.table([ROW], head=False) == line


def test_plots_are_written(tmp_path: Path) -> None:
    bench_serve.plot([ROW], tmp_path / "serve.png")
    samples = [Sample(at, 100.0 + at, 200.0, 30, 20, 1.5) for at in (0.0, 5.0)]
    soak.plot(samples, tmp_path / "soak.png")
    assert all((tmp_path / name).stat().st_size > 1000 for name in ("serve.png", "soak.png"))


def test_a_slope_is_a_minutes_growth() -> None:
    samples = [Sample(10.0 * i, 100.0 + 0.5 * i, 50.0, 9, 9, 1.0) for i in range(20)]
    assert soak.slope(samples, "server_mb") == pytest.approx(3.0)
    assert soak.slope(samples, "engine_mb") == 0.0
    assert soak.slope(samples[:1], "server_mb") == 0.0


@pytest.mark.parametrize(("refused", "code"), [(3, 0), (4, 1)])
def test_a_soak_of_refusals_is_none(
    refused: int, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = Usage(1.0, 1.0, 1, 1, 9, 9)

    async def soaked(*_: object) -> tuple[list[Sample], Counter[str]]:
        return [], Counter({"streams": 3, "refused: busy": refused})

    @contextmanager
    def served(_: str) -> Iterator[SimpleNamespace]:
        yield SimpleNamespace(usage=lambda: usage)

    monkeypatch.setattr(soak, "_soak", soaked)
    monkeypatch.setattr(soak, "Served", served)
    assert soak.main([]) == code
    said = capsys.readouterr()
    assert f"opens_refused          {refused}\n" in said.out
    assert ("4 of 7 opens were refused" in said.err) == bool(code)


@pytest.mark.slow
def test_both_run(tmp_path: Path) -> None:
    path = tmp_path / "serve.json"
    bench_serve.main(["--streams", "1", "--fps", "2", "--seconds", "6", "--json", str(path)])
    (row,) = json.loads(path.read_text())["rows"]
    assert row["streams"] == 1 and row["fps"] > 0
    path = tmp_path / "soak.json"
    soak.main(["--minutes", "0.5", "--streams", "2", "--fps", "2", "--json", str(path)])
    report = json.loads(path.read_text())
    assert report["did"]["frames"] > 0
    for process in ("server", "engine"):
        assert report[f"{process}_files_after"] <= report[f"{process}_files_before"] + 2

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from livereel.benchmarks.kernels import harness
from livereel.engine import cli


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the harness is asked to report."""
    seen: dict[str, Any] = {}

    def report(benches: dict[str, Any], **options: Any) -> int:
        seen.update(ops=list(benches), **options)
        assert all(callable(cases) for cases in benches.values())
        return 1

    monkeypatch.setattr(harness, "report", report)
    return seen


def test_options_reach_the_harness_and_its_code_comes_back(
    asked: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "out.json"
    options = f"gate_residual norm_modulate --rounds 3 --json {path}"
    assert cli.main(["bench", "kernels", *options.split()]) == 1
    assert asked == {"ops": ["gate_residual", "norm_modulate"], "rounds": 3, "path": path}


def test_every_bench_runs_by_default(asked: dict[str, Any]) -> None:
    assert cli.main(["bench", "kernels"]) == 1
    assert {"norm_modulate", "rms_norm_silu", "to_pixels"} <= set(asked["ops"])
    assert asked["path"] is None


def test_mistakes_are_one_line(
    asked: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["bench", "kernels", "dance"]) == 2
    assert "unknown kernel 'dance'; known are" in capsys.readouterr().err
    assert cli.main(["bench", "kernels", "--json", str(tmp_path / "no" / "file.json")]) == 2
    assert "name a file in a folder that exists" in capsys.readouterr().err
    assert asked == {}


def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cli.main(["bench", "kernels", "gate_residual"]) == 2
    assert capsys.readouterr().err == (
        "livereel: kernel benchmarks run on a CUDA device, and torch sees none here\n"
    )

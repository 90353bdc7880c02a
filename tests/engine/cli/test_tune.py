from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from livereel.benchmarks.kernels import harness
from livereel.engine import cli
from livereel.kernels import norm_modulate, tuning

pytest.importorskip("triton")


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """A GPU that is not there, and what the search finds on it by shape."""
    answers: dict[str, Any] = {}

    def best(tunable: tuning.Tunable, device: torch.device, timed: Callable[..., Any]) -> Any:
        assert timed(lambda: torch.zeros(1)) == [1.5, 1.5, 1.5]
        return answers.get(tunable.key)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(harness, "CudaTimer", lambda device: lambda run: 1.5)
    monkeypatch.setattr(tuning, "chip", lambda device: "sm_90")
    monkeypatch.setattr(tuning, "best", best)
    return answers


def test_what_is_faster_is_told_and_kept(
    found: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    config = {"rows": 2, "num_warps": 8}
    found["D1536"] = (config, 0.01, 0.02)
    assert cli.main(["tune", "norm_modulate", "--rounds", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    shapes = len(norm_modulate.TUNABLE)
    path = tuning.user_table()
    assert lines[0] == "norm_modulate D1536: rows 2, num_warps 8; 0.0100 ms, 2.00x"
    assert lines[1] == "norm_modulate D3072: stays as it is"
    assert lines[-1] == f"1 of {shapes} shapes became faster: {path}"
    chips = json.loads(path.read_text())["chips"]
    assert chips == {"sm_90": {"norm_modulate": {"D1536": config}}}


def test_another_file_leaves_the_users_table_alone(found: dict[str, Any], tmp_path: Path) -> None:
    found["D1536"] = ({"rows": 2, "num_warps": 8}, 0.01, 0.02)
    path = tmp_path / "mine.json"
    assert cli.main(["tune", "gate_residual", "--rounds", "3", "-o", str(path)]) == 0
    assert path.exists() and not tuning.user_table().exists()


def test_mistakes_are_one_line(
    found: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["tune", "dance"]) == 2
    assert "unknown kernel 'dance'; known are" in capsys.readouterr().err
    assert cli.main(["tune", "-o", str(tmp_path / "no" / "file.json")]) == 2
    assert "name a file in a folder that exists" in capsys.readouterr().err


def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cli.main(["tune"]) == 2
    assert capsys.readouterr().err == (
        "livereel: kernels are tuned on a CUDA device, and torch sees none here\n"
    )

"""The stream benchmark's model, which needs no GPU to be described."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from livereel.benchmarks import bench_wan


def test_its_model_is_the_published_one_in_half_precision() -> None:
    dit, vae = bench_wan.build(torch.device("meta"), torch.bfloat16)
    assert sum(p.numel() for p in dit.parameters()) == 1_418_996_800
    assert dit.dtype == torch.bfloat16 == vae.post_quant_conv.weight.dtype
    assert dit.blocks[0].scale_shift_table.dtype == torch.float32
    assert vae.config.base_dim == 96 and dit.in_ring() is not None


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="torch sees none here"):
        bench_wan.main([])


def test_a_road_that_fails_leaves_what_the_others_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    taken: list[str] = []

    def measure(runner: Any, size: tuple[int, int], chunks: int) -> dict[str, Any]:
        taken.append(runner)
        if len(taken) == 2:
            raise RuntimeError("no kernel image")
        return {"fps": 10.0, "chunk_ms": 1200.0}

    for name, value in (
        ("is_available", True), ("current_device", 0), ("get_device_name", "a GPU"),
        ("get_device_capability", (8, 0)), ("empty_cache", None),
    ):  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    monkeypatch.setattr(bench_wan, "build", lambda *_: (SimpleNamespace(text_width=4), None))
    monkeypatch.setattr(bench_wan.TorchRunner, "on_road", lambda road, *_: road)
    monkeypatch.setattr(bench_wan, "replace", lambda runner, **_: runner)
    monkeypatch.setattr(bench_wan, "measure", measure)
    path = tmp_path / "stream.json"
    assert bench_wan.main(["--json", str(path)]) == 1
    roads = json.loads(path.read_text())["roads"]
    assert roads["triton"] == {"failed": "RuntimeError: no kernel image"}
    assert roads["reference"]["fps"] == 10.0 and len(roads) == 3
    assert "failed" in capsys.readouterr().out

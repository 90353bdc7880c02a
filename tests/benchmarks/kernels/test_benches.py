"""Each bench's cases at tiny sizes: ours is right, and so are the peers it is held against."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from livereel.benchmarks.kernels import harness
from livereel.benchmarks.kernels.harness import Ceilings, Contender, measure

TINY: dict[str, Any] = {
    "norm_modulate": [("tiny", 3, 24)],
    "gate_residual": [("tiny", 3, 24)],
    "residual_norm": [("tiny", 3, 24)],
    "rms_norm_silu": [("tiny", (1, 2, 2, 3, 96))],
    "group_norm_silu": [("tiny", (1, 2, 2, 3, 64))],
    "spatial_norm": [("tiny", (1, 2, 2, 4, 64), (1, 1, 2))],
    "to_pixels": [(2, 6)],
}


def eager(function: Callable[..., Tensor]) -> Contender:
    return Contender(name="torch.compile", settings="not compiled here", run=function)


@pytest.mark.interpreter
@pytest.mark.parametrize("op", TINY)
def test_everybody_computes_the_same(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = importlib.import_module(f"livereel.benchmarks.kernels.bench_{op}")
    monkeypatch.setattr(bench, "compiled", eager)
    ceilings = Ceilings(copy=1.0, matmul=1.0)

    def timer(run: Callable[[], Tensor]) -> float:
        run()
        return 1.0

    torch.manual_seed(0)
    for case in bench.cases(torch.device("cpu"), TINY[op]):
        result = measure(case, ceilings, timer, rounds=1)
        assert result.notes == () and len(result.timings) == 1 + len(case.others)
        assert case.bytes_moved > 0
        assert harness.Result.to_text(result, ceilings).startswith(case.op)

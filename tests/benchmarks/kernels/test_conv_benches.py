"""The convolutions' benches at tiny sizes: ours is right, and so are the peers."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from livereel.benchmarks.kernels.harness import Ceilings, Contender, measure
from livereel.kernels.conv_call import conv_config
from livereel.kernels.tuning import forced

TINY = [("tiny", (1, 2, 5), (16, 16))]


@pytest.mark.interpreter
@pytest.mark.parametrize(("op", "count"), [("causal_conv3d", 2), ("upsample2x_conv", 1)])
def test_everybody_computes_the_same(op: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = importlib.import_module(f"livereel.benchmarks.kernels.bench_{op}")
    monkeypatch.setattr(bench, "compiled", _not_compiled)

    def timer(run: Callable[[], Tensor]) -> float:
        run()
        return 1.0

    torch.manual_seed(0)
    found = []
    with forced(op, conv_config(16, pixels=16, depth=16, tma=1)):
        for case in bench.cases(torch.device("cpu"), TINY):
            found.append(measure(case, Ceilings(copy=1.0, matmul=1.0), timer, rounds=1))
            assert found[-1].notes == () and len(found[-1].timings) == 1 + len(case.others)
            assert case.flops > 0
    assert len(found) == count


def _not_compiled(function: Callable[..., Any]) -> Contender:
    return Contender(name="torch.compile", settings="not compiled here", run=function)

"""Attention's and fp8's benches at tiny sizes: ours is right, and so are the peers."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend

from livereel.benchmarks.kernels import bench_chunk_attention
from livereel.benchmarks.kernels.harness import Ceilings, Contender, measure

TINY: dict[str, Any] = {
    "chunk_attention": [("tiny", 1, 2, 3, 0), ("tiny", 1, 2, 3, 1)],
    "qk_norm_rope": [("tiny", 2, 1, 2)],
    "temporal_attention": [("tiny", 3, 3, (1, 1, 2, 2, 16)), ("tiny", 1, 3, (1, 1, 2, 2, 16))],
    "linear_fp8": [("tiny", 2, 64, 48)],
}


@pytest.mark.interpreter
@pytest.mark.parametrize("op", TINY)
def test_everybody_computes_the_same(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = importlib.import_module(f"livereel.benchmarks.kernels.bench_{op}")
    if op == "chunk_attention":
        peers = [(name, SDPBackend.MATH) for name, _ in bench_chunk_attention.PEERS]
        monkeypatch.setattr(bench, "PEERS", peers)
        monkeypatch.setattr(bench, "EXACT", SDPBackend.MATH)
    else:
        monkeypatch.setattr(bench, "compiled", _not_compiled)

    def timer(run: Callable[[], Tensor]) -> float:
        run()
        return 1.0

    torch.manual_seed(0)
    for case in bench.cases(torch.device("cpu"), TINY[op]):
        result = measure(case, Ceilings(copy=1.0, matmul=1.0), timer, rounds=1)
        assert result.notes == () and len(result.timings) == 1 + len(case.others)
        assert case.bytes_moved > 0 or case.flops > 0


def _not_compiled(function: Callable[..., Tensor]) -> Contender:
    return Contender(name="torch.compile", settings="not compiled here", run=function)

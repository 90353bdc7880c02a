"""What this chip can do at most: products of large matrices, and copies, timed here and now."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

_SIDE = {"cuda": 8192, "cpu": 1024}
_BYTES = {"cuda": 1 << 30, "cpu": 1 << 26}
_RUNS = 9


@dataclass(frozen=True)
class Ceilings:
    """FLOPs, and bytes read and written, a second."""

    flops: float
    moved: float


def ceilings(
    device: torch.device, dtype: torch.dtype, *, clock: Callable[[], float] = time.perf_counter
) -> Ceilings:
    """The best of some runs of each, with torch's own threads."""

    def best(job: Callable[[], object]) -> float:
        times = []
        for _ in range(_RUNS):
            begin = clock()
            job()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append(clock() - begin)
        return min(times)

    side, size = _SIDE[device.type], _BYTES[device.type]
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return Ceilings(
        flops=2 * side**3 / best(lambda: a @ b),
        moved=2 * size / best(lambda: target.copy_(source)),
    )

"""Noise as a function of (seed, chunk, step) alone, the same on every machine."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..errors import InputError
from ..native import fill_normal

SEED_LIMIT = 2**64
CHUNK_LIMIT = 2**64
STEP_LIMIT = 2**32


def normal(seed: int, chunk: int, step: int, shape: Sequence[int]) -> torch.Tensor:
    """Standard normal numbers of `shape`, float32, on the CPU.

    They are the first numbers of the stream (seed, chunk, step) in row-major order, so a smaller
    tensor holds the beginning of a larger one. Philox 4x32-10 with Box and Muller's transform;
    `csrc/philox.h` has the exact layout and arithmetic.

    Raises `InputError` unless `0 <= seed < 2**64`, `0 <= chunk < 2**64` and `0 <= step < 2**32`.
    """
    for name, value, limit in (
        ("seed", seed, SEED_LIMIT),
        ("chunk", chunk, CHUNK_LIMIT),
        ("step", step, STEP_LIMIT),
    ):
        if not 0 <= value < limit:
            raise InputError(f"{name} is {value}, but must lie between 0 and {limit - 1}")
    noise = torch.empty(tuple(shape), dtype=torch.float32)
    fill_normal(noise.view(-1).numpy(), seed=seed, chunk=chunk, step=step)
    return noise

"""Which road a model's hot operations take, chosen once when it is loaded.

Every operation has a reference in plain torch, which is the truth that the others are tested
against. `native` puts the C++ core in its place where that is faster on a CPU: all of a small model
in bfloat16 (`packed`), norms elsewhere. `triton` fuses operations into Triton's kernels on a GPU.
What is left (projections, feed-forward, attention to the text) is a library's: cuBLAS and cuDNN, or
oneDNN.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Literal, get_args

import torch

from livereel.kernels.jit import INTERPRETED

from ..errors import InputError, ResourceError

Road = Literal["reference", "native", "triton"]
ROADS: tuple[Road, ...] = get_args(Road)


def pick_road(road: str, device: torch.device, dtype: torch.dtype) -> Road:
    """The road that `road` stands for; "auto" is the one that should be fastest for `dtype` there.

    On a GPU that is `triton` in half precision, and the reference in fp32, whose products Triton
    has no faster way to compute than the libraries. Raises `InputError` for an unknown road, and
    `ResourceError` for one that cannot be taken on `device`.
    """
    if road == "auto":
        if device.type == "cpu":
            return "native"
        return "triton" if find_spec("triton") and dtype != torch.float32 else "reference"
    for known in ROADS:
        if road == known:
            _check(known, device)
            return known
    raise InputError(f"road {road!r:.40} is unknown; wanted auto, {', '.join(ROADS)}")


def _check(road: Road, device: torch.device) -> None:
    if road == "triton" and find_spec("triton") is None:
        raise ResourceError("the triton road needs Triton, which is not installed")
    if road == "triton" and device.type == "cpu" and not INTERPRETED:
        raise ResourceError("the triton road runs on CUDA devices; got cpu")
    if road == "native" and device.type != "cpu":
        raise ResourceError(f"the native road runs on the CPU; got {device}")

"""A chunk's floats to bytes: `to_pixels` and `to_yuv420` against torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from livereel.kernels.to_pixels import (
    to_pixels,
    to_pixels_reference,
    to_yuv420,
    to_yuv420_reference,
)

from .harness import Case, Contender, compiled, main

SIZES = ((480, 832), (720, 1280))
"""H and W; a chunk is 12 frames."""

Op = Callable[[Tensor], Tensor]


def cases(device: torch.device, sizes: Sequence[tuple[int, int]] = SIZES) -> Iterator[Case]:
    """Each size, to RGB and to YUV."""
    for size in sizes:
        yield _case(device, "to_pixels", to_pixels, to_pixels_reference, *size)
        yield _case(device, "to_yuv420", to_yuv420, to_yuv420_reference, *size)


def _case(device: torch.device, name: str, op: Op, reference: Op, height: int, width: int) -> Case:
    x = torch.rand(1, 3, 12, height, width, device=device).bfloat16() * 2 - 1
    x = x.contiguous(memory_format=torch.channels_last_3d)
    written = 3 * 12 * height * width // (1 if op is to_pixels else 2)
    return Case(
        op=name,
        shape=f"12 frames {width}x{height}",
        truth=lambda: reference(x.double()).float(),
        tolerance=1.01 / 255,  # one level: sums may be rounded the other way
        ours=Contender(name="livereel", settings="bf16, channels last", run=lambda: op(x)),
        others=(
            Contender(name="torch eager", settings="bf16, channels last", run=lambda: reference(x)),
            compiled(lambda: reference(x)),
        ),
        bytes_moved=x.nbytes + written,
        least_share=0.85,
    )


if __name__ == "__main__":
    raise SystemExit(main("to_pixels", cases))

"""What launchers check before they launch, and how they say what is wrong."""

from __future__ import annotations

from torch import Tensor

from .jit import INTERPRETED


def check_device(op: str, first: Tensor, *others: Tensor | None) -> None:
    """Raise `ValueError` unless all tensors lie together where Triton's kernels run.

    That is a CUDA device, or the CPU when the kernels are interpreted (`TRITON_INTERPRET=1`).
    """
    if first.device.type != "cuda" and not (INTERPRETED and first.device.type == "cpu"):
        raise ValueError(f"{op} runs on CUDA tensors; got {first.device}")
    for other in others:
        if other is not None and other.device != first.device:
            raise ValueError(
                f"{op} wants all tensors on one device; got {first.device} and {other.device}"
            )


def describe(x: Tensor) -> str:
    """`bfloat16 [1, 3, 24], strides (72, 24, 1)`, for error messages."""
    dtype = str(x.dtype).removeprefix("torch.")
    return f"{dtype} {list(x.shape)}, strides {tuple(x.stride())}"

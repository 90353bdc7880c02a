"""What launchers check before they launch, and how they say what is wrong."""

from __future__ import annotations

import torch
from torch import Tensor

from .jit import INTERPRETED, is_traced

FLOATS = (torch.bfloat16, torch.float16, torch.float32)


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


def check_activations(op: str, name: str, x: Tensor, legend: str) -> None:
    """Raise `ValueError` unless `x` is contiguous, a float of at most 32 bits, and as in `legend`.

    `legend` names the dims, `[B, T, n, D]`.
    """
    free = "..." in legend  # [..., C]: any dims before
    fits = free or x.ndim == len(legend.split(","))
    if not fits or x.dtype not in FLOATS or not x.is_contiguous():
        raise ValueError(
            f"{op} wants {name} contiguous {legend} in bf16, fp16 or fp32; got {describe(x)}"
        )


def check_like(op: str, name: str, x: Tensor, model: Tensor) -> None:
    """Raise `ValueError` unless `x` is contiguous, in the shape and dtype of `model`."""
    if x.shape != model.shape or x.dtype != model.dtype or not x.is_contiguous():
        raise ValueError(f"{op} wants {name} contiguous, as {describe(model)}; got {describe(x)}")


def check_vector(op: str, name: str, x: Tensor, length: int) -> None:
    """Raise `ValueError` unless `x` is a contiguous `[length]`, a float of at most 32 bits."""
    if x.shape != (length,) or x.dtype not in FLOATS or not x.is_contiguous():
        raise ValueError(
            f"{op} wants {name} contiguous [{length}] in bf16, fp16 or fp32; got {describe(x)}"
        )


def check_modulation(op: str, name: str, m: Tensor, x: Tensor) -> None:
    """Raise `ValueError` unless `m` is fp32 `[B or 1, T or 1, 1, D]` beside `x` `[B, T, n, D]`.

    Its values must lie side by side over D; its other strides are free, so that it may be a slice
    of all the gains that a block needs.
    """
    batch, frames, _, width = x.shape
    fits = m.ndim == 4 and m.shape[0] in (1, batch) and m.shape[1] in (1, frames)
    if not fits or m.shape[2:] != (1, width) or m.dtype != torch.float32 or m.stride(3) != 1:
        raise ValueError(
            f"{op} wants {name} fp32 [{batch} or 1, {frames} or 1, 1, {width}], "
            f"unit stride over the last; got {describe(m)}"
        )


def is_aligned(x: Tensor) -> bool:
    """Whether `x` begins where the tensor memory accelerator can load, at a multiple of 16 bytes.

    What has no memory yet gets such as torch gives out, which begins so.
    """
    start = x.storage_offset() * x.element_size() if is_traced() else x.data_ptr()
    return start % 16 == 0


def modulation_strides(m: Tensor) -> tuple[int, int]:
    """How far apart batches and frames lie in a modulation; 0 where one serves all."""
    return m.stride(0) if m.shape[0] > 1 else 0, m.stride(1) if m.shape[1] > 1 else 0


def describe(x: Tensor) -> str:
    """`bfloat16 [1, 3, 24], strides (72, 24, 1)`, for error messages."""
    dtype = str(x.dtype).removeprefix("torch.")
    return f"{dtype} {list(x.shape)}, strides {tuple(x.stride())}"

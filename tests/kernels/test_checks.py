from __future__ import annotations

import pytest
import torch

from livereel.kernels.checks import (
    check_activations,
    check_device,
    check_like,
    check_modulation,
    check_vector,
    describe,
    modulation_strides,
)


def test_refuses_tensors_that_compiled_kernels_cannot_reach() -> None:
    with pytest.raises(ValueError, match="some_op runs on CUDA tensors; got meta"):
        check_device("some_op", torch.zeros(2, device="meta"))


@pytest.mark.interpreter
def test_wants_all_on_one_device() -> None:
    x = torch.zeros(2)
    check_device("some_op", x, None, x)
    with pytest.raises(ValueError, match="all tensors on one device; got cpu and meta"):
        check_device("some_op", x, x.to("meta"))


def test_activations_are_contiguous_and_as_the_legend_says() -> None:
    x = torch.zeros(2, 3, 4)
    check_activations("some_op", "x", x.half(), "[B, N, D]")
    check_activations("some_op", "x", x[0], "[..., C]")
    for wrong in (x[0], x.double(), x.transpose(1, 2)):
        with pytest.raises(ValueError, match=r"some_op wants x contiguous \[B, N, D\] in bf16"):
            check_activations("some_op", "x", wrong, "[B, N, D]")


def test_what_must_be_like_something_else() -> None:
    x = torch.zeros(2, 3)
    check_like("some_op", "y", x.clone(), x)
    for wrong in (x[:1], x.half(), torch.zeros(3, 2).t()):
        with pytest.raises(
            ValueError, match=r"y contiguous, as float32 \[2, 3\], strides \(3, 1\)"
        ):
            check_like("some_op", "y", wrong, x)


def test_vectors_are_as_long_as_wanted() -> None:
    check_vector("some_op", "gain", torch.zeros(3).half(), 3)
    for wrong in (torch.zeros(4), torch.zeros(3).double(), torch.zeros(6)[::2]):
        with pytest.raises(ValueError, match=r"gain contiguous \[3\] in bf16, fp16 or fp32; got"):
            check_vector("some_op", "gain", wrong, 3)


def test_modulations_may_be_shared_and_sliced() -> None:
    x = torch.zeros(2, 3, 5, 8)
    table = torch.zeros(2, 3, 6, 8)
    whole = table.unsqueeze(3).unbind(2)[1]
    check_modulation("some_op", "scale", whole, x)
    assert modulation_strides(whole) == (3 * 6 * 8, 6 * 8)
    shared = torch.zeros(1, 1, 1, 8)
    check_modulation("some_op", "scale", shared, x)
    assert modulation_strides(shared) == (0, 0)
    for wrong in (whole.double(), whole[:, :2], whole[..., :4], table[:, :, 0], torch.zeros(8)):
        with pytest.raises(ValueError, match=r"scale fp32 \[2 or 1, 3 or 1, 1, 8\], unit stride"):
            check_modulation("some_op", "scale", wrong, x)


def test_describes_a_tensor_in_a_few_words() -> None:
    x = torch.zeros(2, 3, dtype=torch.bfloat16).t()
    assert describe(x) == "bfloat16 [3, 2], strides (1, 3)"

from __future__ import annotations

import pytest
import torch

from livereel.kernels.checks import check_device, describe
from livereel.kernels.jit import INTERPRETED


def test_refuses_tensors_that_kernels_cannot_reach() -> None:
    x = torch.zeros(2)
    if not INTERPRETED:
        with pytest.raises(ValueError, match="some_op runs on CUDA tensors; got cpu"):
            check_device("some_op", x)


@pytest.mark.interpreter
def test_wants_all_on_one_device() -> None:
    x = torch.zeros(2)
    check_device("some_op", x, None, x)
    with pytest.raises(ValueError, match="all tensors on one device; got cpu and meta"):
        check_device("some_op", x, x.to("meta"))


def test_describes_a_tensor_in_a_few_words() -> None:
    x = torch.zeros(2, 3, dtype=torch.bfloat16).t()
    assert describe(x) == "bfloat16 [3, 2], strides (1, 3)"

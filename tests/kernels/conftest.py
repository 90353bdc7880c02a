"""Where kernel tests run. One test function serves interpreter and GPU: a parameter marked `gpu`
gets real shapes, and the `device` fixture says where they go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from livereel.kernels.jit import INTERPRETED


@pytest.fixture
def device(request: pytest.FixtureRequest) -> torch.device:
    """Where a test's kernels run: a CUDA device under the `gpu` mark, else the CPU."""
    return torch.device("cuda" if request.node.get_closest_marker("gpu") else "cpu")


@pytest.fixture(autouse=True)
def poison() -> Iterator[None]:
    """Let memory that torch gives out hold NaN until it is written."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert torch.empty(1).isnan()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def assert_rounded() -> Callable[[torch.Tensor, torch.Tensor], None]:
    """Asserts that a result is its fp64 truth, but for fp32 sums and one rounding to its dtype."""

    def check(result: torch.Tensor, truth: torch.Tensor) -> None:
        assert truth.dtype == torch.float64 and result.shape == truth.shape
        error = (result.double() - truth).abs()
        allowed = 0.51 * torch.finfo(result.dtype).eps * truth.abs() + 1e-5
        assert bool((error <= allowed).all()), f"off by up to {error.max():.3g}"

    return check


def _mend_interpreter() -> None:
    """Let the interpreter (as of Triton 3.9) compute in half precision as GPUs do.

    It cuts off digits in casts to bfloat16 and fp8 where GPUs round to nearest even, and its `dot`
    multiplies bfloat16's bits as integers.
    """
    import numpy as np
    import triton.language as tl
    from triton.runtime import interpreter

    halves = {tl.bfloat16: torch.bfloat16, tl.float8e4nv: torch.float8_e4m3fn}
    convert = interpreter._convert_float
    dot = interpreter.InterpreterBuilder.create_dot

    def rounded(data: Any, source: Any, target: Any, mode: Any) -> Any:
        if source != tl.float32 or target not in halves:
            return convert(data, source, target, mode)
        values = torch.from_numpy(np.ascontiguousarray(data).view(np.float32)).to(halves[target])
        bits = torch.uint16 if target == tl.bfloat16 else torch.uint8
        return values.view(bits).numpy()

    def widened(operand: Any) -> Any:
        if operand.dtype.scalar != tl.bfloat16:
            return operand
        data = (operand.data.astype(np.uint32) << 16).view(np.float32)
        return interpreter.TensorHandle(data, tl.float32)

    interpreter._convert_float = rounded
    interpreter.InterpreterBuilder.create_dot = lambda self, a, b, *rest: dot(
        self, widened(a), widened(b), *rest
    )


if INTERPRETED:
    _mend_interpreter()

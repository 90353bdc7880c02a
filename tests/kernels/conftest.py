"""Where kernel tests run. One test function serves interpreter and GPU: a parameter marked `gpu`
gets real shapes, and the `device` fixture says where they go.
"""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from livereel.kernels import tuning
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


_GUARD = """
#include <c10/core/impl/DeviceGuardImplInterface.h>
C10_REGISTER_GUARD_IMPL(CUDA, c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA>)
"""


@pytest.fixture(scope="session")
def guard(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Lets a torch that was built without CUDA index tensors that say they are there."""
    if torch.backends.cuda.is_built():
        return
    folder, root = tmp_path_factory.mktemp("guard"), Path(torch.__file__).parent
    (folder / "guard.cpp").write_text(_GUARD)
    paths = [f"-I{root}/include", f"-L{root}/lib", "-lc10"]
    command = ["g++", "-std=c++20", "-shared", "-fPIC", "-o", "guard.so", "guard.cpp", *paths]
    subprocess.run(command, cwd=folder, check=True)
    ctypes.CDLL(str(folder / "guard.so"))


@pytest.fixture
def hopper(guard: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An H100 that torch and Triton are told of; tensors lie on it and have no memory."""
    import triton
    from torch._subclasses.fake_tensor import FakeTensorMode
    from triton.backends.compiler import GPUTarget

    chip = SimpleNamespace(major=9, minor=0, multi_processor_count=132)
    driver = SimpleNamespace(get_current_target=lambda: GPUTarget("cuda", 90, 32))
    monkeypatch.setattr(triton.runtime.driver, "_active", driver)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device=None: chip)
    tuning.chip.cache_clear()
    with FakeTensorMode(), torch.device("cuda"), torch.no_grad():
        yield
    tuning.chip.cache_clear()


@pytest.fixture(scope="session")
def launches() -> Callable[[torch.fx.Graph], list[tuple[str, list[str]]]]:
    """Gives the names of the kernels in a graph, and which of their arguments they write."""
    return _launches


def _launches(graph: torch.fx.Graph) -> list[tuple[str, list[str]]]:
    """Names of kernels in a graph, and which of their arguments they write."""
    from torch._higher_order_ops.triton_kernel_wrap import (
        kernel_side_table,
        triton_kernel_wrapper_functional,
    )

    found = []
    for node in graph.nodes:
        if node.target is triton_kernel_wrapper_functional:
            kernel: Any = kernel_side_table.get_kernel(node.kwargs["kernel_idx"])
            name = getattr(kernel, "fn", kernel).__name__
            found.append((name, list(node.kwargs["tensors_to_clone"])))
    return found


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

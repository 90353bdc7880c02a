"""What all tests share: options, and which tests run in this process.

Tests marked `interpreter` launch kernels in Triton's interpreter, on the CPU, and need a process
of their own with TRITON_INTERPRET=1 set before Triton is imported; those marked `compile` and `gpu`
need one without it (`make test-kernels` starts both).
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from livereel.kernels.jit import INTERPRETED

TRITON = importlib.util.find_spec("triton") is not None


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--wheel",
        type=Path,
        metavar="FOLDER",
        help="the folder of a freshly built wheel, for the tests of what users install",
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        reason = _why_not(item)
        if reason is not None:
            item.add_marker(pytest.mark.skip(reason=reason))


def _why_not(item: pytest.Item) -> str | None:
    """Why this process cannot run `item`; None when it can."""
    gpu, compiles, interpreter = (
        item.get_closest_marker(name) is not None for name in ("gpu", "compile", "interpreter")
    )
    if (gpu or compiles or interpreter) and not TRITON:
        return "needs Triton"
    if (gpu or compiles) and INTERPRETED:
        return "needs kernels compiled: unset TRITON_INTERPRET"
    if gpu:
        return None if torch.cuda.is_available() else "needs a CUDA device"
    if interpreter and not INTERPRETED:
        return "needs kernels interpreted: set TRITON_INTERPRET=1"
    return None


@pytest.fixture(scope="session")
def wheel(request: pytest.FixtureRequest) -> Path:
    """The wheel under test; without `--wheel` such tests are skipped."""
    folder = request.config.getoption("--wheel")
    if folder is None:
        pytest.skip("needs --wheel FOLDER (make test passes it)")
    (path,) = Path(folder).resolve().glob("livereel-*.whl")
    return path

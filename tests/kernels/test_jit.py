"""The package where Triton is missing."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import sys
sys.modules["triton"] = None
import torch
from livereel.kernels.jit import INTERPRETED, jit, tl, triton

@jit
def _kernel(p_x, BLOCK: tl.constexpr):
    tl.store(p_x, 0)

assert not INTERPRETED and tl.constexpr(2.5) == 2.5 and not hasattr(triton, "__path__")
for launch in (lambda: _kernel[(1,)](torch.ones(1), BLOCK=1), lambda: triton.cdiv(1, 2)):
    try:
        launch()
    except RuntimeError as error:
        print(error)
"""


EVERY_FILE = """
import importlib, pkgutil, sys
sys.modules["triton"] = None
import torch
from livereel import kernels
for module in pkgutil.iter_modules(kernels.__path__):
    importlib.import_module(f"livereel.kernels.{module.name}")
from livereel.kernels.rms_norm_silu import rms_norm_silu_reference
print(rms_norm_silu_reference(torch.zeros(1, 2), torch.ones(2)).tolist())
"""


def test_every_op_file_can_be_imported_and_references_run() -> None:
    done = subprocess.run(
        [sys.executable, "-c", EVERY_FILE], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[[0.0, 0.0]]\n"


def test_says_what_is_missing_only_when_a_kernel_is_launched() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True
    )
    line = "this kernel needs Triton, which is not installed: pip install triton"
    assert done.stdout.splitlines() == [line, line]

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


def test_says_what_is_missing_only_when_a_kernel_is_launched() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True
    )
    line = "this kernel needs Triton, which is not installed: pip install triton"
    assert done.stdout.splitlines() == [line, line]

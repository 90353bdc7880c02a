"""Triton where it is installed, and elsewhere a stand-in with which the references still run.

Op files take all that they need of Triton from here: `from .jit import jit, tl, triton`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

__all__ = ["INTERPRETED", "jit", "tl", "triton"]


class _Missing:
    """Stands for `triton` and `triton.language`: op files import, and launching says why not."""

    @staticmethod
    def constexpr(value: object) -> object:
        """Constants at the top of an op file."""
        return value

    def jit(self, function: Callable[..., Any]) -> _Missing:
        """A kernel that nobody can launch."""
        return self

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        self._refuse()

    def __getitem__(self, grid: object) -> NoReturn:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise RuntimeError("this kernel needs Triton, which is not installed: pip install triton")


try:
    import triton
    import triton.language as tl
except ImportError:
    triton = tl = _Missing()
    INTERPRETED = False
else:
    INTERPRETED = bool(triton.knobs.runtime.interpret)
"""Whether kernels run in Triton's interpreter, on the CPU: `TRITON_INTERPRET=1` at import."""

jit: Callable[[Callable[..., Any]], Any] = triton.jit

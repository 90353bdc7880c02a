"""Triton where it is installed, and elsewhere a stand-in with which the references still run.

Op files take all that they need of Triton from here: `jit` for kernels, `launch`, and `custom_op`
for what launches them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NoReturn

import torch

if TYPE_CHECKING:
    from torch._library.custom_ops import CustomOpDef

__all__ = ["INTERPRETED", "custom_op", "jit", "launch", "tl", "triton"]

LAUNCHERS: dict[str, tuple[Callable[..., Any], tuple[str, ...]]] = {}
"""Ops by name: the function that launches the kernels, and which of its arguments it changes."""

_traced: ContextVar[bool] = ContextVar("traced", default=False)


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


def custom_op(
    name: str, *, mutates: tuple[str, ...] = ()
) -> Callable[[Callable[..., Any]], CustomOpDef]:
    """`torch.library.custom_op`, of the name "livereel::name"; torch cannot look into it.

    `livereel.kernels.twins` makes of the same function one that it can.
    """

    def register(launcher: Callable[..., Any]) -> CustomOpDef:
        LAUNCHERS[name] = launcher, mutates
        made: CustomOpDef = torch.library.custom_op(f"livereel::{name}", mutates_args=mutates)(
            launcher
        )
        return made

    return register


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """Launch a kernel on the device of its first argument, or let torch see the launch if `traced`.

    `constants` are the kernel's, and what else Triton takes. Of these torch does not pass on
    `maxnreg`: a launch that it has seen may use more registers.
    """
    if is_traced():
        constants.pop("maxnreg", None)
        torch.library.wrap_triton(kernel)[grid](*arguments, **constants)
        return
    with torch.cuda.device_of(arguments[0]):
        kernel[grid](*arguments, **constants)


@contextmanager
def traced() -> Iterator[None]:
    """Let torch see what is launched inside."""
    token = _traced.set(True)
    try:
        yield
    finally:
        _traced.reset(token)


def is_traced() -> bool:
    """Whether torch looks on: tensors then have no memory yet."""
    return _traced.get()

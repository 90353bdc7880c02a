"""The ops as torch can look into them: twins for AOTInductor, whose packages hold the kernels.

An op is closed to torch, and a package's loader in C++ does not know it. Its twin is a
`torch.library.triton_op` of the same function, arguments and results, which AOTInductor takes apart
into torch's own operations and the launches of Triton's kernels.

No twin has run on a GPU yet. Without one they are traced and lowered for a chip that is not there.
"""

from __future__ import annotations

from functools import cache, wraps
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor  # noqa: F401 (by which torch reads the launchers' annotations)

from .jit import LAUNCHERS, traced

if TYPE_CHECKING:
    from torch.export import ExportedProgram

_NAMESPACE = "livereel"


def with_twins(program: ExportedProgram) -> ExportedProgram:
    """The same program, changed in place: each op of ours gives way to its twin."""
    for node in program.graph.nodes:
        if isinstance(node.target, torch._ops.OpOverload) and node.target.namespace == _NAMESPACE:
            node.target = twin(node.target._schema.name.partition("::")[2])
    program.graph_module.recompile()
    return program


@cache
def twin(name: str) -> Any:
    """The twin of the op "livereel::<name>", registered when it is first asked for."""
    launcher, mutated = LAUNCHERS[name]

    @wraps(launcher)
    def seen(*arguments: Any, **named: Any) -> Any:
        with traced():
            return launcher(*arguments, **named)

    torch.library.triton_op(f"{_NAMESPACE}::{name}_twin", seen, mutates_args=mutated)
    return getattr(torch.ops.livereel, f"{name}_twin").default

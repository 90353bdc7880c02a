"""Lists of modules that type checkers see into."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar, cast

from torch import nn

M = TypeVar("M", bound=nn.Module)


def module_list(modules: Iterable[M]) -> Sequence[M]:
    """An `nn.ModuleList`, typed by what it holds."""
    return cast("Sequence[M]", nn.ModuleList(modules))

"""A command's work on several devices: by processes of our own, or by those that torchrun started.

Shared by commands that have a `--devices`.
"""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from .. import memory
from ..errors import InputError, ResourceError
from . import arguments

if TYPE_CHECKING:
    from ..engine import Engine
    from ..memory import MemoryEstimate
    from ..parallel.group import Group

MOST = 64

Job = Callable[[argparse.Namespace, "Group | None"], int]
"""A command's work on one rank, or without any; gives the exit code."""


def add(parser: argparse.ArgumentParser) -> None:
    """`--devices`."""
    parser.add_argument(
        "--devices",
        type=arguments.whole(1, MOST),
        metavar="N",
        help="GPUs to make it on, or, on the CPU, processes with a share of the cores each "
        "(default: 1, or as many as torchrun started)",
    )


def several(options: argparse.Namespace) -> bool:
    """Whether there are to be ranks.

    Raises `InputError` for a number that torchrun contradicts, or one device that is to be several.
    """
    started = _started()
    if started is not None and options.devices not in (None, started):
        raise InputError(f"--devices {options.devices}: torchrun started {started} processes")
    many = started is not None or (options.devices or 1) > 1
    if many and ":" in options.device:
        raise InputError(f"--device {options.device} names one GPU; --devices wants cuda or auto")
    return many


def run(options: argparse.Namespace, job: Job, *, needs: MemoryEstimate) -> int:
    """Do `job`, which `needs` so much memory on each rank, on all of them; gives the first one's
    exit code.

    Raises `ResourceError` when a rank dies, a GPU is missing or memory is too small, and what `job`
    raises on a rank.
    """
    device = arguments.resolve(options.device, options.dtype)[0]
    count, free = _started() or options.devices, memory.available()
    if device == "cpu" and free is not None and count * needs.total > free:
        raise ResourceError(
            f"too little memory: {count} processes need about "
            f"{memory.gigabytes(count * needs.total)}, and {memory.gigabytes(free)} are free; try "
            "fewer --devices, or a smaller size"
        )
    if _started() is not None:
        import torch

        from ..parallel.group import joined

        with joined(torch.device(device)) as group:
            return _on_rank(group, options, job)
    from ..parallel.launch import Ranks

    with Ranks(options.devices, device) as ranks:
        return ranks.run(_on_rank, options, job)[0]


def load_engine(options: argparse.Namespace, group: Group | None) -> Engine:
    """As `arguments.load_engine`, on the ranks of `group` if there is one."""
    engine = arguments.load_engine(options)
    if group is None:
        return engine
    from ..parallel.spread import spread

    return replace(engine, runner=spread(engine.runner, group, streams=engine.streams))


def _on_rank(group: Group, options: argparse.Namespace, job: Job) -> int:
    """The job, with this rank's device; only the first one says anything."""
    options.device = str(group.device)
    if group.rank == 0:
        return job(options, group)
    with (
        open(os.devnull, "w", encoding="utf-8") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        return job(options, group)


def _started() -> int | None:
    """Processes that torchrun started, this one among them."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    from ..parallel.group import torchrun_ranks

    return torchrun_ranks()

"""`livereel tune`: find the fastest launch configurations of the kernels on this GPU."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import TYPE_CHECKING

from ..errors import InputError, ResourceError
from . import arguments

if TYPE_CHECKING:
    from torch import Tensor

    from livereel.kernels.tuning import Tunable

SUMMARY = "time the kernels' launch configurations on this GPU and keep the fastest"
EXAMPLES = """\
examples:
  livereel tune
  livereel tune rms_norm_silu norm_modulate
  livereel tune -o tuning.json      (a table to look at; none is changed)

What is found goes to the cache folder of the system and is used from the next start on. Without it
kernels run with their defaults. Do it while nothing else uses the GPU; it takes some minutes.
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("ops", nargs="*", metavar="OP", help="kernels to tune (default: all)")
    parser.add_argument(
        "--rounds",
        type=arguments.whole(1, 10_000),
        default=20,
        help="runs of each configuration (default: 20)",
    )
    parser.add_argument(
        "-o", "--output", metavar="FILE", help="where the table goes (default: the user's cache)"
    )


def run(options: argparse.Namespace) -> int:
    """Time candidates, say what won, write the table after each op. Returns the exit code."""
    import torch

    from livereel.benchmarks.kernels.harness import CudaTimer
    from livereel.kernels import tuning

    tunables = list(_tunables(options.ops))
    if not torch.cuda.is_available():
        raise ResourceError("kernels are tuned on a CUDA device, and torch sees none here")
    path = Path(options.output) if options.output else tuning.user_table()
    if options.output:
        arguments.check_file(path)

    device = torch.device("cuda", torch.cuda.current_device())
    timer = CudaTimer(device)

    def timed(launch: Callable[[], Tensor]) -> list[float]:
        return [timer(launch) for _ in range(options.rounds)]

    faster = 0
    for tunable in tunables:
        found = tuning.best(tunable, device, timed)
        if found is None:
            print(f"{tunable.op} {tunable.key}: stays as it is", flush=True)
            continue
        config, took, before = found
        tuning.save(tuning.chip(device), {tunable.op: {tunable.key: config}}, path)
        faster += 1
        numbers = ", ".join(f"{name} {value}" for name, value in config.items())
        gain = before / took
        print(f"{tunable.op} {tunable.key}: {numbers}; {took:.4f} ms, {gain:.2f}x", flush=True)
    print(f"{faster} of {len(tunables)} shapes became faster" + (f": {path}" if faster else ""))
    return 0


def _tunables(ops: list[str]) -> Iterator[Tunable]:
    """Those of `ops`, or all. Raises `InputError` for an op that has none."""
    from livereel import kernels

    files = [
        import_module(f"{kernels.__name__}.{file.name}") for file in iter_modules(kernels.__path__)
    ]
    found: list[Tunable] = [tunable for file in files for tunable in getattr(file, "TUNABLE", ())]
    known = sorted({tunable.op for tunable in found})
    for op in ops:
        if op not in known:
            raise InputError(f"unknown kernel {op!r}; known are {', '.join(known)}")
    return (tunable for tunable in found if not ops or tunable.op in ops)

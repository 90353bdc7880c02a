"""`livereel bench`: how fast the kernels are on this GPU, beside what else computes the same."""

from __future__ import annotations

import argparse
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

from ..errors import InputError, ResourceError
from . import arguments

SUMMARY = "time the kernels on this GPU against torch and the libraries below it"
EXAMPLES = """\
examples:
  livereel bench kernels
  livereel bench kernels rms_norm_silu chunk_attention --json kernels.json

Each kernel is compared with its reference first; one that is wrong is not timed. Peers are torch,
torch.compile and a library where there is one; the ratio is over the fastest of them.
"""
_PREFIX = "bench_"


def add(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("what", choices=("kernels",), help="what to time")
    parser.add_argument("ops", nargs="*", metavar="OP", help="kernels to time (default: all)")
    parser.add_argument(
        "--rounds",
        type=arguments.whole(1, 10_000),
        default=30,
        help="runs of each contender (default: 30)",
    )
    parser.add_argument("--json", metavar="FILE", help="also write every figure as JSON")


def run(options: argparse.Namespace) -> int:
    """Measure and print. Returns the exit code: 1 when a kernel's result was wrong."""
    known = _known()
    for op in options.ops:
        if op not in known:
            raise InputError(f"unknown kernel {op!r}; known are {', '.join(known)}")
    path = None if options.json is None else Path(options.json)
    if path is not None:
        arguments.check_file(path)

    from livereel.benchmarks.kernels import harness

    benches = {
        op: import_module(f"livereel.benchmarks.kernels.{_PREFIX}{op}").cases
        for op in options.ops or known
    }
    try:
        return harness.report(benches, rounds=options.rounds, path=path)
    except harness.NoGpuError as error:
        raise ResourceError(str(error)) from error


def _known() -> list[str]:
    """The ops that have a bench."""
    from livereel.benchmarks import kernels

    names = (module.name for module in iter_modules(kernels.__path__))
    return sorted(name.removeprefix(_PREFIX) for name in names if name.startswith(_PREFIX))

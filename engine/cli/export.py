"""`livereel export`: a model to a package of step graphs that other runtimes stream with."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from .. import memory
from ..errors import InputError
from . import arguments

if TYPE_CHECKING:
    from livereel.export.package import Checked

SUMMARY = "write a model as step graphs, to stream it without torch or without Python"
EXAMPLES = """\
examples:
  livereel export -o packages/demo
  livereel export --model models/wan-1.3b --size 832x480 --window 12 -o packages/wan
  livereel export --model models/wan-1.3b --format tensorrt-rtx --dtype bfloat16 \\
      --target sm_89,sm_120 -o packages/wan-rtx
  livereel export --format aoti --dtype bfloat16 --target sm_90 -o packages/demo-h100
  livereel export --lint -o packages/demo
  livereel generate "a red circle moving right on a black background" \\
      --model packages/demo -o clip.mp4
"""
FORMATS = ("onnx", "tensorrt", "tensorrt-rtx", "aoti")


def add(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument(
        "--model",
        default="demo",
        metavar="MODEL",
        help='"demo", or a model folder in diffusers\' layout that streams (default: demo)',
    )
    parser.add_argument("--format", choices=FORMATS, default="onnx", help="(default: onnx)")
    parser.add_argument(
        "-o", "--out", required=True, metavar="DIR", help="the package to write; it must be new"
    )
    parser.add_argument(
        "--size",
        type=arguments.size,
        metavar="WIDTHxHEIGHT",
        help="of the pictures, in pixels (default: the model's own)",
    )
    parser.add_argument(
        "--window",
        type=arguments.whole(1, 4096),
        help="latent frames that a chunk sees, its own included (default: the model's own)",
    )
    parser.add_argument(
        "--dtype",
        choices=tuple(memory.DTYPE_BYTES),
        default="float32",
        help="of weights and state (default: float32)",
    )
    parser.add_argument(
        "--target",
        metavar="SM[,SM]",
        help="GPUs that engines are built for, such as sm_89,sm_120 (tensorrt-rtx), or the one at "
        "hand, such as sm_90, in place of the CPU (aoti; this has not run on a GPU yet)",
    )
    parser.add_argument(
        "--lint", action="store_true", help="write nothing: check the package that is there"
    )


def run(options: argparse.Namespace) -> int:
    """Export or check, and print what the check found. Returns the exit code."""
    folder = arguments.find_model(options.model)
    if folder.exported:
        raise InputError(f"{folder.path} is a package already; give the model it was made from")
    size = None if options.size is None else arguments.fit_size(options.size, folder)
    out = Path(options.out)
    if options.lint and not out.is_dir():
        raise InputError(f"{out} is no package to check; export it first, without --lint")
    if not options.lint and out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise InputError(f"{out} exists already; give a new name or remove it first")
    targets = () if options.target is None else tuple(options.target.split(","))
    if targets and options.format not in ("tensorrt-rtx", "aoti"):
        raise InputError("--target is for --format tensorrt-rtx and aoti, which are built ahead")

    from livereel.export import package

    start = time.perf_counter()
    plan = package.plan_export(
        folder, size=size, window=options.window, dtype=options.dtype, targets=targets
    )
    if options.lint:
        checked = package.check_package(plan, out)
    else:
        checked = package.write_package(plan, out, options.format, tell=lambda name: print(name))
    _report(checked)
    if checked.wrong:
        raise InputError(f"{out} failed its check: {checked.wrong[0]}")
    stream = plan.stream
    done = "checked" if options.lint else f"{options.format} graphs in {options.dtype}"
    print(
        f"{out}: {done}, {stream.width}x{stream.height}, window {stream.window}, "
        f"in {time.perf_counter() - start:.0f} s"
    )
    return 0


def _report(checked: Checked) -> None:
    """The largest difference from torch, output by output."""
    if not checked.errors:
        print("not run beside torch: this check is for float32")
        return
    wide = 2 + max(len(graph) for graph, _ in checked.errors)
    print(f"{'graph':<{wide}}{'output':<18}largest difference from torch")
    for (graph, output), error in checked.errors.items():
        print(f"{graph:<{wide}}{output:<18}{error:.1e}")

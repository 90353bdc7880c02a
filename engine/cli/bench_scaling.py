"""`livereel bench scaling`: a clip's time and cost on more devices, reckoned and checked."""

from __future__ import annotations

import argparse
import math
from typing import Any

from ..errors import InputError
from . import arguments
from . import bench_options as shared

_EPILOG = """\
How fast one device computes is --tflops: measure a pass of the model on it. Without it the rate of
the check stands for it, a CPU's thread. Links are nominal: NVLink 450 GB/s, PCIe 50, 100 GbE 12.5,
each one way. The exit code is 1 when the check missed its goal.

examples:
  livereel bench scaling --model wan2.1-14b --size 1280x720 --tflops 400 --price 3 --plot up.png
"""
_MOST_FRAMES = 1000


def add(whats: Any) -> None:
    """Add the benchmark."""
    summary = "reckon a whole clip's time and cost on 1 to 64 devices, and check the reckoning here"
    parser = shared.add_command(whats, "scaling", summary, _EPILOG, run)
    add = parser.add_argument
    add("--model", default="wan2.1-1.3b", help="wan2.1-1.3b and the like, or a model folder")
    add("--size", type=arguments.size, metavar="WxH", help="in pixels (default: the model's)")
    add("--frames", type=arguments.whole(1, _MOST_FRAMES), help="of the clip")
    add("--steps", type=arguments.whole(1, 1000), default=50, help="of the solver (default: 50)")
    add("--no-guidance", action="store_true", help="one pass a step, not two")
    add("--tflops", type=_above(1e5), help="10^12 FLOPs that one device does in a second")
    add("--memory", type=_above(1e6), help="GB that it reads and writes in a second")
    add("--price", type=_above(1e4), default=1.0, help="of a device, $ an hour (default: 1)")
    add("--no-check", action="store_true", help="reckon only; wants --tflops")
    add("--plot", metavar="FILE.png", help="also draw speed-up and cost")
    shared.add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Check, reckon, print. Returns the exit code."""
    shared.json_path(options)
    plot = shared.plot_path(options)
    if options.no_check and options.tflops is None:
        raise InputError("--no-check wants --tflops, which the check would measure")

    from livereel.benchmarks import bench_scaling, models
    from livereel.benchmarks.harness import Spread
    from livereel.benchmarks.report import Section

    model = models.find(options.model)
    size = options.size or (model.stream.width, model.stream.height)
    frames = options.frames or model.frames
    clip = bench_scaling.clip_of(
        model, size=size, frames=frames, steps=options.steps, guided=not options.no_guidance
    )
    sections = {}
    flops = 1e12 * (options.tflops or 0.0)
    if not options.no_check:
        sections["check"], found = bench_scaling.check()
        print(f"{sections['check']}\n")
        flops = flops or found
    moved = math.inf if options.memory is None else 1e9 * options.memory
    costs = bench_scaling.costs_of(clip, flops=flops, moved=moved, price=options.price)
    title = f"{options.model}, {frames} frames of {size[0]}x{size[1]}, {options.steps} steps"
    said = f"{title}; a device computes {flops / 1e12:.3g} TFLOP/s"
    print(f"{said}\n{bench_scaling.table(costs)}")
    if plot is not None:
        bench_scaling.save_plot(plot, costs, title)
    figures = {
        f"clip on {row.devices} over {link}, s": Spread.of([row.seconds])
        for link, rows in costs.items()
        for row in rows
    }
    sections["reckoned"] = Section(title=said, figures=figures)
    options.plot = None  # it is drawn
    return shared.finish(options, sections)


def _above(most: float) -> Any:
    def number(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not 0 < value <= most:
            raise argparse.ArgumentTypeError(
                f"must be a number above 0 and at most {most:g}, got {text!r}"
            )
        return value

    return number

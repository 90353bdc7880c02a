"""`livereel bench`: what a model takes, how fast it is here, and what became slower."""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

from ..errors import InputError, ResourceError
from . import arguments, bench_runs, bench_scaling
from . import bench_options as shared

SUMMARY = "count a model's work, time it, and compare and report the results"
EXAMPLES = """\
examples:
  livereel bench stream --json stream.json --plot stream.html
  livereel bench vae --model wan2.1-1.3b --random-weights
  livereel bench clip --steps 10 --json clip.json
  livereel bench count --model wan2.1-1.3b --size 832x480 --frames 81
  livereel bench kernels rms_norm_silu chunk_attention --json kernels.json
  livereel bench startup --runs 5 --json startup.json
  livereel bench scaling --model wan2.1-14b --tflops 400 --price 3 --plot scaling.png
  livereel bench compare before.json after.json
  livereel bench report results

livereel bench WHAT --help shows the options and examples of one.
"""
_COUNT = """\
What is counted are linear layers, attention and convolutions, two FLOPs for a multiplication and
its addition, on torch's meta device: no weights and no GPU are needed. GB are what each of them
reads and writes, all between them fused. A pass is one forward; guidance takes two.
"""
_KERNELS = """\
Each kernel is compared with its reference first; one that is wrong is not timed. Peers are torch,
torch.compile and a library where there is one; the ratio is over the fastest of them.
"""
_STARTUP = """\
Each run is a new process and counts all of it: the interpreter, imports, weights, the first chunk.
One process before the runs is told apart, since it may read its files from the disk. diffusers, as
a baseline, makes a clip of the stream's window from the same folder.
"""
_COMPARE = """\
A figure is slower when the quartiles of the two runs do not meet and the medians are further apart
than --by. That counts for peers, too: where they are slower, the machine may be. On another chip
compare --ratios, ours over a peer in the same run. What ran in another dtype or on another road is
left out. The exit code is 1 when something is slower.
"""
_REPORT = """\
Every .json file of the folder that a benchmark wrote goes into report.html, one page that stands
alone, and report.md, its tables; both are written into the folder.
"""
_PREFIX = "bench_"
_MOST_FRAMES = 10_000


def add(parser: argparse.ArgumentParser) -> None:
    """Add what can be benched, each with its options."""
    whats = parser.add_subparsers(title="what", metavar="WHAT", required=True)
    bench_runs.add(whats)
    bench_scaling.add(whats)
    _add_count(whats)
    _add_startup(whats)
    _add_kernels(whats)
    _add_compare(whats)
    _add_report(whats)


def run(options: argparse.Namespace) -> int:
    """Do what was asked for. Returns the exit code."""
    code: int = options.bench(options)
    return code


def _add_count(whats: Any) -> None:
    parser = shared.add_command(
        whats, "count", "count FLOPs and bytes, without weights", _COUNT, _count
    )
    add = parser.add_argument
    add("--model", default="demo", help="wan2.1-1.3b and the like, or a model folder")
    add("--size", type=arguments.size, metavar="WxH", help="in pixels (default: the model's)")
    add("--frames", type=arguments.whole(1, _MOST_FRAMES), help="of the clip")
    add("--window", type=arguments.whole(1, 4096), help="latent frames a chunk sees, with its own")
    add("--chunk", type=arguments.whole(1, 64), help="latent frames of a chunk")
    add("--steps", type=arguments.whole(1, 1000), help="passes over a chunk")
    add("--dtype", choices=arguments.DTYPES[1:], default="bfloat16")
    shared.add_json(parser)


def _count(options: argparse.Namespace) -> int:
    path = shared.json_path(options)
    from livereel.benchmarks import models

    model = models.find(options.model)
    chunk = options.chunk or model.stream.chunk_latents
    stream = dataclasses.replace(
        model.stream,
        chunk_latents=chunk,
        first_chunk_latents=min(chunk, model.stream.first_chunk_latents),
        window=options.window or model.stream.window,
    )
    size = options.size or (stream.width, stream.height)
    steps = options.steps or len(stream.timesteps)
    frames = options.frames or model.frames

    import torch

    from livereel.benchmarks.count import count

    dtype = getattr(torch, options.dtype)
    found = count(model, size=size, frames=frames, stream=stream, steps=steps, dtype=dtype)
    print(
        f"{options.model}, {size[0]}x{size[1]}, {options.dtype}; chunks of {stream.chunk_latents} "
        f"latent frames, window {stream.window}\n{found}"
    )
    if path is not None:
        said = {"model": options.model, "size": size, "dtype": options.dtype}
        said |= {"stream": stream.to_dict(), **dataclasses.asdict(found)}
        path.write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")
    return 0


def _add_startup(whats: Any) -> None:
    summary = "time a cold process to its first frame"
    parser = shared.add_command(whats, "startup", summary, _STARTUP, _startup)
    arguments.add_model(parser)
    add = parser.add_argument
    add("--runs", type=arguments.whole(1, 100), default=5, help="processes (default: 5)")
    add(
        "--empty-cache",
        action="store_true",
        help="compile Triton's and torch.compile's kernels anew in each process",
    )
    shared.add_baselines(parser, ("diffusers",))
    shared.add_json(parser)
    shared.add_plot(parser)


def _startup(options: argparse.Namespace) -> int:
    """Measure and print. Returns the exit code: 1 when the goal was missed."""
    shared.check_outputs(options)
    arguments.find_model(options.model)

    from livereel.benchmarks import baseline_diffusers, bench_startup

    baseline = "diffusers" in (shared.baselines(options) or ())
    device, dtype = options.device, options.dtype
    if baseline:
        baseline_diffusers.diffusers()
        device, dtype = arguments.resolve(device, dtype)
    startup = bench_startup.Startup(
        model=options.model, device=device, dtype=dtype, empty_cache=options.empty_cache
    )
    try:
        section = bench_startup.measure(startup, runs=options.runs, baseline=baseline)
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        raise ResourceError(f"a process did not start: {str(error).splitlines()[-1]}") from error
    print(section)
    return shared.finish(options, {"startup": section})


def _add_kernels(whats: Any) -> None:
    summary = "time the kernels on this GPU against torch and the libraries below it"
    parser = shared.add_command(whats, "kernels", summary, _KERNELS, _kernels)
    add = parser.add_argument
    add("ops", nargs="*", metavar="OP", help="kernels to time (default: all)")
    add(
        "--runs",
        type=arguments.whole(1, 10_000),
        default=30,
        help="of each contender (default: 30)",
    )
    shared.add_json(parser)


def _kernels(options: argparse.Namespace) -> int:
    """Measure and print. Returns the exit code: 1 when a kernel's result was wrong."""
    known = _known()
    for op in options.ops:
        if op not in known:
            raise InputError(f"unknown kernel {op!r}; known are {', '.join(known)}")
    path = shared.json_path(options)

    from livereel.benchmarks.kernels import harness

    benches = {
        op: import_module(f"livereel.benchmarks.kernels.{_PREFIX}{op}").cases
        for op in options.ops or known
    }
    try:
        return harness.report(benches, rounds=options.runs, path=path)
    except harness.NoGpuError as error:
        raise ResourceError(str(error)) from error


def _add_compare(whats: Any) -> None:
    summary = "say what became slower from one result's JSON to another's"
    parser = shared.add_command(whats, "compare", summary, _COMPARE, _compare)
    add = parser.add_argument
    add("before", metavar="A", help="the earlier result")
    add("after", metavar="B", help="the later one")
    add(
        "--by",
        type=arguments.whole(0, 99),
        default=5,
        metavar="PERCENT",
        help="smaller changes do not count (default: 5)",
    )
    add("--ratios", action="store_true", help="compare nothing but ratios over peers")


def _compare(options: argparse.Namespace) -> int:
    """Print every figure of both. Returns the exit code: 1 when one is slower."""
    from livereel.benchmarks import compare

    before, after = compare.read(Path(options.before)), compare.read(Path(options.after))
    apart = compare.apart(before, after)
    for name, how in apart.items():
        print(f"not compared: {name} ({how})")
    if apart:
        before, after = (compare.without(result, apart) for result in (before, after))
        if not before.sections.keys() & after.sections.keys():
            return 0
    changes = compare.compare(before, after, by=options.by / 100, ratios=options.ratios)
    for name, result in (("A", before), ("B", after)):
        where = result.environment
        print(f"{name}: {where.cpu}, {where.threads} threads, commit {where.commit}")
    for change in changes:
        print(change)
    slower = sum(change.beyond_noise and change.gain < 1 for change in changes)
    print(f"{slower} of {len(changes)} figures are slower")
    return 1 if slower else 0


def _add_report(whats: Any) -> None:
    summary = "make one HTML page and a Markdown table of a folder's results"
    parser = shared.add_command(whats, "report", summary, _REPORT, _report)
    parser.add_argument("folder", metavar="DIR", help="where the .json files lie")


def _report(options: argparse.Namespace) -> int:
    """Write both files."""
    folder = Path(options.folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder")
    outputs = {folder / "report.html": "html", folder / "report.md": "markdown"}
    for path in outputs:
        arguments.check_file(path)

    from livereel.benchmarks import pages

    results, others = pages.gather(folder.glob("*.json"))
    for path, form in outputs.items():
        shared.replace(path, getattr(pages, form)(results, others))
    told = f"; left out: {', '.join(others)}" if others else ""
    print(f"{' and '.join(str(path) for path in outputs)}: {len(results)} results{told}")
    return 0


def _known() -> list[str]:
    """The ops that have a bench."""
    from livereel.benchmarks import kernels

    names = (module.name for module in iter_modules(kernels.__path__))
    return sorted(name.removeprefix(_PREFIX) for name in names if name.startswith(_PREFIX))

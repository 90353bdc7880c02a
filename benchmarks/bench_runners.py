"""One model by every runner: the wait for the first frame and the steady rate, side by side.

    livereel export -o packages/onnx
    livereel export --format aoti -o packages/aoti
    python -m livereel.benchmarks.bench_runners packages/onnx packages/aoti \\
        --program build/runtime/livereel-run

Torch runs the model that the packages were exported from, in their dtype; each contender has
processes of its own. The C++ program streams the aoti package once more. A figure is a median with
its quartiles.

A first frame is what a stream's first chunk takes once all is loaded. In Python that is the text
encoder, the prompt's keys and values, the passes, the VAE and the conversion. The program is given
a prompt that is encoded already, so that the text encoder is in none of its figures, and works out
the prompt's keys and values as it loads: so compare both together, "load and first frame". A load
begins past the imports, or with the program's process running. The first frame counts in the
program's rate, and not in the others'.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from livereel.engine import machine
from livereel.engine.errors import InputError, LiveReelError
from livereel.engine.package import read_manifest

from . import harness
from .harness import REPO, Environment, Spread
from .report import Section, to_json

if TYPE_CHECKING:
    from collections.abc import Sequence

PACKAGES = ("livereel", "torch", "onnxruntime")
_IN_PYTHON = "text, passes, VAE, conversion"
_IN_CPP = "passes, VAE, conversion, in its load the prompt's keys and values; not the text encoder"
PROMPT = "a large red circle moving right on a white background"


def probe(model: str, dtype: str, seconds: float, threads: int) -> dict[str, float]:
    """One contender in this process: a stream of so many seconds."""
    import torch

    from livereel.engine import Engine

    torch.set_num_threads(threads)
    begin = time.perf_counter()
    engine = Engine.load(model, dtype=dtype)
    loaded = time.perf_counter()
    seen = harness.watch(
        lambda: engine.open(PROMPT), frames=round(seconds * engine.config.fps),
        clock=time.perf_counter,
    )  # fmt: skip
    return {
        **_waits(loaded - begin, seen.first_frame_s),
        "frames a second": seen.fps,
        "peak memory, GB": (machine.peak_memory() or math.nan) / 1e9,
    }


def _waits(load: float, first: float) -> dict[str, float]:
    return {"load, s": load, "first frame, s": first, "load and first frame, s": load + first}


def run_program(program: Path, package: Path, seconds: float, threads: int) -> dict[str, float]:
    """The same by the C++ program, which says how long it took.

    Raises `LiveReelError` with what the program said where it failed.
    """
    from livereel.engine.cli import main as livereel

    with tempfile.TemporaryDirectory() as folder:
        prompt, out = Path(folder) / "prompt.safetensors", Path(folder) / "out.y4m"
        if livereel(["embed", PROMPT, "--model", str(package), "-o", str(prompt)]) != 0:
            raise LiveReelError(f"the prompt could not be embedded for {package}")
        done = subprocess.run(
            [program.resolve(), package, "--prompt-embeds", prompt, "--seconds", f"{seconds}",
             "-o", out],
            capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": f"{threads}"},
            check=False,
        )  # fmt: skip
    if done.returncode != 0:
        raise LiveReelError(f"{program} failed ({done.returncode}): {done.stderr.strip()[-500:]}")
    return read_program(done.stderr)


def read_program(said: str) -> dict[str, float]:
    """The figures in what the C++ program prints."""
    load = re.search(r"loaded in ([\d.]+) s", said)
    first = re.search(r"first frame after ([\d.]+) s", said)
    rate = re.search(r"([\d.]+) frames a second", said)
    if load is None or first is None or rate is None:
        raise LiveReelError(f"the program said nothing of its speed: {said[-500:]}")
    return {**_waits(float(load[1]), float(first[1])), "frames a second": float(rate[1])}


def measure(
    packages: Sequence[Path], *, program: Path | None, model: str, processes: int, seconds: float,
    threads: int,
) -> Section:  # fmt: skip
    """All contenders, in turns.

    Raises `InputError` for packages that cannot stand side by side, or a `program` that is none.
    """
    manifests = {package: read_manifest(package) for package in packages}
    formats = {manifest.format: package for package, manifest in manifests.items()}
    if len(formats) < len(packages):
        raise InputError(f"{len(packages)} packages of {len(formats)} formats; one of each, please")
    dtype, *others = {manifest.dtype for manifest in manifests.values()}
    if others:
        raise InputError(f"the packages differ in dtype: {', '.join(sorted([dtype, *others]))}")
    if program is not None and not (program.is_file() and os.access(program, os.X_OK)):
        raise InputError(f"{program} is no program that can be run")
    if program is not None and "aoti" not in formats:
        raise InputError("the program runs an aoti package, and none of these is one")
    here = ["-m", f"{__package__}.bench_runners", f"--probe={seconds}", f"--threads={threads}"]
    contenders = {"torch": (model, dtype)}
    contenders |= {name: (str(package), "auto") for name, package in formats.items()}
    figures: dict[str, list[float]] = {}
    for _ in range(processes):
        for name, (path, wanted) in contenders.items():
            for what, value in harness.fresh([*here, "--model", path, "--dtype", wanted]).items():
                figures.setdefault(f"{name}: {what}", []).append(value)
        if program is not None:
            found = run_program(program, formats["aoti"], seconds, threads)
            for what, value in found.items():
                figures.setdefault(f"C++: {what}", []).append(value)
    return Section(
        title=f"runners, {dtype}: {processes} processes each, {seconds:g} s of video",
        figures={name: Spread.of(values) for name, values in figures.items()},
        contents=dict.fromkeys(contenders, _IN_PYTHON) | ({"C++": _IN_CPP} if program else {}),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="bench_runners",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("packages", nargs="*", type=Path, metavar="PACKAGE")
    add("--program", type=Path, metavar="FILE", help="livereel-run")
    add("--model", default="demo", help="what the packages were exported from")
    add("--processes", type=int, default=3)
    add("--seconds", type=float, default=10.0, help="of video")
    add("--threads", type=int, default=machine.cores())
    add("--json", type=Path, metavar="FILE", help="also write every figure to FILE")
    add("--dtype", default="auto", help=argparse.SUPPRESS)
    add("--probe", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.probe:
        print(json.dumps(probe(options.model, options.dtype, options.probe, options.threads)))
        return 0
    if not options.packages:
        parser.error("name the packages to measure (see --help)")
    environment = Environment.capture(threads=options.threads, packages=PACKAGES, repo=REPO)
    print(environment)
    try:
        section = measure(
            options.packages, program=options.program, model=options.model,
            processes=options.processes, seconds=options.seconds, threads=options.threads,
        )  # fmt: skip
    except LiveReelError as error:
        print(f"bench_runners: {error}", file=sys.stderr)
        return 2
    print(f"\n{section}")
    if options.json:
        options.json.write_text(to_json(environment, {"runners": section}) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

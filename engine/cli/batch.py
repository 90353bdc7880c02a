"""`livereel batch`: a file of prompts to a folder of clips."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .. import memory
from ..batch import Journal, make_clips, write_clips
from ..errors import InputError, ResourceError
from ..orders import MAX_STEPS, Order, Rules, Step, read_orders
from ..package import fingerprint, read_manifest
from . import arguments, replicas
from .progress import Progress
from .signals import StopSignals

if TYPE_CHECKING:
    from ..checkpoint.folder import ModelFolder

SUMMARY = "make a clip of each line of a file of prompts"
EXAMPLES = """\
a line of the file is a JSON object with a "prompt" and, if wanted, "seed", "seconds" or "frames",
"fps", "size" and "steps", such as
  {"prompt": "a red circle moving right on a black background", "seconds": 2, "seed": 7}

examples:
  livereel batch prompts.jsonl --out clips
  RAY_ADDRESS=head:6379 livereel batch prompts.jsonl --out clips --ray --replicas 8

Line 12's clip is clips/000012.mp4. Stopped in whatever way, the same command goes on where it was:
clips/batch.jsonl has what is done. A line that is changed is made anew. Lines that cannot be made
are told with their reason and left out.

exit code: 0 when every line has its clip, 1 when some were left out, 2 when the work could not
begin or go on, 130 or 143 when it was stopped.
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("prompts", metavar="PROMPTS.jsonl", help="a JSON object a line")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where the clips go")
    arguments.add_model(parser)
    arguments.add_runner(parser)
    replicas.add(parser)


def run(options: argparse.Namespace) -> int:
    """Check all lines, make what is not there, report. Returns the exit code."""
    replicas.check(options)
    for name, usual in (("decoder", "own"), ("provider", "auto")):
        if options.ray and getattr(options, name) != usual:
            raise InputError(f"--{name} does not go with --ray")
    folder = arguments.find_model(options.model)
    rules = Rules(
        fps=folder.stream.fps,
        fit=lambda size: arguments.fit_size(size, folder),
        steps=len(folder.stream.timesteps) if folder.has_recipe else MAX_STEPS,
    )
    orders, bad = read_orders(Path(options.prompts), rules)
    for line, reason in bad:
        _tell(line, reason)
    if not orders:
        raise InputError(f"{options.prompts} has no line that a clip can be made of")
    out = Path(options.out)
    with StopSignals() as signals, Journal(out, _about(options, folder)) as journal:
        there = [order for order in orders if journal.has(order)]
        report = _Report(len(orders), done=len(there))
        try:
            if len(there) < len(orders):
                wanted = [order for order in orders if not journal.has(order)]
                steps = _make(options, folder, wanted, report)
                write_clips(steps, out, journal, report.take)
        except KeyboardInterrupt:
            report.stopped = True
        finally:
            report.progress.clear()
        print(report.summary(out, len(there), len(bad)))
        return signals.exit_code or (130 if report.stopped else int(bool(bad or report.failed)))


def _about(options: argparse.Namespace, folder: ModelFolder) -> dict[str, str]:
    """What the clips are made with."""
    path = folder.path
    model = read_manifest(path).fingerprint if folder.exported else fingerprint(path)
    return {"model": model, "decoder": options.decoder}


def _make(
    options: argparse.Namespace, folder: ModelFolder, orders: Sequence[Order], report: _Report
) -> Iterator[Step]:
    """The clips' frames, but of those that memory does not suffice for."""
    if options.ray:
        yield from _make_on_ray(options, folder, orders)
        return
    device, dtype = arguments.resolve(options.device, options.dtype)
    fitting = []
    for order in orders:
        try:
            memory.check(
                folder, width=order.width, height=order.height, frames=order.frames, dtype=dtype,
                device=device,
            )  # fmt: skip
            fitting.append(order)
        except ResourceError as error:
            yield order, error
    if fitting:
        engine = arguments.load_engine(options)
        report.start = time.perf_counter()
        yield from make_clips(engine, fitting, _side_by_side(folder, fitting, dtype))


def _make_on_ray(
    options: argparse.Namespace, folder: ModelFolder, orders: Sequence[Order]
) -> Iterator[Step]:
    if not folder.has_recipe:
        raise InputError("--ray: this model makes whole clips; the replicas want one that streams")
    ray_app = replicas.app()
    settings = ray_app.Settings(**replicas.wanted(options))
    yield from ray_app.make_clips(settings, orders)


def _side_by_side(folder: ModelFolder, orders: Sequence[Order], dtype: str) -> int:
    """How many clips memory suffices for at once."""
    largest = max(orders, key=lambda order: order.width * order.height)
    need = memory.estimate(folder, width=largest.width, height=largest.height, dtype=dtype)
    free = memory.available()
    each = need.kv_ring + need.conv_caches + need.activations
    return len(orders) if free is None else max(1, free // each)


def _tell(line: int, reason: object) -> None:
    print(f"livereel: line {line}: {' '.join(str(reason).split())}", file=sys.stderr)


class _Report:
    """Counts clips and frames, and tells of those that failed."""

    def __init__(self, total: int, *, done: int) -> None:
        self.progress = Progress(total, "clips")
        self.start = time.perf_counter()
        self.made = self.failed = self.frames = 0
        self.stopped = False
        self._done = done
        self.progress.update(done)

    def take(self, step: Step) -> None:
        order, got = step
        if got is None:
            self.made += 1
        elif isinstance(got, Exception):
            self.progress.clear()
            _tell(order.line, got)
            self.failed += 1
        else:
            self.frames += len(got)
        self.progress.update(self._done + self.made + self.failed)

    def summary(self, out: Path, there: int, bad: int) -> str:
        """What came of it, in a line."""
        rate = self.frames / max(1e-9, time.perf_counter() - self.start)
        counts = {
            "clips made": self.made, "there before": there, "lines left out": bad,
            "failed": self.failed,
        }  # fmt: skip
        end = "stopped; the same command goes on" if self.stopped else f"{rate:.1f} frames a second"
        told = ", ".join(f"{name}: {count}" for name, count in counts.items())
        return f"{out}: {told}; {end}"

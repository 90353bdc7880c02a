"""The live server under more and more streams, as its clients see it.

    python -m livereel.benchmarks.bench_serve --streams 1 2 4 --fps 4 --json FILE --plot FILE

For each number of streams: the wait for the first frame, frames a second, how evenly they come,
from a prompt's change to the first frame that shows it, chunks that missed their deadline, the
share of frames that came in time (goodput), how many streams were refused, and the share of CPU
time that was spent outside the engine: HTTP, encoding, sockets. All goes over the real socket,
encoded by the server and decoded here.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from livereel.engine.errors import LiveReelError
from livereel.engine.serve.client import AsyncStream, Refused

from .harness import REPO, Environment, write_json
from .plots import percentile
from .served import Served

PROMPTS = (
    "a red circle moving right on a black background",
    "a large blue star moving left on a white background",
    "a small yellow square moving up on a gray background",
    "a pink triangle moving down on a brown background",
)
CHANGE_S = 2.5
LATE = 1.5
"""A frame is in time when it comes within so many intervals of the one before."""


@dataclass
class Seen:
    """What one client saw; seconds."""

    first: float = 0.0
    arrivals: list[float] = field(default_factory=list)
    controls: list[float] = field(default_factory=list)
    refused: bool = False


@dataclass(frozen=True, kw_only=True)
class Row:
    """One number of streams; milliseconds where the name ends so."""

    streams: int
    refused: int
    first_ms: float
    fps: float
    interval_p50_ms: float
    interval_p95_ms: float
    interval_p99_ms: float
    control_p50_ms: float
    control_p95_ms: float
    missed: int
    goodput: float
    cpu_outside: float


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--fps", type=float, help="of each stream (default: the model's)")
    parser.add_argument("--seconds", type=float, default=15.0, help="for each number of streams")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="such as serve.png")
    options = parser.parse_args(argv)
    packages = ("livereel", "torch", "av", "uvicorn", "websockets")
    environment = Environment.capture(threads=0, packages=packages, repo=REPO)
    rows = []
    with Served(options.model) as server:
        for count in options.streams:
            rows.append(measure(server, count, options.fps, options.seconds))
            print(table(rows[-1:], head=len(rows) == 1), flush=True)
    report: dict[str, Any] = {
        "environment": dataclasses.asdict(environment),
        "model": options.model,
        "fps": options.fps,
        "seconds": options.seconds,
        "rows": [dataclasses.asdict(row) for row in rows],
    }
    if options.json is not None:
        write_json(options.json, report)
    if options.plot is not None:
        plot(rows, options.plot)


def measure(server: Served, count: int, fps: float | None, seconds: float) -> Row:
    """Let `count` clients watch at once."""
    before, missed = server.usage(), server.metric("livereel_deadline_miss_total")
    seen = asyncio.run(_watch_all(server.url, count, fps, seconds))
    after = server.usage()
    own = after.cpu_s - before.cpu_s
    engine = after.engine_cpu_s - before.engine_cpu_s
    watched = [one for one in seen if not one.refused]
    intervals = [
        later - earlier
        for one in watched
        for earlier, later in zip(one.arrivals, one.arrivals[1:], strict=False)
    ]
    nominal = statistics.median(intervals) if fps is None and intervals else 1 / (fps or 1)
    controls = [wait for one in watched for wait in one.controls]
    rates = [
        (len(one.arrivals) - 1) / (one.arrivals[-1] - one.arrivals[0])
        for one in watched
        if len(one.arrivals) > 1
    ]
    return Row(
        streams=count,
        refused=len(seen) - len(watched),
        first_ms=_ms(statistics.median(one.first for one in watched) if watched else 0.0),
        fps=round(statistics.mean(rates), 2) if rates else 0.0,
        interval_p50_ms=_ms(_percentile(intervals, 50)),
        interval_p95_ms=_ms(_percentile(intervals, 95)),
        interval_p99_ms=_ms(_percentile(intervals, 99)),
        control_p50_ms=_ms(_percentile(controls, 50)),
        control_p95_ms=_ms(_percentile(controls, 95)),
        missed=int(server.metric("livereel_deadline_miss_total") - missed),
        goodput=round(
            sum(wait <= LATE * nominal for wait in intervals) / max(1, len(intervals)), 4
        ),
        cpu_outside=round(own / max(own + engine, 1e-9), 4),
    )


async def _watch_all(url: str, count: int, fps: float | None, seconds: float) -> list[Seen]:
    async def after(wait: float, number: int) -> Seen:
        await asyncio.sleep(wait)
        return await _watch(url, number, fps, seconds)

    return await asyncio.gather(*(after(0.2 * i, i) for i in range(count)))


async def _watch(url: str, number: int, fps: float | None, seconds: float) -> Seen:
    """One client: it reads, and now and then it changes the prompt."""
    seen, chance = Seen(), random.Random(number)
    begin = time.perf_counter()
    try:
        async with AsyncStream(url, PROMPTS[number % 4], seed=number, fps=fps) as stream:
            asked: dict[int, float] = {}
            task: asyncio.Task[None] | None = None
            change = begin + chance.uniform(0.5, 1.5) * CHANGE_S

            async def ask(at: float) -> None:
                with contextlib.suppress(LiveReelError):  # the stream may end before it answers
                    applied = await stream.update(prompt=chance.choice(PROMPTS))
                    asked[applied.first_frame] = at

            async for frame in stream:
                now = time.perf_counter()
                seen.first = seen.first or now - begin
                seen.arrivals.append(now)
                for first in [first for first in asked if first <= frame.number]:
                    seen.controls.append(now - asked.pop(first))
                if now > change:
                    task = asyncio.create_task(ask(now))
                    change = now + chance.uniform(0.5, 1.5) * CHANGE_S
                if now - begin > seconds:
                    break
            if task is not None:
                task.cancel()
            await stream.stop()
    except Refused as error:
        seen.refused = error.code == "busy" and not seen.arrivals
        if not seen.refused:
            raise
    return seen


def table(rows: Sequence[Row], *, head: bool = True) -> str:
    """The rows for people."""
    names = [field.name for field in dataclasses.fields(Row)]
    lines = ["  ".join(names)] if head else []
    for row in rows:
        values = dataclasses.asdict(row)
        lines.append("  ".join(f"{values[name]:>{len(name)}}" for name in names))
    return "\n".join(lines)


def plot(rows: Sequence[Row], path: Path) -> None:
    """Latencies and rates over the number of streams."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    counts = [row.streams for row in rows]
    for name in ("first_ms", "interval_p95_ms", "control_p50_ms", "control_p95_ms"):
        left.plot(counts, [getattr(row, name) for row in rows], "o-", label=name)
    left.set(xlabel="streams", ylabel="milliseconds", ylim=(0, None))
    left.legend(frameon=False)
    right.plot(counts, [row.fps for row in rows], "o-", label="frames a second, each")
    right.plot(counts, [100 * row.goodput for row in rows], "o-", label="frames in time, %")
    right.plot(counts, [100 * row.cpu_outside for row in rows], "o-", label="CPU outside engine, %")
    right.set(xlabel="streams", ylim=(0, None))
    right.legend(frameon=False)
    figure.savefig(path, dpi=110)


def _percentile(values: Sequence[float], percent: int) -> float:
    return percentile(values, percent) if values else 0.0


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 1)


if __name__ == "__main__":
    main()

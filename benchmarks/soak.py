"""Hours of streams with random controls and disconnects: does anything grow?

    python -m livereel.benchmarks.soak --minutes 30 --json FILE --plot FILE

A few clients open streams, change them, pause, cut their connection and come back, vanish, and
begin anew. Every few seconds the memory and the open files of the server's and the engine's
processes are noted, and the machine's load, since other work may run on it. Reported is the slope
of memory after the warm-up, in MB a minute, how many files are open before and after, and how many
streams were refused; the exit code is 1 when memory grew by `MOST_MB` a minute or more, files are
left, a client met an error, or most streams were refused.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import os
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from livereel.engine.serve.client import AsyncStream, Refused

from .bench_serve import PROMPTS
from .harness import REPO, Environment, write_json
from .served import Served

SAMPLE_S = 5.0
WARM_UP = 0.2
"""The share of the run that does not count."""
MOST_MB = 1.0
REST_S = 40.0
"""So that streams whose owners left are given up before files are counted for the last time."""


@dataclass(frozen=True)
class Sample:
    """At so many seconds: megabytes and open files of both processes, and the machine's load."""

    at_s: float
    server_mb: float
    engine_mb: float
    server_files: int
    engine_files: int
    load: float


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--fps", type=float, default=4.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--plot", type=Path, metavar="FILE")
    options = parser.parse_args(argv)
    packages = ("livereel", "torch", "av", "uvicorn", "websockets")
    environment = Environment.capture(threads=0, packages=packages, repo=REPO)
    with Served(options.model) as server:
        before = server.usage()
        samples, did = asyncio.run(_soak(server, options))
        after = server.usage()
    steady = [sample for sample in samples if sample.at_s >= WARM_UP * 60 * options.minutes]
    refused = sum(count for name, count in did.items() if name.startswith("refused"))
    asked = did["streams"] + refused
    figures = {
        "opens": asked,
        "opens_refused": refused,
        "server_mb_per_minute": round(slope(steady, "server_mb"), 4),
        "engine_mb_per_minute": round(slope(steady, "engine_mb"), 4),
        "server_files_before": before.files,
        "server_files_after": after.files,
        "engine_files_before": before.engine_files,
        "engine_files_after": after.engine_files,
    }
    report = {
        "environment": dataclasses.asdict(environment),
        "model": Path(options.model).name,
        "minutes": options.minutes,
        "streams": options.streams,
        "fps": options.fps,
        "did": dict(did),
        **figures,
        "samples": [dataclasses.asdict(sample) for sample in samples],
    }
    for name, value in ({"did": dict(did)} | figures).items():
        print(f"{name:22} {value}")
    if options.json is not None:
        write_json(options.json, report)
    if options.plot is not None:
        plot(samples, options.plot)
    grew = max(figures["server_mb_per_minute"], figures["engine_mb_per_minute"]) >= MOST_MB
    left = after.files > before.files or after.engine_files > before.engine_files
    failed = any(name.startswith("failed") for name in did)
    mostly = 2 * refused > asked
    if mostly:
        print(f"soak: {refused} of {asked} opens were refused, so this tells little: ask for fewer "
              "--streams or a lower --fps", file=sys.stderr)  # fmt: skip
    return int(grew or left or failed or mostly)


def slope(samples: Sequence[Sample], name: str) -> float:
    """Of the straight line through a figure, a minute."""
    if len(samples) < 2:
        return 0.0
    minutes = [sample.at_s / 60 for sample in samples]
    values = [getattr(sample, name) for sample in samples]
    return statistics.linear_regression(minutes, values).slope


async def _soak(server: Served, options: argparse.Namespace) -> tuple[list[Sample], Counter[str]]:
    did: Counter[str] = Counter()
    begin = time.monotonic()
    end = begin + 60 * options.minutes
    clients = [
        asyncio.create_task(
            _client(server.url, options.fps, random.Random(options.seed * 1000 + i), end, did)
        )
        for i in range(options.streams)
    ]
    samples = []
    while time.monotonic() < end:
        usage = await asyncio.to_thread(server.usage)
        samples.append(
            Sample(
                round(time.monotonic() - begin, 1),
                round(usage.memory / 1e6, 2),
                round(usage.engine_memory / 1e6, 2),
                usage.files,
                usage.engine_files,
                round(os.getloadavg()[0], 2),
            )
        )
        await asyncio.sleep(min(SAMPLE_S, max(0.0, end - time.monotonic())))
    await asyncio.gather(*clients)
    await asyncio.sleep(REST_S)
    return samples, did


async def _client(
    url: str, fps: float, chance: random.Random, end: float, did: Counter[str]
) -> None:
    """Streams one after another, none of them well-behaved."""
    while time.monotonic() < end:
        try:
            async with AsyncStream(url, chance.choice(PROMPTS), fps=fps) as stream:
                did["streams"] += 1
                await _use(stream, chance, min(end, time.monotonic() + chance.uniform(2, 30)), did)
                if chance.random() < 0.5:
                    await stream.stop()
        except Refused as error:
            did[f"refused: {error.code}"] += 1
            await asyncio.sleep(error.retry_after_s or 1.0)
        except Exception as error:  # told by the count, so that the rest of the run is not lost
            did[f"failed: {type(error).__name__}"] += 1
            await asyncio.sleep(1.0)


async def _use(stream: AsyncStream, chance: random.Random, until: float, did: Counter[str]) -> None:
    async for _ in stream:
        did["frames"] += 1
        if time.monotonic() > until:
            return
        if chance.random() > 0.05:
            continue
        deed = chance.choice(("prompt", "seed", "reset", "pause", "cut", "slow"))
        did[deed] += 1
        if deed == "prompt":
            await stream.update(prompt=chance.choice(PROMPTS))
        elif deed == "seed":
            await stream.seed(chance.randrange(1000))
        elif deed == "reset":
            await stream.reset()
        elif deed == "pause":
            await stream.pause()
            await asyncio.sleep(chance.uniform(0, 2))
            await stream.resume()
        elif deed == "cut":
            stream.cut()
        else:
            await asyncio.sleep(chance.uniform(0, 3))


def plot(samples: Sequence[Sample], path: Path) -> None:
    """Memory, files and load over time."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 3.2), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    minutes = [sample.at_s / 60 for sample in samples]
    left.plot(minutes, [sample.server_mb for sample in samples], label="server")
    left.plot(minutes, [sample.engine_mb for sample in samples], label="engine")
    left.set(xlabel="minutes", ylabel="resident MB", ylim=(0, None))
    left.legend(frameon=False)
    middle.plot(minutes, [sample.server_files for sample in samples], label="server")
    middle.plot(minutes, [sample.engine_files for sample in samples], label="engine")
    middle.set(xlabel="minutes", ylabel="open files", ylim=(0, None))
    middle.legend(frameon=False)
    right.plot(minutes, [sample.load for sample in samples])
    right.set(xlabel="minutes", ylabel="machine's load average", ylim=(0, None))
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    sys.exit(main())

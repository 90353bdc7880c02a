"""How many streams one engine keeps at their rate, and how evenly their frames come.

`python -m livereel.benchmarks.bench_sessions --sessions 4 --fps 4` opens that many streams at once
in an engine of its own process, shows their frames at their rate as a server would, and asks for
one more at the end. Intervals are between frames of one stream; a stream's first two chunks do not
count. Before that it times, in turns, chunks made one after the other and together.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from pathlib import Path
from typing import Any

from livereel.engine.errors import LiveReelError
from livereel.engine.serve.engine_process import EngineProcess
from livereel.engine.serve.messages import ChunkReady, DeadlineMissed, Opened, Spec
from livereel.engine.serve.model_backend import ModelBackend
from livereel.engine.serve.worker import Setup
from livereel.engine.serve.worker_client import Busy

_TURNS = 15
_PROMPTS = (
    "a red circle moving right on a black background",
    "a blue star moving left on a white background",
    "a green square moving up on a gray background",
    "a pink triangle moving down on a brown background",
)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--sessions", type=int, default=4)
    parser.add_argument("--fps", type=float, default=4.0)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    args = parser.parse_args(argv)
    try:
        alone, together = compare(args.model, args.sessions)
        print(
            f"a chunk takes {alone * 1e3:.0f} ms by itself, {together * 1e3:.0f} ms together with "
            f"others: {alone / together:.2f}x",
            flush=True,
        )
        found = asyncio.run(measure(args.model, args.sessions, args.fps, args.seconds))
    except LiveReelError as error:
        raise SystemExit(str(error)) from error
    print(
        "{sessions} of {asked} streams admitted at {fps:g} frames a second, for {seconds:g} s\n"
        "frame interval: p50 {p50_s:.3f} s, p95 {p95_s:.3f} s, nominal {nominal_s:.3f} s\n"
        "deadlines missed: {missed} of {chunks} chunks; made together with others: {shared}\n"
        "load {load:.2f}; one more: {more}".format(**found)
    )
    if args.json is not None:
        found |= {"chunk_alone_s": alone, "chunk_together_s": together}
        args.json.write_text(json.dumps(found, indent=2) + "\n")


def compare(model: str, sessions: int) -> tuple[float, float]:
    """Seconds for one of so many streams' chunks, made alone and together; medians of turns."""
    backend = ModelBackend.load(model, "auto", "auto")
    streams = [
        backend.open(Spec(prompt=_PROMPTS[i % len(_PROMPTS)], seed=i), chunk=None, pts=None)
        for i in range(min(sessions, backend.most))
    ]
    alone, together = [], []
    for turn in range(_TURNS + 4):
        start = time.perf_counter()
        for stream in streams:
            backend.step([stream])
        middle = time.perf_counter()
        backend.step(streams)
        if turn >= 4:  # the window is full, and all is loaded
            alone.append((middle - start) / len(streams))
            together.append((time.perf_counter() - middle) / len(streams))
    return statistics.median(alone), statistics.median(together)


async def measure(model: str, sessions: int, fps: float, seconds: float) -> dict[str, Any]:
    """The numbers of one run."""
    engine = EngineProcess(Setup(model=model))
    await engine.start()
    try:
        opened: list[Opened] = []
        for i in range(sessions):
            try:
                opened.append(
                    await engine.open(Spec(prompt=_PROMPTS[i % len(_PROMPTS)], seed=i, fps=fps))
                )
            except Busy:
                break
        if not opened:
            raise Busy("not one stream of this rate fits", 0.0)
        watched = [_watch(engine, one, time.monotonic() + seconds) for one in opened]
        shown = await asyncio.gather(*watched)
        state = await engine.state()
        try:
            more = await engine.open(Spec(prompt=_PROMPTS[0], fps=fps))
            answer = "admitted"
            await engine.close(more.session)
        except Busy as busy:
            answer = f"refused, to be asked again in {busy.retry_after_s:g} s"
    finally:
        await engine.stop()
    intervals = sorted(x for times, _ in shown for x in times)
    return {
        "asked": sessions,
        "sessions": len(opened),
        "fps": fps,
        "seconds": seconds,
        "nominal_s": 1 / fps,
        "p50_s": statistics.median(intervals),
        "p95_s": intervals[int(0.95 * len(intervals))],
        "longest_s": intervals[-1],
        "missed": sum(missed for _, missed in shown),
        "chunks": state.chunks,
        "shared": state.batched,
        "load": state.load,
        "more": answer,
    }


async def _watch(engine: EngineProcess, opened: Opened, until: float) -> tuple[list[float], int]:
    """Show a stream's frames when they are due; the intervals between them, and late chunks."""
    intervals, missed, due, last = [], 0, 0.0, 0.0
    async for event in engine.events(opened.session):
        if isinstance(event, DeadlineMissed):
            missed += 1
        if not isinstance(event, ChunkReady):
            continue
        for _ in range(event.count):
            due = max(due, time.monotonic())
            await asyncio.sleep(due - time.monotonic())
            now = time.monotonic()
            if event.chunk > 1:
                intervals.append(now - last)
            last = now
            due += 1 / opened.fps
        if time.monotonic() > until:
            break
    return intervals, missed


if __name__ == "__main__":
    main()

"""A paced stream as its viewer meets it, in this process: how soon controls show, how even frames
come.

    python -m livereel.benchmarks.bench_live [--model demo] [--fps 16] [--seconds 30] [--json FILE]

Frames are shown at their rate, each when it is due or, if it comes later, when it is there. A chunk
is begun as late as it can be to be there in time, by what the last ones took. Now and then the
prompt changes, at moments that have nothing to do with chunks; the wait is from then to the showing
of the first frame that was made under the new one. Encoding and the network are not in it, and text
is not where the weights are random.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from typing import TYPE_CHECKING

from livereel.engine.cli import arguments, bench_options
from livereel.engine.errors import LiveReelError
from livereel.engine.sampling.stream import StreamState
from livereel.engine.session import Session

from .contender import Ours
from .harness import Spread
from .plots import percentile
from .report import Section
from .subject import Subject

if TYPE_CHECKING:
    from livereel.engine.types import Chunk

CONTROL, INTERVAL = (
    "livereel: control to pixel, p95, ms",
    "livereel: frame interval, p99, x nominal",
)
PROMPTS = (
    "a large red circle moving right on a white background",
    "a small blue star moving left on a black background",
    "a green square moving up on a gray background",
)
CHANGE_S = 1.5
SLACK = 1.1
"""A chunk is begun so many times as long before it is due as the slowest of the last ones took."""
LAST = 8


@dataclass
class Viewer:
    """What one viewer of frames at `fps` saw; seconds."""

    fps: float
    controls: list[float] = field(default_factory=list)
    intervals: list[float] = field(default_factory=list)
    due: float = 0.0
    late: int = 0
    _took: deque[float] = field(default_factory=lambda: deque(maxlen=LAST))

    @property
    def begin(self) -> float:
        """When to begin the next chunk."""
        return self.due - SLACK * max(self._took, default=0.0)

    def show(self, frames: int, begun: float, arrived: float, asked: Iterable[float]) -> None:
        """A chunk came, the first one under controls that were `asked` for at these times."""
        first = max(arrived, self.due) if self._took else arrived
        if self._took:
            self.late += arrived > self.due
            self.intervals.append(first - self.due + 1 / self.fps)
        self.intervals += [1 / self.fps] * (frames - 1)
        self.controls += [first - at for at in asked]
        self.due = first + frames / self.fps
        self._took.append(arrived - begun)


def measure(
    subject: Subject, *, fps: float, seconds: float,
    clock: Callable[[], float] = time.perf_counter, sleep: Callable[[float], None] = time.sleep,
    session: Session | None = None,
) -> Section:  # fmt: skip
    """Watch one stream for so long, all of its kernels warm."""
    stream, prompts = subject.stream, cycle(PROMPTS)
    session = session or _session(subject, fps)
    for turn in range(Ours(subject).until_steady + 4):
        if turn % 2:
            session.update(prompt=next(prompts))
        next(session)
    viewer, chance = Viewer(fps), random.Random(0)
    end = clock() + seconds
    change = clock() + CHANGE_S * chance.uniform(0.5, 1.5)
    while (now := clock()) < end:
        if (wait := viewer.begin - now) > 0:
            sleep(wait)
        begun, asked = clock(), []
        while change <= begun:
            session.update(prompt=next(prompts))
            asked.append(change)
            change += CHANGE_S * chance.uniform(0.5, 1.5)
        chunk: Chunk = next(session)
        viewer.show(len(chunk.frames), begun, clock(), asked)
    width, height = subject.size
    rate = f"{fps:g}"
    found = {
        "livereel: control to pixel, p50, ms": 1000 * _of(viewer.controls, 50),
        CONTROL: 1000 * _of(viewer.controls, 95),
        INTERVAL: fps * _of(viewer.intervals, 99),
    }
    return Section(
        title=f"live: {subject.name}, {width}x{height} at {rate} frames a second, {subject.steps} "
        f"steps, window {stream.window}, chunks of {stream.chunk_latents}",
        figures={name: Spread.of([value]) for name, value in found.items() if value > 0},
        contents={"livereel": "text, passes, cache pass, VAE, conversion; not encode"},
        notes=[
            f"{len(viewer.controls)} controls, {len(viewer.intervals)} intervals; {viewer.late} "
            f"chunks came late",
            subject.settings,
        ],
        setup={"what": "live", **subject.setup, "fps": rate},
    )  # fmt: skip


def _session(subject: Subject, fps: float) -> Session:
    width, height = subject.size
    start = StreamState(subject.prompt, seed=0, steps=subject.steps, width=width, height=height)
    return Session(subject.runner, subject.stream, start, model=subject.name, fps=fps)


def _of(values: Sequence[float], percent: int) -> float:
    return percentile(values, percent) if values else 0.0


def main(argv: Sequence[str] | None = None) -> int:
    """Watch one stream. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="bench_live", description=(__doc__ or "").split("\n\n")[0]
    )
    bench_options.add_subject(parser)
    add = parser.add_argument
    add("--chunk", type=arguments.whole(1, 64), help="latent frames of a chunk")
    add("--fps", type=arguments.fps, help="of the stream (default: the model's)")
    add("--seconds", type=arguments.seconds, default=30.0, help="to watch it (default: 30)")
    bench_options.add_json(parser)
    bench_options.add_plot(parser)
    options = parser.parse_args(argv)
    try:
        bench_options.check_outputs(options)
        subject = Subject.load(
            options.model, device=options.device, dtype=options.dtype, decoder=options.decoder,
            random=options.random_weights,
        ).at(chunk=options.chunk)  # fmt: skip
        fps = options.fps or subject.stream.fps
        section = measure(subject, fps=fps, seconds=options.seconds)
        print(section, flush=True)
        return bench_options.finish(options, {"live": section})
    except LiveReelError as error:
        print(f"bench_live: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    raise SystemExit(main())

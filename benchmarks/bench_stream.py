"""A live stream in its steady state, chunk by chunk, beside other ways to make the same frames.

    livereel bench stream [--model demo] [--size 128x128 ...] [--baseline loop] [--json FILE]

Each contender's window is filled first; then all take turns, a chunk each, a clip where one makes
nothing less. A turn ends when its frames lie on the host as bytes and the device is idle: what was
begun of the next chunk counts, and nobody works in another's turn. Text is encoded when a stream
opens, so that it is in the wait for the first frame and in nothing else; prompts never change here.

Several sizes, numbers of steps or windows make a section each, in which one of them differs from
the first.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from livereel.engine.errors import InputError

from . import harness
from .baseline_diffusers import Diffusers
from .baseline_loop import Loop
from .contender import Contender, Ours
from .count import DECODE, TINY, Work, count, total
from .harness import Case, Spread, Timing
from .plots import percentile
from .report import Section, Spent

if TYPE_CHECKING:
    from .ceilings import Ceilings
    from .subject import Subject

BASELINES: Mapping[str, Callable[[Subject], Contender]] = {
    "loop": Loop,
    "diffusers": Diffusers,
    "diffusers-fast": partial(Diffusers, fast=True),
}
FIRST = 3
"""Streams that are opened to time their first frame, after one that warms up."""


@dataclass(frozen=True, kw_only=True)
class Axes:
    """What to measure at; the first of each is the rule, from which one at a time departs."""

    sizes: Sequence[tuple[int, int] | None] = (None,)
    steps: Sequence[int | None] = (None,)
    windows: Sequence[int | None] = (None,)
    chunk: int | None = None
    first_chunk: int | None = None

    def subjects(self, subject: Subject) -> list[Subject]:
        """`subject` at each of them. Raises what `Subject.at` does."""
        size, steps, window = self.sizes[0], self.steps[0], self.windows[0]
        points = [
            (size, steps, window),
            *((other, steps, window) for other in self.sizes[1:]),
            *((size, other, window) for other in self.steps[1:]),
            *((size, steps, other) for other in self.windows[1:]),
        ]
        chunks = {"chunk": self.chunk, "first_chunk": self.first_chunk}
        return [
            subject.at(size=size, steps=steps, window=window, **chunks)
            for size, steps, window in points
        ]


def title(subject: Subject) -> str:
    """`demo, 128x128, 6 steps, window 6, chunks of 3`."""
    width, height = subject.size
    stream = subject.stream
    return (
        f"{subject.name}, {width}x{height}, {subject.steps} steps, window {stream.window}, "
        f"chunks of {stream.chunk_latents}"
    )


def measure(
    subject: Subject, baselines: Sequence[str], *, runs: int, warmup: int,
    top: Ceilings, clock: Callable[[], float] = time.perf_counter,
) -> Section:  # fmt: skip
    """Ours and the baselines, in turns. Raises `InputError` for one that cannot run the subject."""
    for name in baselines:
        if name not in BASELINES:
            raise InputError(f"unknown baseline {name!r:.40}; known are {', '.join(BASELINES)}")
    makers: list[Callable[[Subject], Contender]] = [Ours, *(BASELINES[name] for name in baselines)]
    figures: dict[str, Spread] = {}
    contenders = []
    for make in makers:
        before = reserved(subject)
        contender = make(subject)
        figures[f"{contender.name}: first frame, s"] = _first_frame(contender, clock)
        for _ in range(contender.until_steady):
            contender.turn()
        if before is not None:
            gigabytes = (torch.cuda.max_memory_reserved(subject.runner.device) - before) / 1e9
            name = f"{contender.name}: memory beside the weights that are shared, GB"
            figures[name] = Spread.of([gigabytes])
        contenders.append(contender)
    cases = [Case(name=c.name, settings=c.settings, run=c.turn) for c in contenders]
    timings = harness.measure(cases, rounds=runs, warmup=warmup, clock=clock)
    figures |= {
        f"{timing.name}: chunk, p99, ms": Spread.of([1000 * percentile(timing.seconds, 99)])
        for timing, contender in zip(timings, contenders, strict=True)
        if contender.stages
    }
    stages = {c.name: _stages(c, runs) for c in contenders if c.stages}
    section = Section.compare(title(subject), timings)
    return Section(
        title=f"stream: {section.title}", timings=timings, ratios=section.ratios,
        figures=figures, setup={"what": "stream", **subject.setup},
        contents={c.name: str(c.contents) for c in contenders},
        notes=["a contender's first frame comes with its first chunk or clip, text among it"],
        stages=stages,
        work=spent(subject, timings[0], stages["livereel"], top),
    )  # fmt: skip


def spent(
    subject: Subject, timing: Timing, stages: Mapping[str, float], top: Ceilings
) -> list[Spent]:
    """Our chunk's work, counted, and its seconds: of the DiT, of the decoder, and of both."""
    stream, dtype = subject.stream, subject.runner.dtype
    passes = subject.steps * (2 if subject.guided else 1)
    found = count(
        subject.model, size=subject.size, frames=subject.model.frames, stream=stream, steps=passes,
        dtype=dtype,
    )  # fmt: skip
    decode = TINY if subject.decoder == "tiny" else DECODE
    dit = total(step for step in found.chunk if step.name not in (DECODE, TINY))
    vae = total(step for step in found.chunk if step.name == decode)
    both = total(step for step in found.chunk if step.name not in {DECODE, TINY} - {decode})
    rows = (
        ("DiT", dit, stages["dit"] + stages["cache"]),
        ("VAE", vae, stages["vae"]),
        ("chunk", both, statistics.median(timing.seconds)),
    )
    return [spent_on(name, work, seconds, top) for name, work, seconds in rows if seconds > 0]


def decoder_work(subject: Subject, frames: int, timing: Timing, top: Ceilings) -> list[Spent]:
    """Of a clip's decoding by our decoder."""
    found = count(
        subject.model, size=subject.size, frames=frames, stream=subject.stream, steps=1,
        dtype=subject.runner.dtype,
    )  # fmt: skip
    wanted = TINY if subject.decoder == "tiny" else DECODE
    (work,) = (step.work for step in found.clip if step.name == wanted)
    return [spent_on("VAE", work, statistics.median(timing.seconds), top)]


def spent_on(name: str, work: Work, seconds: float, top: Ceilings) -> Spent:
    """Counted work and the seconds it took, beside what the chip could do."""
    return Spent(
        name=name, seconds=seconds, flops=1e12 * work.tflop, moved=1e9 * work.gigabytes,
        ceiling_flops=top.flops, ceiling_bytes=top.moved,
    )  # fmt: skip


def _first_frame(contender: Contender, clock: Callable[[], float]) -> Spread:
    """From opening to the first chunk's frames, once all is compiled."""
    waits = []
    for _ in range(1 + FIRST):
        begin = clock()
        contender.open()
        contender.turn()
        waits.append(clock() - begin)
    return Spread.of(waits[1:])


def _stages(contender: Contender, runs: int) -> dict[str, float]:
    return {
        stage: statistics.median(seconds[-runs:]) for stage, seconds in contender.stages.items()
    }


def reserved(subject: Subject) -> int | None:
    """Bytes that torch holds on a GPU, from which the most it will hold is counted anew."""
    device = subject.runner.device
    if device.type != "cuda":
        return None
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    held: int = torch.cuda.memory_reserved(device)
    return held

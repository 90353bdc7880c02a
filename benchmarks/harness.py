"""Timing that can be trusted on a busy machine.

Contenders run in turns within one process, the order turning each round, so that drift hits all
alike; warm-up is apart; every figure is a median with its quartiles; a ratio is the median of the
rounds' own ratios. What needs a clean slate (load time, peak memory) runs in fresh processes.
The clock is an argument, so that all of this is tested exactly.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from livereel.engine import machine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence, Sized

    Clock = Callable[[], float]


REPO = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Spread:
    """A median and the quartiles around it."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value; quartiles by linear interpolation between the values."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)

    def __str__(self) -> str:
        """`4.27 [4.20, 4.31]`, with three digits that matter."""
        return f"{digits(self.median)} [{digits(self.low)}, {digits(self.high)}]"


@dataclass(frozen=True, kw_only=True)
class Case:
    """One contender: `run` does the whole job once and says how many frames it made."""

    name: str
    settings: str
    run: Callable[[], int]


@dataclass(frozen=True, kw_only=True)
class Timing:
    """What a contender took: `seconds` of each round, `warmup_s` of the runs before."""

    name: str
    settings: str
    frames: int
    warmup_s: tuple[float, ...]
    seconds: tuple[float, ...]

    @property
    def fps(self) -> Spread:
        """Frames a second."""
        return Spread.of([self.frames / s for s in self.seconds])


def measure(
    cases: Sequence[Case], *, rounds: int = 5, warmup: int = 1, clock: Clock = time.perf_counter
) -> list[Timing]:
    """Time `rounds` runs of each case after `warmup` runs, the cases taking turns.

    Raises `ValueError` when a case makes another number of frames in one run than in the next.
    """
    warm = [[_timed(case, clock) for _ in range(warmup)] for case in cases]
    timed: list[list[tuple[float, int]]] = [[] for _ in cases]
    for turn in range(rounds):
        for i in range(len(cases)):
            which = (turn + i) % len(cases)
            timed[which].append(_timed(cases[which], clock))
    return [_timing(case, w, t) for case, w, t in zip(cases, warm, timed, strict=True)]


def speedup(ours: Timing, theirs: Timing) -> Spread:
    """How many times faster `ours` makes a frame, round by round."""
    scale = ours.frames / theirs.frames
    pairs = zip(ours.seconds, theirs.seconds, strict=True)
    return Spread.of([scale * slow / fast for fast, slow in pairs])


def _timed(case: Case, clock: Clock) -> tuple[float, int]:
    start = clock()
    frames = case.run()
    return clock() - start, frames


def _timing(case: Case, warm: list[tuple[float, int]], timed: list[tuple[float, int]]) -> Timing:
    counts = {frames for _, frames in (*warm, *timed)}
    if len(counts) != 1:
        raise ValueError(f"{case.name} made {sorted(counts)} frames in runs of the same job")
    return Timing(
        name=case.name,
        settings=case.settings,
        frames=counts.pop(),
        warmup_s=tuple(s for s, _ in warm),
        seconds=tuple(s for s, _ in timed),
    )


class HasFrames(Protocol):
    """A chunk, as far as timing goes."""

    @property
    def frames(self) -> Sized:
        """Its frames, which have a length."""


@dataclass(frozen=True, kw_only=True)
class Stream:
    """A stream as its viewer met it: the wait for the first frame, then the steady rate.

    `frames` counts all of them; `fps` is that of the frames after the first chunk over the time
    from the first chunk's arrival to the last's (0 when there was only one chunk).
    """

    first_frame_s: float
    seconds: float
    frames: int
    chunks: int
    fps: float


def watch(
    start: Callable[[], Iterable[HasFrames]], *, frames: int, clock: Clock = time.perf_counter
) -> Stream:
    """Open a stream and take whole chunks from it until there are at least `frames` frames.

    Raises `ValueError` when the stream ends before.
    """
    begin = clock()
    arrivals: list[float] = []
    counts: list[int] = []
    for chunk in start():
        arrivals.append(clock())
        counts.append(len(chunk.frames))
        if sum(counts) >= frames:
            break
    if sum(counts) < frames:
        raise ValueError(f"the stream ended after {sum(counts)} of {frames} frames")
    steady = arrivals[-1] - arrivals[0]
    return Stream(
        first_frame_s=arrivals[0] - begin,
        seconds=arrivals[-1] - begin,
        frames=sum(counts),
        chunks=len(counts),
        fps=sum(counts[1:]) / steady if len(counts) > 1 else 0.0,
    )


def fresh(arguments: Sequence[str], *, timeout_s: float = 600.0) -> dict[str, Any]:
    """Run `python ARGUMENTS` in a new process and read the JSON object on its last line.

    Raises `RuntimeError` with the end of what it printed when it fails.
    """
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=timeout_s, check=False
    )
    lines = done.stdout.strip().splitlines()
    if done.returncode != 0 or not lines:
        raise RuntimeError(f"python {' '.join(arguments)} failed:\n{done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(lines[-1])
    return result


@dataclass(frozen=True, kw_only=True)
class Environment:
    """Where a benchmark ran: without it a figure means nothing."""

    cpu: str
    cores: int
    threads: int
    memory_gb: float
    load_average: float
    system: str
    python: str
    versions: dict[str, str]
    commit: str
    gpu: str = ""

    @classmethod
    def capture(cls, *, threads: int, packages: Sequence[str], repo: Path) -> Environment:
        """Of this machine, now; `commit` ends in `+` when files of `repo` differ from it."""
        return cls(
            cpu=machine.cpu_name(),
            cores=machine.cores(),
            threads=threads,
            memory_gb=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
            load_average=round(os.getloadavg()[0], 2),
            system=f"{platform.system()} {platform.release()} {platform.machine()}",
            python=platform.python_version(),
            versions={name: _version(name) for name in packages},
            commit=_commit(repo),
            gpu=_gpu(),
        )

    def __str__(self) -> str:
        """Some lines for the head of a report."""
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        lines = [self.gpu] if self.gpu else []
        lines += [
            f"{self.cpu}, {self.cores} cores, {self.threads} threads, {self.memory_gb} GB, "
            f"load {self.load_average}",
            f"{self.system}, python {self.python}, {versions}",
            f"commit {self.commit}",
        ]
        return "\n".join(lines)


def write_json(path: Path, report: dict[str, Any]) -> None:
    """Write a report, whole or not at all."""
    draft = path.with_name(f".{path.name}.part")
    draft.write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    draft.replace(path)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _gpu() -> str:
    """Its name, driver, memory, power limit and clocks; empty where there is none."""
    asked = "name,driver_version,memory.total,power.limit,clocks.sm,clocks.max.sm"
    try:
        done = subprocess.run(
            ["nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader"],
            capture_output=True, text=True, check=True, timeout=20,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return ""
    fields = [field.strip() for field in done.stdout.partition("\n")[0].split(",")]
    if len(fields) != len(asked.split(",")):
        return ""
    name, driver, memory, power, clock, most = fields
    return f"{name}, driver {driver}, {memory}, {power}, {clock} now, at most {most}"


def _commit(repo: Path) -> str:
    """Of the checkout at `repo`, or what the variable COMMIT names where there is none."""

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(repo), *arguments], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + (
            "+" if git("status", "--porcelain") else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("COMMIT") or "unknown"


def digits(value: float) -> str:
    """Three significant digits, never in powers of ten."""
    if value == 0:
        return "0"
    places = max(0, 2 - _magnitude(abs(value)))
    return f"{value:.{places}f}"


def _magnitude(value: float) -> int:
    return int(f"{value:.2e}".partition("e")[2])

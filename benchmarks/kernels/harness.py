"""One kernel against its peers: right first, then how fast, in shares of what the chip can do.

A case computes its result once in high precision; whoever is off by more than the case's tolerance
is not timed, and when that is ours, nothing is reported. Contenders then take turns, so that drift
hits all alike; every figure is a median with its quartiles, a ratio the median of the rounds' own.
Times are the GPU's, with a cold L2 cache and launches already queued: what a captured graph sees.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..harness import REPO, Environment, Spread, write_json
from ..report import Goal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    Run = Callable[[], Tensor]
    Timer = Callable[[Run], float]
    Cases = Callable[[torch.device], Iterable["Case"]]
    Keep = Callable[[Sequence["Result"], Sequence[str]], None]

PACKAGES = ("livereel", "torch", "triton")


class NoGpuError(RuntimeError):
    """There is no CUDA device to time kernels on."""

    def __init__(self) -> None:
        super().__init__("kernel benchmarks run on a CUDA device, and torch sees none here")


class WrongResultError(Exception):
    """Our op does not compute what its reference does, so its speed means nothing."""


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One way to compute a case; `settings` has dtype, layout, backend and compile mode."""

    name: str
    settings: str
    run: Run


@dataclass(frozen=True, kw_only=True)
class Case:
    """One op at one shape.

    `truth` gives the result in fp32 or fp64; contenders may differ from it by `tolerance` times its
    largest value. `bytes_moved` is what anybody must read and write, `flops` what anybody must
    compute; a share is of the copy bandwidth where there are bytes, else of the matrix products'
    rate. The goals are `least_share`, and `least_ratio` over the fastest other contender.
    """

    op: str
    shape: str
    truth: Run
    tolerance: float
    ours: Contender
    others: Sequence[Contender]
    bytes_moved: int = 0
    flops: int = 0
    least_share: float = 0.0
    least_ratio: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Ceilings:
    """What this chip was measured to do: copied bytes and bf16 matrix products, per second."""

    copy: float
    matmul: float

    @classmethod
    def measure(cls, device: torch.device, timer: Timer, *, rounds: int = 20) -> Ceilings:
        """Of `device`, now: a copy of 1 GB and a product of two random 8192 x 8192."""
        source = torch.empty(1 << 30, dtype=torch.uint8, device=device)
        goal = torch.empty_like(source)
        copy = Spread.of([timer(lambda: goal.copy_(source)) for _ in range(rounds)])
        a, b = torch.randn(2, 8192, 8192, device=device, dtype=torch.bfloat16)
        matmul = Spread.of([timer(lambda: a @ b) for _ in range(rounds)])
        return cls(copy=(2 << 30) / copy.median * 1e3, matmul=2 * 8192**3 / matmul.median * 1e3)

    def __str__(self) -> str:
        """One line for the head of a report."""
        return (
            f"measured ceilings: copy {self.copy / 1e12:.2f} TB/s, "
            f"bf16 matrix products {self.matmul / 1e12:.0f} TFLOP/s"
        )


class CudaTimer:
    """Milliseconds of one run on a CUDA device, by events.

    Before each run the L2 cache is overwritten and the device kept busy for a moment, so that the
    host has queued all of the run's launches when it begins.
    """

    BUSY_CYCLES = 2_000_000

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._flush = torch.empty(256 << 20, dtype=torch.uint8, device=device)

    def __call__(self, run: Run) -> float:
        """Time one run."""
        with torch.cuda.device(self._device):
            start = torch.cuda.Event(enable_timing=True)
            end = torch.cuda.Event(enable_timing=True)
            self._flush.zero_()
            torch.cuda._sleep(self.BUSY_CYCLES)
            start.record()
            run()
            end.record()
            end.synchronize()
            return float(start.elapsed_time(end))


@dataclass(frozen=True, kw_only=True)
class Timing:
    """What a contender took, each round, in milliseconds."""

    name: str
    settings: str
    milliseconds: tuple[float, ...]

    @property
    def spread(self) -> Spread:
        """The median round and the quartiles."""
        return Spread.of(self.milliseconds)


@dataclass(frozen=True, kw_only=True)
class Result:
    """A case, timed: ours first, then the peers; `notes` name those left out."""

    op: str
    shape: str
    bytes_moved: int
    flops: int
    timings: tuple[Timing, ...]
    notes: tuple[str, ...] = ()
    goals: tuple[Goal, ...] = field(default=())

    def speed(self, timing: Timing) -> str:
        """`2012 GB/s` or `612 TFLOP/s`."""
        per_second = 1e3 / timing.spread.median
        if self.bytes_moved:
            return f"{self.bytes_moved * per_second / 1e9:.0f} GB/s"
        return f"{self.flops * per_second / 1e12:.0f} TFLOP/s"

    def share(self, timing: Timing, ceilings: Ceilings) -> float:
        """Of what the chip can copy, or multiply."""
        per_second = 1e3 / timing.spread.median
        if self.bytes_moved:
            return self.bytes_moved * per_second / ceilings.copy
        return self.flops * per_second / ceilings.matmul

    @property
    def fastest_other(self) -> Timing | None:
        """The peer that counts."""
        return min(self.timings[1:], key=lambda other: other.spread.median, default=None)

    def ratio(self, other: Timing) -> Spread:
        """How many times faster we are, round by round."""
        pairs = zip(self.timings[0].milliseconds, other.milliseconds, strict=True)
        return Spread.of([theirs / ours for ours, theirs in pairs])

    def to_text(self, ceilings: Ceilings) -> str:
        """A block of the printed report."""
        lines = [f"{self.op}  {self.shape}"]
        for timing in self.timings:
            share = f"{self.share(timing, ceilings):4.0%}"
            lines.append(
                f"  {timing.name:14} {timing.settings:36} {timing.spread!s:24} ms  "
                f"{self.speed(timing):>12}  {share}"
            )
        if self.fastest_other is not None:
            peer = self.fastest_other
            lines.append(f"  over {peer.name} ({peer.settings}) {self.ratio(peer)}x")
        lines += [f"  {note}" for note in self.notes]
        lines += [f"  {goal}" for goal in self.goals]
        return "\n".join(lines)


def measure(case: Case, ceilings: Ceilings, timer: Timer, *, rounds: int = 30) -> Result:
    """Check everybody, then time `rounds` runs of each in turns.

    Raises `WrongResultError` when our result is wrong; a peer whose result is, or that does not
    run, is left out with a note.
    """
    truth = case.truth()
    error = _error(case.ours.run(), truth)
    if not error <= case.tolerance:
        raise WrongResultError(
            f"{case.op} {case.shape}: ours is off by {error:.2g} of the largest value, allowed are "
            f"{case.tolerance:.2g}; nothing is timed"
        )
    contenders, notes = [case.ours], []
    for other in case.others:
        try:
            error = _error(other.run(), truth)
        except Exception as failure:
            reason = _first_line(failure)
            notes.append(f"left out: {other.name} ({other.settings}) failed: {reason}")
            continue
        if error <= case.tolerance:
            contenders.append(other)
        else:
            notes.append(f"left out: {other.name} ({other.settings}) is off by {error:.2g}")
    del truth
    for contender in contenders:
        timer(contender.run)
    times: list[list[float]] = [[] for _ in contenders]
    for turn in range(rounds):
        for i in range(len(contenders)):
            which = (turn + i) % len(contenders)
            times[which].append(timer(contenders[which].run))
    timings = tuple(
        Timing(name=who.name, settings=who.settings, milliseconds=tuple(took))
        for who, took in zip(contenders, times, strict=True)
    )
    result = Result(
        op=case.op,
        shape=case.shape,
        bytes_moved=case.bytes_moved,
        flops=case.flops,
        timings=timings,
        notes=tuple(notes),
    )
    return dataclasses.replace(result, goals=_goals(case, result, ceilings))


def _error(result: Tensor, truth: Tensor) -> float:
    """The largest deviation as a share of the largest value; infinite for NaN or another shape."""
    if result.shape != truth.shape:
        return float("inf")
    wide = torch.promote_types(truth.dtype, torch.float32)
    off = (result.to(wide) - truth.to(wide)).abs().max() / truth.to(wide).abs().max()
    return float(off) if bool(off.isfinite()) else float("inf")


def _goals(case: Case, result: Result, ceilings: Ceilings) -> tuple[Goal, ...]:
    goals = []
    if case.least_share:
        what = "copy bandwidth" if case.bytes_moved else "matrix products' rate"
        share = result.share(result.timings[0], ceilings)
        goals.append(Goal(what=f"share of {what}", value=share, bound=case.least_share))
    if case.least_ratio and result.fastest_other is not None:
        peer = result.fastest_other
        ratio = result.ratio(peer).median
        goals.append(Goal(what=f"over {peer.name}", value=ratio, bound=case.least_ratio, unit="x"))
    return tuple(goals)


def run(
    benches: Mapping[str, Cases],
    *,
    rounds: int,
    device: torch.device,
    timer: Timer,
    ceilings: Ceilings,
    keep: Keep = lambda results, wrong: None,
) -> tuple[list[Result], list[str]]:
    """Measure and print every case of `benches`; gives the results, and what was wrong or failed.

    `keep` is given both after each case, so that a run that is cut short leaves something.
    """
    results: list[Result] = []
    wrong: list[str] = []

    def tell(reason: str) -> None:
        wrong.append(reason)
        print(f"\nWRONG  {reason}", flush=True)
        keep(results, wrong)

    for op, cases in benches.items():
        try:
            for case in cases(device):
                try:
                    result = measure(case, ceilings, timer, rounds=rounds)
                except WrongResultError as error:
                    tell(str(error))
                    continue
                except Exception as error:
                    tell(f"{case.op} {case.shape}: failed: {_first_line(error)}")
                    continue
                results.append(result)
                print(f"\n{result.to_text(ceilings)}", flush=True)
                keep(results, wrong)
                del case
                gc.collect()
        except Exception as error:
            tell(f"{op}: a case could not be set up: {_first_line(error)}")
    return results, wrong


def _first_line(error: Exception) -> str:
    said = str(error).strip().splitlines() or [type(error).__name__]
    return f"{said[0]:.120}"


def report(benches: Mapping[str, Cases], *, rounds: int = 30, path: Path | None = None) -> int:
    """Print every bench of `benches`, on the current CUDA device, and write JSON to `path`.

    Gives 1 when a result was wrong, else 0; a missed goal is told and no failure. Raises
    `NoGpuError` without a CUDA device.
    """
    if not torch.cuda.is_available():
        raise NoGpuError
    device = torch.device("cuda", torch.cuda.current_device())
    environment = Environment.capture(threads=torch.get_num_threads(), packages=PACKAGES, repo=REPO)
    timer = CudaTimer(device)
    ceilings = Ceilings.measure(device, timer)
    name = torch.cuda.get_device_name(device)
    print(f"{environment}\n{name}, CUDA {torch.version.cuda}, {ceilings}")

    def keep(results: Sequence[Result], wrong: Sequence[str]) -> None:
        content = {
            "environment": dataclasses.asdict(environment),
            "device": name,
            "cuda": torch.version.cuda,
            "ceilings": dataclasses.asdict(ceilings),
            "results": [_values(result, ceilings) for result in results],
            "wrong": [*wrong],
        }
        if path is not None:
            write_json(path, content)

    _, wrong = run(benches, rounds=rounds, device=device, timer=timer, ceilings=ceilings, keep=keep)
    return 1 if wrong else 0


def _values(result: Result, ceilings: Ceilings) -> dict[str, Any]:
    values = dataclasses.asdict(result)
    for timing, shown in zip(result.timings, values["timings"], strict=True):
        shown["median_ms"] = timing.spread.median
        shown["share"] = result.share(timing, ceilings)
    peer = result.fastest_other
    values["fastest_other"] = None if peer is None else peer.name
    values["ratio"] = None if peer is None else result.ratio(peer).median
    for goal, shown in zip(result.goals, values["goals"], strict=True):
        shown["met"] = goal.met
    return values


def main(op: str, cases: Cases, argv: Sequence[str] | None = None) -> int:
    """The command line of one bench file. Gives the exit code."""
    parser = argparse.ArgumentParser(prog=f"bench_{op}")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every figure to FILE")
    options = parser.parse_args(argv)
    try:
        return report({op: cases}, rounds=options.rounds, path=options.json)
    except NoGpuError as error:
        print(error)
        return 2


def compiled(function: Callable[..., Any]) -> Contender:
    """A peer: `function` through torch.compile at its best for kernels, for fixed shapes."""
    torch._dynamo.config.recompile_limit = 64  # one for each shape of a bench
    mode = "max-autotune-no-cudagraphs"
    run = torch.compile(function, mode=mode, dynamic=False, fullgraph=True)
    return Contender(name="torch.compile", settings=mode, run=run)

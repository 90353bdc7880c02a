"""From nothing to the first frame: fresh processes, one after the other, and where their time goes.

    livereel bench startup [--model demo] [--runs 5] [--json FILE]

A run is a new Python process that loads a model and opens a stream. It counts from the moment the
process is asked for to its first frames lying in memory as bytes: the interpreter, imports, weights
to the device, and the first chunk, which is the text, every pass, the VAE and the conversion. One
process before the others is told apart: it may have to read the files from the disk, which the
system keeps in memory for those that follow.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from livereel.engine import machine

from . import harness
from .harness import Spread
from .report import Goal, Section

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

PROMPT = "a large red circle moving right on a white background"
GOAL_S = 20.0
TOTAL = "cold process to first frame, s"
_INSIDE = "interpreter, imports, weights, text, passes, VAE, conversion; not encode"


@dataclass(frozen=True, kw_only=True)
class Startup:
    """What is started. `empty_cache` has Triton compile all its kernels in each process anew."""

    model: str = "demo"
    device: str = "auto"
    dtype: str = "auto"
    empty_cache: bool = False

    def arguments(self) -> list[str]:
        """How a fresh process is told to start it."""
        options = [f"--model={self.model}", f"--device={self.device}", f"--dtype={self.dtype}"]
        return [
            "-m",
            f"{__package__}.bench_startup",
            *options,
            *(["--empty-cache"] if self.empty_cache else []),
        ]


def measure(
    startup: Startup,
    *,
    runs: int,
    fresh: Callable[[Sequence[str]], dict[str, Any]] = harness.fresh,
    clock: Callable[[], float] = time.monotonic,
) -> Section:
    """Start `runs` processes, and one before them. Their clock must be the system's `clock`.

    Raises what `harness.fresh` does.
    """
    seen: list[dict[str, float]] = []
    for _ in range(runs + 1):
        asked = clock()
        seen.append(_stages(asked, fresh(startup.arguments())))
    before, *timed = seen
    figures = {name: Spread.of([run[name] for run in timed]) for name in before}
    kernels = "an empty kernel cache" if startup.empty_cache else "kernels as they were cached"
    return Section(
        title=f"startup of {startup.model}: {runs} fresh processes, {kernels}",
        figures=figures,
        contents={
            TOTAL: "interpreter, imports, weights, text, passes, VAE, conversion; not encode"
        },
        notes=[f"the process before these: {before[TOTAL]:.2f} s to its first frame"],
        goals=[Goal(what=f"{TOTAL}:", value=figures[TOTAL].median, bound=GOAL_S, at_least=False)],
    )


def _stages(asked: float, said: dict[str, Any]) -> dict[str, float]:
    stages = {
        "interpreter, s": said["begun"] - asked,
        "imports, s": said["imported"] - said["begun"],
        "load, s": said["loaded"] - said["imported"],
        "first chunk, s": said["shown"] - said["loaded"],
        TOTAL: said["shown"] - asked,
    }
    if said["peak"] is not None:  # the machine tells
        stages["peak memory, GB"] = said["peak"] / 1e9
    return stages


def probe(startup: Startup, clock: Callable[[], float] = time.monotonic) -> dict[str, float | None]:
    """In a fresh process: when each stage was over, and the most memory that was taken."""
    begun = clock()
    from livereel.engine import Engine

    imported = clock()
    engine = Engine.load(startup.model, device=startup.device, dtype=startup.dtype)
    loaded = clock()
    next(iter(engine.open(PROMPT, seed=0)))
    return {
        "begun": begun,
        "imported": imported,
        "loaded": loaded,
        "shown": clock(),
        "peak": machine.peak_memory(),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """The fresh process: start once and print one JSON object."""
    parser = argparse.ArgumentParser(prog="bench_startup", description="Start a model once.")
    for name in ("model", "device", "dtype"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--empty-cache", action="store_true")
    startup = Startup(**vars(parser.parse_args(argv)))
    with tempfile.TemporaryDirectory() as folder:
        if startup.empty_cache:
            os.environ["TRITON_CACHE_DIR"] = folder
        print(json.dumps(probe(startup)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

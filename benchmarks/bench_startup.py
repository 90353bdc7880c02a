"""From nothing to the first frame: fresh processes, one after the other, and where their time goes.

    livereel bench startup [--model demo] [--runs 5] [--baseline diffusers] [--json FILE]

A run is a new Python process that loads a model and opens a stream. It counts from the moment the
process is asked for to its first frames lying in memory as bytes: the interpreter, imports, weights
to the device, and the first chunk, which is the text, every pass, the VAE and the conversion. One
process before the others is told apart: it may have to read the files from the disk, which the
system keeps in memory for those that follow.

diffusers, where it is asked for, takes turns with ours: its pipeline from the same folder, and a
clip of the stream's window in the stream's steps, whose first frame comes with its last.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
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
OURS, DIFFUSERS = "livereel", "diffusers"
_INSIDE = "interpreter, imports, weights, text, {}, VAE, conversion; not encode"
_MADE = {OURS: "a first chunk's passes", DIFFUSERS: "the passes of a clip of the window's length"}


@dataclass(frozen=True, kw_only=True)
class Startup:
    """What is started, and `by` whom. `empty_cache` has each process compile anew all that Triton
    and torch.compile keep compiled."""

    model: str = "demo"
    device: str = "auto"
    dtype: str = "auto"
    by: str = OURS
    empty_cache: bool = False

    def arguments(self) -> list[str]:
        """How a fresh process is told to start it."""
        options = [f"--{name}={getattr(self, name)}" for name in ("model", "device", "dtype", "by")]
        options += ["--empty-cache"] if self.empty_cache else []
        return ["-m", f"{__package__}.bench_startup", *options]


def measure(
    startup: Startup,
    *,
    runs: int,
    baseline: bool = False,
    fresh: Callable[[Sequence[str]], dict[str, Any]] = harness.fresh,
    clock: Callable[[], float] = time.monotonic,
) -> Section:
    """Start `runs` processes, and one before them; with `baseline` as many by diffusers, in turns.
    Their clock must be the system's `clock`.

    Raises what `harness.fresh` does.
    """
    both = [startup, *([replace(startup, by=DIFFUSERS)] if baseline else [])]
    seen: dict[str, list[dict[str, float]]] = {one.by: [] for one in both}
    for turn in range(runs + 1):
        for one in both if turn % 2 == 0 else reversed(both):
            asked = clock()
            seen[one.by].append(_stages(asked, fresh(one.arguments())))
    figures, notes = {}, []
    for by, (before, *timed) in seen.items():
        for name in before:
            figures[f"{by}: {name}"] = Spread.of([run[name] for run in timed])
        notes.append(f"{by}: the process before these: {before[TOTAL]:.2f} s to its first frame")
    ours, *theirs = ([run[TOTAL] for run in timed[1:]] for timed in seen.values())
    kernels = "an empty kernel cache" if startup.empty_cache else "kernels as they were cached"
    total = Spread.of(ours)
    return Section(
        title=f"startup of {startup.model}: {runs} fresh processes, {kernels}",
        figures=figures,
        ratios={
            f"{OURS} over {DIFFUSERS}": Spread.of(
                [slow / fast for fast, slow in zip(ours, other, strict=True)]
            )
            for other in theirs
        },
        contents={by: _INSIDE.format(_MADE[by]) for by in seen},
        notes=notes,
        goals=[Goal(what=f"{TOTAL}:", value=total.median, bound=GOAL_S, at_least=False)],
        setup={"what": "startup", "model": Path(startup.model).name, "dtype": startup.dtype,
               "device": startup.device, "kernels": "none" if startup.empty_cache else "cached"},
    )  # fmt: skip


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
    return _moments(begun=begun, imported=imported, loaded=loaded, shown=clock())


def probe_diffusers(
    startup: Startup, clock: Callable[[], float] = time.monotonic
) -> dict[str, float | None]:
    """The same of its pipeline and a clip. `startup` names the device and the dtype."""
    begun = clock()
    import torch

    library: Any = import_module("diffusers")
    pipelines = library.DiffusionPipeline
    imported = clock()
    from livereel.engine.checkpoint.folder import DEMO

    from . import models
    from .baseline_diffusers import leave_control_out

    stream = models.find(startup.model).stream
    folder = DEMO if startup.model == "demo" else startup.model
    pipeline = pipelines.from_pretrained(
        folder, torch_dtype=getattr(torch, startup.dtype), local_files_only=True
    )
    leave_control_out(pipeline.transformer, stream.told_channels)
    pipeline.to(startup.device)
    pipeline.set_progress_bar_config(disable=True)
    loaded = clock()
    video = pipeline(
        PROMPT, width=stream.width, height=stream.height,
        num_frames=1 + pipeline.vae_scale_factor_temporal * (stream.window - 1),
        num_inference_steps=len(stream.timesteps), guidance_scale=max(1.0, stream.guidance_scale),
        max_sequence_length=stream.max_sequence_length, output_type="np",
    ).frames[0]  # fmt: skip
    (video * 255.0).round().astype("uint8")
    return _moments(begun=begun, imported=imported, loaded=loaded, shown=clock())


def _moments(**moments: float) -> dict[str, float | None]:
    return {**moments, "peak": machine.peak_memory()}


def main(argv: Sequence[str] | None = None) -> int:
    """The fresh process: start once and print one JSON object."""
    parser = argparse.ArgumentParser(prog="bench_startup", description="Start a model once.")
    for name in ("model", "device", "dtype", "by"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--empty-cache", action="store_true")
    startup = Startup(**vars(parser.parse_args(argv)))
    with tempfile.TemporaryDirectory() as folder:
        if startup.empty_cache:
            os.environ["TRITON_CACHE_DIR"] = os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        print(json.dumps((probe if startup.by == OURS else probe_diffusers)(startup)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

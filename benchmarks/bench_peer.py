"""LiveReel against diffusers: the same weights, machine and process.

    python -m livereel.benchmarks.bench_peer [--only decode] [--rounds 5] [--json FILE]

decode  the VAE alone, one clip's latents to frames, both as floats in [-1, 1]
stream  prompt to uint8 frames with all work included: text, every DiT pass (among ours the one that
        writes the cache), VAE, conversion; the peer is diffusers' whole-clip `WanPipeline`, with no
        more passes than each of our frames saw, guided ones being two
start   load time past the imports, the wait for the first frame, the steady rate of a stream and
        peak resident memory, each in fresh processes

The peer runs as it comes (fp32) and at its best: of bf16, channels-last and torch.compile whatever
a trial on this machine finds fastest. When the decoders' frames differ, nothing is reported.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from livereel.engine import machine

from . import harness
from .harness import REPO, Case, Environment, Spread
from .report import Contents, Goal, Section, to_json

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from livereel.engine.config import StreamConfig

    from .peer import Peer

    Job = Callable[[Peer], Callable[[], int]]

PACKAGES = ("livereel", "torch", "diffusers", "transformers", "numpy")
_DECODED = Contents(passes=0, cache_pass=False, vae="full", conversion=False)
MIN_PSNR = 30.0  # dB between our frames and the peer's in fp32; bf16 alone costs some


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What was asked for on the command line."""

    model: str = "demo"
    prompt: str = "a large red circle moving right on a white background"
    seconds: float = 2.0
    rounds: int = 5
    warmup: int = 1
    threads: int = 0
    compiled: bool = True
    processes: int = 3
    seed: int = 0
    clock: Callable[[], float] = time.perf_counter

    @property
    def folder(self) -> Path:
        """Where the weights lie."""
        from livereel.engine.checkpoint.folder import DEMO

        return DEMO if self.model == "demo" else Path(self.model)

    def stream(self) -> StreamConfig:
        """The folder's `livereel.json`."""
        from livereel.engine.checkpoint.folder import open_folder

        return open_folder(self.folder).stream

    def clip_frames(self, fps: float) -> int:
        """Frames of a whole clip that lasts at least `seconds`: one, and then fours."""
        return 1 + 4 * math.ceil((round(self.seconds * fps) - 1) / 4)


def decode(bench: Bench) -> Section:
    """Time the decoders on one clip's latents."""
    from livereel.engine import Engine

    from .peer import Peer

    stream = bench.stream()
    engine, peer = Engine.load(bench.model), Peer(bench.folder, stream)
    frames = bench.clip_frames(stream.fps)
    latents = peer.random_latents(frames, seed=bench.seed)
    agreement = psnr(engine.decode(latents), peer.decode(latents))
    if agreement < MIN_PSNR:
        raise SystemExit(
            f"the decoders' frames differ ({agreement:.1f} dB, at least {MIN_PSNR:g} wanted), "
            "so no speed is reported"
        )
    return compare(
        bench,
        f"decode: {frames} frames of {stream.width}x{stream.height}",
        engine,
        lambda: int(engine.decode(latents).shape[2]),
        peer,
        lambda peer: lambda: int(peer.decode(latents).shape[2]),
        inside=(_DECODED, _DECODED),
        goals=(4.0, 1.8),
        notes=[f"same frames as diffusers in fp32 to {agreement:.1f} dB"],
    )


def stream(bench: Bench) -> Section:
    """Time the way from a prompt to uint8 frames."""
    from livereel.engine import Engine

    from .peer import Peer

    stream = bench.stream()
    engine, peer = Engine.load(bench.model), Peer(bench.folder, stream)
    video = engine.generate(bench.prompt, seconds=bench.seconds, seed=bench.seed)
    passes = max(stats.passes for stats in video.stats)
    forwards = 2 if stream.guidance_scale > 1 else 1
    least = passes // forwards * forwards
    frames = bench.clip_frames(stream.fps)
    return compare(
        bench,
        f"stream: {len(video.frames)} frames (diffusers {frames}) of {stream.width}x"
        f"{stream.height} from a prompt to uint8, {passes} passes a frame",
        engine,
        lambda: len(engine.generate(bench.prompt, seconds=bench.seconds, seed=bench.seed).frames),
        peer,
        lambda peer: (
            lambda: len(peer.clip(bench.prompt, frames=frames, passes=passes, seed=bench.seed))
        ),
        inside=(
            Contents(passes=passes, cache_pass=True, vae="full", text=True),
            Contents(passes=least, cache_pass=False, vae="full", text=True),
        ),
        goals=(3.0, 1.5),
    )


def compare(
    bench: Bench,
    title: str,
    engine: Any,
    ours: Callable[[], int],
    peer: Peer,
    job: Job,
    *,
    inside: tuple[Contents, Contents],
    goals: Sequence[float],
    notes: Sequence[str] = (),
) -> Section:
    """Ours, the peer at its defaults and the peer at its best, taking turns at the same job."""
    best, tried = find_best(bench, peer, job)
    dtype = str(engine.dtype).removeprefix("torch.")
    cases = [
        Case(name="livereel", settings=f"{dtype} on {engine.device} (defaults)", run=ours),
        Case(name="diffusers", settings=str(peer.setting), run=job(peer)),
        Case(name="diffusers, best", settings=str(best.setting), run=job(best)),
    ]
    timings = harness.measure(cases, rounds=bench.rounds, warmup=bench.warmup, clock=bench.clock)
    own, theirs = map(str, inside)
    contents = {t.name: own if t is timings[0] else theirs for t in timings}
    return Section.compare(title, timings, goals=goals, notes=[*notes, *tried], contents=contents)


def find_best(bench: Bench, defaults: Peer, job: Job) -> tuple[Peer, list[str]]:
    """The peer with its fastest settings for a job, and lines that say what was tried."""
    from .peer import EAGER

    found: list[tuple[float, Peer]] = []
    notes: list[str] = []

    def attempt(peer: Peer) -> None:
        case = Case(name="trial", settings=str(peer.setting), run=job(peer))
        warmup = 2 if peer.setting.compiled else 1
        [timing] = harness.measure([case], rounds=3, warmup=warmup, clock=bench.clock)
        found.append((timing.fps.median, peer))
        notes.append(f"trial of diffusers with {peer.setting}: {timing.fps} frames a second")

    attempt(defaults)
    for setting in EAGER:
        attempt(defaults.having(setting))
    if bench.compiled:
        fastest = max(found, key=lambda entry: entry[0])[1]
        setting = dataclasses.replace(fastest.setting, compiled=True)
        try:
            attempt(defaults.having(setting))
        except Exception as error:  # whatever a compiler raises; the best is an eager one then
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            notes.append(f"trial of diffusers with {setting} failed: {reason[:120]}")
    return max(found, key=lambda entry: entry[0])[1], notes


def start(bench: Bench) -> Section:
    """Load, first frame, steady rate and memory, in fresh processes that take turns."""
    runs: dict[str, list[dict[str, float]]] = {"livereel": [], "diffusers": []}
    for _ in range(bench.processes):
        for who, seen in runs.items():
            seen.append(harness.fresh(probe_arguments(bench, who)))
    figures = {
        f"{who}: {name}": Spread.of([run[name] for run in seen])
        for who, seen in runs.items()
        for name in seen[0]
    }

    def goal(name: str, bound: float, unit: str, *, at_least: bool = False) -> Goal:
        value = figures[f"livereel: {name}"].median
        return Goal(what=f"{name}:", value=value, bound=bound, unit=unit, at_least=at_least)

    return Section(
        title=f"start: {bench.processes} fresh processes each",
        figures=figures,
        notes=["diffusers gives the first frame of a clip together with its last"],
        goals=[
            goal("frames a second", 48, "", at_least=True),
            goal("first frame, s", 0.2, " s"),
            goal("load, s", 3, " s"),
            goal("peak memory, GB", 1.5, " GB"),
        ],
    )


def probe_arguments(bench: Bench, who: str) -> list[str]:
    """How a fresh process is told to measure `who`."""
    options = {
        "probe": who,
        "model": bench.model,
        "prompt": bench.prompt,
        "seconds": bench.seconds,
        "threads": bench.threads,
    }
    return ["-m", f"{__package__}.bench_peer", *(f"--{k}={v}" for k, v in options.items())]


def probe(bench: Bench, who: str) -> dict[str, float]:
    """In a fresh process: our stream for five times `seconds`, or the peer's clip of `seconds`."""
    begin = bench.clock()
    stream = bench.stream()
    from transformers.models.umt5 import modeling_umt5  # noqa: F401  what both import to load

    if who == "livereel":
        from livereel.engine import Engine

        set_threads(bench.threads)
        imported = bench.clock()
        engine = Engine.load(bench.model)
        loaded = bench.clock()
        seen = harness.watch(
            lambda: engine.open(bench.prompt, seed=bench.seed),
            frames=round(5 * bench.seconds * stream.fps),
            clock=bench.clock,
        )
        first_frame, fps = seen.first_frame_s, seen.fps
    else:
        from .peer import Peer

        set_threads(bench.threads)
        imported = bench.clock()
        peer = Peer(bench.folder, stream)
        loaded = bench.clock()
        frames = bench.clip_frames(stream.fps)
        passes = len(stream.timesteps) * (2 if stream.guidance_scale > 1 else 1) + 1
        peer.clip(bench.prompt, frames=frames, passes=passes, seed=bench.seed)
        first_frame = bench.clock() - loaded
        fps = frames / first_frame
    return {
        "imports, s": imported - begin,
        "load, s": loaded - imported,
        "first frame, s": first_frame,
        "frames a second": fps,
        "peak memory, GB": (machine.peak_memory() or math.nan) / 1e9,
    }


def set_threads(threads: int) -> int:
    """Give torch `threads` threads (0 leaves its own choice) and say how many it has."""
    import torch

    if threads > 0:
        torch.set_num_threads(threads)
    return torch.get_num_threads()


def psnr(a: Any, b: Any) -> float:
    """Of two tensors of pictures in [-1, 1], in dB."""
    error = float((a.float() - b.float()).square().mean())
    return math.inf if error == 0 else 10 * math.log10(4 / error)


SECTIONS = {"decode": decode, "stream": stream, "start": start}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the sections asked for and print them. Gives 1 when a goal was missed."""
    plain = Bench()
    parser = argparse.ArgumentParser(
        prog="bench_peer",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", default=plain.model, help='"demo" or a model folder')
    add("--prompt", default=plain.prompt)
    add("--seconds", type=float, default=plain.seconds, help="of video a run makes")
    add("--rounds", type=int, default=plain.rounds)
    add("--warmup", type=int, default=plain.warmup, help="runs before the rounds")
    add("--threads", type=int, default=0, help="of torch (default: its own choice)")
    add("--only", choices=SECTIONS, action="append", help="a section; may be repeated")
    add("--no-compile", action="store_true", help="do not try torch.compile for the peer")
    add("--json", type=Path, metavar="FILE", help="also write every figure to FILE")
    add("--probe", choices=("livereel", "diffusers"), help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    bench = Bench(
        model=options.model,
        prompt=options.prompt,
        seconds=options.seconds,
        rounds=options.rounds,
        warmup=options.warmup,
        threads=options.threads,
        compiled=not options.no_compile,
    )
    if options.probe:
        print(json.dumps(probe(bench, options.probe)))
        return 0
    threads = set_threads(bench.threads)
    environment = Environment.capture(threads=threads, packages=PACKAGES, repo=REPO)
    print(environment)
    sections: dict[str, Section] = {}
    for name in options.only or SECTIONS:
        sections[name] = SECTIONS[name](bench)
        print(f"\n{sections[name]}", flush=True)
    if options.json:
        options.json.write_text(to_json(environment, sections) + "\n", encoding="utf-8")
    return 0 if all(goal.met for section in sections.values() for goal in section.goals) else 1


if __name__ == "__main__":
    raise SystemExit(main())

"""`livereel bench stream`, `clip`, `vae` and `serve`: what is timed with a model loaded."""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from ..errors import ResourceError
from . import arguments
from . import bench_options as shared

if TYPE_CHECKING:
    from livereel.benchmarks.subject import Subject

_STREAM = """\
The window is filled first; then ours and the baselines take turns, a chunk each. Each figure says
what is in it. More than one size, number of steps or window: one at a time departs from the first.

baselines:
  loop            a plain KV-cached loop over diffusers' modules, as Self-Forcing's recipe runs
  diffusers       its pipeline on whole clips of the window's length, eager
  diffusers-fast  the same with a channels-last VAE, torch.compile and, on CUDA, cuDNN's attention

examples:
  livereel bench stream --json stream.json --plot stream.html
  livereel bench stream --size 64x64 128x128 192x192 --steps 6 3 2 --window 6 9 12 --baseline none
  livereel bench stream --model wan2.1-1.3b --random-weights --decoder tiny --json stream.json
"""
_CLIP = """\
All make the same clip as a whole, from the same noise, and take turns. In fp32 nothing is reported
where their frames differ.

example:
  livereel bench clip --model wan2.1-1.3b --random-weights --runs 1 --json clip.json
"""
_VAE = """\
All decode the same latents to floats on the device; where frames differ, nothing is reported.
"""
_SERVE = """\
A server of its own is started, and watched over its socket by more and more clients.
"""
_STREAMS_MOST = 64
STREAM_BASELINES = ("loop", "diffusers", "diffusers-fast")
CLIP_BASELINES = ("diffusers", "diffusers-fast")
VAE_BASELINES = ("diffusers", "diffusers-channels-last", "diffusers-fast")


def add(whats: Any) -> None:
    """Add these to what can be benched."""
    _add_stream(whats)
    _add_clip(whats)
    _add_vae(whats)
    _add_serve(whats)


def _add_stream(whats: Any) -> None:
    summary = "time a live stream chunk by chunk, beside other ways to make the frames"
    parser = shared.add_command(whats, "stream", summary, _STREAM, _stream)
    shared.add_subject(parser)
    add = parser.add_argument
    add("--size", type=arguments.size, nargs="+", metavar="WxH", help="in pixels")
    add("--steps", type=arguments.whole(1, 1000), nargs="+", help="of the model's, for each chunk")
    add("--window", type=arguments.whole(1, 4096), nargs="+", help="latent frames a chunk sees")
    add("--chunk", type=arguments.whole(1, 64), help="latent frames of a chunk")
    add("--first-chunk", type=arguments.whole(1, 64), help="and of a stream's first")
    shared.add_rounds(parser, runs=20, of="chunks")
    shared.add_baselines(parser, STREAM_BASELINES)
    shared.add_json(parser)
    shared.add_plot(parser)


def _stream(options: argparse.Namespace) -> int:
    shared.check_outputs(options)
    _check_model(options)
    from livereel.benchmarks import bench_stream

    axes = bench_stream.Axes(
        sizes=options.size or (None,), steps=options.steps or (None,),
        windows=options.window or (None,), chunk=options.chunk, first_chunk=options.first_chunk,
    )  # fmt: skip
    whole = _load(options)
    subjects = axes.subjects(whole)
    baselines = _baselines(options, "loop" if _loops(whole) else "diffusers", "diffusers")
    top = _ceilings(whole)
    sections = {}
    for subject in subjects:
        section = bench_stream.measure(
            subject, baselines, runs=options.runs, warmup=options.warmup, top=top
        )
        sections[bench_stream.title(subject)] = section
        print(f"\n{section}", flush=True)
    return shared.finish(options, sections)


def _add_clip(whats: Any) -> None:
    summary = "time whole clips, from noise to bytes, beside diffusers'"
    parser = shared.add_command(whats, "clip", summary, _CLIP, _clip)
    shared.add_subject(parser)
    add = parser.add_argument
    add("--size", type=arguments.size, metavar="WxH", help="in pixels")
    add("--frames", type=arguments.whole(1, 10_000), help="of the clip (default: the model's)")
    add(
        "--steps",
        type=arguments.whole(1, 1000),
        default=50,
        help="of two passes each (default: 50)",
    )
    add("--runs", type=arguments.whole(1, 1000), default=3, help="clips (default: 3)")
    shared.add_baselines(parser, CLIP_BASELINES)
    shared.add_json(parser)
    shared.add_plot(parser)


def _clip(options: argparse.Namespace) -> int:
    shared.check_outputs(options)
    _check_model(options)
    from livereel.benchmarks import bench_clip
    from livereel.benchmarks.baseline_diffusers import Clip

    from ..whole_clip import GUIDANCE

    whole = _load(options)
    frames = options.frames or whole.model.frames
    section = bench_clip.measure(
        whole.at(size=options.size), _baselines(options, "diffusers-fast"),
        Clip(frames=frames, steps=options.steps, guidance=GUIDANCE), runs=options.runs,
        top=_ceilings(whole),
    )  # fmt: skip
    print(section, flush=True)
    return shared.finish(options, {"clip": section})


def _add_vae(whats: Any) -> None:
    parser = shared.add_command(whats, "vae", "time the VAE's decoder by itself", _VAE, _vae)
    shared.add_subject(parser)
    add = parser.add_argument
    add("--size", type=arguments.size, metavar="WxH", help="in pixels")
    add("--frames", type=arguments.whole(1, 10_000), help="of the clip (default: the model's)")
    shared.add_rounds(parser, runs=7, of="clips")
    shared.add_baselines(parser, VAE_BASELINES)
    shared.add_json(parser)
    shared.add_plot(parser)


def _vae(options: argparse.Namespace) -> int:
    shared.check_outputs(options)
    _check_model(options)
    from livereel.benchmarks import bench_vae

    subject = _load(options).at(size=options.size)
    section = bench_vae.measure(
        subject, _baselines(options, "diffusers", "diffusers-channels-last"),
        frames=options.frames or subject.model.frames, runs=options.runs, warmup=options.warmup,
        top=_ceilings(subject),
    )  # fmt: skip
    print(section, flush=True)
    return shared.finish(options, {"vae": section})


def _add_serve(whats: Any) -> None:
    summary = "time the live server under more and more streams, as its clients see it"
    parser = shared.add_command(whats, "serve", summary, _SERVE, _serve)
    add = parser.add_argument
    add("--model", default="demo", help='"demo" or a model folder')
    add("--streams", type=arguments.whole(1, _STREAMS_MOST), nargs="+", default=[1, 2, 4])
    add("--fps", type=arguments.fps, help="of each stream (default: the model's)")
    add("--seconds", type=arguments.seconds, default=15.0, help="for each number of streams")
    shared.add_json(parser)
    add("--plot", metavar="FILE", help="also draw them, such as serve.png")


def _serve(options: argparse.Namespace) -> int:
    paths = {"json": shared.json_path(options), "plot": shared.plot_path(options)}
    arguments.find_model(options.model)
    try:
        from livereel.benchmarks import bench_serve
    except ImportError as error:
        raise ResourceError(
            f"the server's benchmark needs the extra serve, and psutil ({error})"
        ) from error
    given = [f"--model={options.model}", f"--seconds={options.seconds}"]
    given += [] if options.fps is None else [f"--fps={options.fps}"]
    given += [f"--{name}={path}" for name, path in paths.items() if path is not None]
    bench_serve.main([*given, "--streams", *map(str, options.streams)])
    return 0


def _check_model(options: argparse.Namespace) -> None:
    """Tell a mistake in the model's name before torch is imported."""
    from livereel.benchmarks import models

    models.find(options.model)


def _load(options: argparse.Namespace) -> Subject:
    from livereel.benchmarks.subject import Subject

    return Subject.load(
        options.model, device=options.device, dtype=options.dtype, decoder=options.decoder,
        random=options.random_weights,
    )  # fmt: skip


def _loops(subject: Subject) -> bool:
    from livereel.benchmarks.baseline_loop import refusal

    return refusal(subject) is None


def _baselines(options: argparse.Namespace, *defaults: str) -> list[str]:
    """Those asked for; the defaults only where diffusers is installed, and not in fp8."""
    asked = shared.baselines(options)
    if asked is not None:
        return asked
    if options.dtype == "fp8":
        return []
    if find_spec("diffusers") and find_spec("accelerate"):
        return list(dict.fromkeys(defaults))
    print("diffusers is not installed: ours alone is measured")
    return []


def _ceilings(subject: Subject) -> Any:
    from livereel.benchmarks.ceilings import ceilings

    return ceilings(subject.runner.device, subject.runner.dtype)

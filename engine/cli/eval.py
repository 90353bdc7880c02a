"""`livereel eval`: how well the demo model does what captions say, or what videos look like."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..errors import InputError
from . import arguments
from .progress import Progress

SUMMARY = "score the demo model on captions that its training never saw, or measure videos"
EXAMPLES = """\
examples:
  livereel eval
  livereel eval --clips 24 --streams 0 --changes 8      (a quick look)
  livereel eval --streams 8 --minutes 10 --json scores.json
  livereel eval --follow 16                             (of a model that follows control)
  livereel eval --metrics clip.mp4                      (flicker and drift)
  livereel eval --metrics bf16.mp4 fp32.mp4 --json metrics.json --plot metrics.png
  livereel eval --metrics a.mp4 b.mp4 --objects         (also how far the demo's object is off)
  livereel eval --metrics demo,dtype=bfloat16 demo,dtype=float32 --scenes 8
  livereel eval --metrics cogvideox cogvideox,whole --prompt "a cat on a sofa" --seconds 6

The table goes to stdout as Markdown. The same options give the same scores on the same machine.
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument(
        "--clips",
        type=arguments.whole(0, 100_000),
        default=200,
        help="clips of 2 seconds (default: 200)",
    )
    parser.add_argument(
        "--streams",
        type=arguments.whole(0, 1000),
        default=8,
        help="long streams, scored at their end (default: 8)",
    )
    parser.add_argument(
        "--minutes",
        type=arguments.minutes,
        default=10.0,
        help="length of each long stream (default: 10)",
    )
    parser.add_argument(
        "--changes",
        type=arguments.whole(0, 100_000),
        default=100,
        help="prompt changes within a stream (default: 100)",
    )
    parser.add_argument(
        "--scenes",
        type=arguments.whole(0, 100_000),
        default=32,
        help="drawn scenes to encode and decode (default: 32)",
    )
    parser.add_argument(
        "--seed", type=arguments.whole(0, 2**64 - 1), default=0, help="of captions and noise"
    )
    parser.add_argument("--json", metavar="FILE", help="also write the scores as JSON")
    parser.add_argument(
        "--metrics",
        nargs="+",
        metavar="WHAT",
        help="measure one video, or compare two, instead of scoring the model; or one setting or "
        "two: a model or package, and how it is run, such as demo,dtype=float32,steps=4 (also "
        "device, provider, decoder, and whole, for whole clips of a model that streams), on drawn "
        "scenes that it goes on from, where truth is known, or on a --prompt",
    )
    parser.add_argument(
        "--objects", action="store_true", help="with two videos: find the demo's object in both"
    )
    parser.add_argument(
        "--prompt", type=arguments.prompt, help="what settings make, in place of drawn scenes"
    )
    parser.add_argument(
        "--seconds",
        type=arguments.seconds,
        default=2.0,
        help="length of each clip that settings make or that is led (default: 2)",
    )
    parser.add_argument(
        "--follow",
        type=arguments.whole(1, 10_000),
        metavar="N",
        help="lead the objects of N streams of --seconds along drawn paths, for a model that "
        "follows control, and tell how far they are off, in place of scoring it",
    )
    parser.add_argument(
        "--arrive",
        type=arguments.whole(1, 10_000),
        metavar="N",
        help="give N clips of --seconds a first and a last picture, for a model that arrives at "
        "one, and tell how far they are off, in place of scoring it",
    )
    parser.add_argument("--plot", metavar="FILE.png", help="draw the measures of --metrics")
    arguments.add_model(parser)
    arguments.add_runner(parser)


def run(options: argparse.Namespace) -> int:
    """Render, measure, print the table. Returns the exit code."""
    if options.metrics is not None:
        return _measure(options)
    if options.plot is not None:
        raise InputError("--plot goes with --metrics")
    if options.follow is not None:
        return _follow(options)
    if options.arrive is not None:
        return _arrive(options)
    if options.clips + options.streams + options.changes + options.scenes == 0:
        raise InputError("nothing to score: --clips, --streams, --changes and --scenes are all 0")
    if options.json is not None:
        arguments.check_file(Path(options.json))
    arguments.find_model(options.model)

    from ..demo.evaluate import evaluate

    show = _Stages()
    report = evaluate(
        arguments.load_engine(options),
        clips=options.clips,
        streams=options.streams,
        stream_minutes=options.minutes,
        prompt_changes=options.changes,
        vae_scenes=options.scenes,
        seed=options.seed,
        progress=show,
    )
    show.clear()
    print(report.to_markdown(), end="")
    if options.json is not None:
        Path(options.json).write_text(report.to_json() + "\n")
    return 0


def _measure(options: argparse.Namespace) -> int:
    """One video or setting, or two and how far they are apart."""
    if len(options.metrics) > 2 or len(set(options.metrics)) < len(options.metrics):
        raise InputError(f"--metrics: give one or two that differ, not {len(options.metrics)}")
    for path in (options.json, options.plot):
        if path is not None:
            arguments.check_file(Path(path))
    models = [_is_model(name.partition(",")[0]) for name in options.metrics]
    if any(models) and not all(models):
        raise InputError("--metrics: give videos, or models and packages, not one of each")
    return _measure_settings(options) if all(models) else _measure_videos(options)


def _is_model(name: str) -> bool:
    return name == "demo" or Path(name).is_dir()


def _measure_videos(options: argparse.Namespace) -> int:
    from ..media.metrics import compare_videos, measure_video, to_json, to_markdown

    both = len(options.metrics) == 2
    if options.objects and not both:
        raise InputError("--objects compares two videos; give a second one")
    comparison = compare_videos(*options.metrics) if both else None
    videos = {path: measure_video(path) for path in options.metrics}
    print(to_markdown(videos, comparison), end="")
    values = to_json(videos, comparison)
    if options.objects:
        values["objects"] = _objects(*options.metrics)
    if options.json is not None:
        Path(options.json).write_text(json.dumps(values, indent=2) + "\n")
    if options.plot is not None:
        from ..media.plot import save_plot

        save_plot(Path(options.plot), videos, comparison)
    return 0


def _objects(path: str, other: str) -> dict[str, Any]:
    """The demo's object in one video against another's: tells it and gives it as JSON."""
    from ..demo.objects import Objects, compare_objects, to_line
    from ..media.metrics import finite
    from ..media.reader import video_frames

    found = [Objects.seen(frame for frame, _ in video_frames(name)) for name in (path, other)]
    count = min(len(one.path) for one in found)
    ours, theirs = (one.first(count) for one in found)
    metrics = compare_objects([ours], [theirs])
    print(to_line(metrics))
    values: dict[str, Any] = finite(asdict(metrics))
    return values


def _measure_settings(options: argparse.Namespace) -> int:
    from ..demo.settings import Setting, compare_settings, curves, to_json, to_markdown

    if options.objects:
        raise InputError("--objects is for videos; of settings the demo's object is always sought")
    if options.prompt is None and options.scenes == 0:
        raise InputError("nothing to measure: give --scenes or a --prompt")
    settings = [Setting.read(text) for text in options.metrics]
    folders = [arguments.find_model(setting.model) for setting in settings]
    show = _Stages()
    outcome = compare_settings(
        settings,
        frames=round(options.seconds * folders[0].stream.fps),
        scenes=options.scenes,
        prompt=options.prompt,
        seed=options.seed,
        progress=show,
    )
    show.clear()
    print(to_markdown(outcome), end="")
    if options.json is not None:
        Path(options.json).write_text(json.dumps(to_json(outcome), indent=2) + "\n")
    if options.plot is not None:
        from ..media.plot import save_curves

        save_curves(Path(options.plot), curves(outcome))
    return 0


def _follow(options: argparse.Namespace) -> int:
    """How far led objects are from where they are led."""
    if options.json is not None:
        arguments.check_file(Path(options.json))
    stream = arguments.find_model(options.model).stream
    if not stream.control_channels:
        raise InputError(f"{options.model} follows no control: its livereel.json has none")

    from ..demo.objects import to_line
    from ..demo.steering import follow
    from ..media.metrics import finite

    frames = stream.chunk_latents * stream.control_channels
    later = max(1, round(options.seconds * stream.fps / frames))
    show = _Stages()
    metrics = follow(
        arguments.load_engine(options),
        streams=options.follow,
        chunks=(stream.first_chunk_latents, *[stream.chunk_latents] * later),
        seed=options.seed,
        progress=show,
    )
    show.clear()
    print(to_line(metrics))
    if options.json is not None:
        Path(options.json).write_text(json.dumps(finite(asdict(metrics)), indent=2) + "\n")
    return 0


def _arrive(options: argparse.Namespace) -> int:
    """How exactly clips end with a picture."""
    if options.json is not None:
        arguments.check_file(Path(options.json))
    stream = arguments.find_model(options.model).stream
    if not stream.goal_channels:
        raise InputError(f"{options.model} arrives at no picture: its livereel.json has none")

    from ..demo.arrival import arrive
    from ..media.metrics import finite

    show = _Stages()
    outcome = arrive(
        arguments.load_engine(options),
        clips=options.arrive,
        frames=max(2, round(options.seconds * stream.fps)),
        seed=options.seed,
        progress=show,
    )
    show.clear()
    print(outcome.to_line())
    if options.json is not None:
        Path(options.json).write_text(json.dumps(finite(outcome.to_dict()), indent=2) + "\n")
    return 0


class _Stages:
    """A progress bar for each stage in turn."""

    def __init__(self) -> None:
        self._stage = ""
        self._bar = Progress(0)

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage != self._stage:
            self.clear()
            self._stage, self._bar = stage, Progress(total, stage)
        self._bar.update(done)

    def clear(self) -> None:
        self._bar.clear()

"""`livereel eval`: how well the demo model does what captions say, or what videos look like."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ..errors import InputError
from . import arguments
from .progress import Progress

SUMMARY = "score the demo model on captions that its training never saw, or measure videos"
EXAMPLES = """\
examples:
  livereel eval
  livereel eval --clips 24 --streams 0 --changes 8      (a quick look)
  livereel eval --streams 8 --minutes 10 --json scores.json
  livereel eval --metrics clip.mp4                      (flicker and drift)
  livereel eval --metrics bf16.mp4 fp32.mp4 --json metrics.json --plot metrics.png

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
        metavar="VIDEO",
        help="measure one video, or compare two, instead of scoring the model",
    )
    parser.add_argument("--plot", metavar="FILE.png", help="draw the measures of --metrics")
    arguments.add_model(parser)
    arguments.add_decoder(parser)


def run(options: argparse.Namespace) -> int:
    """Render, measure, print the table. Returns the exit code."""
    if options.metrics is not None:
        return _measure(options)
    if options.plot is not None:
        raise InputError("--plot goes with --metrics")
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
    """One video, or two and how far they are apart."""
    if len(options.metrics) > 2 or len(set(options.metrics)) < len(options.metrics):
        raise InputError(f"--metrics: give one video, or two, not {len(options.metrics)}")
    for path in (options.json, options.plot):
        if path is not None:
            arguments.check_file(Path(path))

    from ..media.metrics import compare_videos, measure_video, to_json, to_markdown

    comparison = compare_videos(*options.metrics) if len(options.metrics) == 2 else None
    videos = {path: measure_video(path) for path in options.metrics}
    print(to_markdown(videos, comparison), end="")
    if options.json is not None:
        Path(options.json).write_text(json.dumps(to_json(videos, comparison), indent=2) + "\n")
    if options.plot is not None:
        from ..media.plot import save_plot

        save_plot(Path(options.plot), videos, comparison)
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

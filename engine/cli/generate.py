"""`livereel generate`: a prompt to a file, frames encoded while the next ones are made."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .. import machine, memory
from ..config import MAX_FRAMES, MAX_GIVEN
from ..errors import InputError
from . import arguments, devices
from .progress import Progress
from .signals import StopSignals

if TYPE_CHECKING:
    from ..checkpoint.folder import ModelFolder
    from ..engine import Engine
    from ..media.storyboard import Storyboard
    from ..parallel.group import Group
    from ..types import Frames, FrameSink

SUMMARY = "make a video from a prompt"
EXAMPLES = """\
examples:
  livereel generate "a red circle moving right on a black background" -o clip.mp4
  livereel generate "a small blue star moving up on a white background" -o star.gif --seconds 2
  livereel generate "a large green square standing still on a gray background" \\
      -o square.webm --seed 7 --frames 81 --sheet square.png
  livereel generate "a pink triangle moving left on a brown background" -o frames/
  livereel generate "a red circle moving left on a black background" -o longer.mp4 \\
      --extend clip.mp4 --seconds 3
  livereel generate "a blue circle moving right on a black background" -o blue.mp4 \\
      --video clip.mp4 --strength 0.7
  livereel generate "a red circle moving up on a gray background" -o up.mp4 --devices 2
"""
_SECONDS = 5.0
_STRENGTH = 0.6


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """What a checked command line asks for."""

    folder: ModelFolder
    width: int
    height: int
    frames: int
    fps: float
    image: Frames | None = None
    last_image: Frames | None = None
    video: Frames | None = None
    clip: Frames | None = None
    storyboard: Storyboard | None = None


def add(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument(
        "prompt", metavar="PROMPT", nargs="?", type=arguments.prompt, help="what to show"
    )
    parser.add_argument(
        "--script",
        metavar="FILE.toml",
        help="a storyboard in place of a prompt: [[shot]] tables with prompt, seconds, join and "
        "image",
    )
    parser.add_argument(
        "-o",
        "--output",
        required=True,
        metavar="FILE",
        help="an .mp4, .webm or .gif, or a folder for numbered PNGs when it ends in a slash",
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument(
        "--seconds",
        type=arguments.seconds,
        help=f"length in seconds (default: {_SECONDS:g})",
    )
    length.add_argument("--frames", type=arguments.whole(1, MAX_FRAMES), help="length in frames")
    parser.add_argument(
        "--seed",
        type=arguments.whole(0, 2**64 - 1),
        default=0,
        help="the same seed gives the same video (default: 0)",
    )
    parser.add_argument(
        "--steps",
        type=arguments.whole(1, 1000),
        help="passes that denoise a chunk (default: the model's own)",
    )
    parser.add_argument(
        "--size",
        type=arguments.size,
        metavar="WIDTHxHEIGHT",
        help="in pixels (default: the model's own)",
    )
    parser.add_argument(
        "--fps",
        type=arguments.fps,
        help="frames a second that the file plays at (default: the model's own)",
    )
    parser.add_argument(
        "--tile",
        action="store_true",
        help="make a whole clip's pixels tile by tile, in less memory",
    )
    start = parser.add_mutually_exclusive_group()
    start.add_argument(
        "--image",
        metavar="FILE",
        help="a picture to start from; it is cut at its center to the size's aspect and scaled, as "
        "videos are",
    )
    start.add_argument(
        "--extend", metavar="FILE", help="a video to go on from: its frames, then new ones"
    )
    start.add_argument("--video", metavar="FILE", help="a video to change, as --strength says")
    parser.add_argument(
        "--strength",
        type=arguments.strength,
        help=f"how much of --video is made anew, above 0 to 1 (default: {_STRENGTH:g})",
    )
    parser.add_argument(
        "--last-image", metavar="FILE", help="a picture to end with, for models that take one"
    )
    parser.add_argument(
        "--lora",
        action="append",
        type=arguments.lora,
        default=[],
        metavar="FILE[:STRENGTH]",
        help="a LoRA for the model and how strongly it is used (default: 1); may be repeated",
    )
    parser.add_argument("--sheet", metavar="FILE.png", help="also write a contact sheet")
    arguments.add_model(parser)
    arguments.add_runner(parser)
    devices.add(parser)


def run(options: argparse.Namespace) -> int:
    """Check, load, stream into the file, report. Returns the exit code."""
    if devices.several(options):
        needs = _check_memory(options, _check(options))
        return devices.run(options, _generate, needs=needs)
    return _generate(options, None)


def _generate(options: argparse.Namespace, group: Group | None) -> int:
    """The work, or one rank's part of it: the first one has the file."""
    if group is not None and group.rank > 0:
        plan = _check(options)
        for _ in _frames(_load(options, group), options, plan):
            pass
        return 0
    with StopSignals() as signals:
        try:
            plan = _check(options)
            with _sinks(options, plan) as sinks:
                return _stream(options, plan, sinks, signals, group)
        except KeyboardInterrupt:
            print("livereel: stopped before the first frame", file=sys.stderr)
            return signals.exit_code or 130


def _check(options: argparse.Namespace) -> _Plan:
    """Everything that can be wrong without loading the model, cheapest first."""
    folder = arguments.find_model(options.model)
    known = len(folder.stream.timesteps)
    if folder.has_recipe and options.steps is not None and options.steps > known:
        raise InputError(f"--steps: this model knows {known} steps, got {options.steps}")
    _check_start(options, folder)
    width, height = arguments.fit_size(options.size, folder)
    fps = options.fps or folder.stream.fps
    frames, seconds = options.frames, options.seconds
    storyboard = video = clip = None
    if options.script is not None:
        from ..media.storyboard import Storyboard

        storyboard = Storyboard.load(options.script)
        frames = storyboard.starts(fps)[-1]
    if frames is None and (seconds is not None or options.video is None):
        seconds = _SECONDS if seconds is None else seconds
        frames = round(seconds * fps)
        if not 1 <= frames <= MAX_FRAMES:
            raise InputError(
                f"{seconds:g} seconds at {fps:g} frames a second are {frames} frames; "
                f"a video has 1 to {MAX_FRAMES}"
            )
        if options.last_image is not None and not folder.has_recipe:  # a latent frame's last
            frames -= (frames - 1) % memory.temporal_factor(folder)
    from ..media.reader import read_clip, read_image

    if options.video is not None:
        most = MAX_FRAMES if frames is None else frames
        video = read_clip(options.video, width, height, fps, most, cut=frames is not None)
        frames = len(video) if frames is None else frames
    if options.extend is not None:
        factor = memory.temporal_factor(folder)
        clip = read_clip(options.extend, width, height, fps, (MAX_GIVEN - 1) * factor + 1)
        clip = clip[-1 - (len(clip) - 1) // factor * factor :]
        frames = len(clip) + (frames or 0)
    assert frames is not None
    if video is not None and frames > len(video):
        raise InputError(f"--video: {frames} frames are wanted of a video that has {len(video)}")
    pictures = {
        name: read_image(path, width, height)
        for name in ("image", "last_image")
        if (path := getattr(options, name)) is not None
    }
    return _Plan(
        folder=folder, width=width, height=height, frames=frames, fps=fps, video=video, clip=clip,
        storyboard=storyboard, **pictures,
    )  # fmt: skip


def _check_start(options: argparse.Namespace, folder: ModelFolder) -> None:
    """Whether the model can start from what the options name."""
    if (options.prompt is None) == (options.script is None):
        raise InputError("give a PROMPT or a --script, and not both")
    if options.script is not None:
        for name in ("image", "last_image", "video", "extend", "frames", "seconds"):
            if getattr(options, name) is not None:
                raise InputError(f"--{name.replace('_', '-')} does not go with --script")
        if not folder.has_recipe:
            raise InputError("--script: this model makes whole clips; shots want a stream")
    if options.strength is not None and options.video is None:
        raise InputError("--strength goes with --video")
    if folder.has_recipe:
        if options.last_image is not None and not folder.stream.goal_channels:
            raise InputError("--last-image: this model's streams arrive at no picture")
        if options.last_image is not None and options.video is not None:
            raise InputError("--last-image does not go with --video")
        if options.tile:
            raise InputError("--tile: this model streams; whole clips alone are made tile by tile")
        return
    if options.extend is not None:
        raise InputError("--extend: this model makes whole clips; only a stream goes on from one")
    shown = options.image is not None or options.last_image is not None
    if shown and not memory.takes_pictures(folder):
        raise InputError("--image: this model makes clips from text alone")
    if options.last_image is not None and options.image is None:
        raise InputError("--last-image goes with --image")


@contextlib.contextmanager
def _sinks(options: argparse.Namespace, plan: _Plan) -> Iterator[list[FrameSink]]:
    """Open where the frames go before they are made; leave nothing behind unless it was closed."""
    from ..media.sheet import SheetSink
    from ..media.writer import open_sink

    sinks: list[FrameSink] = []
    try:
        sinks.append(open_sink(options.output, fps=plan.fps))
        if options.sheet is not None:
            sinks.append(SheetSink(options.sheet, total=plan.frames))
        yield sinks
    finally:
        for sink in sinks:
            sink.abort()


def _stream(
    options: argparse.Namespace, plan: _Plan, sinks: list[FrameSink], signals: StopSignals,
    group: Group | None,
) -> int:  # fmt: skip
    """Load, make, encode, report; a stop on the way keeps what was made. Returns the exit code."""
    _check_memory(options, plan)
    start = time.perf_counter()
    engine = _load(options, group)
    load_s = time.perf_counter() - start
    progress = Progress(plan.frames)
    progress.update(0)
    start = time.perf_counter()
    first_s = 0.0
    done = 0
    try:
        for frames in _frames(engine, options, plan):
            if done == 0:
                first_s = time.perf_counter() - start
            with signals.held():
                for sink in sinks:
                    sink.write(frames)
                done += len(frames)
            progress.update(done)
    except KeyboardInterrupt:
        if done == 0:
            raise
    finally:
        progress.clear()
    signals.hold()
    seconds = time.perf_counter() - start
    for sink in sinks:
        sink.close()
    if signals.number is not None:
        print(
            f"livereel: stopped after {done} of {plan.frames} frames; {options.output} plays",
            file=sys.stderr,
        )
    print(
        f"{options.output}: {done} frames of {plan.width}x{plan.height}, "
        f"{done / plan.fps:.2f} s at {plan.fps:g} fps"
    )
    print(
        f"loaded in {load_s:.1f} s, first frame after {first_s:.2f} s, "
        f"{done / seconds:.1f} frames a second, peak memory {_peak_memory()}"
    )
    return signals.exit_code


def _check_memory(options: argparse.Namespace, plan: _Plan) -> memory.MemoryEstimate:
    device, dtype = arguments.resolve(options.device, options.dtype)
    return memory.check(
        plan.folder, width=plan.width, height=plan.height, frames=plan.frames, dtype=dtype,
        device=device, tile=options.tile,
    )  # fmt: skip


def _load(options: argparse.Namespace, group: Group | None) -> Engine:
    engine = devices.load_engine(options, group)
    for path, _ in options.lora:
        engine.load_lora(path, path)
    return engine


def _frames(engine: Engine, options: argparse.Namespace, plan: _Plan) -> Iterator[Frames]:
    """The frames chunk by chunk, or all at once from a model that makes whole clips only."""
    if not plan.folder.has_recipe:
        yield _whole_clip(engine, options, plan)
        return
    if plan.storyboard is not None:
        for chunk in engine.play(
            plan.storyboard,
            seed=options.seed,
            steps=options.steps,
            width=plan.width,
            height=plan.height,
            loras=dict(options.lora),
            fps=plan.fps,
        ):
            yield chunk.frames
        return
    strength = options.strength or _STRENGTH
    session = engine.open(
        options.prompt,
        seed=options.seed,
        steps=options.steps,
        width=plan.width,
        height=plan.height,
        image=plan.image,
        last_image=plan.last_image,
        clip=plan.clip,
        strength=None if plan.video is None else strength,
        loras=dict(options.lora),
        frames=plan.frames,
        fps=plan.fps,
    )
    for chunk in session if plan.video is None else session.through(plan.video[: plan.frames]):
        yield chunk.frames


def _whole_clip(engine: Engine, options: argparse.Namespace, plan: _Plan) -> Frames:
    """A whole clip's frames, under a bar of its own that counts steps."""
    bar: Progress | None = None

    def show(done: int, total: int) -> None:
        nonlocal bar
        bar = bar or Progress(total, "steps")
        bar.update(done)

    try:
        return engine.generate(
            options.prompt,
            seed=options.seed,
            steps=options.steps,
            width=plan.width,
            height=plan.height,
            frames=plan.frames,
            image=plan.image,
            last_image=plan.last_image,
            video=plan.video,
            strength=options.strength or _STRENGTH,
            loras=dict(options.lora),
            fps=plan.fps,
            tile=options.tile,
            progress=show,
        ).frames
    finally:
        if bar is not None:
            bar.clear()


def _peak_memory() -> str:
    """The most RAM this process has held, and the most GPU memory if it held any."""
    peak = machine.peak_memory()
    shown = "unknown" if peak is None else memory.gigabytes(peak)
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        shown += f", on the GPU {memory.gigabytes(torch.cuda.max_memory_allocated())}"
    return shown

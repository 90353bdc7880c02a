"""Score the demo model: what `livereel eval` runs.

Prompts come, by a fixed seed, from the captions that training never saw in that combination
(`scenes.held_out_captions`): all captions of the color-shape-motion triples in `scenes.HELD_OUT`,
and combinations of color, shape, motion and background that are held out besides. What is seen is
measured by `measure`, plain image analysis that has its own tests on ground truth.

Four stages, each left out when its number is 0:

* clips: short clips, each measured against its prompt. "motion" demands the direction and that the
  object strays no more than `MAX_STRAY` pixels a second from a straight, even path.
* VAE: scenes drawn with numbers that training does not use, encoded and decoded; squared errors of
  all scenes are pooled before they become decibels, so that one bad scene shows.
* streams: long streams, one window a minute on the way and all windows of the last minute. Windows
  of one stream are alike, so that the intervals count streams rather than windows.
* prompt changes: 3 chunks of one prompt, then another that differs in color, shape, motion and
  background; all four must be right in the second that follows the first 2 chunks under it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..errors import InputError
from .measure import measure, mse_to_psnr, squared_error
from .report import Failure, Minute, Report, Score, Settings, Verdict, share
from .scenes import Caption, Frames, Scene, held_out_captions

if TYPE_CHECKING:
    from ..types import Chunk, Video

MAX_STRAY = 3.0
"""Pixels of the 128 grid that an object may stray in a second from a straight, even path."""

GOALS = {"color": 97.0, "shape": 90.0, "motion": 95.0, "background": 97.0}
"""Clips in percent whose word must be right."""

STREAM_LOSS = 3.0
"""Points that a stream may lose against the clips until it ends."""

PROMPT_CHANGE_GOAL = 90.0
PSNR_GOAL, PSNR_GOAL_INSIDE = 32.0, 28.0

CHUNKS_BEFORE, CHUNKS_UNTIL = 3, 2
_MAX_WAIT = 4  # chunks within which an update must take hold
_VAE_FRAMES = 33
_SEED_TAG = 0x4C52  # keeps the numbers drawn here apart from training's

Progress = Callable[[str, int, int], None]


class Config(Protocol):
    """What is read from an engine's config."""

    @property
    def fps(self) -> float: ...
    @property
    def width(self) -> int: ...
    @property
    def height(self) -> int: ...


class Stream(Protocol):
    """What is used of a session."""

    def __iter__(self) -> Iterator[Chunk]: ...
    def update(self, *, prompt: str) -> None: ...
    def close(self) -> None: ...


class Model(Protocol):
    """What is used of an engine."""

    @property
    def config(self) -> Config: ...
    def generate(self, prompt: str, *, seconds: float, seed: int) -> Video: ...
    def open(self, prompt: str, *, seed: int) -> Stream: ...
    def encode(self, frames: Any) -> Any: ...
    def decode(self, latents: Any) -> Any: ...


def evaluate(
    engine: Model,
    *,
    clips: int = 200,
    seconds: float = 2.0,
    streams: int = 8,
    stream_minutes: float = 10.0,
    prompt_changes: int = 100,
    vae_scenes: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
) -> Report:
    """Run all stages and report the scores beside their goals.

    Args:
        engine: the loaded model; its frames must be square.
        clips: how many clips of `seconds` to measure.
        seconds: length of a clip, and of a window of a stream.
        streams: how many streams of `stream_minutes`.
        prompt_changes: how many streams whose prompt changes.
        vae_scenes: how many fresh scenes of 33 frames to encode and decode.
        seed: draws prompts, the clips' seeds and the fresh scenes.
        progress: called with a stage's name, how much is done and how much there is.

    Raises:
        InputError: a number is negative, a clip is under 8 frames, a stream shorter than a clip,
            or the model's frames are not square.
    """
    settings = Settings(
        clips=clips,
        seconds=seconds,
        streams=streams,
        stream_minutes=stream_minutes,
        prompt_changes=prompt_changes,
        vae_scenes=vae_scenes,
        seed=seed,
    )
    _check(engine.config, settings)
    tell = progress or (lambda stage, done, total: None)
    scores: list[Score] = []
    failures: list[Failure] = []
    minutes: tuple[Minute, ...] = ()
    if clips:
        verdicts = _clips(engine, settings, _rng(seed, 1), failures, tell)
        scores += _clip_scores(verdicts)
    if vae_scenes:
        scores += _vae_scores(engine, vae_scenes, _rng(seed, 2), tell)
    if streams:
        aims = {score.name: score.value for score in scores if score.name in GOALS}
        minutes, ends = _streams(engine, settings, _rng(seed, 3), tell)
        scores += _stream_scores(ends, settings, aims or GOALS)
    if prompt_changes:
        scores.append(_prompt_changes(engine, prompt_changes, _rng(seed, 4), failures, tell))
    return Report(
        settings=settings, scores=tuple(scores), minutes=minutes, failures=tuple(failures)
    )


def judge(frames: Frames, fps: float, caption: Caption) -> Verdict:
    """Measure a clip `[F, H, W, 3]` against its caption."""
    seen = measure(frames, fps)
    right = seen.matches(caption)
    return Verdict(
        color=right["color"],
        shape=right["shape"],
        direction=right["motion"],
        motion=right["motion"] and seen.trajectory_error <= MAX_STRAY,
        background=right["background"],
        size=right.get("size"),
        stray=seen.trajectory_error,
    )


# Stages


def _clips(
    engine: Model,
    settings: Settings,
    rng: np.random.Generator,
    failures: list[Failure],
    tell: Progress,
) -> list[Verdict]:
    verdicts, count = [], settings.clips
    for number, caption in enumerate(_draw(count, rng)):
        tell("clips", number, count)
        seed = _draw_seed(rng)
        video = engine.generate(caption.text, seconds=settings.seconds, seed=seed)
        verdict = judge(video.frames, video.fps, caption)
        verdicts.append(verdict)
        if verdict.wrong:
            failures.append(Failure("clips", caption.text, seed, verdict.wrong))
    tell("clips", count, count)
    return verdicts


def _clip_scores(verdicts: Sequence[Verdict]) -> list[Score]:
    scores = [
        share(name, "clips", [getattr(verdict, name) for verdict in verdicts], goal)
        for name, goal in GOALS.items()
    ]
    aimed = [verdict for verdict in verdicts if verdict.direction]
    scores.append(share("direction alone", "clips", [v.direction for v in verdicts], None))
    stray = sum(verdict.stray for verdict in aimed) / len(aimed) if aimed else math.inf
    scores.append(
        Score(
            name="trajectory error, mean where the direction is right",
            stage="clips",
            value=stray,
            unit="px/s",
            goal=MAX_STRAY,
            at_least=False,
            count=len(aimed),
        )
    )
    sized = [verdict.size for verdict in verdicts if verdict.size is not None]
    if sized:
        scores.append(share("size, where named", "clips", sized, None))
    return scores


def _vae_scores(engine: Model, count: int, rng: np.random.Generator, tell: Progress) -> list[Score]:
    from ..layers.pixels import to_float, to_uint8

    size = engine.config.height
    total, inside, weight = 0.0, 0.0, 0.0
    for number, caption in enumerate(_draw(count, rng)):
        tell("VAE", number, count)
        scene = Scene.sample(caption, rng)
        first = int(rng.integers(1000))
        truth = scene.render(first, _VAE_FRAMES, size=size)
        mask = scene.mask(first, _VAE_FRAMES, size=size)
        frames = to_uint8(engine.decode(engine.encode(to_float(truth))))
        area = float((mask > 0.5).sum())
        total += squared_error(frames, truth)
        inside += area * squared_error(frames, truth, mask)
        weight += area
    tell("VAE", count, count)
    named = {
        "PSNR": (total / count, PSNR_GOAL),
        "PSNR inside the object": (inside / weight, PSNR_GOAL_INSIDE),
    }
    return [
        Score(
            name=name,
            stage="VAE",
            value=mse_to_psnr(error),
            unit="dB",
            goal=goal,
            at_least=True,
            count=count,
        )
        for name, (error, goal) in named.items()
    ]


def _streams(
    engine: Model, settings: Settings, rng: np.random.Generator, tell: Progress
) -> tuple[tuple[Minute, ...], list[Verdict]]:
    """Verdicts by minute, and those of all windows of the last minute."""
    fps, count = engine.config.fps, settings.streams
    size = round(settings.seconds * fps)
    windows = round(settings.stream_minutes * 60 * fps) // size
    per_minute = max(1, round(60 / settings.seconds))
    last = range(windows - min(per_minute, max(1, windows // 2)), windows)
    on_the_way = range(0, last[0], per_minute)
    by_minute: dict[int, list[Verdict]] = {}
    ends: list[Verdict] = []
    for number, caption in enumerate(_draw(count, rng)):
        stream = engine.open(caption.text, seed=_draw_seed(rng))
        try:
            for index, frames in enumerate(_cut(stream, size, windows)):
                if index % per_minute == 0:
                    tell("streams", number * windows + index, count * windows)
                if index in last:
                    ends.append(judge(frames, fps, caption))
                elif index in on_the_way:
                    verdict = judge(frames, fps, caption)
                    by_minute.setdefault(index // per_minute, []).append(verdict)
        finally:
            stream.close()
    tell("streams", count * windows, count * windows)
    timeline = [Minute.of(minute, verdicts) for minute, verdicts in sorted(by_minute.items())]
    timeline.append(Minute.of(settings.stream_minutes, ends))
    return tuple(timeline), ends


def _stream_scores(
    ends: Sequence[Verdict], settings: Settings, aims: dict[str, float]
) -> list[Score]:
    return [
        share(
            f"{name} after {settings.stream_minutes:g} minutes",
            "streams",
            [getattr(verdict, name) for verdict in ends],
            aims[name] - STREAM_LOSS,
            count=settings.streams,
        )
        for name in GOALS
    ]


def _prompt_changes(
    engine: Model,
    count: int,
    rng: np.random.Generator,
    failures: list[Failure],
    tell: Progress,
) -> Score:
    fps = engine.config.fps
    right = []
    for number, old in enumerate(_draw(count, rng)):
        tell("prompt changes", number, count)
        new, seed = _draw_other(old, rng), _draw_seed(rng)
        stream = engine.open(old.text, seed=seed)
        try:
            frames = _after_change(stream, new, round(fps))
        finally:
            stream.close()
        wrong: tuple[str, ...] = ("took no hold",)
        if frames is not None:
            verdict = judge(frames, fps, new)
            words = ("color", "shape", "direction", "background")
            wrong = tuple(word for word in words if not getattr(verdict, word))
        right.append(not wrong)
        if wrong:
            failures.append(Failure("prompt changes", f"{old.text} -> {new.text}", seed, wrong))
    tell("prompt changes", count, count)
    return share("new prompt rules within 2 chunks", "prompt changes", right, PROMPT_CHANGE_GOAL)


def _after_change(stream: Stream, caption: Caption, count: int) -> Frames | None:
    """Change the prompt; the `count` frames that follow the first chunks under the new one."""
    chunks = iter(stream)
    for _ in islice(chunks, CHUNKS_BEFORE):
        pass
    stream.update(prompt=caption.text)
    if not any(chunk.applied for chunk in islice(chunks, _MAX_WAIT)):
        return None
    for _ in islice(chunks, CHUNKS_UNTIL - 1):
        pass
    return next(_cut(chunks, count, 1), None)


# Pieces


def _cut(chunks: Iterable[Chunk], size: int, count: int) -> Iterator[Frames]:
    """The first `count` windows of `size` frames, back to back; ends early with the stream."""
    kept: list[Frames] = []
    have = 0
    source = iter(chunks)
    for _ in range(count):
        while have < size:
            chunk = next(source, None)
            if chunk is None:
                return
            kept.append(chunk.frames)
            have += len(chunk.frames)
        frames = np.concatenate(kept)
        yield frames[:size]
        kept, have = [frames[size:]], have - size


def _rng(seed: int, stage: int) -> np.random.Generator:
    return np.random.default_rng([_SEED_TAG, seed, stage])


def _draw_seed(rng: np.random.Generator) -> int:
    return int(rng.integers(2**31))


def _draw(count: int, rng: np.random.Generator) -> list[Caption]:
    """Captions that training never saw; none twice before all have been drawn."""
    captions = held_out_captions()
    order: list[int] = []
    while len(order) < count:
        order += rng.permutation(len(captions)).tolist()
    return [captions[index] for index in order[:count]]


def _draw_other(old: Caption, rng: np.random.Generator) -> Caption:
    """A caption that differs from `old` in color, shape, motion and background."""
    words = ("color", "shape", "motion", "background")
    others = [
        caption
        for caption in held_out_captions()
        if all(getattr(caption, word) != getattr(old, word) for word in words)
    ]
    return others[int(rng.integers(len(others)))]


def _check(config: Config, settings: Settings) -> None:
    """Raise `InputError` for what this model cannot do."""
    seconds, minutes = settings.seconds, settings.stream_minutes
    if not 8 / config.fps <= seconds < math.inf:
        raise InputError(f"seconds must be at least {8 / config.fps:g} (8 frames), got {seconds}")
    if not seconds <= minutes * 60 < math.inf:
        raise InputError(
            f"stream_minutes must make a stream no shorter than a clip of {seconds:g} seconds, "
            f"got {minutes}"
        )
    if config.width != config.height:
        raise InputError(
            f"the demo's scenes are square, and this model's frames are "
            f"{config.width}x{config.height}"
        )

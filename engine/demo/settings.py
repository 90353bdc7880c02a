"""Settings against each other and, where truth is known, against it: what `livereel eval --metrics`
runs for models, packages and the ways to run them.

Without a prompt the demo's world is the measure: a scene is drawn, the model is given its first
frames and its caption, and goes on; the scene goes on as well. With a prompt each setting makes the
same clip.

Shapes: F frames, H W space.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import numpy as np

from ..engine import Engine
from ..errors import InputError
from ..media.metrics import WINDOW, Comparison, Look, compare_frames, finite, measure_frames
from .objects import ObjectMetrics, Objects, compare_objects
from .scenes import GRID, Caption, Frames, Scene, held_out_captions, parse

GIVEN = 13
"""Frames of a drawn scene that a model is given to go on from."""
TRUTH = "the drawn scenes"
_PART = 8
_LOADED = ("device", "dtype", "provider", "decoder")
_FORM = f"MODEL[,steps=N][,whole]{''.join(f'[,{name}=...]' for name in _LOADED)}"
_SEED_TAG = 0x5E77  # keeps the scenes drawn here apart from training's

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A model, and how it is loaded and run; `loaded` are further arguments of `Engine.load`.
    `whole` makes whole clips also of a model that streams."""

    name: str
    model: str
    loaded: Mapping[str, str] = field(default_factory=dict)
    steps: int | None = None
    whole: bool = False

    @classmethod
    def read(cls, text: str) -> Setting:
        """Read such as "demo,dtype=float32,steps=4". Raises `InputError` for anything else."""
        model, *rest = text.split(",")
        loaded: dict[str, str] = {}
        steps, whole = None, False
        for option in rest:
            name, _, value = option.partition("=")
            if option == "whole":
                whole = True
            elif name == "steps" and value.isdecimal() and len(value) < 5:
                steps = int(value)
            elif name in _LOADED and value and name not in loaded:
                loaded[name] = value
            else:
                raise InputError(f"setting {text!r:.80}: {option!r:.40} is unknown; wanted {_FORM}")
        return cls(name=text, model=model, loaded=loaded, steps=steps, whole=whole)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One setting `against` another or the truth, over all clips."""

    setting: str
    against: str
    picture: Comparison
    objects: ObjectMetrics | None


@dataclass(frozen=True, kw_only=True)
class Course:
    """What a setting's clips do over time, means over them, in levels: `change` and `flicker` as
    in a video's metrics, and `drift`, how the look of a clip's last part is off its first part's:
    of halves, or of parts of at most `WINDOW` frames."""

    change: float
    flicker: float
    drift: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """All rows, and each setting's `seams`: how much more its picture changes from frame to frame
    where chunks of a stream meet than elsewhere. 1 is no more, None where no setting streams; whole
    clips are looked at in the same places. Of clips of fewer than 3 frames there is no course."""

    rows: tuple[Row, ...]
    seams: Mapping[str, float | None]
    courses: Mapping[str, Course | None]


@dataclass
class _Made:
    """What a setting made: clips of one length, and the frames at which chunks begin."""

    clips: list[Frames] = field(default_factory=list)
    edges: set[int] = field(default_factory=set)


def compare_settings(
    settings: Sequence[Setting],
    *,
    frames: int,
    scenes: int = 8,
    prompt: str | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Outcome:
    """Measure one setting, or two, by clips of `frames` frames: `scenes` drawn ones, or one of a
    `prompt`. One model is in memory at a time.

    Raises `InputError` for models whose frames are of different sizes, and what loading and running
    them raises.
    """
    for setting in settings:
        if setting.whole and prompt is None:
            raise _no_truth(setting)
    tell = progress or (lambda stage, done, total: None)
    truth: list[tuple[Scene, int]] = [] if prompt is not None else _draw(scenes, seed)
    all_made: dict[str, _Made] = {}
    for setting in settings:
        engine = Engine.load(setting.model, **setting.loaded)
        made = all_made[setting.name] = _Made()
        if prompt is not None:
            _make(engine, setting, made, prompt, frames, seed, None)
        for number, (scene, first) in enumerate(truth):
            tell(setting.name, number, len(truth))
            given = scene.render(first, GIVEN, size=_side(engine))
            _make(engine, setting, made, scene.caption.text, frames, seed + number, given)
        tell(setting.name, 1, 1)
        del engine
    edges = sorted(set.union(*(made.edges for made in all_made.values())))
    rows = tuple(_rows(all_made, truth, prompt))
    seams = {name: seam(made.clips, edges) for name, made in all_made.items()}
    courses = {name: course(made.clips) for name, made in all_made.items()}
    return Outcome(rows=rows, seams=seams, courses=courses)


def to_json(outcome: Outcome) -> dict[str, Any]:
    """All that was measured; numbers that are not finite become None."""
    values: dict[str, Any] = finite(asdict(outcome))
    return values


def to_markdown(outcome: Outcome) -> str:
    """Tables: pictures and objects, and what changes over time."""
    head = ("setting", "against", "PSNR", "SSIM", "largest difference", "object found",
            "trajectory error", "velocity error", "mask IoU")  # fmt: skip
    lines = [_line(head), "| --- " * len(head) + "|"] if outcome.rows else []
    for row in outcome.rows:
        picture, seen = row.picture, row.objects
        cells = [row.setting, row.against, f"{picture.psnr:.2f} dB", f"{picture.ssim:.4f}"]
        cells += [str(picture.largest)]
        if seen is None:
            cells += [""] * 4
        else:
            cells += [f"{100 * seen.found:.1f} %", f"{seen.trajectory_error:.2f} px"]
            cells += [f"{seen.velocity_error:.2f} px/frame"]
            cells += ["" if seen.mask_iou is None else f"{seen.mask_iou:.3f}"]
        lines.append(_line(cells))
    if outcome.rows:
        lines += ["", f"Lengths are in pixels of a picture {GRID} pixels wide.", ""]
    looks = [one.name for one in fields(Look)[1:]]
    columns = ("setting", "seam", "change", "flicker", *looks)
    lines += [_line(columns), "| --- " * len(columns) + "|"]
    for name, value in outcome.seams.items():
        cells, over_time = [name, "" if value is None else f"{value:.3f}"], outcome.courses[name]
        if over_time is None:
            cells += [""] * (len(columns) - 2)
        else:
            cells += [f"{over_time.change:.2f}", f"{over_time.flicker:.2f}"]
            cells += [f"{over_time.drift[look]:+.2f}" for look in looks]
        lines.append(_line(cells))
    what = (
        "Seam: change from frame to frame where chunks meet, over that elsewhere. Levels of 255; "
        "the last four are a clip's last part less its first: halves, or at most "
        f"{WINDOW} frames."
    )
    return "\n".join([*lines, "", what, ""])


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def curves(outcome: Outcome) -> dict[str, dict[str, Sequence[float]]]:
    """What to plot, by panel and by setting: measures frame by frame, means over the clips."""
    panels: dict[str, dict[str, Sequence[float]]] = {}
    for row in outcome.rows:
        name = f"{row.setting} against {row.against}"
        clips = 1 if row.objects is None else row.objects.clips
        psnr = np.array(row.picture.psnr_of).reshape(clips, -1)
        panels.setdefault("PSNR in dB", {})[name] = psnr.mean(0).tolist()
        if row.objects is not None:
            panels.setdefault("trajectory error in px", {})[name] = row.objects.error_of
            if row.objects.iou_of:
                panels.setdefault("mask IoU", {})[name] = row.objects.iou_of
    return panels


def seam(clips: Sequence[Frames], edges: Sequence[int]) -> float | None:
    """Mean change from frame to frame at `edges` over that elsewhere; None without edges."""
    at: list[float] = []
    elsewhere: list[float] = []
    for frames in clips:
        x = frames.astype(np.int16)
        for i in range(1, len(x)):
            change = float(np.abs(x[i] - x[i - 1]).mean())
            (at if i in edges else elsewhere).append(change)
    if not at or not elsewhere or not np.mean(elsewhere):
        return None
    return float(np.mean(at) / np.mean(elsewhere))


def course(clips: Sequence[Frames]) -> Course | None:
    """What clips of one length do over time; None for fewer than 3 frames."""
    count = len(clips[0])
    if count < 3:
        return None
    parts = max(2, math.ceil(count / WINDOW))
    found = [measure_frames(np.array_split(clip, parts), "a clip") for clip in clips]
    drifts = [one.drift for one in found]
    return Course(
        change=float(np.mean([one.change for one in found])),
        flicker=float(np.mean([one.flicker for one in found])),
        drift={name: float(np.mean([one[name] for one in drifts])) for name in drifts[0]},
    )


def _make(
    engine: Engine, setting: Setting, made: _Made, prompt: str, frames: int, seed: int,
    given: Frames | None,
) -> None:  # fmt: skip
    """One clip more, without the frames that it was `given`."""
    skipped = 0 if given is None else len(given)
    if setting.whole or not engine.streams:
        if given is not None:
            raise _no_truth(setting)
        if engine.folder.exported:
            raise InputError(f"{setting.name}: a package streams; it makes no whole clips")
        clips = replace(engine, folder=replace(engine.folder, has_recipe=False))
        made.clips.append(
            clips.generate(prompt, frames=frames, seed=seed, steps=setting.steps).frames
        )
        return
    session = engine.open(
        prompt, seed=seed, steps=setting.steps, clip=given, frames=frames + skipped
    )
    chunks = list(session)
    made.edges |= {chunk.pts - skipped for chunk in chunks if chunk.pts > skipped}
    made.clips.append(np.concatenate([chunk.frames for chunk in chunks])[skipped:])


def _no_truth(setting: Setting) -> InputError:
    return InputError(
        f"{setting.name} makes whole clips, which cannot go on from a drawn scene; give a --prompt"
    )


def _rows(
    all_made: Mapping[str, _Made], truth: Sequence[tuple[Scene, int]], prompt: str | None
) -> list[Row]:
    sizes = {made.clips[0].shape for made in all_made.values()}
    if len(sizes) > 1:
        raise InputError(f"the settings' clips have shapes {sorted(sizes)}; wanted one")
    ((count, side, width, _),) = sizes
    drawn = [scene.render(first + GIVEN, count, size=side) for scene, first in truth]
    places = [Objects.drawn(scene, first + GIVEN, count, side) for scene, first in truth]
    seen: dict[str, list[Objects]] = {}
    if truth or (prompt is not None and _of_the_demo(prompt) and side == width):
        seen = {name: [Objects.seen(x) for x in made.clips] for name, made in all_made.items()}
    rows = [
        Row(
            setting=name, against=TRUTH, picture=_picture(made.clips, drawn),
            objects=compare_objects(seen[name], places),
        )
        for name, made in all_made.items() if truth
    ]  # fmt: skip
    if len(all_made) == 2:
        (name, ours), (other, theirs) = all_made.items()
        objects = compare_objects(seen[name], seen[other]) if seen else None
        rows.append(
            Row(
                setting=name, against=other, picture=_picture(ours.clips, theirs.clips),
                objects=objects,
            )
        )  # fmt: skip
    return rows


def _picture(ours: Sequence[Frames], theirs: Sequence[Frames]) -> Comparison:
    return compare_frames(
        (a[i : i + _PART], b[i : i + _PART])
        for a, b in zip(ours, theirs, strict=True)
        for i in range(0, len(a), _PART)
    )


def _draw(count: int, seed: int) -> list[tuple[Scene, int]]:
    """Scenes of captions that training never saw, each with the number of its first frame."""
    rng = np.random.default_rng([_SEED_TAG, seed])
    captions = held_out_captions()
    drawn = []
    for index in rng.integers(len(captions), size=count):
        caption: Caption = captions[int(index)]
        drawn.append((Scene.sample(caption, rng), int(rng.integers(1000))))
    return drawn


def _side(engine: Engine) -> int:
    config = engine.config
    if config.width != config.height:
        raise InputError(
            f"the demo's scenes are square, and this model's frames are "
            f"{config.width}x{config.height}; give a --prompt"
        )
    return config.height


def _of_the_demo(prompt: str) -> bool:
    try:
        parse(prompt)
    except InputError:
        return False
    return True

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch

from livereel.engine.demo.evaluate import evaluate, judge
from livereel.engine.demo.scenes import (
    BACKGROUNDS,
    COLORS,
    MOTIONS,
    SHAPES,
    Caption,
    Frames,
    Scene,
    is_held_out,
    parse,
)
from livereel.engine.errors import InputError
from livereel.engine.types import Chunk, ChunkStats, Video

STATS = ChunkStats(
    text_s=0,
    dit_s=0.1,
    cache_s=0,
    vae_s=0,
    convert_s=0,
    passes=1,
    decoder_calls=1,
    fps=100,
    lead_s=0.5,
    deadline_met=True,
    jitter_s=0,
    steps=2,
    rate=16,
    skipped=(),
)
SMALL: dict[str, Any] = {
    "clips": 6,
    "seconds": 0.75,
    "streams": 2,
    "stream_minutes": 0.1,
    "prompt_changes": 3,
    "vae_scenes": 2,
}
NONE: dict[str, Any] = {"clips": 0, "streams": 0, "prompt_changes": 0, "vae_scenes": 0}


def next_word(words: tuple[str, ...], word: str) -> str:
    return words[(words.index(word) + 1) % len(words)]


def all_wrong(caption: Caption) -> Caption:
    return Caption(
        "small" if caption.size == "large" else "large",
        next_word(COLORS, caption.color),
        next_word(SHAPES, caption.shape),
        next_word(MOTIONS, caption.motion),
        next_word(BACKGROUNDS, caption.background),
    )


@dataclass(frozen=True)
class Config:
    fps: float = 16.0
    width: int = 64  # cheaper to draw and to measure than 128
    height: int = 64


@dataclass
class FakeStream:
    """Draws ground truth; an update takes hold `late` chunks after the next one."""

    engine: FakeEngine
    scene: Scene
    index: int = 0
    pts: int = 0
    queue: list[tuple[int, str]] = field(default_factory=list)
    late: int = 0
    closed: bool = False

    def __iter__(self) -> Iterator[Chunk]:
        return self

    def __next__(self) -> Chunk:
        assert not self.closed
        applied: tuple[str, ...] = ()
        if self.queue:
            applied = ("update",)  # what the session says; whether it is true is measured
            wait, prompt = self.queue[0]
            if wait == 0:
                self.scene = self.scene.switch(self.engine.shown(prompt), self.pts)
                self.queue.pop()
            else:
                self.queue[0] = wait - 1, prompt
        count = 1 if self.index == 0 else 12
        scene = self.scene
        if self.engine.drifts_at is not None and self.pts >= self.engine.drifts_at:
            color = next_word(COLORS, scene.caption.color)
            scene = replace(scene, caption=replace(scene.caption, color=color))
        frames = scene.render(self.pts, count, size=64)
        chunk = Chunk(frames=frames, index=self.index, pts=self.pts, stats=STATS, applied=applied)
        self.index += 1
        self.pts += count
        return chunk

    def update(self, *, prompt: str) -> None:
        if self.engine.listens:
            self.queue.append((self.engine.late, prompt))

    def close(self) -> None:
        self.closed = True


@dataclass
class FakeEngine:
    """Renders what a prompt says, or something else."""

    wrong: bool = False
    late: int = 0
    listens: bool = True
    drifts_at: int | None = None
    error: float = 0.0
    config: Config = field(default_factory=Config)
    prompts: list[str] = field(default_factory=list)
    streams: list[FakeStream] = field(default_factory=list)

    def shown(self, prompt: str) -> Caption:
        self.prompts.append(prompt)
        return all_wrong(parse(prompt)) if self.wrong else parse(prompt)

    def generate(self, prompt: str, *, seconds: float, seed: int) -> Video:
        scene = Scene.sample(self.shown(prompt), np.random.default_rng(seed))
        frames = scene.render(0, round(seconds * self.config.fps), size=64)
        return Video(frames=frames, fps=self.config.fps)

    def open(self, prompt: str, *, seed: int) -> FakeStream:
        scene = Scene.sample(self.shown(prompt), np.random.default_rng(seed))
        stream = FakeStream(self, scene)
        self.streams.append(stream)
        return stream

    def encode(self, frames: torch.Tensor) -> torch.Tensor:
        assert frames.shape == (1, 3, 33, 64, 64)
        assert -1 <= float(frames.min()) < float(frames.max()) <= 1
        return frames * 2

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return latents / 2 + self.error


def test_the_truth_scores_full_marks() -> None:
    engine = FakeEngine()
    told: list[tuple[str, int, int]] = []
    report = evaluate(engine, **SMALL, progress=lambda *state: told.append(state))
    assert report.passed
    assert not report.failures
    for score in report.scores:
        if score.unit == "%":
            assert score.value == 100, score
            assert score.low is not None and 30 < score.low < 100
            assert score.high == pytest.approx(100)
    assert report.score("PSNR").value == math.inf
    assert report.score("trajectory error, mean where the direction is right").value < 0.5
    assert [at.color for at in report.minutes] == [100, 100]
    assert all(stream.closed for stream in engine.streams)
    assert {stage for stage, _, _ in told} == {"clips", "VAE", "streams", "prompt changes"}
    assert all(0 <= done <= total for _, done, total in told)
    assert told[-1] == ("prompt changes", 3, 3)


def test_all_prompts_are_unseen_by_training_and_drawn_by_the_seed() -> None:
    drawn = []
    for seed in (0, 0, 1):
        engine = FakeEngine()
        evaluate(engine, **(SMALL | {"vae_scenes": 0, "streams": 1}), seed=seed)
        drawn.append(engine.prompts)
    assert all(is_held_out(parse(prompt)) for prompt in drawn[0])
    assert drawn[0] == drawn[1] != drawn[2]


def test_the_wrong_thing_scores_nothing() -> None:
    report = evaluate(FakeEngine(wrong=True, error=0.2), **SMALL)
    assert not report.passed
    for score in report.scores:
        if score.unit == "%" and score.stage != "streams":
            assert score.value == 0, score
            assert score.low == 0
            assert score.passed is not True
    assert [at.shape for at in report.minutes] == [0, 0]
    assert len(report.failures) == 6 + 3
    assert set(report.failures[0].wrong) >= {"color", "shape", "motion", "background"}
    assert report.score("trajectory error, mean where the direction is right").passed is False


def test_streams_are_held_against_the_clips() -> None:
    sound = SMALL | {"vae_scenes": 0, "prompt_changes": 0}
    report = evaluate(FakeEngine(drifts_at=37), **sound)
    color = report.score("color after 0.1 minutes")
    assert color.goal == 97
    assert (color.value, color.passed) == (0, False)
    assert color.count == 2  # streams, not windows
    assert report.score("shape after 0.1 minutes").passed is True
    assert report.minutes[0].color == 100
    assert report.minutes[-1].color == 0
    assert evaluate(FakeEngine(), **(sound | {"clips": 0})).scores[0].goal == 94


@pytest.mark.parametrize(("late", "rules"), [(0, 100), (1, 100), (3, 0)])
def test_a_new_prompt_has_two_chunks_to_rule(late: int, rules: float) -> None:
    engine = FakeEngine(late=late)
    report = evaluate(engine, **(NONE | {"prompt_changes": 3}))
    assert report.score("new prompt rules within 2 chunks").value == rules
    for stream in engine.streams:
        assert stream.pts >= 1 + 12 + 12 + 24 + 16  # 3 chunks, 2 under the new one, a second


def test_an_update_that_never_takes_hold_is_a_failure() -> None:
    report = evaluate(FakeEngine(listens=False), **(NONE | {"prompt_changes": 2}))
    assert report.score("new prompt rules within 2 chunks").value == 0
    assert {failure.wrong for failure in report.failures} == {("took no hold",)}


def test_changed_prompts_differ_in_every_word() -> None:
    engine = FakeEngine()
    evaluate(engine, **(NONE | {"prompt_changes": 4}))
    pairs = zip(engine.prompts[::2], engine.prompts[1::2], strict=True)
    for old, new in ((parse(old), parse(new)) for old, new in pairs):
        words = ("color", "shape", "motion", "background")
        assert all(getattr(old, word) != getattr(new, word) for word in words)


def test_reconstruction_is_scored_in_decibels() -> None:
    class Dim(FakeEngine):
        def decode(self, latents: torch.Tensor) -> torch.Tensor:
            return (latents / 2) * 0.9  # all levels a tenth nearer to the middle

    report = evaluate(Dim(), **(NONE | {"vae_scenes": 3}))
    overall, inside = report.score("PSNR"), report.score("PSNR inside the object")
    assert 25 < overall.value < 32 and 25 < inside.value < 35
    assert overall.value != inside.value
    assert overall.passed is False
    assert overall.count == 3 and overall.low is None


def test_an_uneven_path_is_no_right_motion() -> None:
    caption = parse("a red circle moving right on a black background")
    scene = Scene.sample(caption, np.random.default_rng(0))
    places = [0, 1, 2, 3, 3, 3, 3, 3, 3, 3, 3, 4, 8, 9, 10, 11]
    frames: Frames = np.concatenate([scene.render(place, 1) for place in places])
    verdict = judge(frames, 16, caption)
    assert verdict.direction
    assert not verdict.motion
    assert verdict.wrong == ("motion",)
    assert verdict.size is None


def test_report_as_json_and_markdown() -> None:
    report = evaluate(FakeEngine(wrong=True), **SMALL)
    values = json.loads(report.to_json())
    assert values["passed"] is False
    assert values["settings"]["clips"] == 6
    rows = {(row["stage"], row["name"]): row for row in values["scores"]}
    assert rows["clips", "color"] | {"low": 0, "high": 0} == {
        "name": "color", "stage": "clips", "value": 0, "unit": "%", "goal": 97, "at_least": True,
        "low": 0, "high": 0, "count": 6, "passed": False,
    }  # fmt: skip
    assert rows["VAE", "PSNR"]["value"] is None  # infinite
    table = report.to_markdown().splitlines()
    assert "| clips | color | 0.0 % | 0.0 to 39.0 | ≥ 97 % | **no** |" in table
    assert "| VAE | PSNR | ∞ dB |  | ≥ 32 dB | yes |" in table
    width = table[0].count("|")
    assert all(line.count("|") == width for line in table[: table.index("")])
    with pytest.raises(KeyError):
        report.score("taste")


def test_nothing_asked_is_nothing_scored() -> None:
    report = evaluate(FakeEngine(), **NONE)
    assert report.scores == ()
    assert report.passed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"clips": -1}, "clips must not be negative"),
        ({"seed": -1}, "seed must not be negative"),
        ({"seconds": 0.1}, "seconds must be at least 0.5"),
        ({"seconds": math.nan}, "seconds"),
        ({"stream_minutes": 0.01}, "stream_minutes"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        evaluate(FakeEngine(), **(SMALL | arguments))


def test_a_model_that_is_not_square_is_refused() -> None:
    with pytest.raises(InputError, match="832x480"):
        evaluate(FakeEngine(config=Config(width=832, height=480)), **SMALL)

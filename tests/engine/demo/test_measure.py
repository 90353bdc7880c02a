from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from livereel.engine.demo.measure import (
    Measurement,
    measure,
    mse_to_psnr,
    object_mask,
    psnr,
    squared_error,
)
from livereel.engine.demo.scenes import (
    BACKGROUNDS,
    COLORS,
    MOTIONS,
    SHAPES,
    Caption,
    Frames,
    Scene,
    parse,
)
from livereel.engine.errors import InputError


def spoil(frames: Frames, blur: int, noise: float, rng: np.random.Generator) -> Frames:
    """Blur `blur` times with [1 2 1] in both directions and add Gaussian noise."""
    picture = frames.astype(np.float32)
    for axis in (1, 2):
        for _ in range(blur):
            picture = (np.roll(picture, 1, axis) + 2 * picture + np.roll(picture, -1, axis)) / 4
    return np.clip(picture + rng.normal(0, noise, picture.shape), 0, 255).astype(np.uint8)


def covering_captions() -> list[Caption]:
    """All pairs of color and shape, the other words in turn, so that each occurs many times."""
    sizes = (None, "small", "large")
    return [
        Caption(
            sizes[(i + j) % 3],
            color,
            shape,
            MOTIONS[(2 * i + j) % 5],
            BACKGROUNDS[(i + j + i // 4) % 4],
        )
        for i, color in enumerate(COLORS)
        for j, shape in enumerate(SHAPES)
    ]


@pytest.mark.parametrize(("size", "blur", "noise"), [(128, 0, 0.0), (128, 4, 8.0), (64, 1, 5.0)])
def test_ground_truth_is_measured_right(size: int, blur: int, noise: float) -> None:
    rng = np.random.default_rng(7)
    for caption in covering_captions():
        made = Scene.sample(caption, rng)
        first = int(rng.integers(1000))
        seen = measure(spoil(made.render(first, 12, size=size), blur, noise, rng))
        assert all(seen.matches(caption).values()), (caption.text, seen)
        assert (seen.size == "medium") == (caption.size is None)
        assert seen.radius == pytest.approx(made.radius, rel=0.06)
        assert seen.velocity == pytest.approx(made.velocity, abs=0.05)
        assert seen.trajectory_error < 1.0
        off = (seen.path[0] - made.position(first) + 64) % 128 - 64
        assert np.abs(off).max() < 128 / size  # one pixel


@pytest.mark.parametrize("word", ["size", "color", "shape", "motion", "background"])
def test_a_wrong_word_is_found_wrong_and_the_others_right(word: str) -> None:
    rng = np.random.default_rng(8)
    words = {
        "size": ("small", "large"),
        "color": COLORS,
        "shape": SHAPES,
        "motion": MOTIONS,
        "background": BACKGROUNDS,
    }[word]
    for shown in words:
        caption = replace(
            Caption("large", "orange", "square", "moving up", "brown"), **{word: shown}
        )
        seen = measure(Scene.sample(caption, rng).render(0, 10))
        for told in words:
            verdict = seen.matches(replace(caption, **{word: told}))
            assert verdict.pop(word) == (told == shown)
            assert all(verdict.values())


def clip(text: str, count: int = 32) -> Frames:
    return Scene.sample(parse(text), np.random.default_rng(3)).render(0, count)


def assert_nothing_fits(seen: Measurement) -> None:
    assert seen.color is None
    assert seen.shape is None
    assert seen.motion is None
    assert seen.size is None
    assert seen.trajectory_error == math.inf


def test_an_empty_picture_has_a_background_and_nothing_else() -> None:
    seen = measure(np.full((5, 128, 128, 3), (88, 54, 30), np.uint8))
    assert seen.background == "brown"
    assert_nothing_fits(seen)


def test_noise_is_no_scene() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (5, 128, 128, 3), dtype=np.uint8)
    seen = measure(noise)
    assert seen.shape is None
    assert not all(seen.matches(parse("a red star moving up on a gray background")).values())


def test_an_object_of_no_known_color_has_none() -> None:
    frames = np.full((4, 128, 128, 3), 18, np.uint8)
    frames[:, 40:80, 40:80] = (150, 150, 150)
    seen = measure(frames)
    assert seen.color is None
    assert seen.shape == "square"


def test_two_objects_are_no_shape() -> None:
    frames = clip("a large red circle standing still on a black background", 4)
    frames[:, :64] = np.maximum(frames[:, :64], np.roll(frames, (64, 64), (1, 2))[:, :64])
    frames = np.maximum(frames, np.roll(frames, 64, 2))
    assert measure(frames).shape is None


def test_a_background_of_no_known_color_has_none() -> None:
    frames = np.full((4, 128, 128, 3), (40, 200, 60), np.uint8)
    assert measure(frames).background is None


def test_the_vote_takes_the_majority_of_the_frames() -> None:
    many = clip("a red circle standing still on a black background", 9)
    few = clip("a blue square standing still on a white background", 6)
    seen = measure(np.concatenate([many, few]))
    assert (seen.color, seen.shape, seen.background) == ("red", "circle", "black")
    tied = measure(np.concatenate([many[:6], few]))
    assert tied.color is None


def shifted(offsets: list[tuple[int, int]]) -> Frames:
    frame = clip("a blue square standing still on a gray background", 1)[0]
    return np.stack([np.roll(frame, (y, x), axis=(0, 1)) for x, y in offsets])


def test_an_oblique_motion_has_no_class() -> None:
    seen = measure(shifted([(2 * i, 2 * i) for i in range(20)]))
    assert seen.motion is None
    assert seen.trajectory_error == math.inf


def test_the_trajectory_error_is_the_stray_in_a_second() -> None:
    drift = measure(shifted([(2 * i, i // 4) for i in range(32)]), fps=16)
    assert drift.motion == "moving right"
    assert drift.trajectory_error == pytest.approx(4.0, abs=0.1)  # a quarter pixel a frame
    straight = measure(shifted([(2 * i, 0) for i in range(32)]), fps=16)
    assert straight.trajectory_error < 0.05
    stops = measure(shifted([(2 * min(i, 20), 0) for i in range(32)]), fps=16)
    assert stops.trajectory_error > 3


def test_a_frame_without_an_object_does_not_break_the_track() -> None:
    frames = clip("a green star moving left on a white background", 20)
    frames[7] = 236
    seen = measure(frames)
    assert np.isnan(seen.path[7]).all()
    assert seen.motion == "moving left"
    assert seen.trajectory_error < 0.5


def test_object_mask_agrees_with_the_scene() -> None:
    made = Scene.sample(
        parse("a large purple triangle moving up on a gray background"), np.random.default_rng(1)
    )
    found = object_mask(made.render(4, 1)[0]) > 0.5
    truth = made.mask(4, 1)[0] > 0.5
    assert (found != truth).sum() < 0.05 * truth.sum()


def test_psnr_over_all_and_inside_the_mask() -> None:
    truth = np.full((2, 8, 8, 3), 100, np.uint8)
    frames = truth.copy()
    frames[:, :4] += 10
    mask = np.zeros((2, 8, 8))
    mask[:, :4] = 1
    assert squared_error(frames, truth) == 50
    assert psnr(frames, truth, mask) == pytest.approx(10 * math.log10(255**2 / 100))
    assert psnr(frames, truth, 1 - mask) == math.inf
    assert mse_to_psnr(50) == pytest.approx(psnr(frames, truth))


def test_what_cannot_be_compared_is_refused() -> None:
    frames = np.zeros((2, 8, 8, 3), np.uint8)
    with pytest.raises(InputError, match="differ"):
        psnr(frames, frames[:1])
    with pytest.raises(InputError, match="mask"):
        psnr(frames, frames, np.zeros((2, 8, 8)))


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((2, 8, 8, 3), np.float32),
        np.zeros((2, 8, 8), np.uint8),
        np.zeros((0, 8, 8, 3), np.uint8),
        np.zeros((2, 8, 9, 3), np.uint8),
    ],
)
def test_frames_of_another_kind_are_refused(frames: np.ndarray) -> None:
    with pytest.raises(InputError, match="frames must be"):
        measure(frames)

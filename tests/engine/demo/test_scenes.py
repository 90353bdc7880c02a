from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from livereel.engine.demo.scenes import (
    BACKGROUNDS,
    COLORS,
    GRID,
    HELD_OUT,
    MOTIONS,
    RADII,
    SHAPES,
    SPEEDS,
    VELOCITIES,
    Caption,
    Scene,
    all_captions,
    held_out_captions,
    is_held_out,
    parse,
    training_captions,
)
from livereel.engine.errors import InputError


def scene(text: str, seed: int = 0) -> Scene:
    return Scene.sample(parse(text), np.random.default_rng(seed))


def test_all_captions_are_distinct_and_parse_back() -> None:
    captions = all_captions()
    assert len(set(captions)) == len(captions) == 3 * 8 * 4 * 5 * 4
    assert len({caption.text for caption in captions}) == len(captions)
    assert all(parse(caption.text) == caption for caption in captions)


def test_caption_text() -> None:
    caption = Caption("small", "orange", "star", "standing still", "white")
    assert caption.text == "a small orange star standing still on a white background"
    assert parse("An Orange star standing still on a white background.") == replace(
        caption, size=None
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        "a dog",
        "a red circle moving right",
        "a huge red circle moving right on a black background",
        "a red circle moving right on a pink background",
        "a red circle moving sideways on a black background",
        "a small large red circle moving right on a black background",
        "a red circle moving right at a black background",
        "a red circle moving right on a black background today",
    ],
)
def test_what_is_not_of_the_grammar_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="is not of the form"):
        parse(text)


def test_held_out_is_a_tenth_and_each_word_still_appears_often() -> None:
    assert len(HELD_OUT) == 16  # of 160
    training = training_captions()
    held = held_out_captions()
    assert set(training) | set(held) == set(all_captions())
    assert not set(training) & set(held)
    assert 0.75 < len(training) / len(all_captions()) < 0.9
    assert not any(caption.triple in HELD_OUT for caption in training)
    assert {caption.triple for caption in held} >= HELD_OUT
    for name, words in {
        "color": COLORS,
        "shape": SHAPES,
        "motion": MOTIONS,
        "background": BACKGROUNDS,
    }.items():
        counts = Counter(getattr(caption, name) for caption in training)
        even = len(training) / len(words)
        assert all(0.8 * even < counts[word] < 1.2 * even for word in words)
    pairs = {(caption.color, caption.shape) for caption in training}
    assert len(pairs) == len(COLORS) * len(SHAPES)


def test_a_size_word_does_not_undo_the_holding_out() -> None:
    for caption in held_out_captions():
        assert all(is_held_out(replace(caption, size=size)) for size in (None, "small", "large"))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", ["small", None, "large"])
def test_all_shapes_have_the_same_area(shape: str, size: str | None) -> None:
    made = Scene.sample(Caption(size, "red", shape, "moving up", "gray"), np.random.default_rng(2))
    low, high = RADII[size]
    assert low <= made.radius <= high
    area = made.mask(0, 3).sum((1, 2))
    np.testing.assert_allclose(area, math.pi * made.radius**2, rtol=0.01)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [128, 64, 96])
def test_frames_and_windows_can_be_drawn_on_their_own(shape: str, size: int) -> None:
    made = scene(f"a large green {shape} moving left on a brown background", seed=3)
    frames = made.render(50, 6, size=size)
    assert frames.shape == (6, size, size, 3)
    assert frames.dtype == np.uint8
    np.testing.assert_array_equal(made.render(53, 2, size=size), frames[3:5])
    window = made.render(50, 6, size=size, crop=(7, 30, 40, 21))
    np.testing.assert_array_equal(window, frames[:, 7:47, 30:51])


def test_the_mask_is_where_the_object_is_drawn() -> None:
    made = scene("a small cyan star moving down on a black background", seed=4)
    frames = made.render(9, 4).astype(int)
    mask = made.mask(9, 4)
    assert frames[mask > 0.99][:, 2].min() > 150
    assert frames[mask == 0].max() < 40


@pytest.mark.parametrize("motion", MOTIONS)
def test_what_leaves_comes_back_on_the_other_side(motion: str) -> None:
    made = replace(
        scene(f"a red star {motion} on a white background", seed=5), radius=22.0, slope=0
    )
    x, y = VELOCITIES[motion]
    assert made.speed == 2
    frames = made.render(0, 65)
    np.testing.assert_array_equal(frames[0], frames[64])  # 64 frames of 2 pixels: once around
    rolled = np.roll(frames[0], (2 * 13 * y, 2 * 13 * x), axis=(0, 1))
    np.testing.assert_allclose(frames[13].astype(int), rolled, atol=1)


def test_the_larger_is_the_slower() -> None:
    made = scene("a red circle moving right on a white background")
    speeds = [replace(made, radius=radius).speed for radius in (13, 17, 22, 31)]
    assert speeds == sorted(speeds, reverse=True)
    assert speeds[0] == pytest.approx(SPEEDS[0]) and speeds[-1] == pytest.approx(SPEEDS[1])


def test_motion_stays_exact_far_into_a_stream() -> None:
    made = replace(scene("a red circle moving right on a white background"), radius=22.0)
    np.testing.assert_array_equal(made.render(5 + 64 * 2**25, 2), made.render(5, 2))


def test_two_seeds_differ_and_one_seed_does_not() -> None:
    text = "a pink square standing still on a gray background"
    first, second = scene(text, 1), scene(text, 2)
    assert first == scene(text, 1)
    assert first != second
    assert (first.render(0, 1) != second.render(0, 1)).any()


@pytest.mark.parametrize("frame", [0, 37])
def test_switch_goes_on_from_the_same_place(frame: int) -> None:
    old = scene("a blue circle moving right on a black background", seed=6)
    new = old.switch(parse("a yellow triangle moving up on a white background"), frame)
    assert new.position(frame) == pytest.approx(old.position(frame))
    assert new.radius == old.radius
    assert new.caption.text == "a yellow triangle moving up on a white background"
    x, y = new.position(frame)
    assert new.position(frame + 1) == pytest.approx((x, (y - new.speed) % GRID))


def test_switch_takes_the_size_that_the_caption_names() -> None:
    old = scene("a blue circle moving right on a black background", seed=6)
    large = old.switch(parse("a large blue circle moving right on a black background"), 5)
    assert RADII["large"][0] <= large.radius <= RADII["large"][1]
    same = large.switch(parse("a red circle moving left on a black background"), 9)
    assert same.radius == large.radius


@pytest.mark.parametrize(
    ("count", "size", "crop"),
    [(0, 128, None), (1, 0, None), (1, 64, (0, 0, 65, 10)), (1, 64, (-1, 0, 8, 8))],
)
def test_impossible_pictures_are_refused(
    count: int, size: int, crop: tuple[int, int, int, int] | None
) -> None:
    made = scene("a blue circle moving right on a black background")
    with pytest.raises(InputError):
        made.render(0, count, size=size, crop=crop)

"""Stories that arrive at a picture, and how exactly clips do."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from livereel.engine.demo.arrival import arrival_story, arrive, path_to
from livereel.engine.demo.objects import Objects
from livereel.engine.demo.scenes import GRID, Scene, parse
from livereel.engine.demo.steering import FASTEST, render_along
from livereel.engine.errors import InputError

CHUNKS = (1, 3, 3)
FRAMES = 25


def away(ours: Any, theirs: Any) -> np.ndarray:
    """Offsets on the torus."""
    offset: np.ndarray = (np.subtract(ours, theirs) + GRID / 2) % GRID - GRID / 2
    return offset


def test_a_story_goes_evenly_to_its_picture_and_rests_there() -> None:
    rng = np.random.default_rng(0)
    begins, inside = set(), 0
    for _ in range(40):
        scene = Scene.sample(parse("a cyan circle moving up on a black background"), rng)
        story = arrival_story([scene] * len(CHUNKS), rng, CHUNKS)
        assert story.frames.shape == (FRAMES, GRID, GRID, 3) and story.shares.shape == (4, 7)
        begins.add(story.told)
        path = Objects.seen([*story.frames, story.picture]).path
        path, end = path[:-1], path[-1]
        share = story.shares.T.flatten()[3:].numpy()
        assert not share[: 0 if story.told == 0 else 4 * story.told - 3].any()
        # What it is told leads from where each chunk began to where the picture has the object.
        for first, stop in ((0, 1), (1, 13), (13, 25)):
            if (first + 3) // 4 < story.told:
                continue
            start = path[max(first - 1, 0)]
            due = start + share[first:stop, None] * away(end, start)
            assert np.abs(away(path[first:stop], due)).max() < 1.5
        steps = away(path[1:], path[:-1])
        assert np.linalg.norm(steps, axis=1).max() < FASTEST + 0.5
        if share[-1] == 1:
            inside += 1
            assert np.abs(away(path[-1], end)).max() < 0.5
    assert begins == {0, 1, 4} and 8 < inside < 32


def test_a_story_arrives_as_the_caption_then_says() -> None:
    rng = np.random.default_rng(0)
    first = Scene.sample(parse("a red circle moving up on a black background"), rng)
    other = first.switch(parse("a blue square moving left on a white background"), 13)
    story = arrival_story([first, first, other], rng, CHUNKS)
    assert story.frames[12].mean() < 60 < 120 < story.frames[13].mean()
    assert story.picture.mean() > 120 or story.shares[3, 3] == 1


@pytest.mark.parametrize("short", [0.0, 4.0])
def test_the_error_is_that_of_one_that_stops_short(short: float) -> None:
    def generate(
        prompt: str, *, frames: int, seed: int, image: np.ndarray, last_image: np.ndarray
    ) -> Any:
        scene = Scene.sample(parse(prompt), np.random.default_rng(seed))
        (start, end) = (tuple(x) for x in Objects.seen([image, last_image]).path)
        stop = (end[0] + short, end[1])
        drawn = render_along(scene, path_to(start, stop, frames - 1, frames))
        if not short:
            drawn[-1] = last_image
        return SimpleNamespace(frames=drawn)

    engine: Any = SimpleNamespace(generate=generate)
    outcome = arrive(engine, clips=2, frames=20, seed=1)
    assert outcome.way.clips == 2 and outcome.way.frames == 20
    assert outcome.last_error == pytest.approx(short, abs=0.5)
    assert outcome.last_psnr < 40 if short else outcome.last_psnr > 100
    assert f"the object {outcome.last_error:.2f} px" in outcome.to_line()
    with pytest.raises(InputError, match="2 frames at least"):
        arrive(engine, clips=1, frames=1)


def test_a_pool_tells_of_a_picture_from_its_latent_frame_on() -> None:
    from livereel.engine.demo.train import Pool

    goal = torch.randn(2, 16, 1, 2, 2)
    shares = torch.rand(2, 4, 5)
    control = torch.randn(2, 4, 5, 2, 2)
    told = torch.tensor([3, 5])
    pool = Pool(torch.zeros(2, 16, 5, 2, 2), torch.zeros(2, 1), control, goal, shares, told)
    channels = pool.channels(torch.tensor([1, 0]))
    assert channels.shape == (2, 28, 5, 2, 2)
    assert torch.equal(channels[:, :4], control.flip(0))
    assert not channels[0, 4:].any() and not channels[1, 4:, :3].any()
    assert torch.equal(channels[1, 8:24, 3:], goal[0].expand(-1, 2, -1, -1))
    assert torch.equal(channels[1, 4:8, 3:, 1, 0], shares[0, :, 3:])

"""Led objects: drawn where they are led, told as the engine draws control, measured."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from livereel.engine.demo.objects import Objects, compare_objects
from livereel.engine.demo.scenes import GRID, Scene, parse
from livereel.engine.demo.steering import (
    FASTEST,
    chunk_edges,
    control_of,
    draw_path,
    follow,
    led_story,
    render_along,
)

CHUNKS, CLIP = (1, 3, 3), (1, 3, 3, 3)
RNG = np.random.default_rng


def test_paths_go_evenly_within_chunks_and_no_faster_than_they_may() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        path = draw_path(rng, (120.0, 5.0), CHUNKS)
        assert path.shape == (25, 2) and ((path >= 0) & (path < GRID)).all()
        assert path[0].tolist() == [120.0, 5.0]
        steps = (np.diff(path, axis=0) + GRID / 2) % GRID - GRID / 2
        assert np.allclose(steps[:12], steps[0]) and np.allclose(steps[12:], steps[12])
        assert np.linalg.norm(steps, axis=1).max() <= FASTEST + 1e-9


def test_an_object_is_drawn_along_its_path() -> None:
    rng = np.random.default_rng(1)
    scene = Scene.sample(parse("a green square moving left on a white background"), rng)
    path = draw_path(rng, scene.center, CHUNKS)
    metrics = compare_objects([Objects.seen(render_along(scene, path))], [Objects(path)])
    assert metrics.found == 1.0 and metrics.trajectory_error < 0.5


def test_control_s_bumps_are_where_the_object_is() -> None:
    path = draw_path(np.random.default_rng(2), (60.0, 64.0), CHUNKS)
    maps = control_of(path, 16)
    assert maps.shape == (1, 4, 7, 16, 16)
    turns = torch.exp(2j * torch.pi * (torch.arange(16) + 0.5) / 16)
    for frame, (x, y) in enumerate(path):
        latent, channel = (0, 3) if frame == 0 else (1 + (frame - 1) // 4, (frame - 1) % 4)
        one = maps[0, channel, latent]
        for axis, place in ((0, x), (1, y)):
            angle = torch.angle((one.sum(axis) * turns).sum()).item()
            off = (angle / (2 * np.pi) * GRID - place + GRID / 2) % GRID - GRID / 2
            assert abs(off) < 0.1


def away(path: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Offsets (x, y) of a path from places on the torus."""
    return np.asarray((path - places + GRID / 2) % GRID - GRID / 2)


def test_chunks_begin_where_their_latents_frames_do() -> None:
    assert chunk_edges(CHUNKS) == [0, 1, 13, 25]
    assert chunk_edges((2, 1)) == [0, 5, 9]


def test_a_story_is_led_for_some_chunks_and_free_before_and_after() -> None:
    rng = np.random.default_rng(4)
    edges, spans = chunk_edges(CHUNKS), set()
    for _ in range(16):
        scene = Scene.sample(parse("a cyan circle moving up on a black background"), rng)
        frames, control = led_story([scene] * len(CHUNKS), rng, CHUNKS, 16)
        assert frames.shape == (25, GRID, GRID, 3) and control.shape == (1, 4, 7, 16, 16)
        told = control.flatten(3).amax(3)[0].transpose(0, 1).flatten()[3:] > 0  # frame by frame
        start, stop = int(told.int().argmax()), 25 - int(told.flip(0).int().argmax())
        spans.add((start, stop))
        assert {start, stop} <= set(edges) and int(told.sum()) == stop - start
        path = Objects.seen(frames).path
        free = np.array([scene.position(i) for i in range(start)]).reshape(-1, 2)
        assert np.abs(away(path[:start], free)).max(initial=0) < 1
        steps = away(path[1:], path[:-1])
        assert np.linalg.norm(steps, axis=1).max() < FASTEST + 0.5
        assert np.abs(steps[stop - 1 :] - scene.velocity).max(initial=0) < 0.5
        for frame in (start, stop - 1):
            latent, channel = (0, 3) if frame == 0 else (1 + (frame - 1) // 4, (frame - 1) % 4)
            bump = control[0, channel, latent].argmax().item()
            place = np.array([bump % 16, bump // 16]) * 8 + 4
            assert np.abs(away(path[frame], place)).max() < 4.5
    assert len({start for start, _ in spans}) > 1 and len({stop for _, stop in spans}) > 1


def test_a_led_story_takes_up_a_new_caption() -> None:
    rng = np.random.default_rng(0)
    first = Scene.sample(parse("a red circle moving up on a black background"), rng)
    other = first.switch(parse("a blue square moving left on a white background"), 13)
    frames, _ = led_story([first, first, other], rng, CHUNKS, 16)
    assert frames[12].mean() < 60 < 120 < frames[13].mean()
    path = Objects.seen(frames).path
    assert np.linalg.norm(away(path[1:], path[:-1]), axis=1).max() < FASTEST + 0.5


def test_an_object_that_was_let_go_does_not_jump_when_the_caption_changes() -> None:
    first = Scene.sample(parse("a red circle moving up on a black background"), RNG(0))
    cut = chunk_edges(CLIP)[3]
    other = first.switch(parse("a blue circle moving down on a white background"), cut)
    spans = []
    for seed in range(60):
        frames, control = led_story([first, first, first, other], RNG(seed), CLIP, 16)
        path = Objects.seen(frames).path
        assert np.linalg.norm(away(path[1:], path[:-1]), axis=1).max() < FASTEST + 0.5
        told = control.flatten(3).amax(3)[0].transpose(0, 1).flatten()[3:] > 0
        spans.append((bool(told[0]), bool(told[cut - 1]), bool(told[cut])))
    assert (True, False, False) in spans  # let go in a chunk before
    assert (False, False, True) in spans  # led from the new caption on


class Following:
    """A session that draws its object where it was told, `late` frames after."""

    def __init__(self, scene: Scene, frames: int, late: int) -> None:
        self.scene, self.frames, self.late = scene, frames, late
        self.told: list[tuple[float, float]] = []

    def update(self, *, control: Any) -> None:
        self.told += control

    def __iter__(self) -> Iterator[Any]:
        at = 0
        while at < self.frames:
            path = np.array(([self.told[0]] * self.late + self.told)[at : len(self.told)]) * GRID
            at = len(self.told)
            yield SimpleNamespace(frames=render_along(self.scene, path))

    def close(self) -> None:
        pass


@pytest.mark.parametrize("late", [0, 2])
def test_the_following_error_is_that_of_one_that_follows_late(late: int) -> None:
    def open_(prompt: str, *, seed: int, frames: int) -> Following:
        scene = Scene.sample(parse(prompt), np.random.default_rng(seed))
        return Following(scene, frames, late)

    engine: Any = SimpleNamespace(open=open_)
    found = follow(engine, streams=2, chunks=CHUNKS, seed=3)
    assert found.clips == 2 and found.frames == 25
    if late:
        assert 1 < found.trajectory_error < 2 * FASTEST
    else:
        assert found.trajectory_error < 0.6

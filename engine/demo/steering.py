"""Scenes whose object is led: drawn to train on, and played to measure how well a model follows.

A path has a constant velocity within each chunk of a stream and another in the next, as an object
has that is sent from place to place while it runs (`Session.update`). What the caption says of its
motion no longer holds; color, shape and background do.

Shapes: F frames, H W space, T latent frames.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from .measure import Track
from .objects import ObjectMetrics, Objects, compare_objects
from .scenes import GRID, Frames, Scene, held_out_captions

if TYPE_CHECKING:
    from torch import Tensor

    from ..types import Chunk

FASTEST = 4.0
"""Pixels a frame, at most, that an object is led by."""
CONTROL_CHANNELS = 4
"""Maps of a latent frame: one for each of its frames."""
_FACTOR = CONTROL_CHANNELS  # frames of a latent frame
_SEED_TAG = 0x1EAD  # keeps the paths drawn here apart from training's


class Session(Protocol):
    """What is used of a session."""

    def __iter__(self) -> Iterator[Chunk]: ...
    def update(self, *, control: Any) -> None: ...
    def close(self) -> None: ...


class Model(Protocol):
    """What is used of an engine."""

    def open(self, prompt: str, *, seed: int, frames: int) -> Session: ...


def draw_path(rng: np.random.Generator, start: tuple[float, float], chunks: Sequence[int]) -> Track:
    """Centers (x, y) `[F, 2]` on the grid, the first at `start`, of chunks of so many latent
    frames, the first latent frame of which is one frame. In one chunk of four the object rests."""
    steps: list[tuple[float, float]] = []
    for first, stop in pairwise(chunk_edges(chunks)):
        angle, speed = rng.uniform(0, 2 * math.pi), rng.uniform(0.5, FASTEST)
        speed *= rng.random() >= 0.25
        way = stop - max(first, 1)  # to the first frame leads none
        steps += [(speed * math.cos(angle), speed * math.sin(angle))] * way
    path: Track = np.cumsum([start, *steps], axis=0) % GRID
    return path


def render_along(scene: Scene, path: Track, size: int = GRID) -> Frames:
    """The scene's object at each place of a path: uint8 `[F, size, size, 3]`."""
    still = replace(scene, caption=replace(scene.caption, motion="standing still"))
    return np.concatenate(
        [replace(still, center=(float(x), float(y))).render(0, 1, size=size) for x, y in path]
    )


def control_of(path: Track, size: int) -> Tensor:
    """The control `[1, 4, T, size, size]`, fp32, that a DiT with latents of that size is given to
    lead its object along a path of 1 + 4 (T - 1) frames from a stream's beginning. NaN leaves it
    free."""
    import torch

    from ..sampling.track import draw

    latents = (len(path) - 1) // _FACTOR + 1
    track = torch.from_numpy(path / GRID)
    return draw(track, latents, (size, size), _FACTOR, first=True, wraps=True)


def chunk_edges(chunks: Sequence[int]) -> list[int]:
    """Numbers of the frames at which chunks of so many latent frames begin, and of the one after
    the last."""
    return [0, *(_FACTOR * latents - (_FACTOR - 1) for latents in accumulate(chunks))]


def led_story(
    scenes: Sequence[Scene], rng: np.random.Generator, chunks: Sequence[int], size: int
) -> tuple[Frames, Tensor]:
    """What a DiT learns to follow control from: uint8 frames `[F, 128, 128, 3]` of chunks of so
    many latent frames, each of a scene of its own, and their control as `control_of` gives it.

    From some chunk on, the first one perhaps, the object is led from where it then is, in three of
    ten for some chunks only; before and after, it moves as its caption says, and the control is
    zeros.
    """
    begins = int(rng.integers(len(chunks)))
    ends = len(chunks) if rng.random() >= 0.3 else int(rng.integers(begins, len(chunks))) + 1
    edges = chunk_edges(chunks)
    start = edges[begins]
    before = scenes[max(0, begins - 1)].position(start - 1)
    path = draw_path(rng, before, (1, *chunks[begins:ends]))[1:]
    if not begins:  # the first latent frame is one frame
        path = path[_FACTOR - 1 :]
    frames = render_sent(scenes, path, chunks, begins, ends)
    untold = np.full((edges[-1], 2), np.nan)
    untold[start : edges[ends]] = path
    return frames, control_of(untold, size)


def render_sent(
    scenes: Sequence[Scene], path: Track, chunks: Sequence[int], begins: int, ends: int
) -> Frames:
    """Frames of chunks of so many latent frames, each of a scene of its own: from chunk `begins` up
    to `ends` the object takes a path, and else it moves as its caption says."""
    edges = chunk_edges(chunks)
    start = edges[begins]
    frames, last = [], (0.0, 0.0)
    for i, (scene, (first, stop)) in enumerate(zip(scenes, pairwise(edges), strict=True)):
        if begins <= i < ends:
            frames.append(render_along(scene, path[first - start : stop - start]))
            last = path[stop - start - 1]
            continue
        if i >= ends:  # it goes on from where it was let go
            x, y = np.subtract(last, np.multiply(scene.velocity, first - 1))
            scene = replace(scene, center=(float(x % GRID), float(y % GRID)))
        frames.append(scene.render(first, stop - first))
        last = scene.position(stop - 1)
    return np.concatenate(frames)


def follow(
    engine: Model,
    *,
    streams: int,
    chunks: Sequence[int],
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> ObjectMetrics:
    """Lead the objects of `streams` streams, of chunks of so many latent frames, along drawn paths,
    each chunk's part of the path being told when the one before has left. `trajectory_error` of
    what comes back is the following error, in pixels. Raises `InputError` for a model that follows
    no control.
    """
    tell = progress or (lambda stage, done, total: None)
    rng = np.random.default_rng([_SEED_TAG, seed])
    captions = held_out_captions()
    found, led = [], []
    for number in range(streams):
        tell("streams", number, streams)
        caption = captions[int(rng.integers(len(captions)))]
        start = (float(rng.uniform(0, GRID)), float(rng.uniform(0, GRID)))
        path = draw_path(rng, start, chunks)
        session = engine.open(caption.text, seed=seed + number, frames=len(path))
        found.append(Objects.seen(_play(session, path, chunks)))
        led.append(Objects(path))
    tell("streams", streams, streams)
    return compare_objects(found, led)


def _play(session: Session, path: Track, chunks: Sequence[int]) -> Frames:
    frames: list[Frames] = []
    arriving = iter(session)
    for first, stop in pairwise(chunk_edges(chunks)):
        part = (path[first:stop] / GRID).tolist()
        session.update(control=[(x, y) for x, y in part])
        frames.append(next(arriving).frames)
    session.close()
    return np.concatenate(frames)

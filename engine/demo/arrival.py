"""Scenes whose object arrives at a picture: drawn to train on, and played to measure how exactly a
model ends with the picture that it is given.

The object goes straight and evenly, the shorter way round the torus, to where the picture has it,
and rests there. What the caption says of its motion does not hold on the way.

Shapes: F frames, H W space, T latent frames.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..errors import InputError
from ..sampling import goal
from .objects import ObjectMetrics, Objects, compare_objects, to_line
from .scenes import GRID, Frames, Scene, held_out_captions
from .steering import CONTROL_CHANNELS, FASTEST, chunk_edges, render_along, render_sent

if TYPE_CHECKING:
    from torch import Tensor

    from .measure import Track

_FURTHEST = 60.0  # pixels along an axis: half of the torus is 64
_LONGEST = 96  # frames
_SEED_TAG = 0x601  # keeps what is drawn here apart from training's


@dataclass(frozen=True)
class Story:
    """What a DiT learns arriving from: uint8 `frames` `[F, 128, 128, 3]`; the `picture` `[128, 128,
    3]` that they arrive at, perhaps after their end; and the `shares` `[4, T]` that it is told with
    it from latent frame `told` on."""

    frames: Frames
    picture: Frames
    shares: Tensor
    told: int


class Model(Protocol):
    """What is used of an engine."""

    def generate(
        self, prompt: str, *, frames: int, seed: int, image: Frames, last_image: Frames
    ) -> Any: ...


@dataclass(frozen=True)
class Arrival:
    """How clips end with the picture that they were given.

    `way` are the objects against even ways to it. `last_error` is how far from its place in the
    picture the last frame has the object, in pixels, root mean square; `last_psnr` the last
    frame's against the picture, in dB, the mean of the clips.
    """

    way: ObjectMetrics
    last_error: float
    last_psnr: float

    def to_line(self) -> str:
        """A sentence each on the way and on its end."""
        return (
            f"{to_line(self.way)}\nlast frames: the object {self.last_error:.2f} px from where the "
            f"picture has it, {self.last_psnr:.1f} dB"
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


def draw_place(
    rng: np.random.Generator, start: tuple[float, float], frames: int
) -> tuple[float, float]:
    """A place (x, y) that an object can be at so many frames after it was at `start`."""
    way = rng.uniform(-_FURTHEST, _FURTHEST, 2)
    way *= min(1.0, FASTEST * frames / float(np.hypot(*way)))
    x, y = (np.array(start) + way) % GRID
    return float(x), float(y)


def path_to(start: tuple[float, float], end: tuple[float, float], frames: int, count: int) -> Track:
    """Centers (x, y) `[count, 2]` on the grid: the first at `start`, that of number `frames` and
    all after it at `end`."""
    way = (np.subtract(end, start) + GRID / 2) % GRID - GRID / 2
    share = np.minimum(np.arange(count) / frames, 1.0)[:, None]
    path: Track = (np.array(start) + share * way) % GRID
    return path


def arrival_story(
    scenes: Sequence[Scene], rng: np.random.Generator, chunks: Sequence[int]
) -> Story:
    """A story in chunks of so many latent frames, each of a scene of its own, that arrives at a
    picture, most of those that have room for it before their end. Three in ten are told of it on
    the way only."""
    import torch

    edges = chunk_edges(chunks)
    begins = int(rng.integers(len(chunks))) if rng.random() < 0.3 else 0
    before = max(edges[begins] - 1, 0)
    inside = edges[-1] - before
    left = int(rng.integers(4, inside if inside > 5 and rng.random() < 0.5 else _LONGEST))
    start = scenes[max(begins - 1, 0)].position(before)
    end = draw_place(rng, start, left)
    path = path_to(start, end, left, inside)
    arrived = [i for i in range(begins, len(chunks)) if edges[i + 1] > before + left]
    last = scenes[arrived[0] if arrived else -1]
    shares = torch.zeros(edges[-1])
    for first, stop in pairwise(edges[begins:]):
        ahead = before + left - first
        shares[first:stop] = goal.shares(stop - first, ahead, first=first == 0)
    shares = torch.cat([shares[:1].expand(CONTROL_CHANNELS - 1), shares])
    return Story(
        render_sent(scenes, path[edges[begins] - before :], chunks, begins, len(chunks)),
        render_along(last, np.array([end]))[0],
        shares.view(-1, CONTROL_CHANNELS).T,
        sum(chunks[:begins]),
    )


def arrive(
    engine: Model,
    *,
    clips: int,
    frames: int,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> Arrival:
    """Give `clips` clips of so many frames a first and a last picture of a scene that training
    never saw, its object in the last one at another place. Raises `InputError` for a model that
    arrives at none, and for a clip of one frame.
    """
    if frames < 2:
        raise InputError("a clip with a first and a last picture has 2 frames at least")
    tell = progress or (lambda stage, done, total: None)
    rng = np.random.default_rng([_SEED_TAG, seed])
    captions = held_out_captions()
    found, due, pictures, decibels = [], [], [], []
    for number in range(clips):
        tell("clips", number, clips)
        scene = Scene.sample(captions[int(rng.integers(len(captions)))], rng)
        end = draw_place(rng, scene.center, frames - 1)
        first, last = render_along(scene, np.array([scene.center, end]))
        made = engine.generate(
            scene.caption.text, frames=frames, seed=seed + number, image=first, last_image=last
        ).frames
        found.append(Objects.seen(made))
        due.append(Objects(path_to(scene.center, end, frames - 1, frames)))
        pictures.append(Objects.seen([last]))
        off = float(np.square(made[-1].astype(np.float64) - last).mean())
        decibels.append(10 * math.log10(255**2 / max(off, 1e-9)))
    tell("clips", clips, clips)
    ends = [Objects(one.path[-1:]) for one in found]
    last_error = compare_objects(ends, pictures).trajectory_error
    return Arrival(compare_objects(found, due), last_error, sum(decibels) / clips)

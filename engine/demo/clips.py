"""What the demo's training sees: clips drawn from scenes, endlessly and by seed.

Shapes: B batch, F pixel frames, H W space.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, pairwise
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from . import scenes
from .arrival import arrival_story
from .scenes import Frames
from .steering import CONTROL_CHANNELS, chunk_edges, led_story

T = TypeVar("T")

CHUNKS = (1, 3, 3, 3)
"""Latent frames of the chunks that the DiT is trained on; the first is one picture."""


def to_float(frames: Frames) -> Tensor:
    """uint8 `[B, F, H, W, 3]` to float `[B, 3, F, H, W]` in [-1, 1], channels last in memory."""
    return torch.as_tensor(frames).permute(0, 4, 1, 2, 3).float().div_(127.5).sub_(1.0)


def random_caption(rng: np.random.Generator) -> scenes.Caption:
    """A caption that training may see; a third have no size word, a third each are large, small."""
    captions = scenes.training_captions()
    return captions[int(rng.integers(len(captions)))]


def words() -> list[str]:
    """Every word of the captions, in a fixed order."""
    return sorted({word for caption in scenes.all_captions() for word in caption.text.split()})


def render_clip(
    rng: np.random.Generator, frames: int, crop: tuple[int, int, int, int], cut_share: float
) -> Frames:
    """Frames of a window of a random scene; some change their caption on the way."""
    scene = scenes.Scene.sample(random_caption(rng), rng)
    first = int(rng.integers(0, 64))
    if rng.random() >= cut_share:
        return scene.render(first, frames, crop=crop)
    cut = int(rng.integers(1, frames))
    other = scene.switch(random_caption(rng), first + cut)
    return np.concatenate(
        [scene.render(first, cut, crop=crop), other.render(first + cut, frames - cut, crop=crop)]
    )


def render_tile(rng: np.random.Generator, frames: int, side: int) -> Frames:
    """A window of a scene that shows an edge of its object, in four of five; some in odd colors."""
    while True:
        top, left = (int(v) for v in rng.integers(0, scenes.GRID - side + 1, 2))
        tile = render_clip(rng, frames, (top, left, side, side), cut_share=0.2)
        if float(tile.std(axis=(0, 1, 2)).max()) > 12 or rng.random() < 0.2:
            break
    if rng.random() < 0.3:
        tile = tile[..., rng.permutation(3)]
    return tile


def turned(rng: np.random.Generator, tile: Frames) -> Frames:
    """A tile as it is or turned, mirrored, played backwards: 16 tiles from each."""
    if rng.random() < 0.5:
        tile = tile.transpose(0, 2, 1, 3)
    forth_or_back = [slice(None, None, int(step)) for step in rng.choice((1, -1), 3)]
    return tile[tuple(forth_or_back)]


def mosaics(seed: int, drawn: int = 7000) -> Iterator[Tensor]:
    """Endless batches `[B, 3, F, 64, 64]` of four tiles each, every one from a scene of its own.

    A clip of one scene says one thing many times over; what an autoencoder needs is variety. Short
    clips take turns with longer ones, from which it learns to go on. `drawn` tiles are drawn at the
    start and used again, each time `turned` another way.
    """
    rng = np.random.default_rng(seed)
    tiles = np.stack([render_tile(rng, 17, 32) for _ in range(drawn)])
    for batch, frames in cycle([(12, 5), (7, 9), (12, 5), (4, 17)]):
        picked = []
        for i in rng.integers(0, drawn, 4 * batch):
            first = int(rng.integers(0, 18 - frames))
            picked.append(turned(rng, tiles[i, first : first + frames]))
        grid = np.stack(picked).reshape(batch, 2, 2, frames, 32, 32, 3)
        grid = grid.transpose(0, 3, 1, 4, 2, 5, 6).reshape(batch, frames, 64, 64, 3)
        yield to_float(grid)


def pictures(seed: int) -> Iterator[Tensor]:
    """Endless batches `[B, 3, F, 128, 128]` of whole scenes."""
    rng = np.random.default_rng(seed)
    whole = (0, 0, scenes.GRID, scenes.GRID)
    for batch, frames in cycle([(2, 9), (1, 21)]):
        yield to_float(np.stack([render_clip(rng, frames, whole, 0.2) for _ in range(batch)]))


def near(seed: int) -> Iterator[Tensor]:
    """Endless batches `[B, 3, F, 64, 64]` of windows with the object about their middle."""
    rng = np.random.default_rng(seed)
    middle, side = scenes.GRID // 2, 64
    for batch, frames in cycle([(8, 9), (4, 17)]):
        clips = []
        for _ in range(batch):
            scene = scenes.Scene.sample(random_caption(rng), rng)
            x, y = (float(v) for v in middle + rng.uniform(-24, 24, 2))
            first = -int(rng.integers(frames))  # it is there at some frame of the clip
            window = (middle - side // 2, middle - side // 2, side, side)
            clips.append(replace(scene, center=(x, y)).render(first, frames, crop=window))
        yield to_float(np.stack(clips))


class _Endless(IterableDataset[T]):
    """An endless source, begun with a seed of its own in each worker."""

    def __init__(self, source: Callable[[int], Iterator[T]], seed: int) -> None:
        self.source = source
        self.seed = seed

    def __iter__(self) -> Iterator[T]:
        info = get_worker_info()
        return self.source(self.seed if info is None else self.seed + 7919 * info.id)


def draw_ahead(source: Callable[[int], Iterator[T]], seed: int, workers: int) -> Iterator[T]:
    """Items of `source(seed)`, drawn by `workers` processes while training goes on."""
    return iter(DataLoader(_Endless(source, seed), batch_size=None, num_workers=workers))


def draw_scenes(rng: np.random.Generator, chunks: Sequence[int]) -> list[scenes.Scene]:
    """The scene of each chunk of so many latent frames; in four of ten longer clips another caption
    rules from the edge of some chunk on."""
    scene = scenes.Scene.sample(random_caption(rng), rng)
    cut = int(rng.integers(2, len(chunks))) if len(chunks) > 2 and rng.random() < 0.4 else None
    drawn = []
    for chunk in range(len(chunks)):
        if chunk == cut:
            scene = scene.switch(random_caption(rng), chunk_edges(chunks)[chunk])
        drawn.append(scene)
    return drawn


def render_story(drawn: Sequence[scenes.Scene], chunks: Sequence[int]) -> Frames:
    """Frames of chunks of so many latent frames, each of its scene."""
    spans = pairwise(chunk_edges(chunks))
    return np.concatenate(
        [
            scene.render(start, stop - start)
            for scene, (start, stop) in zip(drawn, spans, strict=True)
        ]
    )


@dataclass(frozen=True)
class Stories:
    """A batch for the DiT: `frames` `[B, F, H, W, 3]`; `captions` `[B, chunks]` as rows of
    `scenes.all_captions()`; `control` `[B, 4, T, 16, 16]`; the pictures that they arrive at, `goal`
    `[B, 1, H, W, 3]`, with its `shares` `[B, 4, T]` and `told` `[B]`, the latent frame from which
    on the DiT is told of it. Of a story that is not led, control is zeros, and one without a goal
    is never told of it."""

    frames: Frames
    captions: Tensor
    control: Tensor
    goal: Frames
    shares: Tensor
    told: Tensor


def stories(chunks: Sequence[int], batch: int, seed: int) -> Iterator[Stories]:
    """Endless batches: four of ten stories are led, three arrive somewhere, three do neither."""
    rng = np.random.default_rng(seed)
    while True:
        yield _batch([_story(chunks, rng) for _ in range(batch)])


def _story(chunks: Sequence[int], rng: np.random.Generator) -> Stories:
    drawn, kind = draw_scenes(rng, chunks), rng.random()
    length, side = sum(chunks), scenes.GRID // 8
    control = torch.zeros(1, CONTROL_CHANNELS, length, side, side)
    shares, told = torch.zeros(CONTROL_CHANNELS, length), length
    if kind < 0.4:
        frames, control = led_story(drawn, rng, chunks, side)
        picture = frames[-1]
    elif kind < 0.7:
        story = arrival_story(drawn, rng, chunks)
        frames, picture, shares, told = story.frames, story.picture, story.shares, story.told
    else:
        frames = render_story(drawn, chunks)
        picture = frames[-1]
    rows = {caption: i for i, caption in enumerate(scenes.all_captions())}
    return Stories(
        frames[None],
        torch.tensor([[rows[scene.caption] for scene in drawn]]),
        control,
        picture[None, None],
        shares[None],
        torch.tensor([told]),
    )


def _batch(drawn: Sequence[Stories]) -> Stories:
    return Stories(
        np.concatenate([story.frames for story in drawn]),
        torch.cat([story.captions for story in drawn]),
        torch.cat([story.control for story in drawn]),
        np.concatenate([story.goal for story in drawn]),
        torch.cat([story.shares for story in drawn]),
        torch.cat([story.told for story in drawn]),
    )

"""What the demo's training sees: clips drawn from scenes, endlessly and by seed.

Shapes: B batch, F pixel frames, H W space.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import cycle, pairwise
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from . import scenes
from .scenes import Frames

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


def mosaics(seed: int) -> Iterator[Tensor]:
    """Endless batches `[B, 3, F, 64, 64]` of four tiles each, every one from a scene of its own.

    A clip of one scene says one thing many times over; what an autoencoder needs is variety. Short
    clips take turns with longer ones, from which it learns to go on.
    """
    rng = np.random.default_rng(seed)
    for batch, frames in cycle([(8, 5), (5, 9), (8, 5), (3, 17)]):
        clips = []
        for _ in range(batch):
            tiles = [render_tile(rng, frames, 32) for _ in range(4)]
            rows = [np.concatenate(tiles[i : i + 2], axis=2) for i in (0, 2)]
            clips.append(np.concatenate(rows, axis=1))
        yield to_float(np.stack(clips))


def pictures(seed: int) -> Iterator[Tensor]:
    """Endless batches `[B, 3, F, 128, 128]` of whole scenes."""
    rng = np.random.default_rng(seed)
    whole = (0, 0, scenes.GRID, scenes.GRID)
    for batch, frames in cycle([(2, 9), (1, 21)]):
        yield to_float(np.stack([render_clip(rng, frames, whole, 0.2) for _ in range(batch)]))


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


def render_story(rng: np.random.Generator) -> tuple[Frames, list[int]]:
    """A clip of `CHUNKS` and its captions; in four of ten the caption changes at a chunk's edge."""
    numbers = {caption: i for i, caption in enumerate(scenes.all_captions())}
    scene = scenes.Scene.sample(random_caption(rng), rng)
    edges = [0, *(1 + 4 * (sum(CHUNKS[:i]) - 1) for i in range(1, len(CHUNKS) + 1))]
    cut = int(rng.integers(2, len(CHUNKS))) if rng.random() < 0.4 else None
    frames, captions = [], []
    for chunk, (start, stop) in enumerate(pairwise(edges)):
        if chunk == cut:
            scene = scene.switch(random_caption(rng), start)
        frames.append(scene.render(start, stop - start))
        captions.append(numbers[scene.caption])
    return np.concatenate(frames), captions


def stories(seed: int) -> Iterator[tuple[Frames, list[int]]]:
    """Endless clips for the DiT, with their captions."""
    rng = np.random.default_rng(seed)
    while True:
        yield render_story(rng)

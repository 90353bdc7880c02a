"""What the ring holds against a plain list of everything that was ever written into it."""

from __future__ import annotations

import pytest
import torch

from livereel.engine.config import StreamConfig
from livereel.engine.native import Window
from livereel.engine.sampling.window import KVRing, window_of
from livereel.engine.types import KV, LayerKV

LAYERS, TOKENS = 2, 3
CPU = torch.device("cpu")


def random_kv(generator: torch.Generator, frames: int) -> KV:
    k = torch.randn(LAYERS, 1, frames * TOKENS, 1, 2, generator=generator)
    return [LayerKV(layer, -layer) for layer in k]


@pytest.mark.parametrize("sinks", [0, 1, 4])
@pytest.mark.parametrize("past", [0, 1, 3, 7])
@pytest.mark.parametrize("anchors", [0, 2])
@pytest.mark.parametrize("chunks", [[1] * 12, [1, 3, 3, 3, 3], [2, 5, 1, 5, 4], [3, 3]])
def test_a_chunk_reads_sinks_anchors_and_the_newest_frames_in_order(
    sinks: int, past: int, anchors: int, chunks: list[int]
) -> None:
    layout = Window(
        sinks=sinks, window=past + max(chunks), chunk=max(chunks), anchors=anchors, anchor_every=3
    )
    ring = KVRing.empty(
        layout, (LAYERS, layout.slots, TOKENS, 1, 2), device=CPU, dtype=torch.float32
    )
    seen: list[KV] = []  # of each frame since the start
    generator = torch.Generator().manual_seed(0)

    def assert_reads(frames: list[int]) -> None:
        for layer, kv in enumerate(ring.read(frames)):
            assert torch.equal(kv.k, torch.cat([seen[i][layer].k for i in frames], dim=1))
            assert torch.equal(kv.v, torch.cat([seen[i][layer].v for i in frames], dim=1))

    for length in chunks:
        first = len(seen)
        newest = first - past
        old = [i for i in range(sinks, newest) if i % 3 == 0]
        kept = old[max(0, len(old) - anchors) :]
        expected = [i for i in range(first) if i < sinks or i in kept or i >= newest]
        assert layout.visible(first) == expected
        if expected:
            assert_reads(expected)
        new = random_kv(generator, length)
        ring.write(first, new)
        for i in range(length):
            rows = slice(i * TOKENS, (i + 1) * TOKENS)
            seen.append([LayerKV(kv.k[:, rows], kv.v[:, rows]) for kv in new])
        # What the chunk saw is there still: its pass can be run again.
        if expected:
            assert_reads(expected)


def test_the_arithmetic_is_that_of_the_config() -> None:
    values = {"window": 4, "timesteps": [1000], "sinks": 1, "anchors": 2, "anchor_every": 3}
    layout = window_of(StreamConfig.from_dict({**values, "chunk_latents": 2}))
    assert layout.visible(12) == [0, 6, 9, 10, 11]
    assert layout.slots == 1 + 4 + 2 + 1  # of four frames in a row one or two are anchors

"""The ring's arithmetic against a plain list of everything that ever happened."""

from __future__ import annotations

import pytest
import torch

from livereel.engine.sampling.window import KVRing, WindowLayout
from livereel.engine.types import KV, LayerKV

LAYERS, TOKENS = 2, 3
CPU = torch.device("cpu")


def random_kv(generator: torch.Generator, frames: int) -> KV:
    k = torch.randn(LAYERS, 1, frames * TOKENS, 1, 2, generator=generator)
    return [LayerKV(layer, -layer) for layer in k]


@pytest.mark.parametrize("sinks", [0, 1, 4])
@pytest.mark.parametrize("past", [0, 1, 3, 7])
@pytest.mark.parametrize("chunks", [[1] * 12, [1, 3, 3, 3, 3], [2, 5, 1, 5, 4], [3, 3]])
def test_a_chunk_reads_the_sinks_and_the_newest_frames_in_order(
    sinks: int, past: int, chunks: list[int]
) -> None:
    layout = WindowLayout(sinks=sinks, window=past + max(chunks), chunk=max(chunks))
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
        expected = [i for i in range(first) if i < sinks or i >= first - past]
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


def test_frames_beyond_any_table_have_slots_of_their_own() -> None:
    layout = WindowLayout(sinks=1, window=5, chunk=2)
    visible = layout.visible(2**40)
    assert visible == [0, 2**40 - 3, 2**40 - 2, 2**40 - 1]
    assert len({layout.slot(frame) for frame in (*visible, 2**40, 2**40 + 1)}) == 6

"""The ring's arithmetic against a plain list of everything that ever happened."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from livereel.engine.sampling.window import KVRing, WindowLayout
from livereel.engine.types import LayerKV


@settings(max_examples=60, deadline=None)
@given(
    sinks=st.integers(0, 4),
    recent=st.integers(0, 7),
    chunks=st.lists(st.integers(1, 5), min_size=1, max_size=9),
)
def test_a_chunk_reads_the_sinks_and_the_newest_frames_in_order(
    sinks: int, recent: int, chunks: list[int]
) -> None:
    layers, tokens = 2, 3
    seen: list[torch.Tensor] = []  # [layers, tokens, 1, 2] for each frame since the start
    ring: KVRing | None = None
    generator = torch.Generator().manual_seed(0)
    for length in chunks:
        first = len(seen)
        expected = [i for i in range(first) if i < sinks or i >= first - recent]
        assert WindowLayout(sinks, recent).visible(first) == expected
        if ring is not None and expected:
            for layer, kv in enumerate(ring.read(expected)):
                wanted = torch.cat([seen[i][layer] for i in expected])[None]
                assert torch.equal(kv.k, wanted)
                assert torch.equal(kv.v, -wanted)
        new = torch.randn(layers, length * tokens, 1, 2, generator=generator)
        kv = [LayerKV(x[None], -x[None]) for x in new]
        ring = ring or KVRing.like(WindowLayout(sinks, recent), kv, length)
        ring.write(first, kv)
        seen += list(new.unflatten(1, (length, tokens)).transpose(0, 1))


def test_frames_beyond_any_table_have_slots_of_their_own() -> None:
    layout = WindowLayout(sinks=1, recent=3)
    visible = layout.visible(2**40)
    assert visible == [0, 2**40 - 3, 2**40 - 2, 2**40 - 1]
    assert sorted(layout.slot(frame) for frame in visible) == [0, 1, 2, 3]

from __future__ import annotations

from livereel.engine.layers.chunks import cut


def test_chunks_are_those_of_diffusers_cogvideox() -> None:
    assert cut(13, 2) == [3, 2, 2, 2, 2, 2]
    assert cut(49, 8) == [9, 8, 8, 8, 8, 8]
    assert [cut(n, 2) for n in (1, 2, 3, 4, 5)] == [[1], [2], [3], [2, 2], [3, 2]]
    assert cut(13, 8) == [13]
    assert cut(21, 8) == [13, 8]

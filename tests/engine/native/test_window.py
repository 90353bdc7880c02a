"""The ring's arithmetic against a plain list of everything that ever happened."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from livereel.engine.native import Window

LIMIT = 2**62


@st.composite
def lengths(draw: st.DrawFn) -> dict[str, int]:
    window = draw(st.integers(1, 12))
    return {
        "sinks": draw(st.integers(0, 5)),
        "window": window,
        "chunk": draw(st.integers(1, window)),
        "anchors": draw(st.integers(0, 4)),
        "anchor_every": draw(st.integers(1, 15)),
    }


def seen(frames: list[int], given: dict[str, int]) -> list[int]:
    """What a chunk sees of all the stream's `frames` so far, by the definition."""
    past = given["window"] - given["chunk"]
    old, newest = (frames[:-past], frames[-past:]) if past else (frames, [])
    sinks = [frame for frame in frames if frame < given["sinks"]]
    anchors = [f for f in old if f >= given["sinks"] and f % given["anchor_every"] == 0]
    kept = anchors[-given["anchors"] :] if given["anchors"] else []
    return [*sinks, *kept, *(frame for frame in newest if frame not in sinks)]


@given(
    given=lengths(),
    start=st.sampled_from([0, 0, 0, 2**31 - 5, 2**31 + 1, 2**32 - 3, 2**53 + 1, LIMIT - 10_000]),
    shift=st.integers(0, 60),
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=25),
)
def test_what_a_chunk_sees_and_where_it_lies(
    given: dict[str, int], start: int, shift: int, sizes: list[int]
) -> None:
    """A list holds every frame, another one which frame each slot has.

    A stream far from its start comes with all that it can still see: sinks, and frames as far back
    as the oldest anchor.
    """
    window = Window(**given)
    memory = given["window"] + given["anchor_every"] * (given["anchors"] + 1)
    first = start + shift if start else 0
    frames = list(range(min(first, given["sinks"])))
    frames += range(max(len(frames), first - memory), first)
    slots: dict[int, int] = {}
    for frame in frames:
        slots[window.slot(frame)] = frame
    for size in sizes:
        visible = window.visible(first)
        assert visible == seen(frames, given)
        for frame in range(first, first + min(size, given["chunk"])):
            slots[window.slot(frame)] = frame
            frames.append(frame)
        assert all(slots[window.slot(frame)] == frame for frame in visible)
        first = frames[-1] + 1
    assert all(0 <= slot < window.slots for slot in slots)
    least = given["sinks"] + given["window"] + given["anchors"]
    assert window.slots in (least, least + (given["anchors"] > 0))


@given(given=lengths(), before=st.integers(0, 300))
def test_anchors_are_the_newest_multiples(given: dict[str, int], before: int) -> None:
    every = [f for f in range(given["sinks"], before) if f % given["anchor_every"] == 0]
    kept = every[-given["anchors"] :] if given["anchors"] else []
    assert Window(**given).anchors_before(before) == kept


@given(given=lengths(), first=st.integers(0, LIMIT - 1))
def test_anchors_at_every_frame_lengthen_the_window(given: dict[str, int], first: int) -> None:
    anchored = Window(**{**given, "anchor_every": 1})
    longer = given["window"] + given["anchors"]
    plain = Window(sinks=given["sinks"], window=longer, chunk=given["chunk"])
    assert anchored.slots == plain.slots and anchored.visible(first) == plain.visible(first)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"sinks": -1}, "sinks must be from 0 to"),
        ({"window": 0}, "window must be from 1 to"),
        ({"chunk": 4}, "chunk must be from 1 to 3, got 4"),
        ({"anchors": 2**40}, "anchors must be from 0 to"),
        ({"anchor_every": 0}, "anchor_every must be from 1 to"),
    ],
)
def test_lengths_that_cannot_be(change: dict[str, int], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Window(**{"sinks": 0, "window": 3, "chunk": 3, **change})


@pytest.mark.parametrize("frame", [-1, LIMIT, 2**63 - 1])
def test_frames_that_cannot_be(frame: int) -> None:
    window = Window(sinks=1, window=5, chunk=2)
    for method in (window.slot, window.visible, window.anchors_before):
        with pytest.raises(ValueError, match=rf"from 0 to 2\^62 - 1, got {frame}"):
            method(frame)


@pytest.mark.parametrize("frame", [2**63, 1.5, "1", None])
def test_what_is_no_frame(frame: Any) -> None:
    with pytest.raises(TypeError):
        Window(sinks=1, window=5, chunk=2).slot(frame)

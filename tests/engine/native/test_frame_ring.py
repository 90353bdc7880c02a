"""The frame ring from Python: arrays in, arrays out without a copy, and between two processes."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from livereel.engine.native import FrameRing

SHAPE = (2, 8, 6, 3)
SIZE = int(np.prod(SHAPE))


def picture(number: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.full(SHAPE, number % 256, np.uint8)


def test_a_frame_comes_out_as_it_went_in_and_lies_in_the_ring() -> None:
    ring = FrameRing.create(slots=2, slot_bytes=SIZE, drop_oldest=False)
    sent = np.random.default_rng(0).integers(0, 256, SHAPE, np.uint8)
    assert ring.write(sent, tag=2**63)
    frame = ring.read()
    assert frame is not None and frame.tag == 2**63 and frame.number == 0
    array = np.asarray(frame)
    assert array.shape == SHAPE and not array.flags.writeable and not array.flags.owndata
    np.testing.assert_array_equal(array, sent)
    pixels = np.asarray(frame).ctypes.data
    assert np.from_dlpack(frame).ctypes.data == pixels
    assert torch.from_dlpack(frame).data_ptr() == pixels


def test_a_slot_is_free_when_the_last_view_of_it_is_gone() -> None:
    ring = FrameRing.create(slots=2, slot_bytes=SIZE, drop_oldest=False)
    views = {
        "numpy": lambda frame: np.asarray(frame)[0, :, ::2],
        "dlpack": lambda frame: np.from_dlpack(frame)[1:],
        "torch": lambda frame: torch.from_dlpack(frame)[0],
        "capsule": lambda frame: frame.__dlpack__(),
    }
    for name, view in views.items():
        assert ring.write(picture(1))
        kept = view(ring.read())
        assert ring.room == 1, name
        del kept
        assert ring.room == 2, name


def test_views_outlive_the_ring() -> None:
    ring = FrameRing.create(slots=2, slot_bytes=SIZE, drop_oldest=False)
    ring.write(picture(9))
    array = np.asarray(ring.read())
    del ring
    assert int(array.min()) == int(array.max()) == 9


@pytest.mark.parametrize(
    "frame",
    [
        np.zeros(SIZE + 1, np.uint8),
        np.zeros(SHAPE, np.uint16),
        np.zeros((8, 6, 4), np.uint8)[:, :, :3],
        np.zeros((1, 1, 1, 1, 1), np.uint8),
        np.uint8(1),
    ],
    ids=["too large", "wide items", "gaps", "five dimensions", "none"],
)
def test_what_no_slot_can_hold_is_refused(
    frame: np.ndarray[tuple[int, ...], np.dtype[np.uint8]],
) -> None:
    ring = FrameRing.create(slots=2, slot_bytes=SIZE, drop_oldest=False)
    with pytest.raises(ValueError, match=r"a frame is a dense uint8 array|no slot has room"):
        ring.write(frame)
    assert ring.room == 2


def test_bad_waits_and_sizes_and_descriptors_are_refused() -> None:
    with pytest.raises(ValueError, match="2 to 1024 slots"):
        FrameRing.create(slots=1, slot_bytes=1, drop_oldest=False)
    ring = FrameRing.create(slots=2, slot_bytes=SIZE, drop_oldest=False)
    for timeout in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="timeout"):
            ring.read(timeout=timeout)
    with (
        open(os.devnull, "rb") as other,
        pytest.raises(ValueError, match="not that of a frame ring"),
    ):
        FrameRing.attach(other.fileno())
    assert ring.write(picture(0))
    frame = ring.read()
    assert frame is not None
    with pytest.raises(BufferError, match="not copied"):
        frame.__dlpack__(copy=True)


@settings(max_examples=200, deadline=None)
@given(
    slots=st.integers(2, 5),
    drop_oldest=st.booleans(),
    steps=st.lists(st.sampled_from(["write", "read", "release"]), max_size=60),
)
def test_it_does_what_a_list_would(slots: int, drop_oldest: bool, steps: list[str]) -> None:
    ring = FrameRing.create(slots=slots, slot_bytes=SIZE, drop_oldest=drop_oldest)
    unread: list[int] = []
    held = []
    written = dropped = 0
    for step in steps:
        if step == "write":
            room = len(unread) + len(held) < slots
            drops = not room and drop_oldest and bool(unread)
            assert ring.write(picture(written), tag=written) == (room or drops)
            if drops:
                unread.pop(0)
            if room or drops:
                unread.append(written)
                written += 1
            dropped += drops
        elif step == "read":
            frame = ring.read()
            assert (frame is None) == (not unread)
            if frame is not None:
                assert frame.number == unread.pop(0)
                held.append(frame)
        elif held:
            frame = held.pop(0)
            assert np.asarray(frame).max() == frame.number % 256
            del frame
        assert ring.room == slots - len(unread) - len(held)
        assert ring.dropped == dropped


_READER = """
import sys
import numpy as np
from livereel.engine.native import FrameRing
ring = FrameRing.attach(int(sys.argv[1]))
for number in range(int(sys.argv[2])):
    array = np.asarray(ring.read(timeout=30))
    assert array.min() == array.max() == number % 256, number
"""


def test_another_process_reads_what_this_one_writes() -> None:
    ring = FrameRing.create(slots=3, slot_bytes=SIZE, drop_oldest=False)
    count = 300
    argv = [sys.executable, "-c", _READER, str(ring.fileno()), str(count)]
    with subprocess.Popen(argv, pass_fds=[ring.fileno()]) as reader:
        for number in range(count):
            assert ring.write(picture(number), timeout=30)
        assert reader.wait(60) == 0
    assert ring.write(picture(0)) and ring.write(picture(0))  # nobody is left to wait for
    assert ring.write(picture(0)) and ring.write(picture(0))

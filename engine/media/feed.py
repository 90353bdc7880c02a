"""Frames that wait for a stream to take them: a queue with an end, in which the newest win."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import numpy as np

from ..errors import InputError

if TYPE_CHECKING:
    from ..types import Frames


class Feed:
    """At most `room` frames of `height` x `width` pixels; who uses it must hold a lock."""

    def __init__(self, height: int, width: int, room: int) -> None:
        self._shape, self._room = (height, width, 3), room
        self._frames: deque[Frames] = deque()

    def __len__(self) -> int:
        return len(self._frames)

    def push(self, frames: Frames) -> int:
        """Add uint8 `[F, H, W, 3]`; gives how many, the oldest, were dropped to make room.

        Raises `InputError` for another type or shape.
        """
        if frames.dtype.name != "uint8" or frames.ndim != 4 or frames.shape[1:] != self._shape:
            raise InputError(
                f"frames are {frames.dtype} of shape {frames.shape}; "
                f"wanted uint8 [F, {', '.join(map(str, self._shape))}]"
            )
        skipped = max(0, len(frames) - self._room)
        self._frames.extend(frame.copy() for frame in frames[skipped:])
        return skipped + self._trim()

    def take(self, count: int) -> Frames:
        """The `count` oldest, which must be there, `[count, H, W, 3]`."""
        return np.stack([self._frames.popleft() for _ in range(count)])

    def put_back(self, frames: Frames) -> None:
        """Undo a `take`, as far as newer frames have left room."""
        self._frames.extendleft(frames[::-1])
        self._trim()

    def _trim(self) -> int:
        dropped = max(0, len(self._frames) - self._room)
        for _ in range(dropped):
            self._frames.popleft()
        return dropped

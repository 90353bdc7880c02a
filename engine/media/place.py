"""What all sinks share: temporary names, what frames they take, how trouble is told."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import InputError, ResourceError

if TYPE_CHECKING:
    from ..types import Frames

# FFmpeg's own numbers: PyAV's names for them differ from release to release.
BT709 = 1
UNSPECIFIED = 2
BT601 = 5
LIMITED_RANGE = 1
ACCURATE = 4 | 262144 | 8192 | 16384  # SWS_BICUBIC, _ACCURATE_RND, _FULL_CHR_H_INT, _FULL_CHR_H_INP
"""How colors are converted to and from half-size planes: exactly rather than fast."""


def new_part(goal: Path, shown: Path, make: Callable[[Path], None]) -> Path:
    """Make a temporary file or folder beside `goal`, which shows that the place is writable."""
    part = goal.with_name(f".{goal.name}.{secrets.token_hex(4)}.part")
    with opening(shown):
        make(part)
    return part


def check_open(done: bool) -> None:
    if done:
        raise InputError("the sink is closed and takes no more frames")


def check_frames(frames: Frames, shape: tuple[int, int] | None) -> tuple[int, int]:
    """The frames' (H, W), when they are what a sink takes."""
    right = frames.dtype == np.uint8 and frames.ndim == 4 and frames.shape[3] == 3
    if not right or min(frames.shape[1:3]) < 1:
        raise InputError(f"frames must be uint8 [F, H, W, 3], got {frames.dtype} {frames.shape}")
    height, width = int(frames.shape[1]), int(frames.shape[2])
    if shape is not None and shape != (height, width):
        raise InputError(
            f"all frames must have one size: got {width}x{height} after {shape[1]}x{shape[0]}"
        )
    return height, width


@contextlib.contextmanager
def opening(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"cannot write {path}: the folder {path.parent} does not exist") from None
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from None


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ResourceError(f"cannot go on writing {path}: {error.strerror or error}") from error

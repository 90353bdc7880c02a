"""The C++ core. Layouts and formulas stand in the headers of `csrc/`."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

def philox4x32_10(counter: Sequence[int], key: Sequence[int]) -> list[int]:
    """One block of Philox 4x32-10: a counter of four and a key of two 32-bit words to four words.

    Raises `TypeError` for another number of words or one that is negative or above 32 bits.
    """

def fill_normal(out: npt.NDArray[np.float32], *, seed: int, chunk: int, step: int) -> None:
    """Fill `out`, one-dimensional and contiguous, with the normals of (seed, chunk, step).

    Seed and chunk are unsigned 64-bit, step unsigned 32-bit. Gives up the GIL while it works.
    Raises `TypeError` when a number does not fit, `ValueError` for another buffer and `BufferError`
    for one that is read-only.
    """

def rms_norm_silu(
    x: npt.NDArray[np.float32] | npt.NDArray[np.uint16],
    gain: npt.NDArray[np.float32],
    y: npt.NDArray[np.float32] | npt.NDArray[np.uint16],
) -> None:
    """`y = silu(x / |x| * gain)` row by row; see `csrc/rms_norm_silu.h`.

    `x` and `y` are dense `[rows, channels]` of one type, float32 or bfloat16 as its uint16 bits;
    `gain` has an item for each channel. Gives up the GIL while it works, in one thread. Raises
    `ValueError` for other shapes and types.
    """

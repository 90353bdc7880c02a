"""How frames are cut into chunks where that is part of the result."""

from __future__ import annotations


def cut(total: int, size: int) -> list[int]:
    """`total` frames in chunks of `size`, what is left over in the first: 13 by 2 are 3, 2, 2, 2,
    2, 2. Fewer than two chunks are not cut."""
    if total < 2 * size:
        return [total]
    return [size + total % size, *[size] * (total // size - 1)]

"""How the server's process gets its memory from the C library."""

from __future__ import annotations

import contextlib
import ctypes

_M_MMAP_THRESHOLD = -3
_LARGE = 128 << 10


def keep_compact() -> None:
    """Have blocks of 128 KiB and more mapped by themselves, and given back when they are freed.

    glibc begins so (`mallopt(3)`), but with the first large block that is freed it raises the
    limit, up to 32 MiB. From then on encoders, megabytes each, come and go among small blocks that
    stay, and leave holes that add up. No effect where there is another C library.
    """
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE)

"""The C++ core (`csrc/`); nothing else imports `_core`."""

from __future__ import annotations

try:
    from ._core import Pace, Pacer, Timing, Window, fill_normal, philox4x32_10, rms_norm_silu
except ImportError as error:
    raise ImportError(
        "LiveReel's native core is not built for this Python: install the package "
        "(pip install . in the source tree) instead of importing it from the checkout"
    ) from error

__all__ = [
    "Pace",
    "Pacer",
    "Timing",
    "Window",
    "fill_normal",
    "philox4x32_10",
    "rms_norm_silu",
]

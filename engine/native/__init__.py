"""The C++ core (`csrc/`); nothing else imports `_core`."""

from __future__ import annotations

try:
    from ._core import (
        FrameRing,
        Pace,
        Pacer,
        PackedMatrix,
        RingFrame,
        Timing,
        Window,
        attention,
        convolve,
        dot_supported,
        fill_normal,
        layer_norm,
        linear,
        pad,
        philox4x32_10,
        qk_norm_rotate,
        rms_norm,
        rms_norm_silu,
        rotate,
        to_bytes,
        unfold,
    )
except ImportError as error:
    raise ImportError(
        "LiveReel's native core is not built for this Python: install the package "
        "(pip install . in the source tree) instead of importing it from the checkout"
    ) from error

__all__ = [
    "FrameRing",
    "Pace",
    "Pacer",
    "PackedMatrix",
    "RingFrame",
    "Timing",
    "Window",
    "attention",
    "convolve",
    "dot_supported",
    "fill_normal",
    "layer_norm",
    "linear",
    "pad",
    "philox4x32_10",
    "qk_norm_rotate",
    "rms_norm",
    "rms_norm_silu",
    "rotate",
    "to_bytes",
    "unfold",
]

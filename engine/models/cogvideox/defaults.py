"""How clips are made where a CogVideoX folder does not say it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ...config import DEFAULT_SELF_FORCING, StreamConfig
from .config import CogVideoXTransformerConfig

_VAE_FACTOR = 8
_WIDTH_1_5, _HEIGHT_1_5, _FPS_1_5 = 1360, 768, 16.0
"""Version 1.5's own, whose transformer's config gives the largest grid in place of the native."""
_FPS_1_0 = 8.0


def clip_config(values: Mapping[str, Any]) -> StreamConfig:
    """Size, rate and prompt length of a DiT with this `config.json`; the rest is not looked at."""
    config = CogVideoXTransformerConfig.from_dict(values)
    newer = config.patch_size_t is not None
    return replace(
        DEFAULT_SELF_FORCING,
        fps=_FPS_1_5 if newer else _FPS_1_0,
        max_sequence_length=config.max_text_seq_length,
        width=_WIDTH_1_5 if newer else config.sample_width * _VAE_FACTOR,
        height=_HEIGHT_1_5 if newer else config.sample_height * _VAE_FACTOR,
    )

"""Full-size models made small: every kind of layer is there, and little of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from livereel.benchmarks import models
from livereel.benchmarks.models import MODELS, Model, Part
from livereel.benchmarks.subject import Subject

_DITS: dict[str, dict[str, Any]] = {
    "wan": dict(num_attention_heads=2, attention_head_dim=16, ffn_dim=32, num_layers=3,
                text_dim=16, freq_dim=16),
    "cogvideox": dict(num_attention_heads=2, attention_head_dim=32, num_layers=2, time_embed_dim=16,
                      text_embed_dim=8, sample_width=8, sample_height=8, sample_frames=9,
                      max_text_seq_length=5),
}  # fmt: skip
_VAES: dict[str, dict[str, Any]] = {
    "wan2.1": dict(base_dim=8),
    "wan2.2": dict(base_dim=8, decoder_base_dim=8),
    "cogvideox": dict(block_out_channels=(32, 32, 32, 32), layers_per_block=1),
}


def smaller(name: str) -> Model:
    """One of `MODELS`."""
    model = MODELS[name]
    dit = next(config for start, config in _DITS.items() if name.startswith(start))
    vae = next(config for start, config in _VAES.items() if name.startswith(start))
    stream = replace(
        model.stream, chunk_latents=2, first_chunk_latents=1, window=4, width=64, height=64,
        max_sequence_length=5,
    )  # fmt: skip
    return Model(
        transformer=Part(
            class_name=model.transformer.class_name, config={**model.transformer.config, **dit}
        ),
        vae=Part(class_name=model.vae.class_name, config={**model.vae.config, **vae}),
        frames=5,
        stream=stream,
    )


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Subject]:
    """Loads one of `MODELS` made small, on the CPU, in fp32 unless told otherwise."""

    def load(name: str, **options: Any) -> Subject:
        monkeypatch.setattr(models, "MODELS", {name: smaller(name)})
        return Subject.load(
            name, **{"device": "cpu", "dtype": "float32", "random": True, **options}
        )

    return load

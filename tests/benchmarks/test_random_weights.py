"""Models of random weights compute with finite numbers of a sane size, and can be streamed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from livereel.benchmarks import subject
from livereel.benchmarks.baseline_loop import Loop
from livereel.benchmarks.models import MODELS
from livereel.benchmarks.random_weights import parameters, random_part
from livereel.benchmarks.subject import Subject
from livereel.engine.errors import InputError, ResourceError
from livereel.engine.layers.linear_fp8 import LinearFP8
from livereel.engine.models.taehv.decoder import TinyVAE
from livereel.engine.sampling.stream import StreamState
from livereel.engine.session import Session

Small = Callable[..., Subject]


SLOW = {"wan2.1-14b", "cogvideox-5b"}
"""Differ from another one by numbers alone."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in MODELS]
)
@torch.inference_mode()
def test_a_stream_of_it_stays_finite(name: str, small: Small) -> None:
    found = small(name).at(steps=1)
    runner, stream = found.runner, found.stream
    session = Session(
        runner, stream, StreamState("", seed=0, steps=1, width=64, height=64), model=name, fps=8.0
    )
    for index, frames in enumerate((1, 8, 8)):
        chunk = next(session)
        assert chunk.frames.shape == (frames, 64, 64, 3), index
    latents = session._state.recent
    assert latents is not None and latents.isfinite().all()
    assert 0.1 < float(latents.std()) < 30
    pixels = runner.decode(latents[:, :, :1])[0]
    assert pixels.isfinite().all() and float(pixels.std()) > 0.01
    assert found.setup["weights"] == "random" and found.setup["model"] == name


def test_weights_are_drawn_in_the_dtype_they_run_in(small: Small) -> None:
    dit = random_part(small("wan2.1-1.3b").model.transformer, torch.device("cpu"), torch.bfloat16)
    dtypes = {name: p.dtype for name, p in dit.named_parameters()}
    assert dtypes["proj_out.weight"] == torch.bfloat16
    assert dtypes["blocks.0.scale_shift_table"] == torch.float32
    assert not any(p.requires_grad or p.is_meta for p in dit.parameters())
    assert parameters(small("wan2.1-1.3b").model.transformer) == sum(
        p.numel() for p in dit.parameters()
    )


def test_products_in_fp8_are_told_and_baselines_refuse_them(small: Small) -> None:
    found = small("wan2.1-1.3b", dtype="fp8")
    assert found.setup["dtype"] == "fp8" and found.settings.startswith("fp8 on cpu")
    assert found.runner.dtype == torch.bfloat16
    assert any(isinstance(module, LinearFP8) for module in found.dit.modules())
    with pytest.raises(InputError, match="those are in fp8"):
        Loop(found)


def test_a_tiny_decoder_takes_the_place_of_the_vaes(small: Small) -> None:
    found = small("wan2.1-1.3b", decoder="tiny")
    assert isinstance(found.runner.vae, TinyVAE) and found.setup["decoder"] == "tiny"


def test_names_without_weights_and_too_large_models_are_told(
    small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="add --random-weights"):
        small("wan2.1-1.3b", random=False)
    monkeypatch.setattr(subject.memory, "available", lambda device: 1000)
    with pytest.raises(ResourceError, match="too little memory: these weights take about"):
        small("wan2.1-1.3b")


def test_other_settings_are_checked(small: Small) -> None:
    found = small("wan2.1-1.3b")
    changed = found.at(size=(32, 48), steps=2, window=6, chunk=3)
    assert changed.size == (32, 48) and changed.steps == 2
    assert (changed.stream.window, changed.stream.chunk_latents) == (6, 3)
    assert changed.stream.first_chunk_latents == 1
    for wrong, said in (
        ({"size": (33, 48)}, "must be multiples of 16"),
        ({"steps": 9}, "steps"),
        ({"chunk": 5}, "window counts the chunk itself"),
        ({"first_chunk": 3}, "first_chunk_latents must be at most"),
    ):
        with pytest.raises(InputError, match=said):
            found.at(**wrong)  # type: ignore[arg-type]

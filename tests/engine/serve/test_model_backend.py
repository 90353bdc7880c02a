"""A model's sessions as the engine's process steps them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from livereel.engine import Engine
from livereel.engine.errors import InputError, ResourceError
from livereel.engine.serve import model_backend
from livereel.engine.serve.messages import Reset, Spec, Update
from livereel.engine.serve.model_backend import ModelBackend, ModelStream

PROMPT = "a red circle"


@pytest.fixture
def backend(engine: Engine) -> ModelBackend:
    return ModelBackend(engine, "tiny")


def open_(backend: ModelBackend, spec: Spec) -> ModelStream:
    return backend.open(spec, chunk=None, pts=None)


def test_it_says_what_is_running(backend: ModelBackend, engine: Engine) -> None:
    model = backend.model
    assert (model.width, model.height) == (engine.config.width, engine.config.height)
    assert model.steps == len(engine.config.timesteps) and model.dtype == "float32"
    stream = open_(backend, Spec(prompt=PROMPT))
    counts = [len(backend.step([stream])[0].frames) for _ in range(2)]
    assert counts == [model.first_chunk_frames, model.chunk_frames]


def test_its_chunks_are_the_session_s(backend: ModelBackend, engine: Engine) -> None:
    stream = open_(backend, Spec(prompt=PROMPT, seed=3, steps=1))
    session = engine.open(PROMPT, seed=3, steps=1)
    for i in range(4):
        if i == 1:
            stream.update(Update(event_id="1", prompt="a blue star", seed=4))
            session.update(prompt="a blue star", seed=4)
        if i == 2:
            stream.update(Reset(event_id="2"))
            session.reset()
        (chunk,) = backend.step([stream])
        np.testing.assert_array_equal(chunk.frames, next(session).frames)
        assert (stream.chunk, stream.pts) == (chunk.index + 1, chunk.pts + len(chunk.frames))
    assert stream.state_bytes > 0 and stream.kind.steps == 1


def test_a_snapshot_goes_on_under_other_numbers(backend: ModelBackend) -> None:
    stream = open_(backend, Spec(prompt=PROMPT))
    for _ in range(3):
        backend.step([stream])
    saved = stream.snapshot(light=False)
    (wanted,) = backend.step([stream])
    again = backend.open(Spec(snapshot=saved), chunk=70, pts=900)
    assert (again.width, again.height) == (stream.width, stream.height)
    (found,) = backend.step([again])
    np.testing.assert_array_equal(found.frames, wanted.frames)
    assert (found.index, found.pts) == (70, 900)


def test_a_stream_starts_from_a_picture(backend: ModelBackend) -> None:
    model = backend.model
    picture = np.random.default_rng(0).integers(0, 256, (model.height, model.width, 3), np.uint8)
    stream = open_(backend, Spec(prompt=PROMPT, image=picture.tobytes()))
    (chunk,) = backend.step([stream])
    assert len(chunk.frames) == 1
    with pytest.raises(InputError, match="wanted"):
        open_(backend, Spec(prompt=PROMPT, image=b"short"))


def test_what_cannot_be_is_refused(
    backend: ModelBackend, clip_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for spec in (Spec(), Spec(prompt=PROMPT, width=17), Spec(snapshot=b"junk")):
        with pytest.raises(InputError):
            open_(backend, spec)
    with pytest.raises(InputError, match="makes whole clips"):
        ModelBackend(Engine.load(clip_folder, "cpu", "float32"), "clips")
    backend.check(Spec(prompt=PROMPT))
    monkeypatch.setattr(model_backend, "available", lambda device: 1000)
    with pytest.raises(ResourceError, match="are free"):
        backend.check(Spec(prompt=PROMPT))

"""A model's sessions as the engine's process steps them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load

from livereel.engine import Engine
from livereel.engine.errors import InputError, ResourceError
from livereel.engine.serve import model_backend
from livereel.engine.serve.abreast import Abreast
from livereel.engine.serve.messages import Cut, Reset, Spec, Update
from livereel.engine.serve.model_backend import ModelBackend, ModelStream
from livereel.engine.types import Chunk

from ..test_control import controlled

PROMPT = "a red circle"


def step(backend: ModelBackend, *streams: ModelStream) -> list[Chunk]:
    chunks = []
    for made in backend.step(streams):
        assert isinstance(made, Chunk)
        chunks.append(made)
    return chunks


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
    counts = [len(step(backend, stream)[0].frames) for _ in range(2)]
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
        (chunk,) = step(backend, stream)
        np.testing.assert_array_equal(chunk.frames, next(session).frames)
        assert (stream.chunk, stream.pts) == (chunk.index + 1, chunk.pts + len(chunk.frames))
    assert stream.state_bytes > 0 and stream.kind.steps == 1


def test_a_snapshot_goes_on_under_other_numbers(backend: ModelBackend) -> None:
    stream = open_(backend, Spec(prompt=PROMPT))
    for _ in range(3):
        step(backend, stream)
    saved = stream.snapshot(light=False)
    (wanted,) = step(backend, stream)
    again = backend.open(Spec(snapshot=saved), chunk=70, pts=900)
    assert (again.width, again.height) == (stream.width, stream.height)
    (found,) = step(backend, again)
    np.testing.assert_array_equal(found.frames, wanted.frames)
    assert (found.index, found.pts) == (70, 900)


def test_a_stream_starts_from_a_picture(backend: ModelBackend) -> None:
    model = backend.model
    picture = np.random.default_rng(0).integers(0, 256, (model.height, model.width, 3), np.uint8)
    stream = open_(backend, Spec(prompt=PROMPT, image=picture.tobytes()))
    (chunk,) = step(backend, stream)
    assert len(chunk.frames) == 1
    with pytest.raises(InputError, match="wanted"):
        open_(backend, Spec(prompt=PROMPT, image=b"short"))


def test_a_stream_is_made_from_frames_that_are_pushed(
    backend: ModelBackend, engine: Engine
) -> None:
    model = backend.model
    stream = open_(backend, Spec(prompt=PROMPT, strength=0.5))
    session = engine.open(PROMPT, strength=0.5)
    count = model.first_chunk_frames + model.chunk_frames
    shape = (count, model.height, model.width, 3)
    video = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    assert not stream.ready
    for wanted in session.through(video):
        while not stream.ready:
            stream.push(video[:1].tobytes())
            video = video[1:]
        (chunk,) = step(backend, stream)
        np.testing.assert_array_equal(chunk.frames, wanted.frames)
        if not len(video):
            break
    with pytest.raises(InputError, match="are no frames of"):
        stream.push(b"short")


def test_a_cut_is_the_session_s(backend: ModelBackend, engine: Engine) -> None:
    model = backend.model
    picture = np.full((model.height, model.width, 3), 90, np.uint8)
    stream, session = open_(backend, Spec(prompt=PROMPT)), engine.open(PROMPT)
    for _ in range(2):
        step(backend, stream)
        next(session)
    stream.update(Cut(event_id="1", prompt="a blue ball", image=picture.tobytes()))
    session.cut("a blue ball", image=picture)
    for _ in range(2):
        (chunk,) = step(backend, stream)
        np.testing.assert_array_equal(chunk.frames, next(session).frames)


def test_the_object_is_led_where_the_model_follows(backend: ModelBackend, engine: Engine) -> None:
    assert not backend.model.control
    with pytest.raises(InputError, match="follows no control"):
        open_(backend, Spec(prompt=PROMPT)).update(Update(event_id="1", control=((0.5, 0.5),)))
    led = controlled(engine, trained=True)
    follows = ModelBackend(led, "tiny")
    assert follows.model.control and follows.model.control_wraps
    stream, session = open_(follows, Spec(prompt=PROMPT)), led.open(PROMPT)
    for control in (((0.25, 0.5),), (None, (0.1, 0.9)), ()):
        stream.update(Update(event_id="1", control=control))
        session.update(control=control)
        (chunk,) = step(follows, stream)
        np.testing.assert_array_equal(chunk.frames, next(session).frames)


def test_streams_share_passes_only_with_the_same_loras(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine.load(tiny_folder, "cpu", "float32")
    assert engine.loras is not None
    engine.loras.add("warm", {})
    backend = ModelBackend(engine, "tiny")
    assert backend.model.loras == ("warm",)
    plain, warm = open_(backend, Spec(prompt=PROMPT)), open_(backend, Spec(prompt=PROMPT))
    assert plain.key == warm.key
    warm.update(Update(event_id="1", loras={"warm": 0.5}))
    other = open_(backend, Spec(prompt=PROMPT, loras={"warm": 0.5}))
    assert len({plain.key, warm.key, other.key}) == 3  # one of them is about to change weights
    step(backend, warm)
    step(backend, other)
    assert warm.key == other.key != plain.key
    with pytest.raises(InputError, match="no LoRA"):
        warm.update(Update(event_id="2", loras={"cold": 1.0}))
    assert warm.key == other.key
    step(backend, plain)
    changes: list[int] = []
    monkeypatch.setattr(engine.loras, "_changed", lambda: changes.append(1))
    monkeypatch.setattr(backend, "_abreast", Abreast(most=2, threads=2))
    step(backend, warm, other)
    assert changes == [1]  # not by both threads


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


def test_streams_stepped_together_are_those_stepped_alone(
    backend: ModelBackend, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "_abreast", Abreast(most=3, threads=3))
    prompts = ["a red ball", "a blue ball moving left", "a red ball moving"]
    streams = [open_(backend, Spec(prompt=p, seed=i)) for i, p in enumerate(prompts)]
    alone = [engine.open(p, seed=i) for i, p in enumerate(prompts)]
    step(backend, streams[0])  # one is further than the others
    next(alone[0])
    for _ in range(4):
        for chunk, session in zip(step(backend, *streams), alone, strict=True):
            wanted = next(session)
            assert (chunk.index, chunk.pts) == (wanted.index, wanted.pts)
            difference = np.abs(chunk.frames.astype(int) - wanted.frames).max()
            assert difference <= 1
    for stream, session in zip(streams, alone, strict=True):
        found = load(stream.snapshot(light=False))
        for name, wanted_tensor in load(session.snapshot()).items():
            torch.testing.assert_close(
                found[name], wanted_tensor, rtol=1e-5, atol=1e-5 * float(wanted_tensor.abs().max())
            )


def test_one_that_fails_does_not_take_the_others_with_it(
    backend: ModelBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "_abreast", Abreast(most=2, threads=2))
    good, bad = open_(backend, Spec(prompt=PROMPT)), open_(backend, Spec(prompt=PROMPT))
    monkeypatch.setattr(bad.session, "_make", _short)
    made, error = backend.step([good, bad])
    assert isinstance(made, Chunk) and isinstance(error, ResourceError)
    assert (good.chunk, bad.chunk) == (1, 0)
    monkeypatch.undo()
    (again,) = step(backend, bad)
    np.testing.assert_array_equal(again.frames, made.frames)


def _short(*_: object) -> None:
    raise MemoryError


def test_jobs_share_the_threads_and_give_what_they_raise() -> None:
    before = torch.get_num_threads()
    abreast = Abreast(most=8, threads=4)
    assert abreast.most == 4
    assert abreast.run([torch.get_num_threads] * 2) == [2, 2]
    assert abreast.run([torch.get_num_threads] * 3) == [1, 1, 1]
    (error,) = abreast.run([_short])
    assert isinstance(error, MemoryError) and torch.get_num_threads() == before


def test_a_package_is_served_as_its_model_is(exported: Path, engine: Engine) -> None:
    pytest.importorskip("onnxruntime")
    backend = ModelBackend.load(str(exported), "cpu", "auto")
    backend.check(Spec(prompt=PROMPT))
    stream, session = open_(backend, Spec(prompt=PROMPT)), engine.open(PROMPT)
    for _ in range(3):
        (chunk,) = step(backend, stream)
        assert np.abs(chunk.frames.astype(int) - next(session).frames).max() <= 1

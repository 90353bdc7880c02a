"""Control while a stream runs: maps reach the passes on the frames they are for, and stay with the
latents that were made under them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch

from livereel.engine.engine import Engine
from livereel.engine.errors import InputError
from livereel.engine.models.wan.control import with_control
from livereel.engine.runners.torch import TorchRunner
from livereel.engine.sampling.gathered import Gathered
from livereel.engine.sampling.track import draw
from livereel.engine.session import Session
from livereel.engine.types import Chunk

PROMPT = "a red ball moving left"
LEFT, RIGHT = (0.25, 0.5), (0.65, 0.5)
TRACK = [(0.1 + 0.02 * i, 0.9 - 0.02 * i) for i in range(37)]


def frames_of(chunks: Iterable[Chunk]) -> np.ndarray:
    return np.concatenate([chunk.frames for chunk in chunks])


def take(session: Session, count: int) -> list[Chunk]:
    return list(islice(session, count))


def controlled(engine: Engine, *, trained: bool) -> Engine:
    """The engine's model with 4 channels of control, of weights zero or drawn."""
    runner: Any = engine.runner
    dit = with_control(runner.transformer, 4)
    if trained:
        torch.manual_seed(1)
        torch.nn.init.normal_(dit.patch_embedding.weight.data[:, -4:])
    stream = replace(engine.config, control_channels=4, control_wraps=True)
    return replace(
        engine,
        folder=replace(engine.folder, stream=stream),
        runner=replace(runner, transformer=dit, denoiser=Gathered(dit)),
        loras=None,
    )


@pytest.fixture(scope="module")
def led(engine: Engine) -> Engine:
    """A model that heeds its control."""
    return controlled(engine, trained=True)


def controls(session: Session) -> list[torch.Tensor]:
    """What a session's passes are given as control, chunk by chunk, from now on."""
    seen: list[torch.Tensor] = []
    plan = session._sampler.plan

    def watched(*args: Any) -> Any:
        made = plan(*args)
        assert made.told is not None
        seen.append(made.told)
        return made

    object.__setattr__(session._sampler, "plan", watched)
    return seen


def test_control_of_weights_zero_is_no_control(engine: Engine) -> None:
    session = controlled(engine, trained=False).open(PROMPT, seed=3)
    session.update(control=TRACK)
    plain = engine.open(PROMPT, seed=3)
    ours, theirs = (frames_of(take(one, 4)).astype(int) for one in (session, plain))
    assert np.abs(ours - theirs).max() <= 1
    runner: Any = engine.runner
    torch.manual_seed(0)
    x, text = torch.randn(2, 4, 3, 4, 6), torch.randn(2, 5, 12)
    time, maps = torch.tensor([900.0, 20.0]), torch.randn(2, 4, 3, 4, 6)
    with torch.inference_mode():
        dit = runner.transformer
        given = with_control(dit, 4)(torch.cat([x, maps], dim=1), time, text)
        torch.testing.assert_close(given, dit(x, time, text), rtol=0, atol=1e-5)


@pytest.mark.parametrize("at", [None, 13])
def test_control_lands_on_the_chunk_that_names_it_and_on_none_before(led: Engine, at: Any) -> None:
    plain, session = (led.open(PROMPT, seed=2) for _ in range(2))
    before = take(session, 1)
    if at is None:
        before += take(session, 1)
    session.update(control=RIGHT, at=at)
    chunks = [*before, *take(session, 4 - len(before))]
    assert [chunk.applied for chunk in chunks] == [(), (), ("update",), ()]
    same = take(plain, 4)
    equal = [np.array_equal(a.frames, b.frames) for a, b in zip(chunks, same, strict=True)]
    assert equal == [True, True, False, False]


def test_each_frame_has_its_own_position_whatever_the_chunks(led: Engine) -> None:
    session = led.open(PROMPT)
    seen = controls(session)
    session.update(control=TRACK)
    take(session, 4)
    track = torch.tensor(TRACK, dtype=torch.float64)
    whole = draw(track, 10, (4, 6), 4, first=True, wraps=True)
    assert torch.equal(torch.cat(seen, dim=2), whole)
    take(session, 1)  # the last position holds
    assert torch.equal(seen[-1], draw(track[-1:], 3, (4, 6), 4, first=False, wraps=True))
    session.update(control=())
    take(session, 1)
    assert not seen[-1].any()


def test_a_position_is_gone_to_within_a_chunk_and_held(led: Engine) -> None:
    session = led.open(PROMPT)
    seen = controls(session)
    session.update(control=LEFT)
    take(session, 2)
    session.update(control=RIGHT)
    take(session, 2)
    way = torch.tensor([(0.25 + 0.4 * (i + 1) / 12, 0.5) for i in range(12)]).double()
    expected = draw(way, 3, (4, 6), 4, first=False, wraps=True)
    torch.testing.assert_close(seen[2], expected, rtol=0, atol=1e-6)
    assert torch.equal(
        seen[3],
        draw(torch.tensor([RIGHT], dtype=torch.float64), 3, (4, 6), 4, first=False, wraps=True),
    )


def test_a_cut_within_a_chunk_keeps_the_track_in_step(led: Engine) -> None:
    session = led.open(PROMPT)
    seen = controls(session)
    session.update(control=TRACK)
    session.cut("a blue ball", at=6)
    chunks = take(session, 3)
    assert [chunk.pts for chunk in chunks] == [0, 1, 6]
    track = torch.tensor(TRACK, dtype=torch.float64)
    assert torch.equal(seen[2], draw(track[6:], 1, (4, 6), 4, first=True, wraps=True))
    take(session, 1)
    assert torch.equal(seen[3], draw(track[7:], 3, (4, 6), 4, first=False, wraps=True))


@pytest.mark.parametrize("chunks", [0, 1, 3])
def test_a_snapshot_within_a_track_goes_on_bitwise(led: Engine, chunks: int) -> None:
    session = led.open(PROMPT, seed=3)
    session.update(control=TRACK)
    take(session, chunks)
    restored = led.restore(session.snapshot())
    for one in (session, restored):  # controls that wait are no part of it
        one.update(control=RIGHT if chunks == 3 else TRACK)
    assert np.array_equal(frames_of(take(restored, 3)), frames_of(take(session, 3)))


def test_a_light_snapshot_and_a_recache_know_what_the_latents_were_made_under(led: Engine) -> None:
    session = led.open(PROMPT, seed=3)
    session.update(control=TRACK)
    take(session, 2)
    restored = led.restore(session.snapshot(light=True))
    assert restored._state.recent is not None
    track = torch.tensor(TRACK, dtype=torch.float64)
    maps = draw(track, 4, (4, 6), 4, first=True, wraps=True)
    assert torch.equal(restored._state.recent[:, 4:], maps)
    ring, light = session._state.ring, restored._state.ring
    assert ring is not None and light is not None
    take(session, 1)  # closes the pass that was open
    kept = [light.slot(frame) for frame in range(4)]
    torch.testing.assert_close(light.k[:, kept], ring.k[:, kept], rtol=0, atol=1e-4)
    session.update(prompt="a blue ball moving left", recache=True)
    assert take(session, 1)[0].applied == ("update",)


def test_packages_graphs_take_control_as_channels(led: Engine) -> None:
    runner: Any = led.runner
    dit = runner.transformer
    torch.manual_seed(0)
    latents, text = torch.randn(1, 8, 2, 4, 6), dit.text_kv(torch.randn(1, 5, 12))
    k, v = (torch.cat([getattr(kv, name) for kv in text]) for name in ("k", "v"))
    nothing = torch.zeros(2, 0, 6, 2, 24)
    time = torch.tensor([900.0])
    with torch.inference_mode():
        step = dit.step(0, 2, 4, 6)
        flow, *_ = step(latents, time, k, v, nothing, nothing, torch.arange(2))
        expected, _ = dit.chunk(latents, time, text, None)
    torch.testing.assert_close(flow, expected, rtol=0, atol=1e-5)


def test_what_cannot_be_followed_is_refused(engine: Engine, led: Engine) -> None:
    with pytest.raises(InputError, match="follows no control"):
        engine.open(PROMPT).update(control=LEFT)
    with pytest.raises(InputError, match="each from 0 to 1"):
        led.open(PROMPT).update(control=(0.5, 1.5))
    stream = replace(engine.config, control_channels=4)
    wrong = replace(engine, folder=replace(engine.folder, stream=stream))
    with pytest.raises(
        InputError, match="has 4 control_channels and 0 goal_channels; the transformer takes 0"
    ):
        wrong.open(PROMPT)
    assert isinstance(led.runner, TorchRunner)
    with pytest.raises(InputError, match="starts from pictures"):
        replace(led, folder=engine.folder).open(PROMPT)

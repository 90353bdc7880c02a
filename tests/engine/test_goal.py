"""A picture to end with: it reaches the passes of every chunk, with the share of the way to it."""

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
from livereel.engine.sampling.gathered import Gathered
from livereel.engine.sampling.goal import shares
from livereel.engine.session import Session
from livereel.engine.types import Chunk

PROMPT = "a red ball moving left"
FRAMES = 30


def frames_of(chunks: Iterable[Chunk]) -> np.ndarray:
    return np.concatenate([chunk.frames for chunk in chunks])


@pytest.fixture(scope="module")
def arriving(engine: Engine) -> Engine:
    """The engine's model with channels of control and goal, which heeds both."""
    runner: Any = engine.runner
    torch.manual_seed(1)
    dit = with_control(runner.transformer, 16)
    torch.nn.init.normal_(dit.patch_embedding.weight.data[:, -16:])
    stream = replace(engine.config, control_channels=4, goal_channels=12)
    return replace(
        engine,
        folder=replace(engine.folder, stream=stream),
        runner=replace(runner, transformer=dit, denoiser=Gathered(dit)),
        loras=None,
    )


@pytest.fixture(scope="module")
def picture(engine: Engine) -> np.ndarray:
    width, height = engine.config.width, engine.config.height
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def told(session: Session) -> list[torch.Tensor]:
    """What a session's passes are told behind the latents, chunk by chunk, from now on."""
    seen: list[torch.Tensor] = []
    plan = session._sampler.plan

    def watched(*args: Any) -> Any:
        made = plan(*args)
        assert made.told is not None
        seen.append(made.told)
        return made

    object.__setattr__(session._sampler, "plan", watched)
    return seen


def ways(seen: Iterable[torch.Tensor]) -> list[list[float]]:
    """The shares in what chunks were told, frame by frame."""
    return [x[0, 4:8, :, 0, 0].T.flatten().tolist() for x in seen]


def test_each_chunk_is_told_the_picture_and_its_share_of_the_way(
    arriving: Engine, picture: np.ndarray
) -> None:
    session = arriving.open(PROMPT, last_image=picture, frames=FRAMES)
    seen = told(session)
    assert sum(len(chunk.frames) for chunk in session) == FRAMES
    (latent,) = (arriving._given(picture[None], *session.size),)
    assert all(torch.equal(x[:, 8:12], latent.expand_as(x[:, 8:12])) for x in seen)
    assert not any(x[:, :4].any() for x in seen)
    last = FRAMES - 1
    chunks = [shares(12, last - at, first=False).tolist() for at in (1, 13, 25)]
    assert ways(seen) == [[0, 0, 0, 0], *chunks]
    assert chunks[-1][:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_a_picture_to_end_with_changes_all_that_leads_to_it(
    arriving: Engine, picture: np.ndarray
) -> None:
    ours = arriving.generate(PROMPT, seed=2, frames=13, last_image=picture, image=picture).frames
    free = arriving.generate(PROMPT, seed=2, frames=13, image=picture).frames
    assert np.array_equal(ours[0], free[0])  # it was given
    assert all(not np.array_equal(a, b) for a, b in zip(ours[1:], free[1:], strict=True))


@pytest.mark.parametrize("light", [False, True])
@pytest.mark.parametrize("chunks", [0, 2, 4])
def test_a_snapshot_on_the_way_goes_on_to_the_picture(
    arriving: Engine, picture: np.ndarray, chunks: int, light: bool
) -> None:
    session = arriving.open(PROMPT, seed=3, last_image=picture, frames=FRAMES)
    list(islice(session, chunks))
    restored = arriving.restore(session.snapshot(light=light), frames=50)
    session._end = None  # so that both go on past the picture
    seen = told(session), told(restored)
    ours, theirs = (frames_of(islice(one, 2)) for one in (session, restored))
    for a, b in zip(*seen, strict=True):
        assert torch.equal(a, b)
    if not light:
        assert np.array_equal(ours, theirs)


def test_a_cut_within_a_chunk_keeps_the_way_in_step(arriving: Engine, picture: np.ndarray) -> None:
    session = arriving.open(PROMPT, last_image=picture, frames=FRAMES)
    seen = told(session)
    session.cut("a blue ball", at=6)
    assert [chunk.pts for chunk in islice(session, 4)] == [0, 1, 6, 7]
    assert ways(seen)[2:] == [[0] * 4, shares(12, FRAMES - 1 - 7, first=False).tolist()]


def test_a_track_that_leads_comes_before_the_picture(arriving: Engine, picture: np.ndarray) -> None:
    session = arriving.open(PROMPT, last_image=picture, frames=FRAMES)
    seen = told(session)
    list(islice(session, 1))
    session.update(control=(0.5, 0.5))
    list(islice(session, 1))
    session.update(control=())
    list(islice(session, 1))
    assert [bool(x[:, 4:].any()) for x in seen] == [True, False, True]
    assert [bool(x[:, :4].any()) for x in seen] == [False, True, False]
    assert ways(seen)[2] == shares(12, FRAMES - 1 - 13, first=False).tolist()


def test_where_there_can_be_no_last_picture(
    engine: Engine, arriving: Engine, picture: np.ndarray
) -> None:
    with pytest.raises(InputError, match="arrive at no picture"):
        engine.open(PROMPT, last_image=picture, frames=5)
    with pytest.raises(InputError, match="wants a number of frames"):
        arriving.open(PROMPT, last_image=picture)
    with pytest.raises(InputError, match="fed frames ends with these"):
        arriving.open(PROMPT, last_image=picture, frames=5, strength=0.5)
    with pytest.raises(InputError, match="the image is uint8 of shape"):
        arriving.open(PROMPT, last_image=picture[1:], frames=5)
    stream = replace(arriving.config, goal_channels=9)
    with pytest.raises(
        InputError, match="9 goal_channels; the transformer takes 16, and wanted are 4 and 12"
    ):
        replace(arriving, folder=replace(arriving.folder, stream=stream)).open(PROMPT)
    state = arriving.open(PROMPT, last_image=picture, frames=5).snapshot()
    plain = replace(arriving.config, goal_channels=0, control_channels=0)
    other = replace(engine, folder=replace(engine.folder, stream=plain))
    object.__setattr__(other, "_fingerprint", arriving._fingerprint)
    with pytest.raises(InputError, match="the snapshot's goal is of shape"):
        other.restore(state)

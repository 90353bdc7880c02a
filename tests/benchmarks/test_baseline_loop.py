"""The reference loop makes LiveReel's frames: they are compared doing the same work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from livereel.benchmarks.baseline_loop import Loop, refusal
from livereel.benchmarks.subject import Subject
from livereel.engine.errors import InputError
from livereel.engine.sampling.noise import normal
from livereel.engine.sampling.stream import StreamState
from livereel.engine.session import Session

Small = Callable[..., Subject]


@pytest.mark.parametrize(
    ("name", "guidance", "solver", "decoder"),
    [
        ("wan2.1-1.3b", 1.0, "renoise", "full"),
        ("wan2.1-1.3b", 3.0, "euler", "tiny"),
        ("wan2.2-5b", 1.0, "renoise", "full"),
    ],
)
def test_its_frames_are_ours(
    name: str, guidance: float, solver: str, decoder: str, small: Small
) -> None:
    found = small(name, decoder=decoder).at(steps=2, size=(64, 32))
    stream = replace(found.stream, guidance_scale=guidance, solver=solver)  # type: ignore[arg-type]
    # Random text would differ from one encoding to the next.
    embedded = {prompt: found.text(prompt) for prompt in ("", found.prompt)}
    found = replace(found, stream=stream)
    object.__setattr__(found.runner, "encode_text", lambda prompt, length: embedded[prompt])
    loop = Loop(found, noise=lambda chunk, step, shape: normal(0, chunk, step, tuple(shape)))
    loop.open()
    state = StreamState(found.prompt, seed=0, steps=2, width=64, height=32)
    session = Session(found.runner, stream, state, model=name, fps=8.0)
    for _ in range(4):  # the window, of 4 latent frames, moves on from the third chunk on
        ours, theirs = next(session), loop.chunk()
        assert theirs.shape == ours.frames.shape
        apart = np.abs(ours.frames.astype(int) - theirs.astype(int))
        assert apart.max() <= 1 and (apart > 0).mean() < 0.02
    assert ours.stats.passes == loop.contents.passes == 2 * (2 if guidance > 1 else 1) + 1
    assert len(loop.stages["dit"]) == 4 and loop.turn() == len(ours.frames)


def test_what_it_does_not_know_is_told(small: Small) -> None:
    found = small("wan2.1-1.3b")
    with pytest.raises(InputError, match="without sinks or anchors"):
        Loop(replace(found, stream=replace(found.stream, sinks=1)))
    assert "CogVideoXTransformer3DModel by ddim" in (refusal(small("cogvideox-2b")) or "")

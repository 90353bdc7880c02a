"""A whole stream on the triton road, interpreted, against the reference road."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor

from livereel.engine.config import StreamConfig
from livereel.engine.layers.road import Road
from livereel.engine.models.wan.transformer import WanTransformer, WanTransformerConfig
from livereel.engine.models.wan.vae import WanVAE
from livereel.engine.models.wan.vae_config import WanVAEConfig
from livereel.engine.runners.makers import GraphedMaker
from livereel.engine.runners.torch import TorchRunner
from livereel.engine.sampling.stream import StreamState
from livereel.engine.session import Session
from livereel.engine.state import load_state
from livereel.engine.types import Chunk

if TYPE_CHECKING:
    from ..conftest import Ran

CPU = torch.device("cpu")
CONFIG = StreamConfig(
    chunk_latents=2, first_chunk_latents=1, window=4, sinks=1, timesteps=(1000.0, 600.0),
    max_sequence_length=4, width=8, height=8,
)  # fmt: skip


@dataclass
class Letters:
    """Stands for a text encoder: a prompt's letters as numbers."""

    width: int = 12

    def encode(self, prompts: list[str], length: int) -> Tensor:
        letters = [ord(letter) for letter in prompts[0].ljust(length * self.width)]
        return torch.tensor(letters[: length * self.width]).view(1, length, self.width) / 100


def runner(road: Road) -> TorchRunner:
    torch.manual_seed(0)
    dit = WanTransformer(
        WanTransformerConfig(
            num_attention_heads=1, attention_head_dim=64, in_channels=4, out_channels=4,
            text_dim=12, freq_dim=32, ffn_dim=64, num_layers=1,
        )
    )  # fmt: skip
    vae = WanVAE(
        WanVAEConfig(
            base_dim=8, z_dim=4, dim_mult=(1,), num_res_blocks=1, temperal_downsample=(),
            latents_mean=(0.1,) * 4, latents_std=(1.5,) * 4,
        )
    )  # fmt: skip
    text: Any = Letters()
    return TorchRunner.on_road(road, dit.eval(), vae.eval(), text, CPU, torch.float32)


def open_session(runner: TorchRunner, **state: Any) -> Session:
    start = StreamState("a ball", seed=3, steps=2, width=4, height=4)
    return Session(runner, CONFIG, start, model="tiny", fps=16)


def take(session: Session, chunks: int) -> list[Chunk]:
    return list(islice(session, chunks))


def frames(chunks: list[Chunk]) -> Any:
    return np.concatenate([chunk.frames for chunk in chunks])


def restored(runner: TorchRunner, snapshot: bytes) -> Session:
    state, tensors, light = load_state(snapshot, model="tiny", layout=runner.layout)
    session = Session(runner, CONFIG, state, model="tiny", fps=16)
    session.adopt(tensors, light=light)
    return session


@pytest.mark.usefixtures("by_reference")
def test_a_stream_equals_the_reference_through_a_change_of_prompt() -> None:
    sessions = [open_session(runner(road)) for road in ("reference", "triton")]
    made = []
    for session in sessions:
        chunks = take(session, 3)
        session.update(prompt="a cube", recache=True)
        made.append([*chunks, *take(session, 2)])
    expected, ours = (frames(chunks).astype(int) for chunks in made)
    assert ours.shape == (9, 4, 4, 3) and np.ptp(ours) > 50
    assert abs(ours - expected).max() <= 1
    # The cache pass is not one of its own, unless a control is between it and the next.
    assert [chunk.stats.passes for chunk in made[0]] == [2, 3, 3, 3 + 3, 3]
    assert [chunk.stats.passes for chunk in made[1]] == [2, 2, 2, 3 + 3, 2]


@pytest.mark.interpreter
def test_the_kernels_do_the_same() -> None:
    expected, ours = (
        frames(take(open_session(runner(road)), 2)).astype(int) for road in ("reference", "triton")
    )
    assert abs(ours - expected).max() <= 1


@pytest.mark.usefixtures("by_reference")
def test_a_stream_goes_on_from_given_latents_as_on_the_reference_road() -> None:
    given = torch.randn(1, 4, 6, 4, 4)
    made = []
    for road in ("reference", "triton"):
        session = open_session(runner(road))
        session._state.given = given
        made.append(take(session, 5))
    expected, ours = (frames(chunks).astype(int) for chunks in made)
    assert np.ptp(ours) > 50 and abs(ours - expected).max() <= 1
    # Each given chunk's cache pass is one of its own; three chunks hold six latents.
    assert [chunk.stats.passes for chunk in made[1]] == [0, 1, 1, 2, 2]


@pytest.mark.usefixtures("by_reference")
def test_restored_equals_uninterrupted() -> None:
    model = runner("triton")
    session = open_session(model)
    snapshots = []
    for _ in range(3):
        snapshots.append(session.snapshot())
        take(session, 1)
    after = frames(take(session, 1))
    for done, snapshot in enumerate(snapshots):
        assert np.array_equal(frames(take(restored(model, snapshot), 4 - done))[-2:], after)


@pytest.mark.usefixtures("by_reference")
def test_a_snapshot_of_another_road_is_taken_for_a_light_one() -> None:
    reference, triton = runner("reference"), runner("triton")
    session = open_session(reference)
    take(session, 2)
    exact, light = session.snapshot(), session.snapshot(light=True)
    assert np.array_equal(
        frames(take(restored(triton, exact), 1)), frames(take(restored(triton, light), 1))
    )


@pytest.mark.interpreter
def test_a_chunk_runs_in_the_kernels(ran: Callable[[], Ran]) -> None:
    session = open_session(runner("triton"))
    take(session, 1)
    with ran() as steps:
        take(session, 1)
    assert steps.ops == {
        "norm_modulate": 2 * 2,
        "gate_residual": 2,
        "residual_norm": 2 * 2,
        "qk_norm_rope": 2,
        "chunk_attention": 2,
        "causal_conv3d": 2 * 4 + 3,
        "rms_norm_silu": 1,
        "to_pixels": 1,
    }


class StandIn:
    """A GPU's graphs and streams on the CPU: a graph is its function, with results in place."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.captured = 0

    def capture(self, function: Callable[[], Tensor], *, beside: bool = False) -> Any:
        name = "decode" if beside else f"graph {self.captured}"
        self.captured += not beside
        results = function()

        def replay() -> None:
            self.log.append(name)
            results.copy_(function())

        return results, replay

    def beside(self) -> AbstractContextManager[None]:
        return nullcontext()

    def arrival(self) -> Callable[[], None]:
        return lambda: self.log.append("frames")

    def pinned(self, like: Tensor) -> Tensor:
        return torch.empty_like(like)


def graphed(model: TorchRunner, gpu: StandIn) -> Session:
    session = open_session(model)
    session._generator._maker = GraphedMaker(model, session._sampler, gpu)
    return session


@pytest.mark.usefixtures("by_reference")
def test_graphs_give_the_same_frames_whatever_comes_between() -> None:
    model, gpu = runner("triton"), StandIn()
    plain, replayed = open_session(model), graphed(model, gpu)
    for chunk in range(16):
        for session in (plain, replayed):
            if chunk == 5:
                session.update(prompt="a cube")
            if chunk == 7:
                session.update(prompt="a cone", recache=True)
            if chunk == 9:
                session.update(steps=1)
            if chunk == 12:
                session.reset()
        expected, ours = take(plain, 1)[0], take(replayed, 1)[0]
        assert np.array_equal(ours.frames, expected.frames), chunk
        assert ours.stats.passes == expected.stats.passes
    after = take(restored(model, replayed.snapshot()), 2)
    assert np.array_equal(frames(after), frames(take(plain, 2)))


@pytest.mark.usefixtures("by_reference")
def test_the_next_first_pass_is_begun_before_frames_are_waited_for() -> None:
    gpu = StandIn()
    session = graphed(runner("triton"), gpu)
    take(session, 7)
    gpu.log.clear()
    take(session, 3)
    assert gpu.log == ["graph 1", "decode", "graph 0", "frames"] * 3
    session.update(seed=4)  # what was begun is dropped
    take(session, 1)
    assert gpu.log[12:] == ["decode", "graph 0", "frames"]


@pytest.mark.usefixtures("by_reference")
def test_a_chunk_whose_decoding_failed_is_made_once_more() -> None:
    model, gpu = runner("triton"), StandIn()
    plain, replayed = take(open_session(model), 9), graphed(model, gpu)
    take(replayed, 6)
    maker: Any = replayed._generator._maker
    begin_ahead, maker.ahead = maker.ahead, None  # raises TypeError
    with pytest.raises(TypeError):
        next(replayed)
    maker.ahead = begin_ahead
    assert np.array_equal(frames(take(replayed, 3)), frames(plain[6:]))

"""Control on the road whose passes write into the ring, and in graphs that are replayed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from livereel.engine.config import StreamConfig
from livereel.engine.layers.road import Road
from livereel.engine.models.wan.control import with_control
from livereel.engine.models.wan.transformer import WanTransformer, WanTransformerConfig
from livereel.engine.models.wan.vae import WanVAE
from livereel.engine.models.wan.vae_config import WanVAEConfig
from livereel.engine.runners.makers import GraphedMaker
from livereel.engine.runners.torch import TorchRunner
from livereel.engine.sampling.stream import StreamState
from livereel.engine.session import Session

CPU = torch.device("cpu")
CONFIG = StreamConfig(
    chunk_latents=2, first_chunk_latents=1, window=4, sinks=1, timesteps=(1000.0, 600.0),
    max_sequence_length=4, width=8, height=8, control_channels=1,
)  # fmt: skip
TRACK = [(0.1 * i, 1 - 0.1 * i) for i in range(8)]


class Text:
    """Stands for a text encoder."""

    width = 12

    def encode(self, prompts: list[str], length: int) -> Tensor:
        return torch.linspace(-1, 1, length * 12).view(1, length, 12)


def open_session(road: Road) -> Session:
    """A model with a frame for each latent frame, which heeds its control."""
    torch.manual_seed(0)
    plain = WanTransformer(
        WanTransformerConfig(
            num_attention_heads=1, attention_head_dim=64, in_channels=4, out_channels=4,
            text_dim=12, freq_dim=32, ffn_dim=64, num_layers=1,
        )
    )  # fmt: skip
    dit = with_control(plain, 1)
    torch.nn.init.normal_(dit.patch_embedding.weight.data[:, 4:])
    vae = WanVAE(
        WanVAEConfig(
            base_dim=8, z_dim=4, dim_mult=(1,), num_res_blocks=1, temperal_downsample=(),
            latents_mean=(0.1,) * 4, latents_std=(1.5,) * 4,
        )
    )  # fmt: skip
    text: Any = Text()
    runner = TorchRunner.on_road(road, dit.eval(), vae.eval(), text, CPU, torch.float32)
    start = StreamState("a ball", seed=3, steps=2, width=4, height=4)
    return Session(runner, CONFIG, start, model="tiny", fps=16)


class Graphs:
    """A GPU's graphs on the CPU: a graph is its function, with results in place."""

    def capture(self, function: Callable[[], Tensor], *, beside: bool = False) -> Any:
        results = function()
        return results, lambda: results.copy_(function())

    def beside(self) -> AbstractContextManager[None]:
        return nullcontext()

    def arrival(self, *_: Tensor) -> Callable[[], None]:
        return lambda: None

    def pinned(self, like: Tensor) -> Tensor:
        return torch.empty_like(like)


def led(session: Session, chunks: int) -> np.ndarray:
    """Frames of a stream that is led along a track, elsewhere from its eighth chunk on, and let go
    from its twelfth on."""
    made = []
    for chunk in range(chunks):
        control = {0: TRACK, 7: (0.9, 0.2), 11: ()}.get(chunk)
        if control is not None:
            session.update(control=control)  # type: ignore[arg-type]
        made += [one.frames for one in islice(session, 1)]
    return np.concatenate(made)


@pytest.mark.usefixtures("by_reference")
def test_a_led_stream_is_the_same_in_the_ring_and_over_a_gathered_past() -> None:
    expected, ours = (led(open_session(road), 9).astype(int) for road in ("reference", "triton"))
    assert np.ptp(ours) > 50 and np.abs(ours - expected).max() <= 1
    free = np.concatenate([c.frames for c in islice(open_session("triton"), 9)])
    assert np.abs(ours - free).max() > 1


@pytest.mark.usefixtures("by_reference")
def test_replayed_graphs_are_given_each_chunk_s_own_control() -> None:
    plain, replayed = open_session("triton"), open_session("triton")
    gpu: Any = Graphs()
    replayed._generator._maker = GraphedMaker(replayed._runner, replayed._sampler, gpu)
    assert np.array_equal(led(replayed, 14), led(plain, 14))

"""The DiT that works in the ring against the one whose past is gathered, and which ops it ran."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from livereel.engine.config import StreamConfig
from livereel.engine.models.wan.in_ring import InRing
from livereel.engine.models.wan.transformer import WanTransformer, WanTransformerConfig
from livereel.engine.sampling.gathered import Gathered
from livereel.engine.sampling.stream import StreamSampler, StreamState
from livereel.engine.types import StreamDenoiser

if TYPE_CHECKING:
    from ...conftest import Ran

SIZE = (2, 4)
LAYERS, TEXT = 2, 12
CPU = torch.device("cpu")


def tiny_dit() -> WanTransformer:
    torch.manual_seed(0)
    config = WanTransformerConfig(
        num_attention_heads=1, attention_head_dim=64, in_channels=4, out_channels=4,
        text_dim=TEXT, freq_dim=32, ffn_dim=64, num_layers=LAYERS,
    )  # fmt: skip
    dit = WanTransformer(config).eval()
    for name, p in dit.named_parameters():
        if "norm" in name or name.endswith("bias"):
            torch.nn.init.normal_(p, mean=float("norm" in name), std=0.3)
    return dit


def sampler(denoiser: StreamDenoiser, **changes: Any) -> StreamSampler:
    recipe = {"window": 6, "timesteps": [1000.0, 600.0], "first_chunk_latents": 1, **changes}
    config = StreamConfig.from_dict(recipe)
    return StreamSampler(
        denoiser=denoiser, config=config, channels=4, size=SIZE, device=CPU,
        dtype=torch.float32, warm_up=1,
    )  # fmt: skip


@torch.inference_mode()
def streamed(loop: StreamSampler, chunks: int, *, joined: bool) -> list[Tensor]:
    """Latents of a stream's first chunks; cache passes are joined with those behind, or not."""
    torch.manual_seed(1)
    texts = [loop.denoiser.text_kv(torch.randn(1, 5, TEXT)) for _ in range(2)]
    text, negative = texts[0], texts[1] if loop.config.guidance_scale > 1 else None
    state = StreamState("", 3, len(loop.config.timesteps), 48, 32)
    made = []
    for _ in range(chunks):
        if not joined:
            loop.remember(state, text)
        made.append(loop.sample(state, text, negative))
        loop.keep(state, made[-1])
    return made


RECIPES: list[dict[str, Any]] = [
    {"window": 3},
    {"sinks": 2, "window": 4, "chunk_latents": 2, "context_noise": 50.0},
    {"sinks": 5, "window": 3},
    {"anchors": 2, "anchor_every": 4, "window": 4},
    {"anchors": 3, "anchor_every": 2, "window": 3, "sinks": 2},
    {"anchors": 1, "anchor_every": 1, "window": 5, "chunk_latents": 2},
    {"guidance_scale": 3.0, "window": 7, "chunk_latents": 5},
]


def check(changes: dict[str, Any], *, joined: bool, chunks: int) -> None:
    dit = tiny_dit()
    expected = streamed(sampler(Gathered(dit), **changes), chunks, joined=False)
    ours = streamed(sampler(InRing(dit), **changes), chunks, joined=joined)
    for own, wanted in zip(ours, expected, strict=True):
        torch.testing.assert_close(own, wanted, rtol=0, atol=2e-5)


@pytest.mark.usefixtures("by_reference")
@pytest.mark.parametrize("joined", [False, True])
@pytest.mark.parametrize("changes", RECIPES)
def test_a_stream_in_the_ring_equals_one_with_a_gathered_past(
    changes: dict[str, Any], joined: bool
) -> None:
    check(changes, joined=joined, chunks=8)


@pytest.mark.interpreter
@pytest.mark.parametrize(
    "changes",
    [
        {"sinks": 1, "window": 4, "chunk_latents": 2, "context_noise": 50.0},
        {"guidance_scale": 3.0, "window": 2, "chunk_latents": 1},
    ],
)
def test_the_kernels_do_the_same(changes: dict[str, Any]) -> None:
    check(changes, joined=True, chunks=5)


@pytest.mark.interpreter
@torch.inference_mode()
def test_each_op_runs_in_the_kernels(ran: Callable[[], Ran]) -> None:
    dit = tiny_dit()
    loop = sampler(InRing(dit))
    text = loop.denoiser.text_kv(torch.randn(1, 5, TEXT))
    state = StreamState("", 3, 2, 48, 32)
    with ran() as first:
        loop.keep(state, loop.sample(state, text, None))
    per_pass = {
        "norm_modulate": 3 * LAYERS + 1,
        "gate_residual": 2 * LAYERS,
        "qk_norm_rope": LAYERS,
        "chunk_attention": LAYERS,
    }
    assert first.ops == {name: 2 * count for name, count in per_pass.items()}
    with ran() as steady:  # the cache pass is not one of its own
        loop.sample(state, text, None)
    assert steady.ops == first.ops


@pytest.mark.usefixtures("by_reference")
@torch.inference_mode()
def test_a_failed_pass_leaves_what_a_retry_reads() -> None:
    """The ring has room for the chunk before to be cached once more."""
    loop = sampler(InRing(tiny_dit()), window=3, sinks=1)
    text = loop.denoiser.text_kv(torch.randn(1, 5, TEXT))
    state = StreamState("", 3, 2, 48, 32)
    for _ in range(3):
        loop.keep(state, loop.sample(state, text, None))
    before = StreamState(**vars(state))
    first = loop.sample(state, text, None)
    assert torch.equal(loop.sample(before, text, None), first)


def test_heads_that_the_kernels_do_not_take_are_known_beforehand() -> None:
    assert InRing.fits(WanTransformerConfig())
    assert not InRing.fits(WanTransformerConfig(attention_head_dim=24))
    with torch.device("meta"):
        narrow = WanTransformer(WanTransformerConfig(attention_head_dim=24, num_layers=1))
    assert narrow.in_ring() is None

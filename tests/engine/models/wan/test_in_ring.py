"""The DiT that works in the ring against the one whose past is gathered, and which ops it ran."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from livereel.engine.config import StreamConfig
from livereel.engine.layers.linear_fp8 import convert_linears
from livereel.engine.models.wan.in_ring import InRing, _Norm, _normed
from livereel.engine.models.wan.transformer import WanTransformer, WanTransformerConfig
from livereel.engine.sampling.gathered import Gathered
from livereel.engine.sampling.stream import StreamSampler, StreamState
from livereel.engine.sampling.window import KVRing, window_of
from livereel.engine.types import LayerKV, Place, StreamDenoiser

if TYPE_CHECKING:
    from ...conftest import Ran

SIZE = (2, 4)
LAYERS, TEXT = 2, 12
CPU = torch.device("cpu")


def tiny_dit(layers: int = LAYERS) -> WanTransformer:
    torch.manual_seed(0)
    config = WanTransformerConfig(
        num_attention_heads=1, attention_head_dim=64, in_channels=4, out_channels=4,
        text_dim=TEXT, freq_dim=32, ffn_dim=64, num_layers=layers,
    )  # fmt: skip
    dit = WanTransformer(config).eval()
    for name, p in dit.named_parameters():
        if "norm" in name or name.endswith("bias"):
            torch.nn.init.normal_(p, mean=float("norm" in name), std=0.3)
    return dit


def halved(dit: WanTransformer) -> WanTransformer:
    """In bfloat16, but for what is kept in fp32."""
    for name, p in dit.named_parameters():
        if not any(part in name for part in WanTransformer.keep_in_fp32):
            p.data = p.data.bfloat16()
    return dit


def sampler(
    denoiser: StreamDenoiser, dtype: torch.dtype = torch.float32, **changes: Any
) -> StreamSampler:
    recipe = {"window": 6, "timesteps": [1000.0, 600.0], "first_chunk_latents": 1, **changes}
    config = StreamConfig.from_dict(recipe)
    return StreamSampler(
        denoiser=denoiser, config=config, channels=4, size=SIZE, device=CPU,
        dtype=dtype, warm_up=1,
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
        "norm_modulate": 2,  # in front of the first block and behind the last
        "gate_residual": 1,
        "residual_norm": 3 * LAYERS - 1,
        "qk_norm_rope": LAYERS,
        "chunk_attention": LAYERS,
    }
    assert first.ops == {name: 2 * count for name, count in per_pass.items()}
    with ran() as steady:  # the cache pass is not one of its own
        loop.sample(state, text, None)
    assert steady.ops == first.ops


class Launches(TorchDispatchMode):
    """What makes a tensor: on a GPU each is a kernel. Views of other tensors are none."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.partition("::")[2]
        if not func.is_view and name not in ("_unsafe_view", "detach", "sym_size"):
            self.names.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("fp8", [False, True])
@torch.no_grad()
def test_a_block_launches_no_more_kernels_than_it_must(
    fp8: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted on tensors without memory; torch's RMS norm and attention are one kernel on a GPU."""
    config = WanTransformerConfig(num_attention_heads=2, ffn_dim=512, num_layers=3)
    with torch.device("meta"):
        dit = halved(WanTransformer(config))
    if fp8:
        convert_linears(dit, keep=dit.keep_in_bf16, road="triton")
    with Launches() as counted:
        for name in ("rms_norm", "scaled_dot_product_attention"):

            def once(x: Tensor, *_: Any, name: str = name) -> Tensor:
                counted.names.append(name)
                return x

            monkeypatch.setattr(torch.nn.functional, name, once)
        meta = torch.device("meta")
        window = window_of(StreamConfig.from_dict({"window": 6, "timesteps": [1000.0]}))
        ring = KVRing.empty(window, (3, 6, 8, 2, 128), device=meta, dtype=torch.bfloat16)
        one = InRing(dit).at([Place(3, 3, (0, 1, 2))], ring, 4, 8)
        x = torch.empty(1, 3, 8, 256, dtype=torch.bfloat16, device=meta)
        table = torch.empty(1, 1, 6, 1, 256, device=meta)
        words = torch.empty(1, 5, 2, 128, dtype=torch.bfloat16, device=meta)
        space = torch.empty(8, 42, 2, device=meta)
        norm = _Norm(table[:, :, 1], table[:, :, 0], 1e-6, 1.0, one.dit.qkv[1].layers)
        ready = _normed(x, norm)
        counted.names.clear()
        one._block(1, x, ready, table, norm, LayerKV(words, words), space)
    product = ["quantize_rows", "_scaled_mm"] if fp8 else ["addmm"]
    added, summed = (
        [name, "norm_modulate_fp8"] if fp8 else ["residual_norm"]
        for name in ("gate_residual", "add")
    )
    assert counted.names == [
        product[-1], "qk_norm_rope", "chunk_attention", *product, *added,
        product[-1], "rms_norm", "scaled_dot_product_attention", *product, *summed,
        product[-1], "gelu", *product, *added,
    ]  # fmt: skip


@pytest.mark.usefixtures("by_reference")
@torch.inference_mode()
def test_a_stream_in_fp8_is_close_to_one_whose_past_is_gathered() -> None:
    """The ring's norms are quantized before they are rounded to bfloat16, the other's behind."""
    dit = halved(tiny_dit(layers=4))
    convert_linears(dit, keep=dit.keep_in_bf16)
    expected = streamed(sampler(Gathered(dit), dtype=torch.bfloat16), 3, joined=False)
    ours = streamed(sampler(InRing(dit), dtype=torch.bfloat16), 3, joined=True)
    for own, wanted in zip(ours, expected, strict=True):
        assert (own - wanted).norm() / wanted.norm() < 0.1


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

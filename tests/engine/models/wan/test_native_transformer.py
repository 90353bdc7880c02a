"""The DiT on the C++ core's kernels against the modules in fp32."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from livereel.engine import native
from livereel.engine.errors import InputError
from livereel.engine.layers import packed
from livereel.engine.models.wan.native_transformer import NativeTransformer
from livereel.engine.models.wan.transformer import WanTransformer

pytestmark = pytest.mark.skipif(not native.dot_supported(), reason="no AVX512-BF16 here")

TINY: dict[str, Any] = dict(
    num_attention_heads=2, attention_head_dim=24, in_channels=4, out_channels=6, text_dim=12,
    freq_dim=32, ffn_dim=64, num_layers=3,
)  # fmt: skip


def pair(**changes: Any) -> tuple[WanTransformer, NativeTransformer]:
    """In fp32, and the same weights on the kernels; they are such as bfloat16 has."""
    torch.manual_seed(0)
    wide = WanTransformer.from_config(TINY | changes).eval().requires_grad_(False)
    for name, p in wide.named_parameters():
        if "norm" in name or name.endswith("bias"):
            torch.nn.init.normal_(p, mean=float("norm" in name), std=0.3)
        p.copy_(p.bfloat16())
    half = WanTransformer.from_config(TINY | changes).eval().requires_grad_(False)
    half.load_state_dict(wide.state_dict())
    for name, p in half.named_parameters():
        if not any(kept in name for kept in WanTransformer.keep_in_fp32):
            p.data = p.bfloat16()
    fast = half.native()
    assert fast is not None
    return wide, fast


def check(got: Tensor, wanted: Tensor) -> None:
    """Equal as far as bfloat16 goes."""
    assert got.shape == wanted.shape and got.dtype == torch.bfloat16
    assert float((got.float() - wanted).norm() / wanted.norm()) <= 2e-2


@pytest.mark.parametrize("cross_attn_norm", [True, False])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("times", [1, 2])
@torch.inference_mode()
def test_chunks_with_a_past(cross_attn_norm: bool, batch: int, times: int) -> None:
    wide, fast = pair(cross_attn_norm=cross_attn_norm)
    text = torch.randn(batch, 7, 12).bfloat16()
    old = torch.randn(batch, 4, 3, 6, 10).bfloat16()
    x = torch.randn(batch, 4, 2, 6, 10).bfloat16()
    zero, t = torch.zeros(batch), torch.rand(batch, times) * 1000
    flows, kept = [], []
    for dit, kind in ((wide, torch.float32), (fast, torch.bfloat16)):
        kv = dit.text_kv(text.to(kind))
        first, clean = dit.chunk(old.to(kind), zero, kv, None)
        second, own = dit.chunk(x.to(kind), t, kv, dit.past(3, 6, 10, clean))
        flows.append((first, second))
        kept.append((*clean, *own))
    for wanted, got in zip(*flows, strict=True):
        check(got, wanted)
    for wanted, got in zip(*kept, strict=True):
        check(got.k, wanted.k)
        check(got.v, wanted.v)


@torch.inference_mode()
def test_keys_and_values_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    _, fast = pair()
    kv = fast.text_kv(torch.randn(1, 7, 12).bfloat16())
    x = torch.randn(1, 4, 2, 6, 10).bfloat16()
    _, wanted = fast.chunk(x, torch.zeros(1), kv, None)
    calls: list[str] = []
    plain = native.attention

    def counted(*arguments: Any) -> None:
        calls.append("attention")
        plain(*arguments)

    monkeypatch.setattr(packed.native, "attention", counted)
    got = fast.keys_values(x.clone(), torch.zeros(1), kv, None)
    assert len(calls) == 2 * 2  # none in the last of three layers
    for a, b in zip(got, wanted, strict=True):
        assert torch.equal(a.k, b.k) and torch.equal(a.v, b.v)


@torch.inference_mode()
def test_noise_levels_are_kept_apart() -> None:
    _, fast = pair()
    kv = fast.text_kv(torch.randn(1, 7, 12).bfloat16())
    x = torch.randn(1, 4, 2, 6, 10).bfloat16()
    levels = [torch.tensor([900.0]), torch.tensor([900.0, 100.0]).view(1, 2), torch.tensor([100.0])]
    first = [fast.chunk(x, t, kv, None)[0] for t in levels]
    for t in torch.rand(100, 1) * 1000:  # more than are kept
        fast.chunk(x[:, :, :1, :2, :2], t, kv, None)
    for t, flow in zip(levels, first, strict=True):
        assert torch.equal(fast.chunk(x, t, kv, None)[0], flow)
    assert not torch.equal(first[0], first[2])


@torch.inference_mode()
def test_a_clip_alone_and_in_a_batch() -> None:
    _, fast = pair()
    text, x = torch.randn(3, 7, 12).bfloat16(), torch.randn(3, 4, 2, 6, 10).bfloat16()
    t = torch.tensor([900.0, 500.0, 1.0])
    both, _ = fast.chunk(x, t, fast.text_kv(text), None)
    for i in range(3):
        lone = slice(i, i + 1)
        alone, _ = fast.chunk(x[lone], t[lone], fast.text_kv(text[lone]), None)
        assert (both[lone] - alone).abs().max() <= 2**-6 * alone.abs().max()


def test_what_the_kernels_cannot_run_is_left_to_torch() -> None:
    for changes, dtype in (
        ({}, torch.float32),
        ({"ffn_dim": 65}, torch.bfloat16),
        ({"in_channels": 3, "patch_size": (1, 1, 1)}, torch.bfloat16),
    ):
        model = WanTransformer.from_config(TINY | changes).to(dtype)
        assert model.native() is None


def test_latents_that_patches_do_not_tile() -> None:
    _, fast = pair()
    kv = fast.text_kv(torch.randn(1, 7, 12).bfloat16())
    with pytest.raises(InputError, match="multiples of 2 and 2"):
        fast.chunk(torch.zeros(1, 4, 1, 5, 4), torch.zeros(1), kv, None)


@torch.inference_mode()
def test_passes_over_the_same_latents_share_what_text_has_no_part_in() -> None:
    _, fast = pair()
    texts = [fast.text_kv(torch.randn(1, 7, 12).bfloat16()) for _ in range(2)]
    x, zero = torch.randn(1, 4, 2, 6, 10).bfloat16(), torch.zeros(1)
    past = fast.past(2, 6, 10, fast.keys_values(x, zero, texts[0], None))
    for t in (torch.tensor([700.0]), torch.tensor([300.0])):
        for seen in (past, None):
            shared = [fast.chunk(x, t, text, seen) for text in texts]
            for (flow, own), text in zip(shared, texts, strict=True):
                alone, kept = fast.chunk(x.clone(), t, text, seen)
                assert flow.equal(alone)
                assert all(
                    a.k.equal(b.k) and a.v.equal(b.v) for a, b in zip(own, kept, strict=True)
                )
    assert not shared[0][0].equal(shared[1][0])

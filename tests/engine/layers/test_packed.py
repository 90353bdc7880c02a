"""The layers on the C++ core's bfloat16 kernels against their formulas in fp64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from livereel.engine import native
from livereel.engine.layers import packed, rope
from livereel.engine.layers.causal_conv import CacheTape, CausalConv3d
from livereel.engine.layers.norm import ChannelRMSNorm
from livereel.engine.layers.upsample import Upsample2xConv

pytestmark = pytest.mark.skipif(not native.dot_supported(), reason="no AVX512-BF16 here")


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def halves(*shape: int) -> Tensor:
    return torch.randn(shape).bfloat16()


def module(made: nn.Module) -> nn.Module:
    """In bfloat16, with biases and gains that are worth seeing."""
    for weight in made.parameters():
        if weight.ndim == 1:
            nn.init.normal_(weight)
    return made.bfloat16().requires_grad_(False)


def check(got: Tensor, wanted: Tensor, roundings: int = 1) -> None:
    """Equal but for roundings to bfloat16, and the inner products' in fp32."""
    assert got.dtype == torch.bfloat16 and got.shape == wanted.shape
    bound = roundings * 2**-8 * wanted.abs() + 2**-9 * wanted.square().mean().sqrt()
    assert ((got.double() - wanted).abs() <= bound).all()


@pytest.mark.parametrize(("rows", "depth"), [(1, 2), (13, 34), (192, 256)])
def test_linear(rows: int, depth: int) -> None:
    layers = [module(nn.Linear(depth, width)) for width in (5, 48, 7)]
    x, gate = halves(rows, depth), torch.randn(rows, 60)
    wanted = torch.cat([layer.double()(x.double()) for layer in layers], dim=1)
    linear = packed.PackedLinear(*(layer.bfloat16() for layer in layers))
    check(linear(x), wanted)
    check(linear(x, gelu=True), F.gelu(wanted, approximate="tanh"))
    residual = halves(rows, 60)
    total = residual.double() + gate.double() * wanted
    linear.add_to(residual, x, gate)
    check(residual, total)
    total = residual.double() + wanted
    linear.add_to(residual, x)
    check(residual, total)


def test_a_gate_for_each_group_of_rows() -> None:
    layer = module(nn.Linear(6, 10))
    x, gate, residual = halves(12, 6), torch.randn(3, 10), halves(12, 10)
    wanted = residual.double() + gate.repeat_interleave(4, 0) * layer.double()(x.double())
    packed.PackedLinear(layer.bfloat16()).add_to(residual, x, gate)
    check(residual, wanted)


@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("groups", [1, 3])
def test_norm_modulate(groups: int, offset: float) -> None:
    x, (scale, shift) = halves(12, 50) * 3 + 1, torch.randn(2, groups, 50)
    rows = 12 // groups
    wanted = F.layer_norm(x.double(), (50,), eps=1e-6) * (offset + scale).repeat_interleave(rows, 0)
    wanted = wanted + shift.repeat_interleave(rows, 0)
    check(packed.norm_modulate(x, scale, shift, 1e-6, offset=offset), wanted)


def rms(x: Tensor, gain: Tensor) -> Tensor:
    return x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-6).sqrt() * gain


def test_rms_norm() -> None:
    x, gain = halves(7, 40), torch.randn(40)
    check(packed.rms_norm(x, gain, 1e-6), rms(x, gain))


@pytest.mark.parametrize("head", [6, 64])
def test_queries_and_keys_are_normed_and_rotated(head: int) -> None:
    table = rope.rope_table(2, 2, 2, 3, head, device=torch.device("cpu"))
    wide = rope.RopeTable(table.cos.double(), table.sin.double())
    qkv, (q_gain, k_gain) = halves(24, 9 * head), torch.randn(2, 3 * head)  # two clips of 12 tokens
    q, k, rotated = packed.qk_norm_rotate(qkv, q_gain, k_gain, 1e-6, table)

    def turned(x: Tensor) -> Tensor:
        return rope.rotate(x.view(2, 12, 3, head), wide).view(24, -1)

    queries, keys, _ = qkv.chunk(3, dim=1)
    check(q, turned(rms(queries, q_gain)))
    check(k, rms(keys, k_gain))
    check(rotated, turned(rms(keys, k_gain)))
    check(packed.rotate(q.view(2, 12, 3, head), table).view(24, -1), turned(q.double()))


@pytest.mark.parametrize("head", [6, 64])
@pytest.mark.parametrize("pieces", [(1,), (12, 33), (0, 40)])
def test_attention(head: int, pieces: tuple[int, ...]) -> None:
    q, out = halves(17, 3, head), torch.full((17, 3, head), torch.nan).bfloat16()
    keys = [halves(tokens, 3, head) for tokens in pieces]
    values = [halves(tokens, 3, 2 * head)[..., :head] for tokens in pieces]  # with gaps
    packed.attention(q, keys, values, out)
    k, v = (torch.cat(parts).double().transpose(0, 1) for parts in (keys, values))
    scores = q.double().transpose(0, 1) @ k.transpose(1, 2) / head**0.5
    wanted = (scores.softmax(-1) @ v).transpose(0, 1)
    # The weights are rounded to bfloat16, too.
    assert (out.double() - wanted).abs().max() <= 2**-8 * v.abs().max()


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("kernel", [(3, 3, 3), (3, 1, 1), (1, 3, 3)])
@pytest.mark.parametrize(("inside", "outside"), [(16, 16), (6, 40), (64, 12)])
def test_causal_convolution_in_parts(
    inside: int, outside: int, kernel: tuple[int, int, int], norm: bool
) -> None:
    conv = module(CausalConv3d(inside, outside, kernel))
    before = module(ChannelRMSNorm(inside, 3)) if norm else None
    layer = packed.PackedCausalConv(conv, before)  # type: ignore[arg-type]
    x, residual = halves(4, 5, 7, inside), halves(4, 5, 7, outside)
    y, parts, caches = x.permute(3, 0, 1, 2)[None].double(), [], None
    if before is not None:
        y = F.silu(before.double()(y))
    y = y if norm is False else y.bfloat16().double()  # what the convolution is given is rounded
    wanted = conv.double().step(y, CacheTape(None))[0].permute(1, 2, 3, 0) + residual  # type: ignore[operator]
    for part, added in zip(x.split([1, 3]), residual.split([1, 3]), strict=True):
        tape = CacheTape(caches)
        parts.append(layer.step(part, tape, added))
        caches = tape.caches()
    check(torch.cat(parts), wanted, 4)
    assert caches is not None and caches[0].shape == (1, inside, kernel[0] - 1, 5, 7)
    check(caches[0][0], y[0, :, 5 - kernel[0] :], 2)


def test_upsampling_convolution() -> None:
    conv = module(Upsample2xConv(10, 20))
    x = halves(2, 3, 5, 10)
    taps = conv.bfloat16()
    larger = x.double().permute(0, 3, 1, 2).repeat_interleave(2, 2).repeat_interleave(2, 3)
    wanted = F.conv2d(larger, taps.weight.double(), taps.bias.double(), padding=1)  # type: ignore[operator, union-attr]
    got = packed.PackedUpsample2xConv(conv).step(x, CacheTape(None))  # type: ignore[arg-type]
    # Sums of taps are rounded to bfloat16.
    assert (got.double() - wanted.permute(0, 2, 3, 1)).abs().max() <= 2**-7 * wanted.abs().max()


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_patches_become_pixels(patch: int) -> None:
    x = halves(2, 3, 5, 3 * patch**2)
    wanted = x.view(2, 3, 5, 3, patch, patch).permute(0, 1, 5, 2, 4, 3)
    wanted = wanted.reshape(2, 3 * patch, 5 * patch, 3).clamp(-1, 1)
    assert torch.equal(packed.unfold(x, patch), wanted)


def test_bytes() -> None:
    x = (torch.rand(2, 3, 4, 5, 7) * 2.4 - 1.2).bfloat16()
    got = packed.to_bytes(x)
    wanted = ((x.double().clamp(-1, 1) + 1) * 127.5).permute(0, 2, 3, 4, 1)
    assert got.dtype == torch.uint8 and got.is_contiguous()
    assert (got.double() - wanted).abs().max() <= 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_bfloat16_models_of_some_size_are_affordable(dtype: torch.dtype) -> None:
    assert packed.affordable(nn.Linear(4, 4).to(dtype)) == (dtype == torch.bfloat16)
    with torch.device("meta"):
        assert not packed.affordable(nn.Linear(1 << 14, 1 << 14).to(dtype))


def test_rows_do_not_depend_on_their_neighbors() -> None:
    linear = packed.PackedLinear(module(nn.Linear(32, 48)))
    x = halves(29, 32)
    assert torch.equal(linear(x), torch.cat([linear(row) for row in x.split(1)]))
